"""Propose the settings of a new dataset from its rows: identity, days, types and label, each with its reason."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import polars as pl

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import ColumnRule
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.proposal_names import (
    is_code_name,
    is_id_name,
    is_time_name,
    label_strength,
    names_row,
    time_score,
)
from ae_pipeline.ingestion.proposal_times import (
    EPOCH_UNITS,
    EpochUnit,
    Times,
    ambiguous_formats,
    epoch_unit,
    read_times,
)

_MISSING_SHARE = 0.01
"""Largest share of missing or unreadable times of an event time."""

_MIN_DAYS, _MIN_ROWS_PER_DAY = 10, 2.0
"""Days with rows, and mean rows on them, from which daily partitions make sense."""

_MAX_SPAN_DAYS = 40 * 366
_HISTORIC_DAYS = 30
"""Age of the newest row from which the data counts as historic, so that its last day is the end."""

_MAX_COMBINED, _MAX_CANDIDATES = 4, 8
"""Columns of an identity, and columns that are tried."""

_ANOMALY_SHARE = 0.35
"""Largest share of the rarer value of a label."""

_TIME_TYPES = {ColumnType.TIMESTAMP, ColumnType.DATE}

_NORMAL_WORDS = ("normal", "benign", "ok", "none", "good", "regular", "legit", "legitimate", "healthy", "valid")


@dataclass(frozen=True)
class Choice:
    """A proposed value of a key.

    Attributes:
        value: The value as it stands in YAML.
        reason: Why, for a person.
        is_live: Whether the key is set. Otherwise it is a comment that a person can uncomment.
    """

    value: object
    reason: str
    is_live: bool = True


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
    columns = _Columns(rows)
    times = {name: each for name in columns.names if (each := columns.times(name)) is not None}
    days, notes = _propose_days(columns, times, today)
    unclear = [] if days else list(_ambiguous(columns, None))
    notes += [
        f"{name} may be the event_time: choose its format below, and set event_time and start." for name in unclear
    ]
    event_time = str(days["event_time"].value) if "event_time" in days and days["event_time"].is_live else None
    identity = _propose_identity(columns, event_time)
    kinds = _propose_kinds(columns)
    label = _propose_label(columns)
    keys = tuple(identity.value) if isinstance(identity.value, list) else ()
    return Proposal(
        rows=rows.height,
        identity=identity,
        days=days,
        columns={**kinds, **_ambiguous(columns, event_time)},
        exclude=_propose_exclude(columns, keys, event_time),
        label=label,
        notes=tuple(notes),
    )


class _Columns:
    """Landed columns, with what their values look like."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self.rows, self.names = rows, rows.columns
        self._reserved = RESERVED_COLUMNS & set(rows.columns)
        # Reserved names are an error of the inference, but one of them may be the event time.
        probe = PipelineConfig.model_construct(dataset="proposal", identity=())
        plain = rows.drop(self._reserved)
        self.rules: dict[str, ColumnRule] = dict(infer_contract([plain], probe).columns) if plain.width else {}
        self._distinct = rows.unique(maintain_order=True)

    def kind(self, name: str) -> ColumnType:
        """Return the inferred type; text for a reserved name."""
        return self.rules[name].type if name in self.rules else ColumnType.TEXT

    def present(self, name: str) -> pl.Series:
        """Return the values that are not missing; texts without surrounding spaces."""
        values = self.rows[name].drop_nulls()
        if values.dtype != pl.String:
            return values
        missing = ["", *(self.rules[name].null_values if name in self.rules else ())]
        texts = values.str.strip_chars()
        return texts.filter(~texts.is_in(missing))

    def times(self, name: str) -> Times | None:
        """Return the times of a column, or None if it does not hold times."""
        if unit := self.epoch_unit(name):
            numbers = self.rows[name].cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False)
            return read_times(pl.from_epoch(numbers.alias(name), unit))
        is_time = self.kind(name) in _TIME_TYPES
        return read_times(self.rows[name]) if is_time or name in self._reserved else None

    def epoch_unit(self, name: str) -> EpochUnit | None:
        """Return the unit of a column of numbers since 1970, or None for another column."""
        numbers = self.whole_numbers(name)
        return None if numbers is None or not is_time_name(name) else epoch_unit(numbers)

    def is_unique(self, names: Sequence[str]) -> bool:
        """Return whether columns have a value in each row, and no values twice but in rows that are exact repeats."""
        if any(self.present(name).len() < self.rows.height for name in names):
            return False
        return self._distinct.select(names).n_unique() == self._distinct.height

    def whole_numbers(self, name: str) -> pl.Series | None:
        """Return the values of an integer column, or None for another column."""
        if self.kind(name) != ColumnType.INTEGER:
            return None
        return self.present(name).cast(pl.Int64, strict=False).drop_nulls()


def _propose_days(columns: _Columns, times: Mapping[str, Times], today: dt.date) -> tuple[dict[str, Choice], list[str]]:
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
    name = ranked[0]
    chosen = usable[name]
    others = f"; also times: {', '.join(ranked[1:])}" if ranked[1:] else ""
    problem = ""
    if time_score(name, has_clock=chosen.has_clock) < 0:
        problem = "its name is not that of the time of a row"
    elif chosen.days < _MIN_DAYS or chosen.rows / chosen.days < _MIN_ROWS_PER_DAY:
        problem = f"it has only {pluralize(chosen.rows, 'row')} on {pluralize(chosen.days, 'day')}"
    elif (chosen.last - chosen.first).days > _MAX_SPAN_DAYS:
        problem = f"it spans {chosen.first} to {chosen.last}"
    is_live = not problem or name in RESERVED_COLUMNS
    missing = chosen.missing_share(columns.rows.height)
    share = "in every row" if not missing else f"in all but {missing:.2%} of the rows"
    reason = (
        f"not used, because {problem}"
        if problem and not is_live
        else f"a time {share}, on {pluralize(chosen.days, 'day')}{others}"
    )
    days = {"event_time": Choice(name, reason, is_live)}
    days["start"] = Choice(chosen.start, chosen.start_reason, is_live)
    last = chosen.last
    if last > today:
        days["end"] = Choice(last, "the newest day, which is in the future", is_live)
    elif (today - last).days > _HISTORIC_DAYS:
        days["end"] = Choice(last, "the newest day; remove this line if new rows arrive", is_live)
    if chosen.zone or chosen.offset:
        where = f"the times are in {chosen.zone}" if chosen.zone else f"the times carry {chosen.offset}"
        days["timezone"] = Choice(
            chosen.zone or "Europe/Berlin",
            f"{where}; days are cut in UTC without it",
            is_live=bool(chosen.zone) and is_live,
        )
    elif is_live:
        days["timezone"] = Choice(
            "UTC", "times without a zone are UTC; write for example America/New_York", is_live=False
        )
    return days, []


def _propose_identity(columns: _Columns, event_time: str | None) -> Choice:
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
    if times := [name for name in unique if name == event_time or columns.kind(name) in _TIME_TYPES]:
        return Choice([times[0]], f"no time occurs twice in {rows}")
    keys = [name for name in possible if is_id_name(name) or name == event_time]
    others = [name for name in possible if name not in keys and _groups_rows(columns, name)]
    tried = [*keys, *others][:_MAX_CANDIDATES]
    for size in range(2, _MAX_COMBINED + 1):
        for names in combinations(tried, size):
            if set(names) & set(keys) and columns.is_unique(names):
                return Choice(list(names), f"together unique in {rows}; fewer columns are not")
    return Choice([], "no columns are unique by their names and values, so a row is known by its content")


def _can_identify(columns: _Columns, name: str, event_time: str | None) -> bool:
    kinds = {ColumnType.INTEGER, ColumnType.TEXT, ColumnType.CATEGORY, ColumnType.DATE, ColumnType.TIMESTAMP}
    values = columns.present(name)
    if name in RESERVED_COLUMNS and name != event_time:
        return False
    return name == event_time or (
        columns.kind(name) in kinds and values.len() == columns.rows.height and values.dtype.is_nested() is False
    )


def _groups_rows(columns: _Columns, name: str) -> bool:
    """Return whether a text has few values. One with many values is unique beside a time by chance."""
    is_text = columns.kind(name) in {ColumnType.TEXT, ColumnType.CATEGORY}
    return is_text and columns.present(name).n_unique() <= columns.rows.height // 10


def _numbers_rows(columns: _Columns, name: str) -> bool:
    numbers = columns.whole_numbers(name)
    if numbers is None or numbers.len() < 20:
        return False
    least, most = numbers.min(), numbers.max()
    return (
        isinstance(least, int) and isinstance(most, int) and least in {0, 1} and most - least == numbers.n_unique() - 1
    )


def _looks_like_code(columns: _Columns, name: str) -> bool:
    values = columns.present(name)
    if (
        values.dtype != pl.String
        or values.len() < 20
        or columns.kind(name) not in {ColumnType.TEXT, ColumnType.CATEGORY}
    ):
        return False
    return bool(values.str.contains(r"^([\w-]*\d[\w-]*|[A-Z-]+)$").all()) and values.str.len_chars().n_unique() <= 2


def _propose_kinds(columns: _Columns) -> dict[str, Choice]:
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
            example = int(numbers.max() or 0)  # type: ignore[arg-type]
            kinds[name] = Choice(
                "clock_hhmm", f"times of day such as {example} for {example // 100:02d}:{example % 100:02d}"
            )
        elif is_code_name(name) and 2 < numbers.n_unique() <= min(1000, numbers.len() // 5):
            kinds[name] = Choice("category", f"{numbers.n_unique():,} numbers that are names, by the column's name")
    return kinds


def _is_clock(name: str, numbers: pl.Series) -> bool:
    lower = name.lower()
    is_named = any(word in lower for word in ("time", "hhmm", "clock", "dep", "arr"))
    in_range = bool(((numbers >= 0) & (numbers <= 2400) & (numbers % 100 < 60)).all())
    return is_named and in_range and numbers.n_unique() > 24 and int(numbers.max() or 0) > 240  # type: ignore[arg-type]


def _ambiguous(columns: _Columns, event_time: str | None) -> dict[str, Choice]:
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


def _propose_exclude(columns: _Columns, identity: Sequence[str], event_time: str | None) -> dict[str, Choice]:
    exclude: dict[str, Choice] = {}
    for name in columns.names:
        values = columns.present(name)
        if name in RESERVED_COLUMNS and name != event_time:
            exclude[name] = Choice(
                name, "the pipeline uses this name itself; rename the column at the source to keep it"
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


def _propose_label(columns: _Columns) -> Choice | None:
    for strength in (2, 1):
        for name in columns.names:
            values = columns.present(name)
            if label_strength(name) != strength or values.is_empty() or values.dtype.is_nested():
                continue
            counts = values.value_counts(sort=True)
            distinct = counts[name].to_list()
            if len(distinct) > 20 or len(distinct) < 2:
                continue
            column = _quote(name)
            if normal := next((each for each in distinct if str(each).lower().strip(".") in _NORMAL_WORDS), None):
                return Choice(
                    f"{column} <> '{normal}'", f"every value but {normal!r} looks like an anomaly", strength == 2
                )
            share = counts["count"][-1] / values.len()
            value = _literal(distinct[-1], columns.kind(name))
            reason = f"the rarer value, {share:.1%} of the rows"
            is_live = strength == 2 and len(distinct) == 2 and share <= _ANOMALY_SHARE
            return Choice(f"{column} = {value}", reason if is_live else f"true for known anomalies; {reason}", is_live)
    return None


def _quote(name: str) -> str:
    try:
        if pl.sql_expr(name).meta.root_names() == [name]:
            return name
    except pl.exceptions.PolarsError:
        pass
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _literal(value: object, kind: ColumnType) -> str:
    if kind == ColumnType.BOOLEAN:
        return str(str(value).lower() in {"true", "t", "yes", "y", "on"}).upper()
    if kind in {ColumnType.INTEGER, ColumnType.NUMBER}:
        return str(value)
    escaped = str(value).replace("'", "''")
    return f"'{escaped}'"
