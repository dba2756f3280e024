"""Propose the types of columns whose values do not show their type."""

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.proposal.columns import Choice, LandedColumns
from ae_pipeline.ingestion.proposal.names import is_code_name
from ae_pipeline.ingestion.proposal.times import EPOCH_UNITS, ambiguous_formats


def propose_kinds(columns: LandedColumns) -> dict[str, Choice]:
    """Return the types of integers that are times of day, times since 1970, or names."""
    kinds: dict[str, Choice] = {}
    for name in columns.names:
        numbers = columns.whole_numbers(name)
        if numbers is None or numbers.len() < 20:
            continue
        if unit := columns.epoch_unit(name):
            kinds[name] = Choice(
                {"type": "timestamp", "format": f"epoch_{unit}"}, f"numbers of {EPOCH_UNITS[unit]} since 1970 (UTC)"
            )
        elif _is_clock(name, numbers):
            example = int(numbers.filter(numbers < 2400).max() or 0)  # type: ignore[arg-type]
            text = f"times of day such as {example} for {example // 100:02d}:{example % 100:02d}"
            kinds[name] = Choice("clock_hhmm", text)
        elif is_code_name(name) and 2 < numbers.n_unique() <= _most_codes(numbers.len()):
            kinds[name] = Choice("category", f"{numbers.n_unique():,} numbers that are names, by the column's name")
    return kinds


def _most_codes(rows: int) -> int:
    """Return how many names a column of numbers may hold: each should occur in several rows."""
    return min(10_000, max(rows // 20, min(1000, rows // 5)))


def _is_clock(name: str, numbers: pl.Series) -> bool:
    lower = name.lower()
    is_named = any(word in lower for word in ("time", "hhmm", "clock", "dep", "arr"))
    in_range = bool(((numbers >= 0) & (numbers <= 2400) & (numbers % 100 < 60)).all())
    return is_named and in_range and numbers.n_unique() > 24 and int(numbers.max() or 0) > 240  # type: ignore[arg-type]


def ambiguous_times(columns: LandedColumns, event_time: str | None) -> dict[str, Choice]:
    """Return columns whose day and month cannot be told apart, with both formats as comments."""
    choices: dict[str, Choice] = {}
    for name in columns.names:
        values = columns.present(name)
        if name == event_time or values.dtype != pl.String or columns.kind(name) != ColumnType.TEXT:
            continue
        if formats := ambiguous_formats(values):
            kind = "timestamp" if "%H" in formats[0] else "date"
            reason = f"or {formats[1]!r}: no value shows which of day and month comes first, so choose"
            choices[name] = Choice({"type": kind, "format": formats[0]}, reason, is_live=False)
    return choices
