"""From raw rows to features, and the split of rows into the parts of a training."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import ConfigError, StorageError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.build import build_features, build_features_day, feature_columns
from ae_pipeline.features.split import GATE, PARTS, cut_window
from ae_pipeline.ingestion.contract import POLARS_TYPES, ColumnRule, SchemaContract
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from tests.support.datasets import DAY, HEADER, REMEDY, assert_says, leftovers, line, make_dataset

ROOT = Path("nowhere")
MOMENT = dt.datetime(2024, 3, 1, 10, tzinfo=dt.UTC)


def features_of(values: dict[str, tuple[str, list[Any]]], **settings: Any) -> pl.DataFrame:
    """Build features of raw columns, given as contract type and values."""
    contract = contract_of({name: kind for name, (kind, _) in values.items()})
    count = len(next(iter(values.values()))[1])
    raw = pl.DataFrame(
        {
            **{name: pl.Series(name, v, dtype=POLARS_TYPES[ColumnType(kind)]) for name, (kind, v) in values.items()},
            "row_id": [str(number) for number in range(count)],
            "event_time": [MOMENT] * count,
        }
    )
    return build_features(raw, make_dataset(ROOT, **settings).config, contract)


def contract_of(types: dict[str, str]) -> SchemaContract:
    """Return a contract with column types only."""
    return SchemaContract(dataset="shop", columns={name: ColumnRule(type=ColumnType(t)) for name, t in types.items()})


def test_clocks_become_minutes_after_midnight_and_2400_is_0() -> None:
    clocks = [0, 1, 59, 100, 1745, 2359, 2400, None]
    minutes = features_of({"due": ("clock_hhmm", clocks)})["due"]
    assert minutes.to_list() == [0.0, 1.0, 59.0, 60.0, 17 * 60 + 45.0, 1439.0, 0.0, None]
    assert minutes.dtype == pl.Float64()


@pytest.mark.parametrize(("kind", "values"), [("integer", [1, -2, 2**40]), ("number", [0.5, -2.25, 1e300])])
def test_numbers_are_float64_with_gaps_and_without(kind: str, values: list[float]) -> None:
    whole = features_of({"n": (kind, values)})["n"]
    gaps = features_of({"n": (kind, [*values, None])})["n"]
    assert (whole.dtype, gaps.dtype) == (pl.Float64(), pl.Float64())
    assert whole.to_list() == [float(value) for value in values]
    assert gaps.to_list() == [*whole.to_list(), None]


@pytest.mark.parametrize("kind", ["text", "category"])
def test_text_is_stripped_and_empty_text_is_missing(kind: str) -> None:
    texts = features_of({"t": (kind, [" a b ", "\tc", "", "   ", None])})["t"]
    assert texts.to_list() == ["a b", "c", None, None, None]


def test_booleans_dates_and_timestamps_are_unchanged() -> None:
    day = dt.date(2024, 2, 29)
    built = features_of(
        {"b": ("boolean", [True, None]), "d": ("date", [day, None]), "s": ("timestamp", [MOMENT, None])}
    )
    assert built.select("b", "d", "s").rows() == [(True, day, MOMENT), (None, None, None)]


def test_excluded_columns_can_be_used_in_derived_ones() -> None:
    built = features_of(
        {"price": ("number", [6.0]), "items": ("integer", [4])}, exclude=["price"], derive={"each": "price / items"}
    )
    assert built.columns == ["row_id", "event_time", "items", "each"]
    assert built["each"].to_list() == [1.5]


def test_derived_columns_use_clocks_in_minutes() -> None:
    built = features_of(
        {"left": ("clock_hhmm", [955, 2400]), "due": ("clock_hhmm", [1005, 30])}, derive={"early": "due - left"}
    )
    assert built["early"].to_list() == [10.0, 30.0]


def test_derive_and_label_see_local_times() -> None:
    expressions = {"hour": "EXTRACT(HOUR FROM event_time)", "weekday": "EXTRACT(ISODOW FROM event_time)"}
    paid = [dt.datetime(2024, 3, 1, 2, tzinfo=dt.UTC)]
    built = features_of(
        {"paid": ("timestamp", paid)},
        derive=expressions,
        label="EXTRACT(DAY FROM paid) = 29",
        timezone="America/New_York",
    )
    assert built.select("hour", "weekday", "is_known_anomaly").row(0) == (5.0, 5.0, True)
    assert built["event_time"].to_list() == [MOMENT]
    assert built.schema["event_time"] == pl.Datetime("us", "UTC")


def test_a_column_named_like_the_one_of_training_where_is_refused() -> None:
    values: dict[str, tuple[str, list[Any]]] = {"n": ("integer", [3]), "is_for_training": ("boolean", [True])}
    where = {"training": {"where": "n > 1"}}
    with pytest.raises(ConfigError, match=r"has a column 'is_for_training', .*; rename it in the files"):
        features_of(values, **where)
    assert features_of(values)["is_for_training"].to_list() == [True]
    excluded = features_of({**values, "is_for_training": ("boolean", [False])}, exclude=["is_for_training"], **where)
    assert excluded["is_for_training"].to_list() == [True]


def test_a_derived_column_can_use_an_earlier_one() -> None:
    built = features_of({"n": ("integer", [3])}, derive={"twice": "n * 2", "four": "twice * 2"})
    assert built.select("twice", "four").rows() == [(6.0, 12.0)]


def test_derived_numbers_that_are_not_finite_are_missing() -> None:
    built = features_of(
        {"a": ("number", [1.0, 0.0, 1.0, None]), "b": ("number", [0.0, 0.0, 4.0, 1.0])}, derive={"ratio": "a / b"}
    )
    assert built["ratio"].to_list() == [None, None, 0.25, None]


@pytest.mark.parametrize(
    ("expression", "problem"),
    [("n /", "unable to parse"), ("nn + 1", 'unable to find column "nn"'), ("'dear'", "conversion from `str`")],
)
def test_an_invalid_derived_column_is_explained(expression: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        features_of({"n": ("integer", [1])}, derive={"d": expression})
    assert_says(str(caught.value), "derive: d", "'shop'", problem, REMEDY)


def test_a_derived_column_needs_a_new_name() -> None:
    with pytest.raises(
        ConfigError, match=r"derive defines column 'n', which the files of 'shop' already have; choose another name"
    ):
        features_of({"n": ("integer", [1])}, derive={"n": "1"})


def test_features_are_contract_columns_then_derived_columns() -> None:
    contract = contract_of({"id": "integer", "time": "timestamp", "note": "text", "due": "clock_hhmm"})
    config = make_dataset(ROOT, exclude=["id"], derive={"late": "due - 60"}).config
    assert feature_columns(config, contract) == (
        FeatureColumn("note", ColumnType.CATEGORY),
        FeatureColumn("due", ColumnType.CLOCK_HHMM),
        FeatureColumn("event_time", ColumnType.TIMESTAMP),
        FeatureColumn("late", ColumnType.NUMBER),
    )


def test_an_excluded_event_time_is_only_in_the_table() -> None:
    contract = contract_of({"id": "integer", "time": "timestamp"})
    config = make_dataset(ROOT, exclude=["time"]).config
    assert [column.name for column in feature_columns(config, contract)] == ["id"]
    assert features_of({"id": ("integer", [7])}, exclude=["time"]).columns == ["row_id", "event_time", "id"]


def test_features_are_rebuilt_if_the_settings_change(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", HEADER + line(1, price=2) + line(2, price=""))
    ingested = shop.ingest()
    shop.raw(ingested)
    first = build_features_day(DAY, Dataset(shop.config, shop.paths), ingested.contract)
    again = build_features_day(DAY, Dataset(shop.config, shop.paths), ingested.contract)
    changed = make_dataset(tmp_path, derive={"double": "price * 2"}).config
    derived = build_features_day(DAY, Dataset(changed, shop.paths), ingested.contract)
    assert (first.rows, first.built, again.built, derived.built) == (2, True, False, True)
    assert again.content_hash == first.content_hash != derived.content_hash
    assert pl.read_parquet(shop.paths.features(DAY)).select("row_id", "double").rows() == [("1", 4.0), ("2", None)]
    assert leftovers(tmp_path) == []


def test_a_day_without_raw_rows_is_explained(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    with pytest.raises(StorageError, match=r"raw_data of 'shop' has no partition 2024-03-01; materialize it first"):
        build_features_day(DAY, Dataset(shop.config, shop.paths), contract_of({"id": "integer"}))


def test_clock_minutes_agree_with_the_standard_library() -> None:
    times = [dt.time(hour, minute) for hour in range(24) for minute in range(60)]
    built = features_of({"due": ("clock_hhmm", [time.hour * 100 + time.minute for time in times])})["due"]
    expected = [dt.timedelta(hours=time.hour, minutes=time.minute).total_seconds() / 60 for time in times]
    np.testing.assert_array_equal(built.to_numpy(), expected)


# Labels and groups

UNDATED: dict[str, Any] = {"event_time": None, "start": None, "end": None}


def feature_names(types: dict[str, str], **settings: Any) -> list[str]:
    """Return the names of the columns that a model sees."""
    return [column.name for column in feature_columns(make_dataset(ROOT, **settings).config, contract_of(types))]


def test_a_label_is_missing_if_its_column_is_missing() -> None:
    built = features_of({"kind": ("text", [" bad", "good", "", None]), "n": ("integer", [1] * 4)}, label="kind = 'bad'")
    assert built.columns == ["row_id", "event_time", "n", "is_known_anomaly"]
    assert built["is_known_anomaly"].to_list() == [True, False, None, None]
    assert built["is_known_anomaly"].dtype == pl.Boolean


def test_a_label_can_use_derived_and_excluded_columns() -> None:
    columns: dict[str, tuple[str, list[Any]]] = {
        "left": ("clock_hhmm", [100, 200]),
        "due": ("clock_hhmm", [50, 150]),
        "n": ("number", [1.0, 2.0]),
    }
    built = features_of(columns, label="late > 10 AND n < 2", derive={"late": "left - due"}, exclude=["n"])
    assert built.columns == ["row_id", "event_time", "is_known_anomaly"]  # left and due reveal the label
    assert built["is_known_anomaly"].to_list() == [60 - 50 > 10 and 1.0 < 2, False]


def test_columns_that_reveal_the_label_are_not_features() -> None:
    types = {"id": "integer", "kind": "text", "n": "number"}
    derive = {"bad": "CASE WHEN kind = 'x' THEN 1 ELSE 0 END", "worse": "bad * 2", "half": "n / 2"}
    assert feature_names(types, derive=derive) == ["id", "kind", "n", "event_time", "bad", "worse", "half"]
    assert feature_names(types, derive=derive, label="kind = 'x'") == ["id", "n", "event_time", "half"]
    assert feature_names(types, derive=derive, label="bad = 1") == ["id", "n", "event_time", "half"]
    twins = {"bad": "n * 1", "worse": "n + 1"}
    assert feature_names(types, derive=twins, label="bad = 1") == ["id", "kind", "event_time"]
    assert feature_names({**types, "time": "timestamp"}, label="time > '2024-03-01'") == ["id", "kind", "n"]
    assert feature_names(types, label="event_time IS NULL") == ["id", "kind", "n"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "knd = 'x'"}, r"label names column 'knd', which 'shop' does not have; choose one of n, d, row_id"),
        (
            {"training": {"split_by": ["knd"]}},
            r"split_by names column 'knd', which 'shop' does not have; choose one of n",
        ),
        ({"label": "n ="}, r"label='n =' cannot be computed on 'shop': .*; correct the expression"),
        ({"label": "n"}, r"label='n' has type Float64, not Boolean; write a condition"),
    ],
)
def test_an_invalid_label_or_split_is_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        features_of({"n": ("integer", [1])}, derive={"d": "n"}, **UNDATED, **settings)


def test_split_columns_are_in_the_table_but_not_features() -> None:
    columns: dict[str, tuple[str, list[Any]]] = {
        "n": ("integer", [1]),
        "site": ("text", ["a "]),
        "kind": ("text", ["x"]),
    }
    settings = {**UNDATED, "exclude": ["site"], "label": "kind = 'x'", "training": {"split_by": ["site", "kind"]}}
    built = features_of(columns, **settings)
    assert built.drop("event_time").rows(named=True) == [
        {"row_id": "0", "n": 1.0, "site": "a", "kind": "x", "is_known_anomaly": True}
    ]
    assert feature_names({name: kind for name, (kind, _) in columns.items()}, **settings) == ["n"]


@pytest.mark.parametrize("changed", [{"label": "city = 'Oslo'"}, {"training": {"split_by": ["city"]}}])
def test_features_are_rebuilt_if_label_or_split_change(tmp_path: Path, changed: dict[str, Any]) -> None:
    shop = make_dataset(tmp_path, **UNDATED)
    shop.land("a.csv", HEADER + line(1) + line(2, city="Bergen"))
    ingested = shop.ingest()
    shop.raw(ingested, ALL_ROWS)
    other = make_dataset(tmp_path, **UNDATED, **changed).config
    built = [
        build_features_day(ALL_ROWS, Dataset(config, shop.paths), ingested.contract).built
        for config in (shop.config, other, other)
    ]
    assert built == [True, True, False]


def parts_of(root: Path, rows: pl.DataFrame, **settings: Any) -> dict[str, pl.DataFrame]:
    """Split features of a dataset without event time into the parts of a training."""
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ["id"], **settings})
    paths = DatasetPaths(root, "d")
    write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
    window = cut_window({ALL_ROWS: "content"}, config)
    return {part: window.rows(part, paths) for part in (*PARTS, GATE)}


def grouped(groups: int, rows: int) -> pl.DataFrame:
    """Return features of some groups with some rows each."""
    numbers = [(f"g{group}", index) for group in range(groups) for index in range(rows)]
    return pl.DataFrame({"row_id": [f"{g}|{n}" for g, n in numbers], "g": [g for g, _ in numbers]})


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        (4, (1, 1, 1, 1)),
        (7, (4, 1, 1, 1)),
        (10, (6, 1, 2, 1)),
        (20, (14, 2, 3, 1)),
        (200, (140, 20, 30, 10)),
    ],
)
def test_groups_are_split_70_10_15_5_without_overlap(tmp_path: Path, groups: int, sizes: tuple[int, ...]) -> None:
    rows = grouped(groups, 5)
    parts = parts_of(tmp_path, rows, training={"split_by": ["g"]})
    assert tuple(part["g"].n_unique() for part in parts.values()) == sizes
    assert tuple(part.height for part in parts.values()) == tuple(5 * size for size in sizes)
    assert pl.concat(parts.values()).sort("row_id").equals(rows.sort("row_id"))
    shuffled = parts_of(tmp_path, rows.sample(fraction=1, shuffle=True, seed=0), training={"split_by": ["g"]})
    assert {name: set(part["g"]) for name, part in shuffled.items()} == {
        name: set(part["g"]) for name, part in parts.items()
    }


def test_a_group_is_defined_by_all_split_columns(tmp_path: Path) -> None:
    rows = grouped(10, 10).with_columns(h=pl.Series([n % 2 for n in range(100)]))
    parts = parts_of(tmp_path, rows, training={"split_by": ["g", "h"]})
    assert [part.select("g", "h").n_unique() for part in parts.values()] == [14, 2, 3, 1]
    assert pl.concat([part.select("g", "h").unique() for part in parts.values()]).is_duplicated().sum() == 0


def test_patches_of_an_image_stay_together(tmp_path: Path) -> None:
    rows = grouped(10, 9).rename({"g": "file"})
    parts = parts_of(tmp_path, rows, identity=["file", "top", "left"], images={"patch": 8})
    assert [part["file"].n_unique() for part in parts.values()] == [6, 1, 2, 1]
    assert [part.height for part in parts.values()] == [54, 9, 18, 9]


def test_only_known_anomalies_are_left_out_of_all_parts(tmp_path: Path) -> None:
    label = pl.Series("is_known_anomaly", [True, False, None] * 400)
    rows = grouped(1, 1200).with_columns(label)
    parts = parts_of(tmp_path, rows, label="g = 'x'", training={"only_normal": True})
    assert pl.concat(parts.values())["is_known_anomaly"].value_counts(sort=True).sort("is_known_anomaly").rows() == [
        (None, 400),
        (False, 400),
    ]
    everything = parts_of(tmp_path, rows, label="g = 'x'")
    assert sum(part.height for part in everything.values()) == 1200
    assert set(parts) == {*PARTS, GATE}
    for name, part in parts.items():  # removing anomalies does not move other rows
        assert set(part["row_id"]) <= set(everything[name]["row_id"])


def test_groups_of_anomalies_are_not_ranked(tmp_path: Path) -> None:
    rows = grouped(100, 2).with_columns(is_known_anomaly=pl.col("g").str.len_chars() == 3)  # g10 … g99
    parts = parts_of(tmp_path, rows, label="g = 'x'", training={"only_normal": True, "split_by": ["g"]})
    assert [part["g"].n_unique() for part in parts.values()] == [6, 1, 2, 1]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            grouped(3, 50),
            {"training": {"split_by": ["g"]}},
            "'d' has 3 groups of rows by g, but train, .* need at least one each; land more groups, or choose",
        ),
        (grouped(1, 1), {}, "the [a-z]+ part of 'd' has no rows: 1 rows; land more rows, or change label"),
        (
            grouped(9, 9).with_columns(is_known_anomaly=pl.lit(True)),
            {"label": "g = 'x'", "training": {"only_normal": True}},
            "the train part of 'd' has no rows: 81 rows, of which 0 are not known anomalies; land more",
        ),
        (
            grouped(9, 9),
            {"label": "g = 'x'", "training": {"only_normal": True}},
            "features of 'd' lack column 'is_known_anomaly' on all, .*; materialize features of all days first",
        ),
        (
            grouped(9, 9),
            {"training": {"split_by": ["h"]}},
            "features of 'd' lack column 'h' on all, .*; materialize features",
        ),
    ],
)
def test_an_empty_part_is_explained(tmp_path: Path, rows: pl.DataFrame, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        parts_of(tmp_path, rows, **settings)


def test_changes_of_images_and_label_require_a_training() -> None:
    from ae_pipeline.lifecycle.plan import settings_hash

    base: dict[str, Any] = {"dataset": "d", "identity": ["file", "top", "left"]}
    settings: list[dict[str, Any]] = [
        {},
        {"images": {}},
        {"images": {"patch": 8}},
        {"label": "n = 1"},
        {"training": {"split_by": ["n"]}},
    ]
    hashes = [settings_hash(PipelineConfig.model_validate({**base, **more})) for more in settings]
    assert len(set(hashes)) == len(settings)
    described = PipelineConfig.model_validate({**base, "description": "words"})
    assert settings_hash(described) == hashes[0]
    shared = PipelineConfig.model_validate({**base, "training": {"workers": 2}})
    assert settings_hash(shared) == hashes[0]
