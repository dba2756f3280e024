"""From landed files to raw rows: contract, ledger and upsert."""

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ae_pipeline.common.errors import PipelineError, SchemaError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion import deduplicate, moves
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.landing import last_ingest
from ae_pipeline.ingestion.raw import build_raw_day, count_duplicates
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

OTHER_DAY = "2024-03-05"


def with_settings(dataset: LandedDataset, **settings: Any) -> LandedDataset:
    """Return the same dataset with other settings."""
    return replace(dataset, config=make_dataset(dataset.paths.root, **settings).config)


@pytest.fixture
def shop(tmp_path: Path) -> LandedDataset:
    """An empty dataset."""
    return make_dataset(tmp_path)


# The contract


@pytest.mark.parametrize(
    ("texts", "kind", "missing"),
    [
        (["1", "-2", "+30"], "integer", ()),
        (["1", "2.5", "1e3"], "number", ()),
        (["0.5", "-0.25", "0"], "number", ()),
        (["007", "12"], "text", ()),
        (["007.5", "12"], "text", ()),
        (["true", "F", "no"], "boolean", ()),
        (["2024-02-29", "2024-03-01"], "date", ()),
        (["2023-02-29", "2024-03-01"], "text", ()),
        (["2024-03-01T10:00:00", "2024-03-01T10:00:00.5"], "timestamp", ()),
        (["2024-03-01 10:00", "2024-03-01 23:59"], "timestamp", ()),
        (["2024-03-01T10:00:00Z", "2024-03-01T10:00:00+02:00"], "timestamp", ()),
        (["NA", "3", ""], "integer", ("NA",)),
        (["-", "null", "2.5"], "number", ("-", "null")),
        (["N/A", "2024-03-01"], "date", ("N/A",)),
        (["NA", "red"], "text", ()),
        (["", ""], "text", ()),
        ([" 4", "5 "], "integer", ()),
    ],
)
def test_the_type_is_inferred_from_all_values_of_a_column(
    shop: LandedDataset, texts: list[str], kind: str, missing: tuple[str, ...]
) -> None:
    sample = pl.DataFrame({"id": "1", "time": "2024-03-01T10:00:00", "x": texts})
    rule = infer_contract([sample], shop.config).columns["x"]
    assert (rule.type, rule.null_values, rule.required, rule.optional) == (ColumnType(kind), missing, False, False)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pl.Series([1, 2]), "integer"),
        (pl.Series([1.0, 2.5]), "number"),
        (pl.Series([True, False]), "boolean"),
        (pl.Series([dt.date(2024, 3, 1)] * 2), "date"),
        (pl.Series([dt.datetime(2024, 3, 1)] * 2), "timestamp"),
        (pl.Series(["a", "b"], dtype=pl.Categorical()), "text"),
    ],
)
def test_a_typed_column_keeps_its_type(shop: LandedDataset, values: pl.Series, kind: str) -> None:
    contract = infer_contract([frame(1, 2, x=values)], shop.config)
    assert contract.columns["x"].type == ColumnType(kind)


def test_declared_types_are_used_for_the_inference(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, columns={"due": "clock_hhmm", "branch": "category"})
    sample = pl.DataFrame({"id": "1", "time": f"{DAY}T10:00:00", "due": ["1745", "NA"], "branch": ["12", "13"]})
    rules = infer_contract([sample], shop.config).columns
    assert [rules[name].type for name in ("due", "branch")] == [ColumnType.CLOCK_HHMM, ColumnType.CATEGORY]
    assert rules["due"].null_values == ("NA",)


def test_keys_are_required_and_partial_columns_are_optional(
    shop: LandedDataset,
) -> None:
    first = pl.DataFrame({"id": "1", "time": f"{DAY}T10:00:00", "x": "1"})
    rules = infer_contract([first, first.drop("x").with_columns(y=pl.lit("2"))], shop.config).columns
    assert {name: (rule.required, rule.optional) for name, rule in rules.items()} == {
        "id": (True, False),
        "time": (True, False),
        "x": (False, True),
        "y": (False, True),
    }


def test_null_words_of_numbers_apply_to_text_too(shop: LandedDataset) -> None:
    sample = pl.DataFrame({"id": "1", "time": f"{DAY}T10:00:00", "n": ["NA", "1"], "t": ["NA", "red"], "u": ["a", "b"]})
    rules = infer_contract([sample], shop.config).columns
    assert {name: rules[name].null_values for name in "ntu"} == {"n": ("NA",), "t": ("NA",), "u": ()}


@pytest.mark.parametrize(
    ("settings", "columns", "message"),
    [
        ({"identity": ["key"]}, {}, r"'shop' names column 'key', which no landed file has; choose one of id, time$"),
        ({"exclude": ["old"]}, {}, r"'shop' names column 'old', which no landed file has; choose one of id, time$"),
        ({}, {"score": "1"}, r"column 'score' of 'shop' has a name that is reserved .*; rename it"),
        ({"event_time": "id"}, {}, r"event_time='id' of 'shop' has integer values such as '1', not .*; choose another"),
    ],
)
def test_a_failed_inference_is_explained(
    tmp_path: Path, settings: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    sample = pl.DataFrame({"id": "1", "time": f"{DAY}T10:00:00", **columns})
    with pytest.raises(SchemaError, match=message):
        infer_contract([sample], make_dataset(tmp_path, **settings).config)


def test_csv_and_parquet_files_together_give_the_same_types(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.land("b.parquet", parquet(frame(2)))
    types = {name: rule.type.value for name, rule in shop.ingest().contract.columns.items()}
    assert types == {"id": "integer", "time": "timestamp", "price": "number", "city": "text"}


def test_an_empty_parquet_column_does_not_determine_the_type(shop: LandedDataset) -> None:
    shop.land("a.parquet", parquet(frame(1, price=[None])))
    shop.land("b.parquet", parquet(frame(2)))
    assert shop.ingest().contract.columns["price"].type == ColumnType.NUMBER
    assert shop.rows("id", "price") == [(1, None), (2, 1.5)]


def test_the_contract_is_saved_with_explanations(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1) + line(2))
    in_force = shop.ingest().contract
    assert load_contract(shop.paths.contract) == in_force
    text = shop.paths.contract.read_text(encoding="utf-8")
    assert text.startswith("# Schema contract of 'shop', inferred once from 2 rows of 1 file")
    assert "  id: {type: integer, required: true}\n" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "price: {type: number",
            "price: {type: numeric",
            r"at columns\.price\.type: .*'number'.* got 'numeric'; correct",
        ),
        ("price: {type: number", "price: {type: number, min: 2", r"at columns\.price\.min: Extra .* got 2; correct"),
        (
            "price: {type: number}",
            "price: {type: number",
            r"(?s)is not valid YAML: .*line \d+.*; correct it, or move it away",
        ),
    ],
)
def test_an_invalid_edit_of_the_contract_is_explained(shop: LandedDataset, old: str, new: str, message: str) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.ingest()
    shop.edit_contract(old, new)
    with pytest.raises(SchemaError, match=message):
        shop.ingest()


def test_an_event_time_of_another_type_is_explained(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.ingest()
    shop.edit_contract("time: {type: timestamp, required: true, format: '%Y-%m-%dT%H:%M:%S%.f'}", "time: {type: text}")
    with pytest.raises(SchemaError) as caught:
        shop.ingest()
    assert_says(str(caught.value), "time", "text", REMEDY)


def test_after_an_edit_of_the_contract_files_are_read_again(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1, price=1) + line(2, price=2))
    assert shop.ids() == [1, 2]
    shop.edit_contract("price: {type: integer}", "price: {type: integer, minimum: 2}")
    assert shop.ingest().read == ("a.csv",)
    assert shop.ids() == [2]
    assert [(row, rule) for _, row, rule, _ in shop.quarantine()] == [(2, "price: minimum")]
    shop.edit_contract(", minimum: 2", "")
    assert shop.ids() == [1, 2]
    assert shop.quarantine() == []


def test_undoing_an_edit_restores_the_withdrawn_rows(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1, price=1))
    shop.land("b.csv", HEADER + line(2, price=2))
    assert shop.ids() == [1, 2]
    shop.edit_contract("price: {type: integer}", "price: {type: integer, minimum: 2}")
    assert_says(shop.entry("a.csv").refused, "price = 1 is below the minimum 2", REMEDY)
    assert shop.ids() == [2]
    shop.edit_contract(", minimum: 2", "")
    assert shop.ids() == [1, 2]


def test_rows_of_a_deleted_file_follow_an_edited_contract(shop: LandedDataset) -> None:
    gone = shop.land("a.csv", HEADER + line(1, price=1))
    assert shop.rows("price") == [(1,)]
    gone.unlink()
    shop.edit_contract("price: {type: integer}", "price: {type: number}")
    shop.land("b.csv", HEADER + line(2, price=2.5))
    assert shop.rows("id", "price") == [(1, 1.0), (2, 2.5)]


# Rows against the contract


@pytest.mark.parametrize(
    ("rule", "good", "bad", "reason"),
    [
        ({"type": "integer"}, {"7": 7, "7.0": 7, "": None}, "7.5", "x = 7.5 is not a whole number"),
        ({"type": "integer"}, {"0": 0}, "007", "x = 007 has leading zeros, which type integer would lose"),
        ({"type": "number"}, {"1e3": 1000.0, " 2 ": 2.0, "nan": None}, "2,5", 'x = "?2,5"? is not a finite number'),
        ({"type": "boolean"}, {"YES": True, "f": False}, "2", "x = 2 is not true or false"),
        (
            {"type": "clock_hhmm"},
            {"0": 0, "1745": 1745, "2400": 2400},
            "1260",
            "x = 1260 is not a time of day such as 1745",
        ),
        ({"type": "clock_hhmm"}, {"2359": 2359}, "2401", "x = 2401 is not a time of day such as 1745"),
        ({"type": "clock_hhmm"}, {"59": 59}, "-5", "x = -5 is not a time of day such as 1745"),
        ({"type": "date", "format": "%d.%m.%Y"}, {"29.02.2024": dt.date(2024, 2, 29)}, "29.02.2023", "not a date"),
        ({"type": "text", "required": True}, {"a": "a"}, "  ", "x is missing, but required"),
        ({"type": "number", "minimum": 0}, {"0": 0.0}, "-0.5", "x = -0.5 is below the minimum 0"),
        ({"type": "integer", "maximum": 9}, {"9": 9}, "10", "x = 10 is above the maximum 9"),
        ({"type": "category", "allowed": ["a", "b"]}, {"b": "b"}, "c", "x = c is not one of a, b"),
        ({"type": "integer", "null_values": ["-9"]}, {"-9": None, "9": 9}, "--", "x = -- is not a whole number"),
    ],
)
def test_only_the_row_with_an_invalid_value_is_quarantined(
    shop: LandedDataset, rule: dict[str, Any], good: dict[str, Any], bad: str, reason: str
) -> None:
    shop.declare(id={"type": "integer"}, time={"type": "timestamp", "format": "%Y-%m-%dT%H:%M:%S"}, x=rule)
    texts = [bad, *good]
    lines = [f'{number},{DAY}T10:00:00,"{text}"\n' for number, text in enumerate(texts)]
    shop.land("a.csv", "id,time,x\n" + "".join(lines))
    assert shop.rows("id", "x") == list(enumerate(good.values(), start=1))
    ((source, number, _, actual),) = shop.quarantine()
    assert (source, number) == ("a.csv", 2)
    assert_says(actual, reason, REMEDY)


@pytest.mark.parametrize("written", [f"{DAY}T10:00:00", f"{DAY} 10:00:00", f"{DAY}T10:00:00Z", f"{DAY} 10:00"])
def test_a_timestamp_without_format_can_have_any_iso_form(shop: LandedDataset, written: str) -> None:
    shop.declare(id={"type": "integer"}, time={"type": "timestamp"})
    shop.land("a.csv", f"id,time\n1,{written}\n")
    assert shop.entry("a.csv").refused is None
    assert shop.rows("event_time") == [(dt.datetime(2024, 3, 1, 10, tzinfo=dt.UTC),)]


def test_csv_and_parquet_give_the_same_table(tmp_path: Path) -> None:
    rows = frame(1, 2, 3, price=[1.5, None, -2.0], city=["Oslo", None, "Bergen"])
    tables = []
    for suffix, content in ((".csv", rows.write_csv()), (".parquet", parquet(rows))):
        shop = make_dataset(tmp_path / suffix)
        shop.land(f"a{suffix}", content)
        tables.append(shop.raw(shop.ingest()))
    assert tables[0].equals(tables[1])
    assert tables[0].schema == tables[1].schema
    assert tables[0]["price"].to_list() == [1.5, None, -2.0]


def test_a_numeric_category_is_the_same_in_all_file_types(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, columns={"price": "category"})
    shop.land("a.csv", HEADER + line(1, price=517))
    shop.ingest()
    shop.land("b.parquet", parquet(frame(2, price=[517])))
    shop.land("c.parquet", parquet(frame(3, 4, price=[517.0, None])))
    assert shop.rows("id", "price") == [(1, "517"), (2, "517"), (3, "517"), (4, None)]


@pytest.mark.parametrize(
    "name",
    ["_id", "_price", "price_", "{price}", "a price", "|"],
)
def test_unusual_column_names_are_valid(shop: LandedDataset, name: str) -> None:
    shop.land("a.csv", HEADER.replace("city", name) + line(1))
    assert shop.rows("id", "price", name) == [(1, 1.5, "Oslo")]


def test_the_event_time_column_can_be_called_event_time(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, event_time="event_time")
    shop.land("a.csv", HEADER.replace("time", "event_time") + line(1))
    assert shop.rows("id", "event_time") == [(1, dt.datetime(2024, 3, 1, 10, tzinfo=dt.UTC))]


def test_different_identities_have_different_row_ids(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["a", "b"])
    pairs = [("x|y", "z"), ("x", "y|z"), ("x\\", "y|z"), ("x|y\\", "z"), ("x\\|y", "z"), ("x\\", "|y|z")]
    shop.land("a.csv", "a,b,time\n" + "".join(f"{a},{b},{DAY}T10:00:00\n" for a, b in pairs))
    assert sorted(shop.rows("a", "b")) == sorted(pairs)


# Repeated ingestion


def test_files_are_read_once_and_days_are_written_once(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1))
    first = shop.ingest()
    assert (first.read, first.pending_days(shop)) == (("a.csv",), [DAY])
    assert build_raw_day(DAY, first, shop.paths).built
    second = shop.ingest()
    assert (second.read, second.pending_days(shop)) == ((), [])
    assert not build_raw_day(DAY, second, shop.paths).built


def test_only_new_and_rewritten_files_are_read(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.land("b.csv", HEADER + line(2))
    assert shop.ingest().read == ("a.csv", "b.csv")
    assert shop.ingest().read == ()
    shop.land("b.csv", HEADER + line(3))
    shop.land("deeper/c.csv", HEADER + line(4))
    assert shop.ingest().read == ("b.csv", "deeper/c.csv")


@pytest.mark.parametrize("name", [".a.csv", "_a.csv", "a.csv.tmp", "a.md"])
def test_hidden_files_and_other_file_types_are_ignored(shop: LandedDataset, name: str) -> None:
    shop.land("good.csv", HEADER + line(1))
    shop.land(name, HEADER + line(2))
    assert shop.ids() == [1]


def test_suffixes_in_capital_letters_are_read(shop: LandedDataset) -> None:
    shop.land("A.CSV", HEADER + line(1))
    shop.land("B.PARQUET", parquet(frame(2)))
    assert shop.ids() == [1, 2]


def test_the_row_of_the_newest_file_wins(shop: LandedDataset) -> None:
    shop.land("z.csv", HEADER + line(1, price=1.5) + line(2, price=2.5))
    shop.land("a.csv", HEADER + line(1, price=9.5))
    assert shop.rows("id", "price") == [(1, 9.5), (2, 2.5)]
    assert build_raw_day(DAY, shop.ingest(), shop.paths).superseded == 1


def test_a_late_file_changes_only_its_own_day(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.land("b.csv", HEADER + line(2, time=f"{OTHER_DAY}T10:00:00"))
    assert shop.ids() == [1, 2]
    previous = shop.paths.raw(OTHER_DAY).read_bytes()
    shop.land("late.csv", HEADER + line(3))
    ingested = shop.ingest()
    assert ingested.pending_days(shop) == [DAY]
    assert shop.raw(ingested)["id"].to_list() == [1, 3]
    assert shop.paths.raw(OTHER_DAY).read_bytes() == previous


def test_rows_of_a_deleted_file_remain(shop: LandedDataset) -> None:
    gone = shop.land("a.csv", HEADER + line(1))
    shop.land("b.csv", HEADER + line(2))
    assert shop.ids() == [1, 2]
    gone.unlink()
    assert shop.ids() == [1, 2]


def test_the_order_of_reading_does_not_change_the_rows(tmp_path: Path) -> None:
    hashes = []
    for case, names in {"one": ["a", "b", "c"], "two": ["c", "b", "a"]}.items():
        shop = make_dataset(tmp_path / case)
        for name in names:
            age = 100 + ord(name)
            shop.land(f"{name}.csv", HEADER + line(1, price=age) + line(ord(name)), at=age)
            if case == "two":
                shop.ingest()
        hashes.append(build_raw_day(DAY, shop.ingest(), shop.paths).content_hash)
    assert hashes[0] == hashes[1]


def test_rows_without_event_time_are_in_one_partition(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, event_time=None, start=None, end=None)
    shop.land("a.csv", HEADER + line(1) + line(2, time="1999-01-01T00:00:00"))
    ingested = shop.ingest()
    assert ingested.ledger.days == ["all"]
    assert shop.raw(ingested, "all").select("id", "event_time").rows() == [(1, None), (2, None)]


@pytest.mark.parametrize(
    ("landings", "expected"),
    [
        ([[(1, OTHER_DAY, 100)]], {DAY: [(2, 1.0)], OTHER_DAY: [(1, 100.0)]}),
        ([[(1, OTHER_DAY, 100)], [(1, DAY, 101)]], {DAY: [(1, 101.0), (2, 1.0)], OTHER_DAY: []}),
        ([[(1, OTHER_DAY, 5), (1, "2024-03-03", 6)]], {DAY: [(2, 1.0)], OTHER_DAY: [], "2024-03-03": [(1, 6.0)]}),
    ],
    ids=["moved", "moved and back", "moved twice in one file"],
)
def test_a_new_event_time_moves_an_identity_to_another_day(
    shop: LandedDataset, landings: list[list[tuple[int, str, int]]], expected: dict[str, list[tuple[int, float]]]
) -> None:
    shop.land("0.csv", HEADER + line(1, price="1.0") + line(2, price="1.0"))
    shop.ids()
    for count, rows in enumerate(landings, start=1):
        shop.land(f"{count}.csv", HEADER + "".join(line(n, f"{day}T09:00:00", price) for n, day, price in rows))
        shop.ids()
    ingested = shop.ingest()
    assert {day: shop.raw(ingested, day).select("id", "price").rows() for day in expected} == expected
    assert count_duplicates(list(expected), shop.paths) == 0


def test_moved_and_duplicate_identities_are_found_in_partitions(
    shop: LandedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deduplicate, "_PARTITION_ROWS", 2)
    shop.land("0.csv", HEADER + "".join(line(n) for n in range(1, 8)))
    shop.land("1.csv", HEADER + line(3, f"{OTHER_DAY}T09:00:00") + line(5, f"{OTHER_DAY}T09:00:00") + line(9))
    ingested = shop.ingest()
    assert {day: sorted(ids) for day, ids in ingested.moved.items()} == {DAY: ["3", "5"]}
    rows = {day: shop.raw(ingested, day)["row_id"].to_list() for day in (DAY, OTHER_DAY)}
    assert rows == {DAY: ["1", "2", "4", "6", "7", "9"], OTHER_DAY: ["3", "5"]}
    assert count_duplicates([DAY, OTHER_DAY], shop.paths) == 0
    again = pl.read_parquet(shop.paths.raw(DAY))
    again.head(4).write_parquet(shop.paths.raw(OTHER_DAY))
    assert count_duplicates([DAY, OTHER_DAY], shop.paths) == 4


def test_moved_identities_are_cached(shop: LandedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.land("0.csv", HEADER + line(1) + line(2))
    shop.land("1.csv", HEADER + line(1, f"{OTHER_DAY}T09:00:00"))
    moved = shop.ingest().moved

    def fail(*_: object) -> None:
        raise AssertionError("the rows are read again")

    monkeypatch.setattr(moves, "partition_by_identity", fail)
    last = last_ingest(shop)
    assert last is not None
    assert last.moved == moved == {DAY: ["1"]}


def test_an_identity_with_its_event_time_does_not_move(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["id", "time"])
    shop.land("a.csv", HEADER + line(1))
    shop.land("b.csv", HEADER + line(1, time=f"{OTHER_DAY}T10:00:00"))
    assert shop.rows("row_id") == [(f"1|{DAY}T10:00:00Z",), (f"1|{OTHER_DAY}T10:00:00Z",)]


# Settings that change after the first landing


def test_a_changed_identity_gives_new_row_ids(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1) + line(1, city="Bergen"))
    assert shop.rows("row_id") == [("1",)]
    assert with_settings(shop, identity=["id", "city"]).rows("row_id") == [("1|Bergen",), ("1|Oslo",)]


def test_a_later_end_removes_rows_from_quarantine(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1) + line(2, time="2024-08-01T10:00:00"))
    assert with_settings(shop, end="2024-07-31").ids() == [1]
    wider = with_settings(shop, end="2024-12-31")
    assert wider.ids() == [1, 2]
    assert wider.quarantine() == []


@pytest.mark.parametrize("end", [None, "2030-12-31"])
def test_a_row_of_tomorrow_is_valid_tomorrow(end: str | None, tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, end=end)
    shop.land("a.csv", HEADER + line(1) + line(2, time="2024-03-02T10:00:00"))
    shop.ingest(dt.date(2024, 3, 1))
    assert [rule for *_, rule, _ in shop.quarantine()] == ["time: after the last day"]
    assert shop.ingest(dt.date(2024, 3, 2)).ledger.days == [DAY, "2024-03-02"]
    assert shop.quarantine() == []


@pytest.mark.parametrize("settings", [{"identity": ["idd"]}, {"event_time": "tyme"}, {"exclude": ["old"]}])
def test_an_unknown_column_in_changed_settings_is_explained(shop: LandedDataset, settings: dict[str, Any]) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.ingest()
    shop.land("b.csv", HEADER + line(2))
    with pytest.raises(
        PipelineError, match=r"'shop' names column '(idd|tyme|old)'.*; choose one of id, time, price, city"
    ):
        with_settings(shop, **settings).ingest()


# The ledger


def test_the_ledger_counts_rows_by_day_and_violated_rule(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1) + line(2, time=f"{OTHER_DAY}T10:00:00"))
    shop.ingest()
    shop.land("b.csv", HEADER + line(3) + line("x") + line("y") + line(4, price="dear"))
    ledger = shop.ingest().ledger
    assert {name: entry.days for name, entry in ledger.files.items()} == {
        "a.csv": {DAY: 1, OTHER_DAY: 1},
        "b.csv": {DAY: 1},
    }
    assert [name for name, _ in ledger.sources(DAY)] == ["a.csv", "b.csv"]
    assert list(ledger.quarantined().items()) == [("id: integer", 2), ("price: number", 1)]
    assert (ledger.quarantined([OTHER_DAY]), ledger.refused) == ({}, {})
    saved = json.loads(shop.paths.ledger.read_text(encoding="utf-8"))
    assert len(saved.pop("sha256")) == 32  # the digest of the entries
    assert {name: (entry["rows"], entry["refused"]) for name, entry in saved.items()} == {
        "a.csv": (2, None),
        "b.csv": (1, None),
    }


def test_unreferenced_and_partial_copies_are_vacuumed(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1) + line(2))
    shop.ingest()
    folder = shop.paths.staged("_").parent
    old = list(folder.iterdir())
    (folder / ".half.parquet.1.tmp").write_bytes(b"PAR1")
    shop.land("a.csv", HEADER + line(1) + line("x"))
    shop.ingest()
    assert len(list(folder.iterdir())) == 1
    assert not {*folder.iterdir()} & {*old}
    assert leftovers(shop.paths.root) == []


def test_other_files_are_read_if_columns_have_changed(shop: LandedDataset) -> None:
    shop.land("a.csv", HEADER + line(1))
    shop.ingest()
    shop.land("b.csv", "id,time,price\n2,2024-03-01T10:00:00,1.5\n")
    shop.land("c.csv", HEADER.replace("\n", ",size\n") + "3,2024-03-01T10:00:00,1.5,Oslo,XL\n")
    shop.land("d.csv", HEADER + line(4))
    refused = shop.ingest().ledger.refused
    assert sorted(refused) == ["b.csv", "c.csv"]
    assert_says(refused["b.csv"], r"b\.csv lacks 'city'", REMEDY)
    assert_says(refused["c.csv"], r"c\.csv has unknown 'size'", REMEDY)
    assert shop.ids() == [1, 4]
