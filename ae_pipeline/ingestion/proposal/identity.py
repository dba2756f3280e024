"""Propose the columns that identify a row."""

from collections.abc import Sequence
from itertools import combinations

import polars as pl

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType
from ae_pipeline.ingestion.proposal.columns import TEXT_TYPES, TIME_TYPES, Choice, LandedColumns
from ae_pipeline.ingestion.proposal.names import is_id_name, names_row

_MAX_COMBINED, _MAX_CANDIDATES = 4, 8
"""Columns of an identity, and columns that are tried."""


def propose_identity(columns: LandedColumns, event_time: str | None) -> Choice:
    """Return the smallest set of columns that identifies a row by names and values, or none.

    Args:
        columns: Landed columns.
        event_time: Column of the event time, if the dataset has one.
    """
    rows = f"all {pluralize(columns.rows.height, 'row')}"
    possible = [name for name in columns.names if _can_identify(columns, name, event_time)]
    unique = [name for name in possible if columns.is_unique([name])]
    for name in sorted((name for name in unique if is_id_name(name)), key=lambda name: not names_row(name)):
        return Choice([name], f"no value occurs twice in {rows}")
    for name in unique:
        if _numbers_rows(columns, name):
            return Choice([name], f"it numbers {rows}")
        if _looks_like_code(columns, name):
            return Choice([name], f"texts of one form, none of which occurs twice in {rows}")
    if times := [name for name in unique if name == event_time or columns.kind(name) in TIME_TYPES]:
        return Choice([times[0]], f"no time occurs twice in {rows}")
    keys = [name for name in possible if is_id_name(name) or name == event_time or columns.kind(name) in TIME_TYPES]
    others = [name for name in possible if name not in keys and _groups_rows(columns, name)]
    tried = [*keys, *others][:_MAX_CANDIDATES]
    for size in range(2, _MAX_COMBINED + 1):
        for names in combinations(tried, size):
            if set(names) & set(keys) and columns.is_unique(names):
                return Choice(
                    sorted(names, key=columns.names.index), f"together unique in {rows}; fewer columns are not"
                )
    return Choice([], "no columns are unique by their names and values, so a row is known by its content")


def _can_identify(columns: LandedColumns, name: str, event_time: str | None) -> bool:
    """Return whether a column may identify rows: a time, a text or a whole number, with a value in each row."""
    values = columns.present(name)
    if (name in RESERVED_COLUMNS and name != event_time) or values.len() < columns.rows.height:
        return False
    if name == event_time or columns.kind(name) in TEXT_TYPES | TIME_TYPES:
        return not values.dtype.is_nested()
    is_number = values.dtype == pl.String or values.dtype.is_integer()
    return is_number and bool(values.cast(pl.String).str.contains(r"^[+-]?\d+$").all())


def _groups_rows(columns: LandedColumns, name: str) -> bool:
    """Return whether a text has few values. One with many values is unique beside a time by chance."""
    is_text = columns.kind(name) in TEXT_TYPES
    return is_text and columns.present(name).n_unique() <= columns.rows.height // 10


def _numbers_rows(columns: LandedColumns, name: str) -> bool:
    numbers = columns.whole_numbers(name)
    if numbers is None or numbers.len() < 20:
        return False
    least, most = numbers.min(), numbers.max()
    return (
        isinstance(least, int) and isinstance(most, int) and least in {0, 1} and most - least == numbers.n_unique() - 1
    )


def _looks_like_code(columns: LandedColumns, name: str) -> bool:
    values = columns.present(name)
    if values.dtype != pl.String or values.len() < 20 or columns.kind(name) not in TEXT_TYPES:
        return False
    return bool(values.str.contains(r"^([\w-]*\d[\w-]*|[A-Z-]+)$").all()) and values.str.len_chars().n_unique() <= 2


def propose_exclude(columns: LandedColumns, identity: Sequence[str], event_time: str | None) -> dict[str, Choice]:
    """Return the columns that the model should not see: they tell rows apart, or cannot be read.

    Args:
        columns: Landed columns.
        identity: Columns of the identity.
        event_time: Column of the event time, if the dataset has one.
    """
    exclude: dict[str, Choice] = {}
    for name in columns.names:
        values = columns.present(name)
        if name in RESERVED_COLUMNS and name != event_time:
            exclude[name] = Choice(
                name, "it cannot be read, because the pipeline uses its name; rename it at the source to keep it"
            )
            continue
        if (
            name == event_time
            or not values.len()
            or columns.kind(name) not in {ColumnType.INTEGER, ColumnType.TEXT, ColumnType.CATEGORY}
        ):
            continue
        distinct = values.n_unique()
        if list(identity) == [name]:
            exclude[name] = Choice(name, "it only tells rows apart")
        elif is_id_name(name) and distinct >= 20 and distinct > values.len() / 2:
            exclude[name] = Choice(name, f"{distinct:,} values in {pluralize(values.len(), 'row')}, too many to learn")
    return exclude
