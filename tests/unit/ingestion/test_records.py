"""Records of text files: quoted values, open quotes, line ends, and where a row starts."""

import csv
import io
import random

import numpy as np
import pytest

from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion.readers import records
from ae_pipeline.ingestion.readers.delimited import read_delimited
from ae_pipeline.ingestion.readers.records import Broken, RecordScanner
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError


def read(text: str | bytes, **source: object) -> FileRows:
    data = text.encode() if isinstance(text, str) else text
    return read_delimited(".csv", data, SourceConfig.model_validate(source))


def rows_of(file: FileRows) -> list[tuple[object, ...]]:
    """Return line and values of each row."""
    return file.rows.select("_row_number", *file.rows.drop("_row_number").columns).rows()


def rejected_of(file: FileRows) -> list[tuple[object, ...]]:
    return file.rejected.select("row_number", "rule", "record").rows()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('1,"two\nlines"\n2,b\n', [(2, "1", "two\nlines"), (4, "2", "b")]),
        ('1,"two\r\nlines"\r\n2,b\r\n', [(2, "1", "two\r\nlines"), (4, "2", "b")]),
        ('1,"two\rlines"\n2,b', [(2, "1", "two\rlines"), (4, "2", "b")]),
        ('1,"\n\n\n"\n2,b\n', [(2, "1", "\n\n\n"), (6, "2", "b")]),
        ('1,"a, ""b"", c"\n', [(2, "1", 'a, "b", c')]),
        ('1,""""\n2,""""""\n', [(2, "1", '"'), (3, "2", '""')]),
        ('1,""\n2,\n"",3\n', [(2, "1", None), (3, "2", None), (4, None, "3")]),
        ('1,"9,x"\n2,"\n9,x\n"\n3,c\n', [(2, "1", "9,x"), (3, "2", "\n9,x\n"), (6, "3", "c")]),
        ('1,5" disk\n2,a"b"c\n', [(2, "1", '5" disk'), (3, "2", 'a"b"c')]),
        ('1,"a"  \n2,"b" \r\n', [(2, "1", "a  "), (3, "2", "b ")]),
        ('1, "a\n2,b\n', [(2, "1", ' "a'), (3, "2", "b")]),
        ("1,a\n\n\r\n2,b\n\n", [(2, "1", "a"), (5, "2", "b")]),
        (",\n1,a\n", [(2, None, None), (3, "1", "a")]),
        ("1,a\0b\n", [(2, "1", "a\0b")]),
        ('1,"a\0\nb"\n', [(2, "1", "a\0\nb")]),
        ("1,a\r2,b\n3,c\r\n4,d", [(2, "1", "a"), (3, "2", "b"), (4, "3", "c"), (5, "4", "d")]),
        (" 1 ,  \n", [(2, " 1 ", "  ")]),
        ("", []),
        ("\n\n", []),
    ],
)
def test_values_are_read_exactly_and_rows_know_their_line(body: str, expected: list[tuple[object, ...]]) -> None:
    file = read("id,x\n" + body)
    assert rows_of(file) == expected
    assert rejected_of(file) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_header_can_hold_line_breaks_and_spaces(end: str) -> None:
    file = read(f'\ufeff" id ","a{end}b",  x y {end}1,2,3{end}')
    assert file.rows.columns == ["id", f"a{end}b", "x y", "_row_number"]
    assert rows_of(file) == [(3, "1", "2", "3")]


@pytest.mark.parametrize(
    ("body", "good", "broken"),
    [
        ('1,"a\n2,b\n3,c\n', ["2", "3"], [(2, '1,"a')]),
        ('1,"a\n2,"b"\n3,c\n', ["2", "3"], [(2, '1,"a')]),
        ('1,"a\n2,"b\n3,c\n', ["3"], [(2, '1,"a'), (3, '2,"b')]),
        ('1,"a\n2,""\n3,"c\nd"\n', ["2", "3"], [(2, '1,"a')]),
        ('1,"a\n"2","b"\n"3","c"\n', ["2", "3"], [(2, '1,"a')]),
        ('"1","a\n2,"""b"" c"\n3,c\n', ["2", "3"], [(2, '"1","a')]),
        ('1,"a"b\n2,c\n', ["2"], [(2, '1,"a"b')]),
        ('1,"a "b" c"\n2,d\n', ["2"], [(2, '1,"a "b" c"')]),
        ('1,"a "b"\n9,x\nc",d\n2,d\n', ["2"], [(2, '1,"a "b"\n9,x\nc",d')]),
        ('1,"say "hi" to\n9,x\nall"\n2,d\n', ["2"], [(2, '1,"say "hi" to\n9,x\nall"')]),
        ('1,"a\nb"c\n9,x\nd"\n2,e\n', ["2"], [(2, '1,"a\nb"c\n9,x\nd"')]),
        ('1,a\n2,"b', ["1"], [(3, '2,"b')]),
        ('1,"a\nb"\n2,"c\n3,d\n', ["1", "3"], [(4, '2,"c')]),
    ],
)
def test_an_open_quote_breaks_only_its_record(body: str, good: list[str], broken: list[tuple[int, str]]) -> None:
    file = read("id,x\n" + body)
    assert file.rows["id"].to_list() == good
    assert rejected_of(file) == [(number, "quote", record) for number, record in broken]


def test_a_row_with_too_many_lines_is_quarantined_whole() -> None:
    body = '1,a\n2,"' + "9,x\n" * 5 + '"\n3,c\n'
    assert [row[1] for row in rows_of(read("id,x\n" + body))] == ["1", "2", "3"]
    file = read("id,x\n" + body, max_record_lines=5)
    assert [row[1] for row in rows_of(file)] == ["1", "3"]
    ((number, rule, record),) = rejected_of(file)
    assert (number, rule) == (3, "length")
    assert str(record).count("9,x") == 5
    assert "the row has 6 lines, at most 5 can be read; close its quote, or raise" in file.rejected["reason"][0]


def test_ragged_rows_after_quoted_breaks_know_their_line() -> None:
    file = read('id,x\n1,"a\nb"\n\n2\n3,"c\n\nd",e\n4,f\n')
    assert rows_of(file) == [(2, "1", "a\nb"), (9, "4", "f")]
    assert [row[:2] for row in rejected_of(file)] == [(5, "columns"), (6, "columns")]


def test_only_rows_with_unknown_bytes_are_quarantined() -> None:
    file = read(b'id,x\n1,\xc3\xa9\n2,"\xe9\n9,x"\n3,\xef\xbf\xbd\n4,\xe9"\n')
    assert rows_of(file) == [(2, "1", "é"), (5, "3", "\ufffd")]
    assert rejected_of(file) == [(3, "encoding", '2,"\\xe9\n9,x"'), (6, "encoding", '4,\\xe9"')]


def test_an_empty_line_of_a_single_column_is_a_missing_value() -> None:
    assert rows_of(read('id\n1\n\n"2\n"\n')) == [(2, "1"), (3, None), (4, "2\n")]


def test_columns_without_a_name_get_one() -> None:
    assert read(",id,x,\n0,1,2,\n").rows.columns == ["unnamed_1", "id", "x", "unnamed_4", "_row_number"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",,\n1,2,3\n", "the first line is not a header"),
        ("\n1,2\n", "the first line is not a header"),
        ('id,"x\n1,2\n', "the first line is not a header .a quote is not closed"),
        ("id,x\0\n1,2\n", "NUL bytes"),
        ("id,id\n", "two columns have the name 'id'; give each"),
    ],
)
def test_a_header_that_is_none_is_explained(text: str, message: str) -> None:
    with pytest.raises(UnreadableFileError, match=message):
        read(text)


def record_by_record(data: bytes) -> tuple[list[int], list[Broken]]:
    """Return what `structure` returns, reading one record after the other."""
    scanner, start = RecordScanner(data, b","), 0
    quotes: list[int] = []
    broken: list[Broken] = []
    while start < len(data):
        record = scanner.record(start)
        if record.problem:
            broken.append(Broken(start, record.end, "quote", record.problem))
        else:
            quotes += record.quotes
        start = record.end
    return quotes, broken


def is_in(positions: np.ndarray, quotes: list[int]) -> list[bool]:
    return [bool(index % 2) for index in np.searchsorted(np.array(quotes, dtype=np.int64), positions)]


@pytest.mark.parametrize("block", [2, 4, 64])
def test_blocks_of_quotes_are_read_as_single_records(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_MIN_BLOCK", block)
    rng = random.Random(block)
    for _ in range(1500):
        data = "".join(rng.choice('",\na b\r"') for _ in range(rng.randint(1, 40))).encode()
        scanner = RecordScanner(data, b",")
        quotes, broken = scanner.structure()
        expected, expected_broken = record_by_record(data)
        assert sorted(broken) == expected_broken, data
        outside = np.array(
            [at for at in scanner.breaks if not any(each.start <= at < each.end for each in broken)], dtype=np.int64
        )
        assert is_in(outside, quotes.tolist()) == is_in(outside, expected), data


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_that_csv_writers_write_is_read_back(end: str) -> None:
    rng = random.Random(end)
    for _ in range(300):
        width = rng.randint(2, 4)
        rows = [
            ["".join(rng.choice('",\na b\r;') for _ in range(rng.randint(0, 6))) for _ in range(width)]
            for _ in range(rng.randint(1, 5))
        ]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([[f"c{n}" for n in range(width)], *rows])
        file = read(text.getvalue(), separator=",")
        assert [row[1:] for row in rows_of(file)] == [tuple(value or None for value in row) for row in rows]
        assert file.rejected.height == 0
