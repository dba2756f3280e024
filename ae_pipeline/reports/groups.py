"""Alerts of one cause as one line: rows that the same columns made strange."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ae_pipeline.reports.ranking import RankedRow

_SHARE = 0.3
"""Of the strongest contribution: what a column must contribute to be a part of the cause."""

_SAME = 0.5
"""Share of a group's rows that must have the same value for it to be named."""


@dataclass(frozen=True)
class Group:
    """Explained rows of one cause.

    Attributes:
        columns: That made them strange, in the order of the alphabet.
        rows: The strangest first.
        days: On which they are, ISO dates, the oldest first; none without event time.
        message: What they have in common, for a person.
        where: In which hours and parts of the day's rows they lie, a sentence each; of single days alone.
    """

    columns: tuple[str, ...]
    rows: tuple[RankedRow, ...]
    days: tuple[str, ...]
    message: str
    where: tuple[str, ...] = ()


def group_rows(rows: Iterable[RankedRow]) -> list[Group]:
    """Puts explained rows together whose strangeness lies in the same columns, the largest group first.

    Args:
        rows: The strangest first; those without an explanation are left out.
    """
    causes: dict[tuple[str, ...], list[RankedRow]] = {}
    for row in rows:
        if row.contributions:
            causes.setdefault(cause(row), []).append(row)
    groups = [_group(columns, alike) for columns, alike in causes.items()]
    return sorted(groups, key=lambda group: (-len(group.rows), -group.rows[0].score, group.columns))


def cause(row: RankedRow) -> tuple[str, ...]:
    """Names the columns that a row is strange by: those that contribute about as much as the strongest."""
    most = max(part.surprisal for part in row.contributions)
    return tuple(sorted({part.column for part in row.contributions if part.surprisal >= _SHARE * most}))


def _group(columns: tuple[str, ...], rows: Sequence[RankedRow]) -> Group:
    days = sorted({row.event_time.date().isoformat() for row in rows if row.event_time})
    told = []
    for column in columns:
        values = [part.actual for row in rows for part in row.contributions if part.column == column]
        value, count = Counter(values).most_common(1)[0]
        alike = len(rows) > 1 and count > _SAME * len(rows)
        told.append(f"{column} is {value}" if alike or len(rows) == 1 else column)
    return Group(columns, tuple(rows), tuple(days), ", ".join(told))
