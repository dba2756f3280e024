"""Group rows whose scores have the same cause: the same columns contribute most."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ae_pipeline.reports.ranking import RankedRow

_MIN_SHARE = 0.3
"""Share of the largest contribution from which a column belongs to the cause."""

_MIN_SHARE_OF_VALUE = 0.5
"""A group names a value of a column if more than this share of its rows has it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Explained rows with the same cause.

    Attributes:
        columns: Columns of the cause, sorted by name.
        rows: Rows, the highest score first.
        days: Days of the rows, ISO dates, the oldest first; empty without event time.
        message: Description of the cause.
        where: Phrases that locate the rows within their day; only on the page of a day.
    """

    columns: tuple[str, ...]
    rows: tuple[RankedRow, ...]
    days: tuple[str, ...]
    message: str
    where: tuple[str, ...] = ()


def group_rows(rows: Iterable[RankedRow]) -> list[Group]:
    """Return explained rows in groups with the same cause, the largest group first.

    Args:
        rows: Rows, the highest score first; rows without contributions are omitted.
    """
    causes: dict[tuple[str, ...], list[RankedRow]] = {}
    for row in rows:
        if row.contributions:
            causes.setdefault(cause(row), []).append(row)
    groups = [_group(columns, grouped_rows) for columns, grouped_rows in causes.items()]
    return sorted(groups, key=lambda group: (-len(group.rows), -group.rows[0].score, group.columns))


def cause(row: RankedRow) -> tuple[str, ...]:
    """Return the columns with at least 30% of the largest contribution to the score, sorted by name."""
    highest = max(part.surprisal for part in row.contributions)
    return tuple(sorted({part.column for part in row.contributions if part.surprisal >= _MIN_SHARE * highest}))


def _group(columns: tuple[str, ...], rows: Sequence[RankedRow]) -> Group:
    days = sorted({row.event_time.date().isoformat() for row in rows if row.event_time})
    parts = []
    for column in columns:
        values = [part.actual for row in rows for part in row.contributions if part.column == column]
        value, count = Counter(values).most_common(1)[0]
        is_shared = len(rows) == 1 or count > _MIN_SHARE_OF_VALUE * len(rows)
        parts.append(f"{column} is {value}" if is_shared else column)
    return Group(columns=columns, rows=tuple(rows), days=tuple(days), message=", ".join(parts))
