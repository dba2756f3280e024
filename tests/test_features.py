"""Raw rows to features: what each type becomes, what is left out and what is derived."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from helpers import DAY, HEADER, REMEDY, assert_says, leftovers, line, make_dataset

from ae_pipeline.config import ColumnType
from ae_pipeline.errors import ConfigError, StorageError
from ae_pipeline.ingestion.contract import POLARS_TYPES, ColumnRule, SchemaContract
from ae_pipeline.preprocessing.features import FeatureColumn, build_features, build_features_day, feature_columns

ROOT = Path("nowhere")
MOMENT = dt.datetime(2024, 3, 1, 10, tzinfo=dt.UTC)


def features_of(values: dict[str, tuple[str, list[Any]]], **settings: Any) -> pl.DataFrame:
    """Builds features of raw columns, given as their contract's type and values."""
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
    """Makes a contract of column types alone."""
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
def test_text_loses_surrounding_blanks_and_empty_text_is_missing(kind: str) -> None:
    texts = features_of({"t": (kind, [" a b ", "\tc", "", "   ", None])})["t"]
    assert texts.to_list() == ["a b", "c", None, None, None]


def test_booleans_dates_and_timestamps_stay_as_they_are() -> None:
    day = dt.date(2024, 2, 29)
    built = features_of(
        {"b": ("boolean", [True, None]), "d": ("date", [day, None]), "s": ("timestamp", [MOMENT, None])}
    )
    assert built.select("b", "d", "s").rows() == [(True, day, MOMENT), (None, None, None)]


def test_excluded_columns_are_not_offered_but_can_be_derived_from() -> None:
    built = features_of(
        {"price": ("number", [6.0]), "items": ("integer", [4])}, exclude=["price"], derive={"each": "price / items"}
    )
    assert built.columns == ["row_id", "event_time", "items", "each"]
    assert built["each"].to_list() == [1.5]


def test_derived_columns_count_clocks_in_minutes() -> None:
    built = features_of(
        {"left": ("clock_hhmm", [955, 2400]), "due": ("clock_hhmm", [1005, 30])}, derive={"early": "due - left"}
    )
    assert built["early"].to_list() == [10.0, 30.0]


def test_a_derived_column_can_build_on_an_earlier_one() -> None:
    built = features_of({"n": ("integer", [3])}, derive={"twice": "n * 2", "four": "twice * 2"})
    assert built.select("twice", "four").rows() == [(6.0, 12.0)]


def test_derived_numbers_that_are_not_finite_are_missing() -> None:
    built = features_of(
        {"a": ("number", [1.0, 0.0, 1.0, None]), "b": ("number", [0.0, 0.0, 4.0, 1.0])}, derive={"ratio": "a / b"}
    )
    assert built["ratio"].to_list() == [None, None, 0.25, None]


@pytest.mark.parametrize(
    ("expression", "why"),
    [("n /", "unable to parse"), ("nn + 1", 'unable to find column "nn"'), ("'dear'", "conversion from `str`")],
)
def test_a_derived_column_that_cannot_be_computed_is_explained(expression: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        features_of({"n": ("integer", [1])}, derive={"d": expression})
    assert_says(str(caught.value), "derive: d", "'shop'", why, REMEDY)


def test_a_derived_column_cannot_bear_the_name_of_a_landed_one() -> None:
    with pytest.raises(
        ConfigError, match=r"derive names column 'n', which the files of 'shop' have; choose another name"
    ):
        features_of({"n": ("integer", [1])}, derive={"n": "1"})


def test_features_are_the_contracts_columns_then_the_derived_ones_with_event_time_under_its_own_name() -> None:
    contract = contract_of({"id": "integer", "time": "timestamp", "note": "text", "due": "clock_hhmm"})
    config = make_dataset(ROOT, exclude=["id"], derive={"late": "due - 60"}).config
    assert feature_columns(config, contract) == (
        FeatureColumn("note", ColumnType.CATEGORY),
        FeatureColumn("due", ColumnType.CLOCK_HHMM),
        FeatureColumn("event_time", ColumnType.TIMESTAMP),
        FeatureColumn("late", ColumnType.NUMBER),
    )


def test_an_excluded_event_time_is_no_feature_and_stays_in_the_table() -> None:
    contract = contract_of({"id": "integer", "time": "timestamp"})
    config = make_dataset(ROOT, exclude=["time"]).config
    assert [column.name for column in feature_columns(config, contract)] == ["id"]
    assert features_of({"id": ("integer", [7])}, exclude=["time"]).columns == ["row_id", "event_time", "id"]


def test_a_days_features_are_written_once_row_for_row_and_again_when_the_settings_change(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", HEADER + line(1, price=2) + line(2, price=""))
    intake = shop.take_in()
    shop.raw(intake)
    first = build_features_day(DAY, shop.config, intake.contract, shop.paths)
    again = build_features_day(DAY, shop.config, intake.contract, shop.paths)
    changed = make_dataset(tmp_path, derive={"double": "price * 2"}).config
    derived = build_features_day(DAY, changed, intake.contract, shop.paths)
    assert (first.rows, first.built, again.built, derived.built) == (2, True, False, True)
    assert again.content_hash == first.content_hash != derived.content_hash
    assert pl.read_parquet(shop.paths.features(DAY)).select("row_id", "double").rows() == [("1", 4.0), ("2", None)]
    assert leftovers(tmp_path) == []


def test_features_of_a_day_without_raw_rows_say_what_to_materialize(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    with pytest.raises(StorageError, match=r"raw_data of 'shop' has no 2024-03-01; materialize that partition first"):
        build_features_day(DAY, shop.config, contract_of({"id": "integer"}), shop.paths)


def test_clock_minutes_agree_with_the_standard_library_for_every_minute_of_a_day() -> None:
    times = [dt.time(hour, minute) for hour in range(24) for minute in range(60)]
    built = features_of({"due": ("clock_hhmm", [time.hour * 100 + time.minute for time in times])})["due"]
    expected = [dt.timedelta(hours=time.hour, minutes=time.minute).total_seconds() / 60 for time in times]
    np.testing.assert_array_equal(built.to_numpy(), expected)
