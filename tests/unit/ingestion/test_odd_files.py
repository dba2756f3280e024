"""Odd columns and odd files: each is read exactly, skipped or refused with a reason, and holds up no other file."""

import datetime as dt
import io
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ae_pipeline.ingestion import batch
from ae_pipeline.ingestion import conform as conform_module
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.ingestion.readers.files import read_file
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError
from tests.support.datasets import DAY, HEADER, REMEDY, LandedDataset, assert_says, frame, line, make_dataset, parquet

pytestmark = pytest.mark.slow

GOOD = HEADER + line(1) + line(2)


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content, **options)
    return content.getvalue()


def as_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def with_column(values: pa.Array, name: str = "x", **columns: Any) -> pa.Table:
    """Return rows with the columns of `HEADER` and one more, or another one of them."""
    table = frame(*range(7, 7 + len(values)), **columns).to_arrow(compat_level=pl.CompatLevel.oldest())
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


@pytest.fixture
def shop(tmp_path: Path) -> LandedDataset:
    """A dataset with a contract and the rows 1 and 2."""
    dataset = make_dataset(tmp_path)
    dataset.land("a_good.csv", GOOD)
    assert dataset.ids() == [1, 2]
    return dataset


EXACT: dict[str, tuple[Any, list[Any]]] = {
    "a zone as an offset": (
        pa.array([0, None], pa.timestamp("us", "+05:30")),
        [dt.datetime(1970, 1, 1, tzinfo=dt.UTC)],
    ),
    "an unknown zone": (
        pa.array([0, None], pa.timestamp("ms", "Mars/Olympus")),
        [dt.datetime(1970, 1, 1, tzinfo=dt.UTC)],
    ),
    "decimal256": (pa.array([Decimal("1.10"), None], pa.decimal256(60, 2)), ["1.10"]),
    "decimal64": (pa.array([Decimal("1.10"), None], pa.decimal64(12, 2)), [Decimal("1.10")]),
    "a negative scale": (pa.array([Decimal(1200), None], pa.decimal128(5, -2)), ["1.2E+3"]),
    "float16": (pa.array([1.5, None], pa.float16()), [1.5]),
    "large string": (pa.array(["a", None], pa.large_string()), ["a"]),
    "string view": (pa.array(["a", None], pa.string_view()), ["a"]),
    "dictionary of text": (pa.array(["a", None]).dictionary_encode(), ["a"]),
    "dictionary of numbers": (pa.array([5, None]).dictionary_encode(), [5]),
    "dictionary of offsets": (
        pa.DictionaryArray.from_arrays(pa.array([0, None]), pa.array([0], pa.timestamp("s", "-02:00"))),
        [dt.datetime(1970, 1, 1, tzinfo=dt.UTC)],
    ),
    "dictionary of views": (
        pa.DictionaryArray.from_arrays(pa.array([0, None]), pa.array(["a"], pa.string_view())),
        ["a"],
    ),
    "run ends of views": (
        pa.RunEndEncodedArray.from_arrays([1, 2], pa.array(["a", None], pa.string_view())),
        ["a"],
    ),
    "run ends": (pa.RunEndEncodedArray.from_arrays([1, 2], pa.array(["a", None])), ["a"]),
    "nulls": (pa.nulls(2), [None]),
    "uint64": (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1]),
    "time of day": (pa.array([dt.time(1, 2, 3), None], pa.time32("s")), [dt.time(1, 2, 3)]),
    "date64": (pa.array([dt.date(2024, 1, 2), None], pa.date64()), [dt.datetime(2024, 1, 2)]),
    "uuid": (pa.array([uuid.UUID(int=7).bytes, None], pa.uuid()), [str(uuid.UUID(int=7))]),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1]", None])), ["[1]"]),
    "seconds": (pa.array([253_402_214_400, None], pa.timestamp("s")), [dt.datetime(9999, 12, 31)]),
    "far seconds": (pa.array([2**60, 1], pa.timestamp("s")), [f"{2**60} s since 1970", "1970-01-01T00:00:01.000000"]),
}


@pytest.mark.parametrize("case", EXACT)
def test_a_column_of_an_odd_type_is_read_exactly(case: str) -> None:
    values, expected = EXACT[case]
    wanted = [*expected, None][:2]
    rows = read_file("a.arrow", as_stream(pa.table({"x": values}))).rows
    found = rows["x"].to_list()
    assert found == wanted
    assert [str(value) for value in found] == [str(value) for value in wanted]


SKIPPED = {
    "duration": pa.array([1, None], pa.duration("us")),
    "struct": pa.array([{"a": 1}, None]),
    "list": pa.array([[1], None]),
    "list view": pa.array([[1], None], pa.list_view(pa.int64())),
    "fixed list": pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "binary": pa.array([b"a", None]),
    "binary view": pa.array([b"a", None], pa.binary_view()),
    "fixed binary": pa.array([b"ab", None], pa.binary(2)),
    "months": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "union": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2]), pa.array([[1, 2]] * 2, pa.list_(pa.int8(), 2))
    ),
    "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "geometry", "db"), pa.array([b"a", None])),
    "dictionary of bytes": pa.array([b"a", None]).dictionary_encode(),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_only_a_column_that_cannot_be_read_is_skipped(case: str) -> None:
    file = read_file("a.arrow", as_stream(pa.table({"id": [1, 2], "x": SKIPPED[case]})))
    assert file.rows.drop("_source_file").rows() == [(1, 1), (2, 2)]
    assert_says(file.skipped["x"], "it has type ", "; (flatten or convert|change)")


def test_a_skipped_column_stands_in_log_ledger_and_contract(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.parquet", as_parquet(with_column(SKIPPED["struct"])))
    ingested = shop.ingest()
    assert ingested.contract.skipped == ("x",)
    assert_says(caplog.text, "column 'x' is not read: it has type struct<a: int64>, but .*; flatten")
    assert shop.ids() == [7, 8]
    shop.land("b.csv", HEADER.replace("\n", ",x\n") + line(3).replace("\n", ",text\n"))
    assert shop.ids() == [3, 7, 8]


def test_an_unknown_column_that_cannot_be_read_is_skipped_later(
    shop: LandedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    shop.land("b.parquet", as_parquet(with_column(SKIPPED["list"])))
    entry = shop.entry("b.parquet")
    assert entry.refused is None
    assert_says(entry.skipped["x"], "it has type list<")
    assert_says(caplog.text, r"column 'x' is not read in 1 file \(b\.parquet\): it has type list<")
    assert Ledger.load(shop.paths.ledger).files["b.parquet"].skipped == entry.skipped
    assert shop.ids() == [1, 2, 7, 8]


@pytest.mark.parametrize(
    ("column", "settings"),
    [
        ("id", {}),
        ("time", {}),
        ("price", {"columns": {"price": "number"}}),
        ("price", {"derive": {"double": "2 * price"}}),
        ("city", {"label": "city = 'Rome'"}),
        ("city", {}),
    ],
)
def test_a_file_is_refused_if_a_needed_column_cannot_be_read(
    tmp_path: Path, column: str, settings: dict[str, Any]
) -> None:
    shop = make_dataset(tmp_path, **settings)
    shop.land("a.csv", GOOD)
    shop.ingest()
    shop.land("b.parquet", as_parquet(with_column(SKIPPED["list"], column)))
    shop.land("c.csv", HEADER + line(9))
    assert_says(shop.entry("b.parquet").refused, f"column '{column}'", "it has type list<", REMEDY)
    assert shop.ids() == [1, 2, 9]


def test_a_first_file_is_left_out_if_a_needed_column_cannot_be_read(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, derive={"double": "2 * price"})
    shop.land("a.parquet", as_parquet(with_column(SKIPPED["list"], "price")))
    shop.land("b.csv", GOOD)
    assert shop.ids() == [1, 2]
    assert_says(shop.entry("a.parquet").refused, "column 'price' is needed, but it has type list<", REMEDY)


def test_an_excluded_column_that_cannot_be_read_or_is_missing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, exclude=["city"])
    shop.land("a.csv", GOOD)
    shop.ingest()
    shop.land("b.parquet", as_parquet(with_column(SKIPPED["list"], "city")))
    shop.land("c.csv", HEADER.replace(",city", "") + f"3,{DAY}T10:00:00,2\n")
    assert shop.ingest().ledger.refused == {}
    assert shop.rows("id", "city") == [(1, "Oslo"), (2, "Oslo"), (3, None), (7, None), (8, None)]


def test_exclude_helps_after_a_file_was_refused(shop: LandedDataset) -> None:
    shop.land("b.parquet", as_parquet(with_column(SKIPPED["list"], "city")))
    assert list(shop.ingest().ledger.refused) == ["b.parquet"]
    helped = make_dataset(shop.paths.root, exclude=["city"])
    assert helped.ids() == [1, 2, 7, 8]


def test_exclude_can_name_a_column_that_no_file_gives(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, exclude=["x"])
    shop.land("a.parquet", as_parquet(with_column(SKIPPED["binary"])))
    assert shop.ids() == [7, 8]
    assert shop.ids() == [7, 8]


def test_an_excluded_column_with_a_reserved_name_is_left_out(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, exclude=["date"])
    shop.land("a.csv", GOOD.replace("city", "date"))
    assert shop.ids() == [1, 2]


def test_times_of_96_bits_are_exact(shop: LandedDataset) -> None:
    far = dt.datetime(9999, 12, 31)
    table = with_column(pa.array([far, dt.datetime(2024, 3, 1, 10, 0, 0, 123456)], pa.timestamp("us")), "x")
    content = as_parquet(table, use_deprecated_int96_timestamps=True)
    assert read_file("a.parquet", content).rows["x"].to_list() == [far, dt.datetime(2024, 3, 1, 10, 0, 0, 123456)]
    near = as_parquet(pa.table({"x": pa.array([123], pa.timestamp("ns"))}), use_deprecated_int96_timestamps=True)
    assert read_file("a.parquet", near).rows["x"].dt.timestamp("ns").to_list() == [123]


ODD_FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "other columns": ("b.csv", lambda: b"x,y\n1,2\n"),
    "prose": ("b.txt", lambda: b"This is a note, not a table.\nIt has two lines.\n"),
    "no name": ("b.csv", lambda: GOOD.replace("id,", ",id,", 1).encode()),
    "offset": ("b.parquet", lambda: as_parquet(with_column(EXACT["a zone as an offset"][0]))),
    "decimal256": ("b.parquet", lambda: as_parquet(with_column(EXACT["decimal256"][0]))),
    "damaged": ("b.parquet", lambda: b"PAR1" + bytes(range(256)) + b"PAR1"),
    "damaged Excel": ("b.xlsx", lambda: b"PK\x03\x04" + bytes(300)),
    "damaged Avro": ("b.avro", lambda: b"Obj\x01" + bytes(range(200))),
    "damaged Arrow": ("b.arrow", lambda: b"ARROW1\0\0" + bytes(300) + b"ARROW1"),
    "old Feather": ("b.feather", lambda: b"FEA1" + bytes(300) + b"FEA1"),
    "empty": ("b.jsonl", lambda: b""),
    "no JSON": ("b.jsonl", lambda: b"hello\n"),
    "reserved": ("b.csv", lambda: GOOD.replace("city", "score").encode()),
}


@pytest.mark.parametrize("case", ODD_FILES)
def test_an_odd_file_among_the_first_holds_up_no_other(case: str, tmp_path: Path) -> None:
    name, content = ODD_FILES[case]
    shop = make_dataset(tmp_path)
    shop.land("a_good.csv", GOOD)
    shop.land(name, content())
    shop.land("c_good.csv", HEADER + line(3))
    assert {1, 2, 3} <= set(shop.ids())


@pytest.mark.parametrize("case", ODD_FILES)
def test_an_odd_file_later_holds_up_no_other(case: str, shop: LandedDataset) -> None:
    name, content = ODD_FILES[case]
    shop.land("a0_good.csv", HEADER + line(3))
    shop.land(name, content())
    shop.land("c_good.csv", HEADER + line(4))
    assert {1, 2, 3, 4} <= set(shop.ids())
    assert_says(shop.ingest().ledger.refused[name], REMEDY)
    assert list(shop.ingest().read) == []


def test_a_panic_while_rows_are_validated_refuses_only_its_file(
    shop: LandedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """What an extension written in Rust raises."""

    conform = conform_module.conform

    def panic(file: FileRows, *rest: Any) -> FileRows:
        if file.rows["city"].eq("odd").any():
            raise PanicException("called `Option::unwrap()` on a `None` value\nstack")
        return conform(file, *rest)

    monkeypatch.setattr(batch, "conform", panic)
    shop.land("b.csv", HEADER + line(8, city="odd"))
    shop.land("c.csv", HEADER + line(9))
    ingested = shop.ingest()
    assert_says(ingested.ledger.refused["b.csv"], r"validated \(PanicException: called `Option::unwrap", REMEDY)
    assert shop.ids() == [1, 2, 9]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_a_file_is_not_to_blame_for_is_raised(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("ae_pipeline.ingestion.readers.files.read_delimited", fail)
    with pytest.raises(error):
        read_file("a.csv", b"id\n1\n")


def test_an_old_ledger_without_skipped_columns_is_read(shop: LandedDataset) -> None:
    shop.ingest()
    entries = json.loads(shop.paths.ledger.read_text(encoding="utf-8"))
    del entries["sha256"]  # the digest of the entries came with them
    for entry in entries.values():
        assert entry.pop("skipped") == {}
    shop.paths.ledger.write_text(json.dumps(entries), encoding="utf-8")
    assert shop.ingest().read == ()


# Columns from paths


def test_folders_and_named_groups_become_columns(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, source={"path_columns": r"sales_(?P<branch>[a-z]+)"})
    shop.land("country=DE/day=2024-01-01/sales_a.csv", GOOD)
    shop.land("country=S%C3%A3o%20Tom%C3%A9/day=2024-01-02/sales_b.parquet", parquet(frame(3)))
    shop.land("country=__HIVE_DEFAULT_PARTITION__/day=2024-01-03/sales_c.csv", HEADER + line(4))
    assert shop.rows("id", "country", "day", "branch") == [
        (1, "DE", dt.date(2024, 1, 1), "a"),
        (2, "DE", dt.date(2024, 1, 1), "a"),
        (3, "São Tomé", dt.date(2024, 1, 2), "b"),
        (4, None, dt.date(2024, 1, 3), "c"),
    ]
    shop.land("country=FR/day=2024-01-04/other.csv", HEADER + line(5))
    refused = shop.ingest().ledger.refused["country=FR/day=2024-01-04/other.csv"]
    assert_says(refused, "the path does not match source.path_columns", REMEDY)


def test_a_folder_can_be_identity_and_event_time(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, identity=["store", "id"], event_time="date")
    shop.land("store=007/date=2024-03-01/a.csv", "id,x\n1,2\n")
    shop.land("store=7/date=2024-03-02/a.csv", "id,x\n1,2\n")
    assert shop.rows("store", "id", "date") == [("007", "1", dt.date(2024, 3, 1)), ("7", "1", dt.date(2024, 3, 2))]


def test_a_contract_from_before_ignores_folders_that_look_like_columns(shop: LandedDataset) -> None:
    shop.land("year=2024/b.csv", HEADER + line(3))
    assert shop.ingest().ledger.refused == {}
    assert shop.ids() == [1, 2, 3]


@pytest.mark.parametrize(
    ("folder", "rows", "agrees"),
    [
        ("city=Oslo", GOOD, True),
        ("city=Bergen", GOOD, False),
        ("price=1.50", GOOD, True),
        ("price=1.6", GOOD, False),
        ("id=1", HEADER + line(1), True),
        ("id=01", HEADER + line(1), True),
        ("id=12345678901234567890", HEADER + line("12345678901234567891"), False),
        ("id=7", parquet(frame(7)), True),
        ("id=8", parquet(frame(7)), False),
        ("day=2024-01-01", parquet(frame(7, day=[dt.date(2024, 1, 1)])), True),
        ("day=2024-01-02", parquet(frame(7, day=[dt.date(2024, 1, 1)])), False),
        ("flag=true", parquet(frame(7, flag=[True])), True),
        ("flag=true", parquet(frame(7, flag=[None])), False),
    ],
)
def test_a_column_in_file_and_path_must_agree(folder: str, rows: str | bytes, agrees: bool) -> None:
    name = f"{folder}/a.{'csv' if isinstance(rows, str) else 'parquet'}"
    data = rows.encode() if isinstance(rows, str) else rows
    if agrees:
        assert read_file(name, data).rows.equals(
            read_file(name.split("/")[1], data).rows.with_columns(_source_file=pl.lit(name))
        )
        return
    with pytest.raises(UnreadableFileError, match=r"column '\w+' is '.*' in the path, but .* in the file; correct one"):
        read_file(name, data)
