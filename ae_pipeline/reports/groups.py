"""Group rows whose scores have the same cause: the same columns contribute most."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ae_pipeline.config.display import PLAIN, ColumnNames
from ae_pipeline.detector.explanation import Contribution
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


def group_rows(rows: Iterable[RankedRow], names: ColumnNames = PLAIN) -> list[Group]:
    """Return explained rows in groups with the same cause, the largest group first.

    Args:
        rows: Rows, the highest score first; rows without contributions are omitted.
        names: How the descriptions name columns.
    """
    causes: dict[tuple[str, ...], list[RankedRow]] = {}
    for row in rows:
        if row.contributions:
            causes.setdefault(cause(row), []).append(row)
    groups = [_group(columns, grouped_rows, names) for columns, grouped_rows in causes.items()]
    return sorted(groups, key=lambda group: (-len(group.rows), -group.rows[0].score, group.columns))


@dataclass(frozen=True, kw_only=True)
class EntityGroup:
    """Flagged rows of one entity, such as a daily flight.

    Attributes:
        entity: Identity of the rows without their event time.
        rows: Rows, the highest score first.
        days: Days of the rows, ISO dates, the oldest first.
        cause: The most frequent cause of the rows.
    """

    entity: str
    rows: tuple[RankedRow, ...]
    days: tuple[str, ...]
    cause: Group


def group_by_entity(
    rows: Iterable[RankedRow], entity_of: Callable[[str], str], names: ColumnNames = PLAIN
) -> list[EntityGroup]:
    """Return flagged and explained rows by entity, the entity with most rows first. One row alone is no group.

    Args:
        rows: Rows, the highest score first.
        entity_of: Function from the identity of a row to its entity, which may be empty.
        names: How the descriptions name columns.
    """
    entities: dict[str, list[RankedRow]] = {}
    for row in rows:
        if row.is_anomaly and row.contributions and (entity := entity_of(row.row_id)):
            entities.setdefault(entity, []).append(row)
    groups = [
        EntityGroup(entity=entity, rows=tuple(each), days=_days(each), cause=group_rows(each, names)[0])
        for entity, each in entities.items()
        if len(each) > 1
    ]
    return sorted(groups, key=lambda group: (-len(group.rows), -group.rows[0].score, group.entity))


def cause(row: RankedRow) -> tuple[str, ...]:
    """Return the columns of the cause of an explained row; see `cause_of`."""
    return cause_of(row.contributions)


def cause_of(contributions: Sequence[Contribution]) -> tuple[str, ...]:
    """Return the columns with at least 30% of the largest contribution to the score, sorted by name."""
    highest = max(part.surprisal for part in contributions)
    return tuple(sorted({part.column for part in contributions if part.surprisal >= _MIN_SHARE * highest}))


def _group(columns: tuple[str, ...], rows: Sequence[RankedRow], names: ColumnNames) -> Group:
    parts = []
    for column in columns:
        values = [(part.actual, part.categories) for row in rows for part in row.contributions if part.column == column]
        value, count = Counter(values).most_common(1)[0]
        is_shared = len(rows) == 1 or count > _MIN_SHARE_OF_VALUE * len(rows)
        title = names.title(column)
        parts.append(f"{title} is {names.value(column, *value)}" if is_shared else title)
    return Group(columns=columns, rows=tuple(rows), days=_days(rows), message=", ".join(parts))


def _days(rows: Sequence[RankedRow]) -> tuple[str, ...]:
    return tuple(sorted({row.event_time.date().isoformat() for row in rows if row.event_time}))
