"""Bad input: no valid row is lost, no partial file remains, and the message names the remedy."""

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ae_pipeline.common.errors import SchemaError, StorageError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.table_fitting import fit_table_encoder
from ae_pipeline.features.build import build_features_day
from ae_pipeline.ingestion.raw import build_raw_day
from tests.support.datasets import (
    DAY,
    HEADER,
    REMEDY,
    LandedDataset,
    assert_says,
    frame,
    leftovers,
    line,
    make_dataset,
    parquet,
)

pytestmark = pytest.mark.slow

YAML = {"dataset": "shop", "identity": ["id"], "event_time": "time", "start": "2024-01-01"}
GOOD = HEADER + line(1) + line(2) + line(3)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[LandedDataset]:
    """A dataset with a contract and the valid rows 1, 2 and 3, which remain after every test."""
    dataset = make_dataset(tmp_path)
    dataset.land("good.csv", GOOD)
    assert dataset.ids() == [1, 2, 3]
    yield dataset
    kept = pl.read_parquet(dataset.paths.raw(DAY))["id"].to_list()
    assert {1, 2, 3} <= set(kept), f"valid rows are lost: {kept}"
    assert leftovers(tmp_path) == []


# The YAML

WRONG_YAML = [
    pytest.param({"identitty": ["id"]}, ["identitty", "Extra inputs are not permitted", r"\['id'\]"], id="unknown key"),
    pytest.param(
        {"model": {"latent_dims": 4}}, [r"model\.latent_dims", "Extra inputs .*input_value=4"], id="unknown in"
    ),
    pytest.param({"training": {"epochs": "many"}}, [r"training\.epochs", "valid integer", "'many'"], id="wrong type"),
    pytest.param(
        {"columns": {"n": "float"}}, [r"columns\.n", "should be 'integer', 'number'", "'float'"], id="no type"
    ),
    ({"columns": {"price": "numeric"}}, [r"columns", r"'number'", r"'numeric'"]),
    ({"columns": {"price": {"type": "numeric"}}}, [r"columns", r"'number'", r"'numeric'"]),
]


@pytest.mark.parametrize(("wrong", "patterns"), WRONG_YAML)
def test_an_unknown_or_invalid_key_is_named(wrong: dict[str, Any], patterns: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        PipelineConfig.model_validate({**YAML, **wrong})
    assert_says(str(caught.value), *patterns)


@pytest.mark.parametrize(("wrong", "patterns"), WRONG_YAML)
def test_dagster_names_file_and_line_of_an_invalid_key(wrong: dict[str, Any], patterns: list[str]) -> None:
    from dagster.components.core.component_tree import ComponentTreeException
    from dagster.components.testing import create_defs_folder_sandbox

    from ae_pipeline.orchestration.component import AutoencoderPipeline

    content = {"type": "ae_pipeline.orchestration.component.AutoencoderPipeline", "attributes": {**YAML, **wrong}}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=AutoencoderPipeline, defs_path="shop", defs_yaml_contents=content
        )
        with pytest.raises(ComponentTreeException) as caught, sandbox.load_component_and_build_defs(defs_path=path):
            pass
    assert_says(str(caught.value.__cause__), *patterns, r"shop/defs\.yaml:\d+")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "My Shop"}, "dataset='My Shop' is not a valid name, .*; use lower-case letters"),
        ({"start": None}, "event_time='time' needs start; give the first day"),
        ({"end": "2023-12-31"}, "end=2023-12-31 is before start=2024-01-01; give the last day"),
        ({"event_time": None}, "start=2024-01-01 needs event_time; name the column"),
        (
            {"training": {"window_days": 9, "validation_days": 4, "calibration_days": 5}},
            "in window_days=9; make",
        ),
        ({"derive": {"score": "1"}}, "column name 'score' is reserved; choose another"),
    ],
)
def test_contradictory_settings_are_explained(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate({**YAML, **wrong})


# Files


def truncated(content: bytes) -> bytes:
    """Return the first three quarters of a file."""
    return content[: len(content) * 3 // 4]


UNREADABLE = [
    pytest.param("b.csv", b"", r"^the file is empty \(0 bytes\); land it again", id="empty"),
    pytest.param("b.parquet", b"", r"^the file is empty \(0 bytes\); land it again", id="empty parquet"),
    pytest.param(
        "b.parquet", truncated(parquet(frame(8, 9))), r"not a complete Parquet.*; .*land it again", id="truncated"
    ),
    pytest.param("b.parquet", b"PAR1", r"not a complete Parquet .* 4 bytes.*; .*land it again", id="four bytes"),
    pytest.param("b.csv", GOOD.encode("utf-16-le"), "UTF-16 without .*mark; land it as UTF-8", id="UTF-16 without"),
    pytest.param("b.csv", GOOD.encode("utf-16")[:-1], "not UTF-16 throughout .*; .*land it again", id="UTF-16 cut"),
    pytest.param("b.csv", b"\n" + GOOD.encode(), r"first line is not a header .*; add one", id="no header"),
    pytest.param("b.csv", b"id,time,id,city\n1,2,3,4\n", "two columns have the name 'id'; give each", id="twice"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE)
def test_an_unreadable_file_is_refused_and_others_are_read(
    shop: LandedDataset, name: str, content: bytes, message: str
) -> None:
    shop.land(name, content)
    shop.land("c.csv", HEADER + line(10))
    entry = shop.entry(name)
    assert_says(entry.refused, message)
    assert (entry.rows, entry.staged, entry.days) == (0, None, {})
    assert shop.ids() == [1, 2, 3, 10]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE)
def test_a_first_unreadable_file_is_explained(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    shop = make_dataset(tmp_path)
    shop.land(name, content)
    with pytest.raises(SchemaError) as caught:
        shop.ingest()
    assert_says(str(caught.value), "none of the 1 landed files of 'shop'", name, message.removeprefix("^"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [shop.paths.landing / name]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE)
def test_rows_remain_while_their_file_is_unreadable(
    shop: LandedDataset, name: str, content: bytes, message: str
) -> None:
    rows = frame(8, 9)
    shop.land(name, parquet(rows) if name.endswith(".parquet") else rows.write_csv())
    assert shop.ids() == [1, 2, 3, 8, 9]
    shop.land(name, content)
    assert_says(shop.entry(name).refused, message)
    assert shop.ids() == [1, 2, 3, 8, 9]
    rows = frame(7)
    shop.land(name, parquet(rows) if name.endswith(".parquet") else rows.write_csv())
    assert shop.entry(name).refused is None
    assert shop.ids() == [1, 2, 3, 7]


def test_a_parquet_file_truncated_at_any_byte_is_refused(shop: LandedDataset) -> None:
    whole = parquet(frame(8, 9))
    for size in range(1, len(whole), len(whole) // 16):
        shop.land("b.parquet", whole[:size])
        assert_says(shop.entry("b.parquet").refused, "not a complete Parquet file .*; .*land it again")
    shop.land("b.parquet", whole)
    assert shop.ids() == [1, 2, 3, 8, 9]


def test_a_parquet_file_with_duplicate_columns_is_refused(shop: LandedDataset) -> None:
    path = shop.land("b.parquet", b"")
    pq.write_table(pa.table([[1], [2]], names=["id", "id"]), path)
    assert_says(shop.entry("b.parquet").refused, "two columns have the name 'id'; give each column a unique name")
    assert shop.ids() == [1, 2, 3]


@pytest.mark.parametrize("values", [[[1, 2], [3]], [b"\xff", b"a"]], ids=["lists", "bytes"])
def test_a_parquet_column_of_lists_or_bytes_is_refused(shop: LandedDataset, values: list[Any]) -> None:
    shop.land("b.parquet", parquet(frame(8, 9, city=values)))
    assert_says(shop.entry("b.parquet").refused, "'city'", "list|binary", REMEDY)
    assert shop.ids() == [1, 2, 3]


def test_a_file_with_only_a_header_has_no_rows(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER)
    entry = shop.entry("b.csv")
    assert (entry.rows, entry.refused, entry.quarantined) == (0, None, {})
    assert shop.ids() == [1, 2, 3]


@pytest.mark.parametrize("content", [HEADER, HEADER.strip(), HEADER + "\n\n"])
def test_a_first_file_without_rows_gives_no_contract(tmp_path: Path, content: str) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", content)
    message = (
        "none of the 1 landed files of 'shop' has a readable row, .*no schema contract can be inferred; land a file"
    )
    with pytest.raises(SchemaError, match=message):
        shop.ingest()
    assert not shop.paths.contract.exists()


def test_a_missing_column_is_explained_after_reading_other_files(shop: LandedDataset) -> None:
    shop.land("b.csv", "id,time,price\n8,2024-03-01T10:00:00,1.5\n")
    shop.land("c.csv", HEADER + line(9))
    assert_says(
        shop.ingest().ledger.refused["b.csv"],
        "the columns of 'shop' have changed: b.csv lacks 'city'",
        "edit the schema contract",
        "set 'optional: true' for 'city'",
        "if not, land the file again",
    )
    shop.edit_contract("city: {type: text}", "city: {type: text, optional: true}")
    assert shop.ids() == [1, 2, 3, 8, 9]


@pytest.mark.parametrize(("gone", "header"), [("id", "time,price,city"), ("time", "id,price,city")])
def test_identity_and_event_time_cannot_be_optional(shop: LandedDataset, gone: str, header: str) -> None:
    shop.land("b.csv", f"{header}\n8,1.5,Oslo\n")
    refused = shop.ingest().ledger.refused["b.csv"]
    assert_says(refused, f"b.csv lacks '{gone}'", f"Every row needs '{gone}'", "; land the file again")
    assert "optional" not in refused


def test_a_new_column_can_be_declared_as_the_error_says(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER.replace("\n", ",size\n") + line(8).replace("\n", ",4\n"))
    refused = shop.ingest().ledger.refused["b.csv"]
    assert_says(refused, "b.csv has unknown 'size'", r"add 'size: \{type: …, optional: true\}'")
    shop.edit_contract("city: {type: text}", "city: {type: text}\n  size: {type: integer, optional: true}")
    shop.land("c.csv", HEADER + line(9))
    assert shop.rows("id", "size") == [(1, None), (2, None), (3, None), (8, 4), (9, None)]


@pytest.mark.parametrize(
    ("broken", "good_after"),
    [
        ('8,2024-03-01T10:00:00,1.5,"Oslo\n', [9, 10]),
        ('8,2024-03-01T10:00:00,a"b,"Oslo\n', [9, 10]),
        ('8,2024-03-01T10:00:00,1.5,"Os"lo\n', [9, 10]),
    ],
    ids=["opened", "inside and opened", "closed too early"],
)
def test_an_open_quote_rejects_only_its_own_line(shop: LandedDataset, broken: str, good_after: list[int]) -> None:
    shop.land("b.csv", HEADER + line(7) + broken + line(9) + line(10))
    assert shop.ids() == [1, 2, 3, 7, *good_after]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 3, "quote"]
    assert_says(reason, "a quote is not closed", REMEDY)


def test_quotes_closed_on_their_line_are_read(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER + line(7, city='"Oslo, Vest"') + line(8, city='"the ""old"" town"') + line(9, city='""'))
    assert shop.rows("id", "city")[3:] == [(7, "Oslo, Vest"), (8, 'the "old" town'), (9, None)]
    assert shop.quarantine() == []


def test_only_lines_that_are_not_utf8_are_quarantined(shop: LandedDataset) -> None:
    shop.land("b.csv", (HEADER + line(8, city="Tromsø")).encode() + line(9, city="Tromsø").encode("latin-1"))
    assert shop.rows("id", "city")[3:] == [(8, "Tromsø")]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 3, "encoding"]
    assert_says(reason, "the line is not UTF-8 text; land the file with one encoding")


@pytest.mark.parametrize(("values", "count"), [("8,2024-03-01T10:00:00", 2), ("8,2024-03-01T10:00:00,1,2,3,4", 6)])
def test_a_row_with_a_wrong_number_of_values_is_quarantined(shop: LandedDataset, values: str, count: int) -> None:
    shop.land("b.csv", HEADER + line(7) + values + "\n\n" + line(9))
    assert shop.ids() == [1, 2, 3, 7, 9]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 3, "columns"]
    assert_says(reason, f"the line has {count} values, but the header has 4 columns", REMEDY)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CR LF", "CR"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a mark"])
def test_all_line_ends_and_a_byte_order_mark_are_read(shop: LandedDataset, end: str, mark: str) -> None:
    shop.land("b.csv", mark + (HEADER + line(8) + line(9)).replace("\n", end))
    assert shop.ids() == [1, 2, 3, 8, 9]


# Values


def test_text_in_a_number_column_is_quarantined(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER + line(8, price="dear") + line(9, price=2))
    assert shop.ids() == [1, 2, 3, 9]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 2, "price: number"]
    assert_says(reason, "price = dear is not a finite number", REMEDY)


@pytest.mark.parametrize("content", [HEADER + line(8, price="dear"), parquet(frame(8, price=["dear"]))])
def test_a_file_without_valid_rows_is_refused_with_a_reason(shop: LandedDataset, content: str | bytes) -> None:
    name = "b.csv" if isinstance(content, str) else "b.parquet"
    shop.land(name, content)
    refused = shop.entry(name).refused
    assert_says(
        refused, "none of its 1 rows satisfies the schema contract; the first one: price = dear is not a finite", REMEDY
    )
    assert shop.ids() == [1, 2, 3]


@pytest.mark.parametrize("value", ["inf", "-inf", "Infinity", "1e999"])
def test_an_infinite_number_in_the_first_csv_is_quarantined(tmp_path: Path, value: str) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", GOOD + line(4, price=value))
    assert shop.ingest().contract.columns["price"].type == ColumnType.NUMBER
    assert shop.ids() == [1, 2, 3]
    ((*index, reason),) = shop.quarantine()
    assert index == ["a.csv", 5, "price: number"]
    assert_says(reason, f"price = {value} is not a finite number", REMEDY)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_in_parquet_infinity_is_quarantined_and_nan_is_missing(shop: LandedDataset, value: float) -> None:
    shop.land("b.parquet", parquet(frame(7, 8, 9, price=[float("nan"), value, 2.0])))
    assert shop.rows("id", "price")[3:] == [(7, None), (9, 2.0)]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.parquet", 2, "price: number"]
    assert_says(reason, f"price = {value} is not a finite number", REMEDY)


@pytest.mark.parametrize(
    "content", [HEADER + line(8, price="") + line(9, price=""), parquet(frame(8, 9, price=[None] * 2))]
)
def test_a_column_without_values_is_read_as_missing(shop: LandedDataset, content: str | bytes) -> None:
    shop.land("b.csv" if isinstance(content, str) else "b.parquet", content)
    assert shop.rows("id", "price")[3:] == [(8, None), (9, None)]
    assert shop.quarantine() == []


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_the_encoder_drops_a_column_without_values(missing: float | None) -> None:
    features = pl.DataFrame(
        {"a": [missing] * 8, "b": [float(n) for n in range(8)]}, schema=dict.fromkeys("ab", pl.Float64)
    )
    encoder = fit_table_encoder(
        features, [FeatureColumn("a", ColumnType.NUMBER), FeatureColumn("b", ColumnType.NUMBER)]
    )
    assert [column.name for column in encoder.columns] == ["b"]
    assert [(entry.column, entry.reason) for entry in encoder.left_out] == [
        ("a", "all its values are missing in the training window")
    ]


def test_an_encoder_without_usable_columns_is_explained() -> None:
    features = pl.DataFrame({"a": [None] * 8, "b": [2.0] * 8}, schema=dict.fromkeys("ab", pl.Float64))
    with pytest.raises(TrainingError) as caught:
        fit_table_encoder(features, [FeatureColumn("a", ColumnType.NUMBER), FeatureColumn("b", ColumnType.NUMBER)])
    assert_says(
        str(caught.value),
        "no column is left to learn from",
        "a: all its values are missing in the training window",
        r"b: its only value in the training window is 2\.0",
        REMEDY,
    )


@pytest.mark.parametrize("time", ["2023-12-31T23:59:59", "2025-01-01T00:00:00", "1970-01-01T00:00:00"])
def test_an_event_time_outside_the_range_is_quarantined(shop: LandedDataset, time: str) -> None:
    shop.land("b.csv", HEADER + line(7, "2024-01-01T00:00:00") + line(8, time) + line(9, "2024-12-31T23:59:59"))
    assert shop.ids() == [1, 2, 3, 7, 9]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 3, "time: after the last day" if time > "2024-12-31" else "time: before start"]
    assert_says(reason, f"time = {time} is outside 2024-01-01 to 2024-12-31", REMEDY)


def test_without_end_an_event_time_after_today_is_quarantined(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, end=None)
    shop.land("a.csv", GOOD + line(4, "2024-03-03T00:00:00"))
    assert shop.ingest(dt.date(2024, 3, 2)).ledger.files["a.csv"].rows == 3
    assert_says(shop.quarantine()[0][3], "time = 2024-03-03T00:00:00 is outside 2024-01-01 to 2024-03-02")


@pytest.mark.parametrize("column", ["id", "time"])
def test_a_row_without_identity_or_event_time_is_quarantined(shop: LandedDataset, column: str) -> None:
    shop.land("b.csv", HEADER + (line("") if column == "id" else line(8, "")) + line(9))
    assert shop.ids() == [1, 2, 3, 9]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 2, f"{column}: required"]
    assert_says(reason, f"{column} is missing, but required", REMEDY)


# Identities


def test_the_last_row_of_an_identity_in_a_file_wins(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER + line(8, price=1) + line(9) + line(8, price=2))
    assert shop.rows("id", "price")[3:] == [(8, 2.0), (9, 1.5)]
    assert build_raw_day(DAY, shop.ingest(), shop.paths).superseded == 1


@pytest.mark.parametrize("newest", ["a.csv", "z.csv"])
def test_the_newest_file_of_an_identity_wins(shop: LandedDataset, newest: str) -> None:
    for name in ("a.csv", "z.csv"):
        path = shop.land(name, HEADER + line(8, city=name))
        seconds = 1_800_000_000 + (name == newest)
        os.utime(path, (seconds, seconds))
    assert shop.rows("id", "city")[3:] == [(8, newest)]


def test_a_file_landed_again_withdraws_its_previous_rows(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER + line(8) + line(9, "2024-03-02T10:00:00"))
    assert shop.ids() == [1, 2, 3, 8, 9]
    shop.land("b.csv", HEADER + line(8, price=7))
    ingested = shop.ingest()
    assert ingested.pending_days(shop) == [DAY, "2024-03-02"]
    assert shop.raw(ingested).select("id", "price").rows() == [(1, 1.5), (2, 1.5), (3, 1.5), (8, 7.0)]
    assert shop.raw(ingested, "2024-03-02").height == 0


def test_identical_content_landed_again_changes_nothing(shop: LandedDataset) -> None:
    previous = build_raw_day(DAY, shop.ingest(), shop.paths).content_hash
    shop.land("good.csv", GOOD)
    touched = shop.ingest()
    assert touched.pending_days(shop) == []
    shop.land("copy.csv", GOOD)
    after = build_raw_day(DAY, shop.ingest(), shop.paths)
    assert (after.rows, after.superseded, after.content_hash) == (3, 3, previous)


# Days


@pytest.mark.parametrize(
    ("lines", "days"),
    [
        (["2013-03-10T01:59:59-05:00", "2013-03-10T03:00:00-04:00", "2013-03-10T20:00:00-04:00"], [2, 1]),
        (["2013-11-03T01:30:00-04:00", "2013-11-03T01:30:00-05:00", "2013-11-03T19:00:00-05:00"], [2, 1]),
    ],
    ids=["2013-03-10", "2013-11-03"],
)
def test_days_with_a_clock_change_are_whole_utc_days(tmp_path: Path, lines: list[str], days: list[int]) -> None:
    shop = make_dataset(tmp_path, identity=["time"], start="2013-01-01", end="2013-12-31")
    shop.land("a.csv", HEADER + "".join(line(1, time) for time in lines))
    ingested = shop.ingest()
    moments = [dt.datetime.fromisoformat(time).astimezone(dt.UTC) for time in lines]
    assert list(ingested.ledger.files["a.csv"].days.values()) == days
    assert ingested.ledger.days == sorted({moment.date().isoformat() for moment in moments})
    assert sorted(row[0] for row in shop.rows("event_time")) == sorted(moments)


@pytest.mark.parametrize("day", ["2013-03-10", "2013-11-03"])
def test_a_day_with_a_clock_change_has_24_utc_hours(tmp_path: Path, day: str) -> None:
    shop = make_dataset(tmp_path, start="2013-01-01", end="2013-12-31")
    shop.land("a.csv", HEADER + "".join(line(hour, f"{day}T{hour:02d}:30:00Z") for hour in range(24)))
    ingested = shop.ingest()
    assert ingested.ledger.files["a.csv"].days == {day: 24}
    assert shop.raw(ingested, day)["event_time"].dt.hour().to_list() == list(range(24))


def test_february_29_exists_in_leap_years_only(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER + line(8, "2024-02-29T23:59:59.999999") + line(9, "2023-02-29T10:00:00"))
    ingested = shop.ingest()
    assert ingested.ledger.files["b.csv"].days == {"2024-02-29": 1}
    moment = dt.datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    assert shop.raw(ingested, "2024-02-29")["event_time"].to_list() == [moment]
    assert_says(shop.quarantine()[0][3], "time = 2023-02-29T10:00:00 is not a timestamp", REMEDY)


@pytest.mark.parametrize(("day", "rows"), [("2024-05-01", 1), ("2024-05-02", 0)])
def test_small_and_empty_days_have_all_columns_and_types(shop: LandedDataset, day: str, rows: int) -> None:
    shop.land("b.csv", HEADER + line(8, "2024-05-01T10:00:00"))
    ingested = shop.ingest()
    full = shop.raw(ingested)
    built = build_raw_day(day, ingested, shop.paths)
    features = build_features_day(day, shop, ingested.contract)
    build_features_day(DAY, shop, ingested.contract)
    assert (built.rows, features.rows) == (rows, rows)
    assert pl.read_parquet(shop.paths.raw(day)).schema == full.schema
    assert pl.read_parquet_schema(shop.paths.features(day)) == pl.read_parquet_schema(shop.paths.features(DAY))


# Folders and disks


def test_a_landing_folder_without_files_is_explained(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.paths.landing.mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"no files have landed for 'shop': {shop.paths.landing} is empty; put CSV"):
        shop.ingest()


def test_a_landing_folder_with_other_files_names_them(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    for name in ("readme.md", "_a.csv", ".b.csv", "Makefile", "c.pdf", "d.pdf", "e.pdf"):
        shop.land(name, "nothing")
    with pytest.raises(StorageError) as caught:
        shop.ingest()
    assert_says(
        str(caught.value),
        f"none of the files in {shop.paths.landing} can be read for 'shop': 7 files not read",
        r"\.b\.csv: its name starts with '\.'",
        "Makefile: it has no suffix",
        r"_a\.csv: its name starts with '_', .*\); put CSV",
        r"c\.pdf and 2 more: its suffix '\.pdf' is not one of a known format;",
    )
    assert "no files have landed" not in str(caught.value)


def test_a_missing_landing_folder_is_explained(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, source={"path": "not/here"})
    with pytest.raises(StorageError) as caught:
        shop.ingest()
    assert_says(str(caught.value), "no files have landed for 'shop'", "not/here does not exist", "; put CSV, JSON")


def test_a_file_in_place_of_the_landing_folder_is_explained(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.paths.landing.parent.mkdir()
    shop.paths.landing.write_text("not a folder")
    with pytest.raises(StorageError) as caught:
        shop.ingest()
    assert_says(str(caught.value), f"landing folder of 'shop' at {shop.paths.landing}, found a file; move or delete it")
    assert shop.paths.landing.read_text() == "not a folder"


def test_a_file_in_place_of_the_data_folder_is_explained(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.write_text("not a folder")
    shop = make_dataset(root, source={"path": str(tmp_path / "landing")})
    shop.land("a.csv", GOOD)
    with pytest.raises(StorageError) as caught:
        shop.ingest()
    assert_says(str(caught.value), f"expected a directory at {root}, found a file; move or delete it")
    assert root.read_text() == "not a folder"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root: the behavior of a run on a full disk is not tested")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk, and return the file that fills it."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * 1_000_000)
    return filler


def test_a_full_disk_changes_nothing_and_is_explained(small_disk: Path, tmp_path: Path) -> None:
    shop = make_dataset(small_disk, source={"path": str(tmp_path / "landing")})
    shop.land("good.csv", GOOD)
    assert shop.ids() == [1, 2, 3]
    kept = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    shop.land("b.csv", HEADER + "".join(line(number, city=f"{hash((number, 1)):x}") for number in range(4, 400)))

    filler = fill(small_disk)
    with pytest.raises(StorageError, match=r"no space left while writing .*, which is unchanged; free some space"):
        shop.ingest()
    filler.unlink()
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == kept

    ingested = shop.ingest()
    filler = fill(small_disk)
    with pytest.raises(StorageError, match=rf"no space left while writing .*{DAY}\.parquet, which is unchanged"):
        build_raw_day(DAY, ingested, shop.paths)
    assert shop.paths.raw(DAY).read_bytes() == kept[shop.paths.raw(DAY)]
    assert leftovers(small_disk) == []
    filler.unlink()
    assert shop.ids() == list(range(1, 400))


@pytest.mark.skipif(
    sys.platform == "win32", reason="there is no limit on the size of a file: a write that fails midway is not tested"
)
def test_a_failed_write_leaves_only_the_previous_file(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.parquet import write_parquet
path = Path(sys.argv[1])
write_parquet(path, pa.table({"n": [1, 2, 3]}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    write_parquet(path, pa.table({"n": np.random.default_rng(0).random(20_000)}))
except StorageError as error:
    print(error)
"""
    path = tmp_path / "day.parquet"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert_says(done.stdout, f"no space left while writing {path}, which is unchanged; free some space")
    assert pl.read_parquet(path)["n"].to_list() == [1, 2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["day.parquet"]


def test_identity_is_required_even_if_the_contract_says_no(shop: LandedDataset) -> None:
    shop.declare(
        id={"type": "integer", "optional": True},
        time={"type": "timestamp"},
        price={"type": "number"},
        city={"type": "text"},
    )
    shop.land("b.csv", HEADER + line(4) + ",2024-03-01T00:00:00,1.5,Oslo\n" * 2)
    assert shop.ids() == [1, 2, 3, 4]
    assert [rule for *_, rule, _ in shop.quarantine()] == ["id: required"] * 2


def test_rows_of_a_refused_file_are_in_quarantine(shop: LandedDataset) -> None:
    shop.land("b.csv", HEADER + line("x") + line("y"))
    ingested = shop.ingest()
    assert list(ingested.ledger.refused) == ["b.csv"]
    assert ingested.ledger.quarantined() == {"id: integer": 2}
    assert [row for _, row, *_ in shop.quarantine()] == [2, 3]


def test_an_invalid_ledger_is_explained(shop: LandedDataset) -> None:
    shop.ingest()
    shop.paths.ledger.write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"the ledger .* cannot be read .*; restore it, or delete"):
        shop.ingest()


def test_a_missing_ledger_does_not_delete_staged_rows(shop: LandedDataset) -> None:
    shop.ingest()
    shop.paths.ledger.unlink()
    with pytest.raises(StorageError, match=r"is missing, but it is the only record of rows .*; restore it, or delete"):
        shop.ingest()
    assert list(shop.paths.ledger.parent.glob("files/*.parquet"))


@pytest.mark.parametrize("name", ["_day", "_source_file", "_row_number"])
def test_a_column_with_a_reserved_name_is_refused(shop: LandedDataset, name: str) -> None:
    shop.land("b.csv", HEADER.replace("city", name) + line(9))
    expected = "has unknown '_day'" if name == "_day" else f"column '{name}' has a reserved name"
    assert_says(shop.ingest().ledger.refused["b.csv"], expected, REMEDY)


def test_a_few_invalid_rows_in_many_files_are_quarantined(shop: LandedDataset) -> None:
    for index in range(60):
        bad = line(f"x{index}") if index in {7, 21, 40} else ""
        shop.land(f"many/{index:02d}.csv", HEADER + line(100 + index) + bad)
    assert len(shop.ids()) == 63
    assert [rule for *_, rule, _ in shop.quarantine()] == ["id: integer"] * 3


def test_a_refused_file_that_is_deleted_is_forgotten(shop: LandedDataset) -> None:
    broken = shop.land("b.csv", b"")
    assert list(shop.ingest().ledger.refused) == ["b.csv"]
    broken.unlink()
    assert shop.ingest().ledger.refused == {}
    assert shop.ids() == [1, 2, 3]
