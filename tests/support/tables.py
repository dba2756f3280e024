"""Random tables, the files that they land in, and damage to the files, for tests of what ingestion keeps."""

import csv
import datetime as dt
import io
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from hypothesis import strategies as st

from ae_pipeline.common.errors import SchemaError, StorageError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.landing import IngestResult, last_ingest
from ae_pipeline.ingestion.raw import build_raw_day
from tests.support.datasets import make_dataset

_TIMES = st.datetimes(dt.datetime(2024, 2, 28), dt.datetime(2024, 3, 2)).map(lambda time: time.replace(microsecond=0))
_PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)

IDS = st.one_of(
    st.integers(0, 12).map(str),
    st.sampled_from(
        ["007", "7", "7.0", "07", "1.1", "1.10", "12E3", "12000", "t", "true", "True", "", " ", "NA", "a|b"]
    ),
    st.integers(10**19, 10**19 + 3).map(str),
    _PLAIN_TEXT,
)
"""Identities that a type would merge, missing ones, and any text."""

VALUES = st.one_of(
    st.integers(-5, 5).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["", "NA", "nil", "?", "inf", "1e999", "9007199254740993", "0" * 3 + "5", "12,5", "$3", "x" * 40]),
    st.integers(2**53, 2**70).map(str),
    st.decimals(-(10**20), 10**20, places=3, allow_nan=False).map(str),
)
"""Numbers of any size, words for missing values, and what is no number."""

COLUMNS = ("id", "time", "x", "n")


@dataclass(frozen=True)
class LandedTable:
    """A file of a table.

    Attributes:
        name: Name of the file.
        content: Its bytes.
        rows: Number of its records.
        ids: Identities of its rows as they landed, or None if the file is damaged.
    """

    name: str
    content: bytes
    rows: int
    ids: tuple[str, ...] | None


@st.composite
def landed_tables(draw: st.DrawFn) -> list[LandedTable]:
    """Draw one to three files of a table: CSV in some dialect, possibly damaged, or Parquet."""
    return [draw(_files(index)) for index in range(draw(st.integers(1, 3)))]


@st.composite
def _files(draw: st.DrawFn, index: int) -> LandedTable:
    rows = draw(st.lists(st.tuples(IDS, _TIMES, VALUES), min_size=1, max_size=12))
    if draw(st.integers(0, 4)) == 0:
        return _parquet(draw, index, rows)
    lines = _csv_lines(draw, rows)
    damages = draw(st.lists(st.sampled_from(sorted(_DAMAGES)), max_size=2))
    data = [line.encode() for line in lines]
    for damage in damages:
        data = _DAMAGES[damage](draw, data)
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    last = draw(st.sampled_from([b"", end]))
    ids = None if damages else tuple(text for text, *_ in rows)
    return LandedTable(f"{index}.csv", start + end.join(data) + last, len(data) - 1, ids)


def _csv_lines(draw: st.DrawFn, rows: list[tuple[str, dt.datetime, str]]) -> list[str]:
    buffer = io.StringIO()
    is_quoted = draw(st.booleans())
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((text, time.isoformat(), value, number) for number, (text, time, value) in enumerate(rows))
    return buffer.getvalue().removesuffix("\n").split("\n")


def _parquet(draw: st.DrawFn, index: int, rows: list[tuple[str, dt.datetime, str]]) -> LandedTable:
    ids = pl.Series("id", [text for text, *_ in rows], dtype=pl.String)
    kind = draw(st.sampled_from(["text", "category", "integers", "floats"]))
    if kind == "category":
        ids = ids.cast(pl.Categorical)
    elif kind == "integers":
        ids = pl.Series("id", draw(st.lists(st.integers(2**53, 2**53 + 4), min_size=len(rows), max_size=len(rows))))
    elif kind == "floats":
        numbers = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1, width=32), st.none())
        ids = pl.Series("id", draw(st.lists(numbers, min_size=len(rows), max_size=len(rows))), dtype=pl.Float32)
    unit = draw(st.sampled_from([pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns")]))
    times = pl.Series("time", [time for _, time, _ in rows], dtype=unit)
    values = pl.Series("x", [value for *_, value in rows], dtype=pl.String)
    buffer = io.BytesIO()
    pl.DataFrame([ids, times, values, pl.Series("n", range(len(rows)))]).write_parquet(buffer)
    landed = tuple(text for text, *_ in rows) if kind in {"text", "category"} else None
    return LandedTable(f"{index}.parquet", buffer.getvalue(), len(rows), landed)


def _line(draw: st.DrawFn, lines: list[bytes]) -> int:
    return draw(st.integers(1, len(lines) - 1))


def _flip_bit(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    """Flip a bit. It must not make or remove a quote or a line break, which would change the number of records."""
    index = _line(draw, lines)
    line = bytearray(lines[index])
    position = draw(st.integers(0, len(line) - 1))
    flipped = line[position] ^ 1 << draw(st.integers(0, 7))
    if not {flipped, line[position]} & set(b'"\r\n\0'):
        line[position] = flipped
    return [*lines[:index], bytes(line), *lines[index + 1 :]]


def _cut_line(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    index = _line(draw, lines)
    cut = lines[index][: draw(st.integers(1, len(lines[index])))]
    # An open quote can reach into the next line, so that the number of records is not known.
    cut = cut if cut.count(b'"') % 2 == 0 and cut.strip(b',"') else lines[index]
    return [*lines[:index], cut, *lines[index + 1 :]]


def _repeat_line(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    index = _line(draw, lines)
    return [*lines[:index], lines[index], *lines[index:]]


def _add_value(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    index = _line(draw, lines)
    return [*lines[:index], lines[index] + b",extra", *lines[index + 1 :]]


def _rename_column(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b"x", draw(st.sampled_from([b"y", b"n"]))), *lines[1:]]


_DAMAGES = {
    "flip": _flip_bit,
    "cut": _cut_line,
    "repeat": _repeat_line,
    "add": _add_value,
    "rename": _rename_column,
}


def check_conservation(tables: list[LandedTable], *, has_identity: bool) -> Counter[str]:
    """Ingest files, and assert that each row is in `raw_data`, replaced, quarantined or in a refused file.

    Identities of undamaged files must be in `raw_data` exactly as they landed.

    Returns:
        Number of rows with each fate.
    """
    with tempfile.TemporaryDirectory() as folder:
        identity = ["id"] if has_identity else []
        dataset = make_dataset(Path(folder), columns={"id": "text"}, identity=identity)
        for table in tables:
            dataset.land(table.name, table.content)
        result: IngestResult | None
        try:
            result = dataset.ingest()
        except (SchemaError, StorageError):
            result = last_ingest(dataset)
        if result is None:
            return Counter(refused=sum(table.rows for table in tables))
        fates: Counter[str] = Counter()
        for table in tables:
            entry = result.ledger.files.get(table.name)
            if entry is None or entry.refused:
                fates["refused"] += table.rows
                continue
            quarantined = sum(entry.quarantined.values())
            assert entry.rows + quarantined == table.rows, (table, entry)
            fates += Counter(staged=entry.rows, quarantined=quarantined)
        days = [build_raw_day(day, result, dataset.paths) for day in result.ledger.days]
        raw = sum(day.rows for day in days)
        replaced = sum(day.superseded for day in days)
        assert raw + replaced == fates["staged"]
        row_ids = [name for day in days for name in pl.read_parquet(dataset.paths.raw(day.day))["row_id"]]
        assert len(row_ids) == len(set(row_ids)) == raw
        if not has_identity:
            assert replaced == 0
        elif result.contract.columns["id"].type == ColumnType.TEXT:
            _check_identities(tables, set(row_ids), fates, result.ledger.refused)
        return fates + Counter(raw=raw, replaced=replaced)


def _check_identities(
    tables: list[LandedTable], row_ids: set[str], fates: Counter[str], refused: dict[str, str]
) -> None:
    """Assert that identities are the landed text, unless a file is damaged or some rows are not in `raw_data`."""
    if any(table.ids is None for table in tables) or refused or fates["refused"]:
        return
    expected = {
        text.strip().replace("\\", "\\\\").replace("|", "\\|")
        for table in tables
        for text in table.ids or ()
        if text.strip()
    }
    assert row_ids <= expected
    if not fates["quarantined"]:
        assert row_ids == expected
