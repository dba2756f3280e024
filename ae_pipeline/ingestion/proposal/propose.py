"""Propose the settings of a new dataset from its rows: identity, days, types and label, each with its reason."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.ingestion.proposal.columns import Choice, LandedColumns
from ae_pipeline.ingestion.proposal.identity import propose_exclude, propose_identity
from ae_pipeline.ingestion.proposal.kinds import ambiguous_times, propose_kinds
from ae_pipeline.ingestion.proposal.labels import propose_label
from ae_pipeline.ingestion.proposal.names import time_score
from ae_pipeline.ingestion.proposal.times import Times

_MISSING_SHARE = 0.01
"""Largest share of missing or unreadable times of an event time."""

_MIN_DAYS, _MIN_ROWS_PER_DAY = 10, 2.0
"""Days with rows, and mean rows on them, from which daily partitions make sense."""

_MIN_DAY_SHARE, _MAX_SPAN_DAYS = 0.4, 40 * 366
"""Share of days with rows from which daily partitions make sense, and most days; each gap in them costs runs."""

_HISTORIC_DAYS = 30
"""Age of the newest row from which the data counts as historic, so that its last day is the end."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Proposed settings of a dataset.

    Attributes:
        rows: Number of rows that they rest on.
        identity: Columns that identify a row; empty if none do.
        days: Keys of the daily partitions by name: `event_time`, `start`, `end` and `timezone`.
        columns: Types of columns by name.
        exclude: Columns that the model should not see.
        label: SQL expression that is true for known anomalies, if a column looks like a label.
        notes: What else a person should know.
    """

    rows: int
    identity: Choice
    days: Mapping[str, Choice]
    columns: Mapping[str, Choice]
    exclude: Mapping[str, Choice]
    label: Choice | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def propose(rows: pl.DataFrame, today: dt.date) -> Proposal:
    """Return proposed settings.

    Args:
        rows: Landed rows as read, without the columns of their origin.
        today: Current day.
    """
    columns = LandedColumns(rows)
    times = {name: each for name in columns.names if (each := columns.times(name)) is not None}
    days, notes = _propose_days(columns, times, today)
    unclear = [] if days else list(ambiguous_times(columns, None))
    notes += [
        f"{name} may be the event_time: choose its format below, and set event_time and start." for name in unclear
    ]
    event_time = str(days["event_time"].value) if "event_time" in days and days["event_time"].is_live else None
    identity = propose_identity(columns, event_time)
    kinds = propose_kinds(columns)
    label = propose_label(columns)
    keys = tuple(identity.value) if isinstance(identity.value, list) else ()
    return Proposal(
        rows=rows.height,
        identity=identity,
        days=days,
        columns={**kinds, **ambiguous_times(columns, event_time)},
        exclude=propose_exclude(columns, keys, event_time),
        label=label,
        notes=tuple(notes),
    )


def _propose_days(
    columns: LandedColumns, times: Mapping[str, Times], today: dt.date
) -> tuple[dict[str, Choice], list[str]]:
    usable = {
        name: each
        for name, each in times.items()
        if each.missing_share(columns.rows.height) <= _MISSING_SHARE and each.first < each.last
    }
    ranked = sorted(
        usable, key=lambda name: (-time_score(name, has_clock=usable[name].has_clock), columns.names.index(name))
    )
    if not ranked:
        why = "no column holds a time in nearly every row" + (f" ({', '.join(times)} have gaps)" if times else "")
        return {}, [f"No event_time: {why}. All rows are one partition."]
    name, chosen = ranked[0], usable[ranked[0]]
    problem = _problem(name, chosen)
    is_live = not problem
    missing = chosen.missing_share(columns.rows.height)
    share = "in every row" if not missing else f"in all but {missing:.2%} of the rows"
    others = f"; also times: {', '.join(ranked[1:])}" if ranked[1:] else ""
    reason = (
        f"a time {share}, on {pluralize(chosen.days, 'day')}{others}" if is_live else f"not used, because {problem}"
    )
    days = {
        "event_time": Choice(name, reason, is_live),
        "start": Choice(chosen.first, _far("the first day", chosen.early_rows, "before"), is_live),
    }
    newest = _far("the newest day", chosen.late_rows, "after")
    if chosen.last > today or chosen.late_rows:
        days["end"] = Choice(chosen.last, newest, is_live)
    elif (today - chosen.last).days > _HISTORIC_DAYS:
        days["end"] = Choice(chosen.last, f"{newest}; remove this line if new rows arrive", is_live)
    if chosen.zone:
        days["timezone"] = Choice(chosen.zone, "the time zone of the column", is_live)
    elif is_live:
        carried = (
            f"the times carry {chosen.offset}" if chosen.offset else "a time without a zone is a time of this zone"
        )
        days["timezone"] = Choice("UTC", f"{carried}; write for example America/New_York", is_live=False)
    return days, []


def _problem(name: str, times: Times) -> str:
    """Return why a column of times should not cut days, or an empty text."""
    if time_score(name, has_clock=times.has_clock) < 0:
        return "its name is not that of the time of a row"
    # A column with a reserved name can be read only as the event time.
    is_dense = times.rows / times.days >= _MIN_ROWS_PER_DAY or name in RESERVED_COLUMNS
    if times.days < _MIN_DAYS or not is_dense:
        return f"it has only {pluralize(times.rows, 'row')} on {pluralize(times.days, 'day')}"
    span = (times.last - times.first).days + 1
    if times.days / span < _MIN_DAY_SHARE or span > _MAX_SPAN_DAYS:
        return f"it has rows on only {times.days:,} of the {span:,} days from {times.first} to {times.last}"
    return ""


def _far(what: str, rows: int, where: str) -> str:
    return f"{what}, but for {pluralize(rows, 'row')} far {where} it, which go to quarantine" if rows else what
