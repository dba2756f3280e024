"""Read marks: choices as people write them, false alarms of an entity, and rows and days in a state."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.monitoring.feedback import Mark, MarkKind, MarkState, marks_by_row

_Choice = TypeVar("_Choice", MarkKind, MarkState)


def parse_choice(kind: type[_Choice], text: str) -> _Choice:
    """Return the member of `MarkKind` or `MarkState` with a value.

    Args:
        kind: One of the two.
        text: Value as a person or a program gave it.

    Raises:
        ConfigError: There is no such member.
    """
    try:
        return kind(text)
    except ValueError as error:
        known = ", ".join(kind)
        raise ConfigError(f"a mark has no {text!r}; it is one of {known}") from error


def false_alarms_of(entity: str, columns: Collection[str], marks: Iterable[Mark]) -> list[str]:
    """Return the rows of an entity that were marked as false alarms, with a cause that shares a column with this one.

    Args:
        entity: Identity of the rows without the event time; without one there are none.
        columns: Columns of the cause.
        marks: Marks, the oldest first.
    """
    alarms = ((row_id, mark) for row_id, mark in marks_by_row(marks).items() if mark.is_false_alarm_of_row and entity)
    return [row_id for row_id, mark in alarms if mark.entity == entity and not set(columns).isdisjoint(mark.columns)]


def marks_since_known(entity: str, columns: tuple[str, ...], marks: Sequence[Mark]) -> Sequence[Mark]:
    """Return the marks after the one that made a cause known, for an entity or for all; all if it is not known."""
    since = marks
    for index, mark in enumerate(marks):
        if mark.kind == MarkKind.CAUSE and mark.columns == columns and mark.entity in {"", entity}:
            since = marks[index + 1 :] if mark.state == MarkState.KNOWN else marks
    return since


def rows_in_state(marks: Iterable[Mark], state: MarkState) -> dict[str, list[str]]:
    """Return the identities of the rows in a state, by day."""
    by_day: dict[str, list[str]] = {}
    for row_id, mark in marks_by_row(marks).items():
        if mark.state == state:
            by_day.setdefault(mark.rows[row_id], []).append(row_id)
    return by_day


def days_in_state(marks: Iterable[Mark], state: MarkState) -> list[str]:
    """Return the days in a state, the oldest first."""
    last: dict[str, Any] = {mark.subject: mark.state for mark in marks if mark.kind == MarkKind.DAY}
    return sorted(day for day, of_day in last.items() if of_day == state)
