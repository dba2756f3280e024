"""The fast ways to read plain values give what the careful ways give."""

import threading
from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion import raw, staged
from ae_pipeline.ingestion.contract import ColumnRule, SchemaContract
from ae_pipeline.ingestion.numbers import LEADING_ZERO, has_leading_zeros, loses_digits
from ae_pipeline.ingestion.present import plain_numbers
from ae_pipeline.ingestion.readers.plain_lines import read_plain_lines
from ae_pipeline.ingestion.text_inference import Role, infer_from_texts, plain_number_rule
from ae_pipeline.ingestion.times import parse_moments
from tests.support.datasets import make_dataset


def test_plain_lines_are_read_as_text() -> None:
    rows = read_plain_lines(b"a,b\n1, x\n,\n007,1e5", 4, ["a", "b"], ",", 3)
    assert rows is not None
    assert rows.rows() == [("1", " x"), (None, None), ("007", "1e5")]


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"1,2\n3,4,5\n6\n", 3),
        (b"1\n3,4,5\n", 2),
        (b"1,2,3\n4\n", 2),
        (b"1,2\n3\n", 2),
        (b"1,2\n" * 5000 + b"3\n4,5,6\n", 5002),
        (b"\xef\xbb\xbf1,2\n", 1),
        (b"1,\xff\n", 1),
    ],
)
def test_lines_that_polars_would_not_read_alike_are_left(body: bytes, lines: int) -> None:
    assert read_plain_lines(b"a,b\n" + body, 4, ["a", "b"], ",", lines) is None


_NUMBER_COLUMNS = [
    ["1", "2", "-3", "+4"],
    ["1", "2.5", "-3e2", ".5", "100"],
    ["0", "0.0", "-0", "0.25"],
    ["00", "1"],
    ["007", "1.5"],
    ["-01", "2"],
    ["20240101", "20240102", "20240103", "20240104", "20240105"],
    ["20240101", "20240102", "20240103", "20240104", "5"],
    ["20240101", "1.5"],
    ["9223372036854775807", "1"],
    ["9223372036854775808", "1"],
    ["100000000000000000000", "1.5"],
    ["0.1234567890123456789", "1"],
    ["1e400", "1"],
    ["inf", "1"],
    ["nan", "1.5"],
    ["NA", "1"],
    ["t", "f"],
    ["1,5", "2,5"],
    ["2.2250738585072011e-308", "1.5"],
    ["5e-324", "1.5"],
    ["x", "1"],
]


@pytest.mark.parametrize("texts", _NUMBER_COLUMNS, ids=lambda texts: texts[0])
def test_the_rule_of_plain_numbers_is_the_inferred_one(texts: list[str]) -> None:
    series = pl.Series("text", texts)
    counts = series.value_counts(sort=True, name="count")
    expected = infer_from_texts(counts, None, Role.VALUE)
    assert plain_number_rule(series) in {None, expected}
    if expected.type == ColumnType.NUMBER and expected.decimal is None and not expected.null_values:
        is_plain = not series.str.contains("(?i)inf|e400").any() and texts[0][-1].isdigit()
        assert (plain_number_rule(series) == expected) == (is_plain and "100000000000000000000" not in texts)
    assert plain_number_rule(" " + series) is None


@pytest.mark.parametrize("texts", _NUMBER_COLUMNS, ids=lambda texts: texts[0])
def test_leading_zeros_and_lost_digits_are_found_in_few_texts(texts: list[str]) -> None:
    series = pl.Series([*texts, None, "0.5"])
    expected = series.str.contains(LEADING_ZERO)
    assert has_leading_zeros(series).fill_null(value=False).to_list() == expected.fill_null(value=False).to_list()
    lost = {"0.1234567890123456789", "2.2250738585072011e-308", "9223372036854775807", "9223372036854775808"}
    assert loses_digits(series).to_list() == [text in lost for text in series]


def _contract(**rule: object) -> SchemaContract:
    return SchemaContract(dataset="d", columns={"x": ColumnRule.model_validate(rule)})


@pytest.mark.parametrize(
    ("texts", "rule", "expected"),
    [
        (["1", None, "-2"], {"type": "integer"}, [1, None, -2]),
        (["1.50", None], {"type": "number"}, [1.5, None]),
        (["1", "NA"], {"type": "integer", "null_values": ["NA"]}, [1, None]),
        (["1", "-999"], {"type": "number", "null_values": ["-999"]}, [1.0, None]),
        (["0900", "1745"], {"type": "clock_hhmm"}, [900, 1745]),
        (["1,5"], {"type": "number", "decimal": ","}, [1.5]),
    ],
)
def test_columns_of_numbers_are_read_at_once(
    texts: list[str | None], rule: dict[str, object], expected: object
) -> None:
    rows = pl.DataFrame({"x": texts}, schema={"x": pl.String})
    assert plain_numbers(rows, dict(rows.schema), _contract(**rule))["x"].to_list() == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (" 1", {"type": "integer"}),
        ("1 ", {"type": "number"}),
        ("", {"type": "integer"}),
        ("nan", {"type": "number"}),
        ("inf", {"type": "number"}),
        ("007", {"type": "integer"}),
        ("9223372036854775808", {"type": "integer"}),
        (" 5", {"type": "integer", "null_values": [" 5"]}),
        ("x", {"type": "number"}),
        ("1", {"type": "text"}),
    ],
)
def test_other_columns_are_read_with_care(text: str, rule: dict[str, object]) -> None:
    rows = pl.DataFrame({"x": ["1", text]})
    assert plain_numbers(rows, dict(rows.schema), _contract(**rule)) == {}


def test_a_fraction_of_seconds_is_read_where_there_is_one() -> None:
    form = "%Y-%m-%dT%H:%M:%S%.f"
    whole, fraction = "2024-03-01T10:00:00", "2024-03-01T10:00:00.25"

    def seconds(*texts: str | None) -> list[float | None]:
        values = pl.DataFrame({"t": texts}, schema={"t": pl.String}).select(parse_moments(pl.col("t"), form))
        return [None if value is None else value.second + value.microsecond / 1e6 for value in values.to_series()]

    assert seconds(whole, None) == [0.0, None]
    assert seconds(whole, fraction, "x") == [0.0, 0.25, None]


def test_rows_in_memory_are_those_of_the_staged_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{number},2024-03-0{number % 3 + 1}T10:00:00,{number / 8},k{number % 2}" for number in range(30)]
    results = []
    for name, kept in (("kept", 256 << 20), ("read", 0)):
        monkeypatch.setattr(staged, "_KEPT_BYTES", kept)
        dataset = make_dataset(tmp_path / name)
        dataset.land("a.csv", "\n".join(["id,time,x,kind", *lines]).encode())
        ingested = dataset.ingest()
        [(_, entry)] = ingested.ledger.sources("2024-03-01")
        is_kept = staged.kept_rows(dataset.paths.staged(str(entry.staged))) is not None
        assert is_kept == (name == "kept")
        days = list(raw.write_raw_days(ingested.ledger.days, ingested, dataset.paths))
        results.append([(day.day, day.rows, day.content_hash) for day in days])
    assert results[0] == results[1]
    assert [(day, rows) for day, rows, _ in results[0]] == [(f"2024-03-0{day}", 10) for day in (1, 2, 3)]


def test_days_that_have_not_begun_are_left_when_the_caller_stops(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    lines = [f"{number},2024-03-{number:02d}T10:00:00,{number}" for number in range(1, 29)]
    dataset.land("a.csv", "\n".join(["id,time,x", *lines]).encode())
    ingested = dataset.ingest()
    before = threading.active_count()
    written = raw.write_raw_days(ingested.ledger.days, ingested, dataset.paths)
    assert next(written).day == "2024-03-01"
    written.close()
    assert threading.active_count() == before
