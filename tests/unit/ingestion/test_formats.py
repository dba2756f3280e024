"""The same rows in every format and dialect."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pytest
import xlsxwriter

from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.ingestion.landing_folder import list_landing
from ae_pipeline.ingestion.readers.files import format_of, read_file
from ae_pipeline.ingestion.rows import UnreadableFileError
from tests.support.datasets import DAY, REMEDY, assert_says, make_dataset, parquet

pytestmark = pytest.mark.slow

HEAD = ["id", "time", "price", "city", "note"]
ROWS = [
    ["00000000000000000001", f"{DAY}T10:00:00", "1.5", "Tromsø", "plain"],
    ["12345678901234567890", f"{DAY}T10:00:01", "2.25", "Zürich", "a, b; c | d"],
    ["12345678901234567891", f"{DAY}T10:00:02", "", "Oslo", "two\nlines"],
    ["007", f"{DAY}T10:00:03", "-3.0", "", 'say "hi"'],
]


def delimited(separator: str = ",", end: str = "\n", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    """Return the rows as text."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows([HEAD, *ROWS])
    return text.getvalue()


def table() -> pl.DataFrame:
    """Return the rows as texts, with missing values."""
    columns = [[value or None for value in column] for column in zip(*ROWS, strict=True)]
    return pl.DataFrame(dict(zip(HEAD, columns, strict=True)), schema=dict.fromkeys(HEAD, pl.String()))


def json_array() -> str:
    """Return the rows as a JSON array."""
    return f"[{', '.join(json_lines().splitlines())}]"


def json_lines() -> str:
    """Return the rows as JSON Lines; the price is a number."""
    lines = []
    for row in ROWS:
        values = {name: json.dumps(value, ensure_ascii=False) for name, value in zip(HEAD, row, strict=True)}
        values |= {"price": row[2] or "null", "city": values["city"] if row[3] else "null"}
        lines.append("{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}\n")
    return "".join(lines)


def excel(rows: list[list[Any]] | None = None, *more: str) -> bytes:
    """Return rows as an Excel file with one sheet, and further sheets."""
    content = io.BytesIO()
    with xlsxwriter.Workbook(content, {"in_memory": True}) as book:
        sheet = book.add_worksheet("rows")
        for index, row in enumerate(rows or [HEAD, *ROWS]):
            for column, value in enumerate(row):
                if isinstance(value, str):
                    sheet.write_string(index, column, value) if value else None
                elif value is not None:
                    sheet.write(index, column, value)
        for name in more:
            book.add_worksheet(name)
    return content.getvalue()


def avro() -> bytes:
    content = io.BytesIO()
    table().write_avro(content)
    return content.getvalue()


def arrow(kind: str) -> bytes:
    rows = table().to_arrow(compat_level=pl.CompatLevel.oldest())
    sink = pa.BufferOutputStream()
    if kind == "feather":
        pyarrow.feather.write_feather(rows, sink, compression="zstd")
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, rows.schema) as writer:
            writer.write_table(rows)
    return bytes(sink.getvalue())


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


PLAIN = delimited().encode()
CASES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "comma": ("a.csv", lambda: PLAIN),
    "semicolon": ("a.csv", lambda: delimited(";").encode()),
    "tab": ("a.tsv", lambda: delimited("\t").encode()),
    "tab in csv": ("a.csv", lambda: delimited("\t").encode()),
    "bar": ("a.txt", lambda: delimited("|").encode()),
    "all quoted": ("a.csv", lambda: delimited(quoting=csv.QUOTE_ALL).encode()),
    "CR LF": ("a.csv", lambda: delimited(end="\r\n").encode()),
    "CR": ("a.csv", lambda: delimited(end="\r", quoting=csv.QUOTE_ALL).encode()),
    "no last break": ("a.csv", lambda: PLAIN.rstrip(b"\n")),
    "UTF-8 with a mark": ("a.csv", lambda: delimited().encode("utf-8-sig")),
    "UTF-16": ("a.csv", lambda: delimited(";").encode("utf-16")),
    "UTF-16, little end": ("a.csv", lambda: b"\xff\xfe" + delimited().encode("utf-16-le")),
    "UTF-16, big end": ("a.csv", lambda: b"\xfe\xff" + delimited("\t").encode("utf-16-be")),
    "UTF-32": ("a.csv", lambda: delimited().encode("utf-32")),
    "Latin-1": ("a.csv", lambda: delimited(";").encode("latin-1")),
    "cp1252": ("a.csv", lambda: delimited().encode("cp1252")),
    "gzip": ("a.csv.gz", lambda: gzip.compress(PLAIN)),
    "gzip of two": ("a.csv.gz", lambda: gzip.compress(PLAIN[:50]) + gzip.compress(PLAIN[50:])),
    "zstd": ("a.csv.zst", lambda: zstd(delimited(";").encode("utf-16"))),
    "zip": ("a.csv.zip", lambda: zipped(**{"b/a.csv": PLAIN, "__MACOSX/b/._a.csv": b"x"})),
    "zip without": ("a.zip", lambda: zipped(**{"a.jsonl": json_lines().encode()})),
    "JSON Lines": ("a.jsonl", lambda: json_lines().encode()),
    "JSON Lines, zstd": ("a.ndjson.zst", lambda: zstd(json_lines().replace("\n", "\r\n\r\n").encode())),
    "JSON array": ("a.json", lambda: json_array().encode()),
    "JSON array, UTF-16, zip": ("a.zip", lambda: zipped(**{"a.json": json_array().encode("utf-16")})),
    "Excel": ("a.xlsx", excel),
    "Parquet": ("a.parquet", lambda: parquet(table())),
    "Parquet, gzip": ("a.parquet.gz", lambda: gzip.compress(parquet(table()))),
    "Parquet of categories": ("a.parquet", lambda: parquet(table().cast(pl.Categorical()))),
    "Arrow file": ("a.arrow", lambda: arrow("file")),
    "Arrow stream": ("a.ipc", lambda: arrow("stream")),
    "Feather": ("a.feather", lambda: arrow("feather")),
    "Avro": ("a.avro", avro),
}


@pytest.mark.parametrize("case", CASES)
def test_all_formats_give_the_same_text(case: str) -> None:
    name, content = CASES[case]
    rows = read_file(name, content()).rows
    assert rows.drop("_source_file", "_row_number").equals(table())
    assert rows["_source_file"].unique().to_list() == [name]
    numbers = [2, 3, 4, 6] if name.startswith(("a.csv", "a.tsv", "a.txt")) else [1, 2, 3, 4]
    shift = {"a.xlsx": 1}.get(name, 0)
    if name == "a.ndjson.zst":
        numbers = [1, 3, 5, 7]
    assert rows["_row_number"].to_list() == [number + shift for number in numbers]


@pytest.mark.parametrize("case", CASES)
def test_all_formats_give_the_same_raw_rows(case: str, tmp_path: Path) -> None:
    tables = []
    for folder, (name, content) in {"csv": CASES["comma"], "other": CASES[case]}.items():
        shop = make_dataset(tmp_path / folder, columns={"id": "text"})
        shop.land(name, content())
        tables.append(shop.raw(shop.ingest()))
        assert shop.quarantine() == []
    assert tables[0].height == len(ROWS)
    assert tables[1].equals(tables[0])


@pytest.mark.parametrize("case", CASES)
def test_a_truncated_file_of_any_format_is_refused_or_loses_no_row(case: str) -> None:
    name, content = CASES[case]
    whole = content()
    for size in range(1, len(whole), max(1, len(whole) // 12)):
        try:
            file = read_file(name, whole[:size])
        except UnreadableFileError as error:
            assert_says(str(error), REMEDY)
        else:
            assert format_of(name)[0] in {".csv", ".tsv", ".txt", ".jsonl"}
            assert not format_of(name)[1]
            assert file.rows.height <= len(ROWS)


@pytest.mark.parametrize("case", CASES)
def test_a_garbled_file_of_any_format_is_refused_or_quarantined(case: str) -> None:
    name, content = CASES[case]
    for garbage in (b"\x00" * 40, b"\xff\xfe\xfd" * 20, bytes(range(256)), content()[:16] + b"\x99" * 400):
        try:
            file = read_file(name, garbage)
        except UnreadableFileError as error:
            assert_says(str(error), REMEDY)
        else:
            assert file.rows.height + file.rejected.height <= 20


def test_what_the_separator_was_is_frozen_in_the_contract(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shop = make_dataset(tmp_path, columns={"id": "text"})
    shop.land("a.csv", delimited(";").encode("cp1252"))
    with caplog.at_level("INFO"):
        contract = shop.ingest().contract
    assert "text files: separator ';', encoding cp1252, as found in a.csv" in caplog.text
    assert [(each.separator, each.encoding) for each in contract.dialects] == [(";", "cp1252")]
    assert "dialects:\n- {separator: ;, encoding: cp1252}" in shop.paths.contract.read_text(encoding="utf-8")
    assert load_contract(shop.paths.contract).dialects == contract.dialects


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (delimited("|").encode(), r"separator '\|', encoding utf-8"),
        (delimited().encode("utf-16"), "separator ',', encoding utf-16"),
    ],
)
def test_a_later_file_in_another_dialect_is_refused_until_declared(tmp_path: Path, content: bytes, found: str) -> None:
    shop = make_dataset(tmp_path, columns={"id": "text"})
    shop.land("a.csv", delimited())
    shop.ingest()
    shop.land("b.csv", content)
    refused = shop.entry("b.csv").refused
    assert_says(refused, f"the file has {found}, but the schema contract says separator ',', encoding utf-8", REMEDY)
    added = str(refused).split("add '")[1].split("' to dialects")[0]
    shop.edit_contract("dialects:\n", f"dialects:\n- {added}\n")
    assert shop.ingest().ledger.refused == {}


def test_a_contract_without_dialects_reads_every_dialect(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, columns={"id": "text"})
    shop.land("a.parquet", parquet(table()))
    assert shop.ingest().contract.dialects == ()
    for index, separator in enumerate(";|\t"):
        shop.land(f"b{index}.csv", delimited(separator))
    assert shop.ingest().ledger.refused == {}


def test_a_separator_that_fits_is_kept_even_if_another_fits_better(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, columns={"id": "text"})
    shop.land("a.csv", "id,time;x,y;z\n1,2024-03-01T10:00:00;3,4;5\n", at=1)
    shop.land("b.csv", "id,time\n1,2024-03-01T10:00:00\n", at=2)
    shop.declare(id={"type": "text"}, time={"type": "timestamp"})
    shop.edit_contract("dataset:", "dialects:\n- {separator: ','}\ndataset:")
    assert list(shop.ingest().ledger.refused) == ["a.csv"]
    assert_says(shop.entry("a.csv").refused, "has unknown 'time;x', 'y;z'")


def test_an_ambiguous_separator_asks(tmp_path: Path) -> None:
    content = b"id;price,eur\n1;1,5\n2;2,5\n"
    with pytest.raises(UnreadableFileError, match=r"separated by ',' or ';', .*; set source.separator in the YAML"):
        read_file("a.csv", content)
    shop = make_dataset(tmp_path, event_time=None, start=None, end=None, source={"separator": ";"})
    shop.land("a.csv", content)
    assert shop.rows("price,eur") == [(1.5,), (2.5,)]


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("id;price\n1;1,5\n2;2,5\n", ";"),
        ("id\tname, first\n1\tBob\n2\tA, B\n", "\t"),
        ('id,"a;b;c"\n1,"x;y;z"\n', ","),
        ("id|a\n1|2,3\n2|2,4\n", "|"),
        ("id\n1\n2\n", ","),
        ("id,a,b\n", ","),
        ("id,a\n1,2\n3\n4,5\n", ","),
        ('id;a\n1;"x\n\n;;y"\n2;z\n', ";"),
    ],
)
def test_the_separator_splits_header_and_rows_alike(text: str, separator: str) -> None:
    dialect = read_file("a.csv", text.encode()).dialect
    assert dialect is not None
    assert dialect.separator == separator


@pytest.mark.parametrize("encoding", ["cp1251", "shift_jis", "gb18030"])
def test_an_encoding_that_cannot_be_told_must_be_declared(tmp_path: Path, encoding: str) -> None:
    city = {"cp1251": "Москва", "shift_jis": "東京", "gb18030": "北京"}[encoding]
    content = f"id,city\n1,{city}\n2,{city}{city}\n".encode(encoding)
    with pytest.raises(UnreadableFileError, match=r"not UTF-8 and has no byte order mark.*; land it as UTF-8, or set"):
        read_file("a.csv", content)
    shop = make_dataset(tmp_path, event_time=None, start=None, end=None, source={"encoding": encoding})
    shop.land("a.csv", content)
    assert shop.rows("city") == [(city,), (city * 2,)]


def test_a_byte_order_mark_that_contradicts_the_yaml_is_refused(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, source={"encoding": "latin-1"}, columns={"id": "text"})
    shop.land("a.csv", PLAIN)
    shop.ingest()
    shop.land("b.csv", delimited().encode("utf-16"))
    assert_says(shop.entry("b.csv").refused, "mark of UTF-16, but source.encoding is iso8859-1", REMEDY)


# JSON Lines


def test_json_numbers_keep_all_their_digits() -> None:
    lines = '{"a": 12345678901234567890, "b": 1.10, "c": "007", "d": 1e400, "e": true, "f": NaN}\n{"g": "\\u00e9"}\n'
    rows = read_file("a.jsonl", lines.encode()).rows
    assert rows.drop("_source_file", "_row_number").rows() == [
        ("12345678901234567890", "1.10", "007", "1e400", "true", "NaN", None),
        (None, None, None, None, None, None, "é"),
    ]


def test_json_columns_with_nested_values_are_skipped() -> None:
    file = read_file("a.jsonl", b'{"id": 1, "tags": ["a"], "geo": {"x": 1}}\n{"id": 2, "tags": "b"}\n')
    assert file.rows["id"].to_list() == ["1", "2"]
    assert_says(file.skipped["tags"], "it holds arrays", REMEDY)
    assert_says(file.skipped["geo"], "it holds objects", REMEDY)
    assert set(file.rows.columns) == {"id", "_row_number", "_source_file"}


@pytest.mark.parametrize(
    "line",
    [b'{"id": 2', b"[1, 2]", b"3", b'{"id": 1, "id": 2}', b'{"id": "\\ud800"}', b"\xff", b'{"id": 2}}', b"[" * 9999],
)
def test_a_line_that_is_not_a_json_object_is_quarantined(line: bytes) -> None:
    file = read_file("a.jsonl", b'{"id": 1}\n' + line + b'\n{"id": 3}')
    assert file.rows.select("id", "_row_number").rows() == [("1", 1), ("3", 3)]
    ((number, rule, reason),) = file.rejected.select("row_number", "rule", "reason").rows()
    assert (number, rule) == (2, "json")
    assert_says(reason, "the line is not a JSON object", REMEDY)


# JSON arrays


def test_json_arrays_keep_all_digits_and_positions() -> None:
    content = b' [{"a": 12345678901234567890, "b": 1.10, "e": true},\n {"a": null, "g": "x\\ny"}, {"b": 1e400}] '
    rows = read_file("a.json", content).rows
    assert rows["_row_number"].to_list() == [1, 2, 3]
    assert rows.select("a", "b", "e", "g").rows() == [
        ("12345678901234567890", "1.10", "true", None),
        (None, None, None, "x\ny"),
        (None, "1e400", None, None),
    ]


def test_nested_columns_of_a_json_array_are_skipped() -> None:
    file = read_file("a.json", b'[{"id": 1, "t": ["a"], "g": {"x": 1, "x": 2}}, {"id": 2, "t": {"y": 1}}]')
    assert file.rows["id"].to_list() == ["1", "2"]
    assert_says(file.skipped["t"], "it holds arrays and objects", REMEDY)
    assert_says(file.skipped["g"], "it holds objects", REMEDY)


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (b"[1, 2]", "it is no object"),
        (b"3", "it is no object"),
        (b"null", "it is no object"),
        (b'{"id": 1, "id": 2}', "two values with the same name"),
        (b'{"id": "\\ud800"}', "half of a character"),
    ],
)
def test_an_item_that_is_not_an_object_is_quarantined(item: bytes, problem: str) -> None:
    file = read_file("a.json", b'[{"id": 1}, ' + item + b', {"id": 3}]')
    assert file.rows.select("id", "_row_number").rows() == [("1", 1), ("3", 3)]
    ((number, rule, reason),) = file.rejected.select("row_number", "rule", "reason").rows()
    assert (number, rule) == (2, "json")
    assert_says(reason, "the item is not a JSON object", problem, "; write an array of objects")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"id": 1}, {"id"', "not a complete JSON file"),
        (b'[{"id": 1}] x', "not a complete JSON file"),
        (b'{"id": 1}', "the file holds no JSON array"),
        (b"[]", "no item of the array is a JSON object"),
        (b"[{}, 3]", "no item of the array is a JSON object"),
        (b"[" * 99_999, "not a complete JSON file"),
        (b'[{"id": "\xc3\xa9\xff"}]', "not a complete JSON file"),
        (b'[{"id": 1, " id": 2}]', "two columns have the name"),
    ],
)
def test_a_json_file_without_an_array_of_objects_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(UnreadableFileError) as caught:
        read_file("a.json", content)
    assert_says(str(caught.value), problem, REMEDY)


def test_json_files_without_an_array_are_named_and_not_read(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path)
    shop.land("a.csv", delimited())
    shop.land("package.json", '{"name": "x"}')
    shop.land("empty.json", "")
    shop.land("b.json", "\ufeff\n [" + json_array()[1:])
    landing = list_landing(shop)
    assert set(landing.files) == {"a.csv", "b.json"}
    assert set(landing.others) == {"package.json", "empty.json"}
    assert "rename it to .jsonl if each line is an object" in landing.others["package.json"]


# Excel


def test_excel_cells_are_read_as_shown() -> None:
    rows: list[list[Any]] = [
        ["id", "n", "mixed", "flag"],
        ["007", 1, "a", True],
        ["008", 2.5, 7, False],
        [],
        ["9", 123456789012345, None, None],
    ]
    file = read_file("a.xlsx", excel(rows))
    assert file.rows.drop("_source_file").rows() == [
        ("007", "1", "a", "true", 2),
        ("008", "2.5", "7", "false", 3),
        ("9", "123456789012345", None, None, 5),
    ]


def test_of_several_sheets_one_must_be_chosen(tmp_path: Path) -> None:
    content = excel(None, "notes", "old")
    with pytest.raises(UnreadableFileError, match=r"the sheets 'rows', 'notes', 'old'; name the one .* source.sheet"):
        read_file("a.xlsx", content)
    shop = make_dataset(tmp_path, source={"sheet": "rows"}, columns={"id": "text"})
    shop.land("a.xlsx", content)
    assert len(shop.ids()) == len(ROWS)
    shop.land("b.xlsx", excel(None, "notes"))
    assert shop.ingest().ledger.refused == {}


def test_an_excel_row_with_an_error_is_rejected() -> None:
    content = io.BytesIO()
    with xlsxwriter.Workbook(content, {"in_memory": True}) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, ["id", "x"])
        sheet.write_row(1, 0, ["a", 1])
        sheet.write_row(2, 0, ["b"])
        sheet.write_formula(2, 1, "=1/0", None, "#DIV/0!")
    file = read_file("a.xlsx", content.getvalue())
    assert file.rows["id"].to_list() == ["a"]
    ((number, rule, reason),) = file.rejected.select("row_number", "rule", "reason").rows()
    assert (number, rule) == (3, "x: cell")
    assert_says(reason, "the cell of x has no value .*Div0", REMEDY)


# Archives


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(), "the zip file holds 0 files, not one; land each"),
        (zipped(**{"a.csv": PLAIN, "b.csv": PLAIN}), "holds 2 files: a.csv, b.csv, not one; land each"),
        (zipped(**{"a.exe": b"x"}), "holds a.exe, whose format cannot be read; land"),
    ],
)
def test_a_zip_file_must_hold_one_readable_file(content: bytes, message: str) -> None:
    with pytest.raises(UnreadableFileError, match=message):
        read_file("a.zip", content)
