"""What people say about alerts: rows, causes and days that are real, known, or false alarms.

Marks are lines of an append-only file beside the data. A later mark on the same subject replaces an earlier one.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from operator import itemgetter

from ae_pipeline.common.timestamps import now
from ae_pipeline.storage.integrity import file_digest
from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.locks import locks, marks_lock
from ae_pipeline.storage.marks_table import write_marks_table
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.storage.session import recording

GROWTH = 1.5
"""Known rows show again when their number exceeds this multiple of the marked one."""

GROWTH_NATS = math.log(10)
"""Nats by which its highest score may rise: ten times as rare."""

PAUSE_DAYS = 7
"""Reported days without a known cause after which it counts as happening again."""


NO_VERSION = 0
"""Version of a row that no version flagged, or if it is unknown."""

REPEATED = 3
"""False alarms of one entity with one cause from which on counts and alerts leave out its later rows too.

They do from the next version of the model on, or at once if a person takes the offer.
"""


class MarkKind(StrEnum):
    """What a mark is about."""

    ROW = "row"
    CAUSE = "cause"
    DAY = "day"


class MarkState(StrEnum):
    """What a person says about it."""

    REAL = "real"
    KNOWN = "known"
    FALSE_ALARM = "false_alarm"
    CLEARED = "cleared"

    @property
    def text(self) -> str:
        """The state as people read it."""
        return self.value.replace("_", " ")


HIDDEN = frozenset({MarkState.KNOWN, MarkState.FALSE_ALARM})
"""States that counts and alerts leave out."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a person said about a row, a cause or a day.

    Attributes:
        kind: What the mark is about.
        subject: Identity of the row, columns of the cause joined by `+`, or ISO date.
        state: What the person says.
        day: Newest day of the rows, ISO date, or `ALL_ROWS`.
        entity: Restricts a cause to one entity: the identity of its rows without the event time; empty for all.
        columns: Columns of the cause, or columns in which the day deviates.
        rows: Day of each row that the mark is about, by identity; empty for a day.
        sizes: How large it was: `rows` on a day and highest `score`; for a day a size for each reason.
        model_version: Version that scored the rows.
        note: Remark of the person.
        who: Person.
        at: Time of the mark, ISO 8601, UTC.
    """

    kind: MarkKind
    subject: str
    state: MarkState
    day: str
    entity: str = ""
    columns: tuple[str, ...] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    model_version: int = 0
    note: str = ""
    who: str = ""
    at: str = field(default_factory=now)

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity of the subject."""
        return self.kind, self.subject, self.entity

    @property
    def is_judged_row(self) -> bool:
        """Whether it says of a single row that it is real, or a false alarm."""
        return self.kind == MarkKind.ROW and self.state in {MarkState.REAL, MarkState.FALSE_ALARM}

    @property
    def is_false_alarm_of_row(self) -> bool:
        """Whether it says of a single row that it is a false alarm."""
        return self.is_judged_row and self.state == MarkState.FALSE_ALARM

    def is_like(self, other: "Mark") -> bool:
        """Whether its cause shares a column with that of another mark, for the same entity or for all."""
        return self.entity in {"", other.entity} and not set(self.columns).isdisjoint(other.columns)


@dataclass(frozen=True, kw_only=True)
class FlaggedRow:
    """A flagged row.

    Attributes:
        row_id: Identity of the row.
        day: ISO date, or `ALL_ROWS`.
        score: Surprisal, nats.
        columns: Columns of its cause.
        entity: Identity without the event time; empty if each row has one of its own.
        is_labeled: Whether the label marks it as an anomaly.
        model_version: Version that scored the row; 0 if unknown.
    """

    row_id: str
    day: str
    score: float
    columns: tuple[str, ...]
    entity: str = ""
    is_labeled: bool = False
    model_version: int = 0


@dataclass(frozen=True)
class Review:
    """Flagged rows and days as people marked them.

    Attributes:
        states: State of each flagged row that a mark covers, by identity.
        hidden: Number of flagged rows of each day that counts leave out: known ones and false alarms.
        days: Last mark of each day, by day.
    """

    states: Mapping[str, MarkState] = field(default_factory=dict)
    hidden: Mapping[str, int] = field(default_factory=dict)
    days: Mapping[str, Mark] = field(default_factory=dict)


UNREVIEWED = Review()
"""Nothing is marked."""


def marks_of(paths: DatasetPaths) -> list[Mark]:
    """Return all marks of a dataset, the oldest first."""
    marks = []
    for line in lines_of(paths.marks):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # damaged, in a line without a checksum
            kind, state = MarkKind(line["kind"]), MarkState(line["state"])
            marks.append(Mark(**{**line, "kind": kind, "state": state, "columns": tuple(line["columns"])}))
    return marks


def add_mark(mark: Mark, paths: DatasetPaths) -> None:
    """Append a mark, and publish all marks as Parquet beside it."""
    table = paths.marks.with_suffix(".parquet")
    with locks().hold(marks_lock(paths)), recording(paths, paths.marks, table) as save:
        add_line(paths.marks, asdict(mark))
        write_marks_table(paths.marks, table)
        save()


def marks_digest(paths: DatasetPaths) -> str:
    """Return the digest of all marks; empty without any. A report that shows them keeps it."""
    return file_digest(paths.marks) or ""


def marks_by_row(marks: Iterable[Mark]) -> dict[str, Mark]:
    """Return the last mark that covers each row, by identity.

    A row that a person has marked itself as real or as a false alarm stays so if its cause becomes known.
    """
    by_row: dict[str, Mark] = {}
    for mark in marks:
        covers_cause = mark.kind == MarkKind.CAUSE and mark.state == MarkState.KNOWN
        for row_id in mark.rows:
            previous = by_row.get(row_id)
            if mark.state == MarkState.CLEARED:
                by_row.pop(row_id, None)
            elif not (covers_cause and previous and previous.is_judged_row):
                by_row[row_id] = mark
    return by_row


def review(rows: Sequence[FlaggedRow], marks: Sequence[Mark], days: Collection[str]) -> Review:
    """Return the states of flagged rows.

    A row has the state of the last mark that covers it. A known cause also covers its rows on later days, until it
    grows or pauses: see `GROWTH`, `GROWTH_NATS` and `PAUSE_DAYS`. What has grown is not covered. A row that was marked
    itself keeps its state, and a later mark of the cause, or of one entity of it, ends the known cause there.

    Another version of the model gives the same rows other scores and causes. Those of the marked rows then say what the
    cause of an entity looks like, and how large it was.

    Repeated false alarms of one entity make their cause known there for the versions that were trained after them. A
    later judgement of a cause that shares a column with it ends that.

    Args:
        rows: Flagged rows of all days.
        marks: Marks, the oldest first.
        days: All days with rows.
    """
    by_row = marks_by_row(marks)
    states: dict[str, MarkState] = {}
    for row in rows:
        mark = by_row.get(row.row_id)
        if mark and not (mark.state in HIDDEN and _has_grown(row, mark)):
            states[row.row_id] = mark.state
    last: dict[tuple[str, str, str], Mark] = {}
    for mark in marks:
        last.pop(mark.key, None)  # so that the order is that of the last marks
        last[mark.key] = mark
    continued: set[str] = set()
    positions = {id(mark): position for position, mark in enumerate(marks)}
    repeated = {max(positions[id(by_row[row_id])] for row_id in mark.rows): mark for mark in repeated_alarms(by_row)}
    ends = [
        (positions[id(mark)], mark)
        for mark in last.values()
        if mark.kind == MarkKind.CAUSE and mark.state != MarkState.KNOWN
    ]
    repeated = {at: mark for at, mark in repeated.items() if not any(a > at and end.is_like(mark) for a, end in ends)}
    of_causes = {positions[id(mark)]: mark for mark in last.values()} | repeated
    for position, mark in sorted(of_causes.items(), key=itemgetter(0)):
        if mark.kind == MarkKind.CAUSE and mark.state == MarkState.KNOWN:
            covered = {row for row, latest in by_row.items() if latest == mark or latest.is_false_alarm_of_row}
            concerned = _of_later_versions(mark, rows) if position in repeated else rows
            continued.update(_continued(mark, [row for row in rows if row.row_id in covered], concerned, days))
        elif mark.kind == MarkKind.CAUSE:
            continued.difference_update(row.row_id for row in rows if _concerns(mark, row))
    marked = {row_id for mark in marks for row_id in mark.rows}  # those whose mark was taken back too
    states |= dict.fromkeys(continued - marked, MarkState.KNOWN)
    hidden: dict[str, int] = {}
    for row in rows:
        if states.get(row.row_id) in HIDDEN and not row.is_labeled:
            hidden[row.day] = hidden.get(row.day, 0) + 1
    of_days = {mark.subject: mark for mark in last.values() if mark.kind == MarkKind.DAY}
    return Review(states, hidden, {day: mark for day, mark in of_days.items() if mark.state != MarkState.CLEARED})


def _of_later_versions(mark: Mark, rows: Sequence[FlaggedRow]) -> list[FlaggedRow]:
    return [row for row in rows if row.row_id in mark.rows or row.model_version > mark.model_version]


def _is_of_other_version(row: FlaggedRow, mark: Mark) -> bool:
    return row.model_version not in {0, mark.model_version}


def _has_grown(row: FlaggedRow, mark: Mark) -> bool:
    """Return whether the values of a marked row have changed for the worse.

    Another version may score the same values higher. A row that was marked itself then counts as changed if its cause
    is another one as well. The rows of a marked cause say what it looks like under that version.
    """
    has_other_cause = mark.kind == MarkKind.ROW and bool(row.columns) and set(row.columns).isdisjoint(mark.columns)
    return (has_other_cause or not _is_of_other_version(row, mark)) and row.score > mark.sizes.get(
        "score", 0.0
    ) + GROWTH_NATS


def _concerns(mark: Mark, row: FlaggedRow, causes: Collection[tuple[str, ...]] = ()) -> bool:
    """Return whether a row is of the cause of a mark, on its day or later. A row without explanation has no cause."""
    is_same = bool(row.columns) and row.columns in {mark.columns, *causes} and mark.entity in {"", row.entity}
    return is_same and (row.day >= mark.day or row.day == ALL_ROWS)


def _continued(
    mark: Mark, covered_rows: Sequence[FlaggedRow], rows: Sequence[FlaggedRow], days: Collection[str]
) -> list[str]:
    """Return the rows on the day of a known cause and later, as long as it neither grows nor pauses.

    Args:
        mark: Known cause.
        covered_rows: Rows that no later mark judges otherwise.
        rows: Flagged rows of all days.
        days: All days with rows.
    """
    marked = [row for row in covered_rows if row.row_id in mark.rows and not _has_grown(row, mark)]
    causes = {row.columns for row in marked if row.columns} if mark.entity else ()
    rescored = [row.score for row in marked if _is_of_other_version(row, mark)]
    highest = max(rescored, default=mark.sizes.get("score", 0.0)) + GROWTH_NATS
    by_day: dict[str, list[FlaggedRow]] = {}
    for row in rows:
        if _concerns(mark, row, causes):
            by_day.setdefault(row.day, []).append(row)
    most = max(GROWTH * mark.sizes.get("rows", 1), mark.sizes.get("rows", 1) + 1)
    previous, covered = mark.day, list[str]()
    for day in sorted(by_day):
        if sum(previous < other < day for other in days) >= PAUSE_DAYS:
            break
        previous = day
        if len(by_day[day]) <= most and max(row.score for row in by_day[day]) <= highest:
            covered += [row.row_id for row in by_day[day]]
    return covered


def repeated_alarms(by_row: Mapping[str, Mark]) -> list[Mark]:
    """Return a mark of the cause as known for each entity with at least `REPEATED` false alarms of like causes.

    There is none if a row of the entity with a like cause is marked as real.

    Args:
        by_row: Last mark that covers each row, by identity.
    """
    by_entity: dict[str, dict[str, Mark]] = {}
    for row_id, mark in by_row.items():
        if mark.is_false_alarm_of_row and mark.entity and mark.columns:
            by_entity.setdefault(mark.entity, {})[row_id] = mark
    repeated = []
    for entity, of_entity in by_entity.items():
        columns = Counter(mark.columns for mark in of_entity.values()).most_common(1)[0][0]
        alarms = {row_id: mark for row_id, mark in of_entity.items() if not set(columns).isdisjoint(mark.columns)}
        if len(alarms) < REPEATED:
            continue
        known = Mark(
            kind=MarkKind.CAUSE,
            subject="+".join(columns),
            state=MarkState.KNOWN,
            day=max(mark.day for mark in alarms.values()),
            entity=entity,
            columns=columns,
            rows={row_id: mark.day for row_id, mark in alarms.items()},
            sizes={
                "rows": max(Counter(mark.day for mark in alarms.values()).values()),
                "score": max(mark.sizes.get("score", 0.0) for mark in alarms.values()),
            },
            model_version=max(mark.model_version for mark in alarms.values()),
        )
        if not any(mark.state == MarkState.REAL and mark.is_like(known) for mark in by_row.values()):
            repeated.append(known)
    return repeated
