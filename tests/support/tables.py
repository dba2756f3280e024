"""Random tables, and a check that ingestion keeps their rows."""

import datetime as dt
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
from hypothesis import strategies as st

from ae_pipeline.common.errors import SchemaError, StorageError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.landing import IngestResult, last_ingest
from ae_pipeline.ingestion.raw import build_raw_day
from tests.support.datasets import make_dataset
from tests.support.landed_files import LandedTable, landed_columns, landed_text

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

_DECIMAL_COMMAS = st.decimals(-999, 999, places=2, allow_nan=False).map(lambda number: str(number).replace(".", ","))


@st.composite
def landed_tables(draw: st.DrawFn) -> list[LandedTable]:
    """Draw one to three files of a table, in many formats and dialects, some of them damaged."""
    return [draw(_files(index)) for index in range(draw(st.integers(1, 3)))]


@st.composite
def _files(draw: st.DrawFn, index: int) -> LandedTable:
    rows = draw(
        st.lists(
            st.tuples(IDS, _TIMES, draw(st.sampled_from([VALUES, VALUES, _DECIMAL_COMMAS]))), min_size=1, max_size=12
        )
    )
    return draw(landed_columns(index, rows) if draw(st.integers(0, 4)) == 0 else landed_text(index, rows))


FATES = ("staged", "quarantined", "refused", "uncertain")
"""What can become of a landed row."""


def check_conservation(tables: list[LandedTable], *, has_identity: bool) -> Counter[str]:
    """Ingest files, and assert that each row is in `raw_data`, replaced, quarantined or in a refused file.

    Identities of undamaged files must be in `raw_data` exactly as they landed.

    Returns:
        Number of rows with each fate. Uncertain ones may be records of a damaged file, or not.
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
            known = entry.rows + quarantined
            assert known == table.rows if table.is_exact else known <= table.rows, (table, entry)
            fates += Counter(staged=entry.rows, quarantined=quarantined, uncertain=table.rows - known)
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
