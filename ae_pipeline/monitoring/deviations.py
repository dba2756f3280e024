"""How a day as a whole is unlike the days that the model learnt from, in the columns' own terms."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.scoring.drift import Distribution, Effect, Part

_ALIKE = 0.03
"""Columns that lack their values in the same rows, but for this share of all rows, belong to one cause."""

_USUALLY_ALIKE = 0.1
"""Neither do columns belong together of which one usually lacks so many more."""

_NEARLY_ALL = 0.9
"""Share of an hour's rows."""

_IN_FULL_HOURS = 2 / 3
"""Share of the rows that lie in hours of which nearly all rows are hit."""

_MOST, _DENSE = 0.9, 0.8
"""Share of the rows that lie in the hours that are named, and the most of all rows that may, in times of that."""

_STILL = 0.4
"""Times the share of rows that are hit in a span of hours: from here on an hour beside it belongs to it."""

_ALL_OVER = 0.75
"""Share of the hours with rows."""

_ASSOCIATED, _DEVIATIONS = 0.15, 4
"""Cramér's V from which a column goes with what is missing, and how far chi-squared must lie beyond its mean."""

_VALUES, _SPLIT_ROWS, _SPLIT_COLUMNS, _SPLIT_VALUES = 100, 10, 3, 3
"""Of a column that rows are split by the most values, of a part the fewest rows; columns that are told, and parts."""

_EVEN_ROWS = 50
"""Rows from which on it is said that they lie evenly over all values."""

_LISTED = (500, 100, 100, 100, 100)
"""Rows that are listed by their identity, of each deviation that is told in detail."""

DETAILED = len(_LISTED)
"""Deviations of a day whose hours and parts are told."""


@dataclass(frozen=True)
class Deviation:
    """One way in which a day as a whole is unlike the training window.

    Attributes:
        columns: That deviate together.
        message: How.
        rows: That show it, where they can be told; 0 otherwise.
        where: What finds them in the day's features, as an SQL condition; empty where none does.
        hours: Of each hour, UTC, how many rows show it and how many there are; empty where they cannot be told.
        splits: In which parts of the day's rows most of them lie, a sentence for each column that tells.
        row_ids: Of the first of these rows.
    """

    columns: tuple[str, ...]
    message: str
    rows: int = 0
    where: str = ""
    hours: tuple[tuple[int, int], ...] = ()
    splits: tuple[str, ...] = ()
    row_ids: tuple[str, ...] = ()


def deviations_of(
    drift: DayDrift | None, features: pl.DataFrame, bundle: ModelBundle, config: DriftConfig
) -> tuple[Deviation, ...]:
    """Says in the columns' own terms how a day as a whole is unlike the training window.

    First what lacks more values than usual, then what has other values, then what lacks fewer.

    Args:
        drift: How far it is.
        features: Its rows: the columns that have drifted, and beside them what may tell which rows deviate: `row_id`,
            `event_time`, categories.
        bundle: What it was held against.
        config: The thresholds.
    """
    if drift is None:
        return ()
    known = {entry.name: entry for entry in bundle.reference if entry.part == Part.COLUMN}
    columns = [effect for effect in drift.effects if effect.part == Part.COLUMN and effect.name in known]
    left = sorted((e for e in columns if e.missing > config.missing), key=lambda effect: -effect.missing)
    found: list[Deviation] = []
    while left:
        names = [e.name for e in left if _together(left[0].name, e.name, features, known)]
        left = [effect for effect in left if effect.name not in names]
        listed = _LISTED[len(found)] if len(found) < DETAILED else 0
        found.append(_of_missing(names, features, known, listed))
    told = {name for deviation in found for name in deviation.columns}
    fewer = [effect.name for effect in columns if effect.missing < -config.missing]
    clocks = {column.name for column in bundle.encoder.columns if column.is_clock}
    found += [
        _of_values(effect, features, known[effect.name], _clock if effect.name in clocks else _number)
        for effect in columns
        if effect.name not in {*told, *fewer}
    ]
    return (*found, *(_of_present(name, features, known[name]) for name in fewer))


def _lacking(name: str, features: pl.DataFrame) -> pl.Series:
    """Says of each row whether it has no value; of a column that is gone no row has one."""
    return features[name].is_null() if name in features.columns else pl.repeat(True, features.height, eager=True)


def _together(one: str, other: str, features: pl.DataFrame, known: Mapping[str, Distribution]) -> bool:
    """Whether two columns lack their values in the same rows, but for few, and usually lack about as many."""
    detach = (_lacking(one, features) != _lacking(other, features)).mean()
    usually = abs(known[one].missing - known[other].missing)
    return float(detach or 0.0) <= _ALIKE and usually <= _USUALLY_ALIKE  # type: ignore[arg-type]


def _of_missing(
    names: Sequence[str], features: pl.DataFrame, known: Mapping[str, Distribution], listed: int
) -> Deviation:
    hit = reduce(operator.and_, (_lacking(name, features) for name in names))
    rows, usual = int(hit.sum()), float(np.mean([known[name].missing for name in names]))
    message = f"{rows / max(features.height, 1):.0%} of rows ({rows:,}) lack {_listed(names)}, usually {usual:.1%}"
    there = [name for name in names if name in features.columns]
    hours = _hours(features, hit)
    categories = [
        name for name, entry in known.items() if entry.is_category and name in features.columns and name not in names
    ]
    return Deviation(
        tuple(names),
        message + _when(hours),
        rows,
        " AND ".join(f"{_quoted(name)} IS NULL" for name in there),
        hours if listed else (),
        _splits(features.select(categories), hit) if listed else (),
        tuple(features["row_id"].filter(hit).head(listed)) if "row_id" in features.columns else (),
    )


def _of_present(name: str, features: pl.DataFrame, known: Distribution) -> Deviation:
    rows = int((~_lacking(name, features)).sum())
    share = rows / max(features.height, 1)
    message = f"{share:.0%} of rows ({rows:,}) have {name}, usually {1 - known.missing:.1%}"
    return Deviation((name,), message, rows, f"{_quoted(name)} IS NOT NULL")


def _when(hours: Sequence[tuple[int, int]]) -> str:
    """Says of which hours nearly all rows are hit, or in which hours most of those lie that are."""
    total, rows_of_day = sum(hit for hit, _ in hours), sum(rows for _, rows in hours)
    if not total or total >= _NEARLY_ALL * rows_of_day:
        return ""
    runs: list[list[int]] = [[]]
    for hour, (hit, rows) in enumerate(hours):
        if rows and hit >= _NEARLY_ALL * rows:
            runs[-1].append(hour)
        elif rows:
            runs.append([])
    most = max(runs, key=lambda run: sum(hours[hour][0] for hour in run))
    if len(most) > 1 and sum(hours[hour][0] for hour in most) >= _IN_FULL_HOURS * total:
        return f", among them nearly every row from {most[0]:02d}:00 to {most[-1]:02d}:59 UTC"
    spans = [(last - first, first, last) for first in range(24) for last in range(first, 24)]
    _, first, last = min(s for s in spans if sum(hit for hit, _ in hours[s[1] : s[2] + 1]) >= _MOST * total)
    first, last = _widened(hours, first, last)
    inside = sum(rows for _, rows in hours[first : last + 1]) / rows_of_day
    if inside <= _DENSE * _MOST:
        return f", most of them from {first:02d}:00 to {last:02d}:59 UTC"
    with_hits = sum(hit > 0 for hit, _ in hours) / sum(rows > 0 for _, rows in hours)
    return ", all over the day" if with_hits >= _ALL_OVER else ""


def _widened(hours: Sequence[tuple[int, int]], first: int, last: int) -> tuple[int, int]:
    """Takes hours beside a span into it of which hardly fewer rows are hit: nine tenths may end within a fault."""
    inside = hours[first : last + 1]
    enough = _STILL * (sum(hit for hit, _ in inside) / sum(rows for _, rows in inside))
    while first > 0 and hours[first - 1][1] and hours[first - 1][0] >= enough * hours[first - 1][1]:
        first -= 1
    while last < len(hours) - 1 and hours[last + 1][1] and hours[last + 1][0] >= enough * hours[last + 1][1]:
        last += 1
    return first, last


def whereabouts(features: pl.DataFrame, hit: pl.Series, categories: Sequence[str]) -> tuple[str, ...]:
    """Says in which hours and parts of a day's rows some of them lie.

    Args:
        features: The day's, with `event_time` where rows have it.
        hit: Which rows are meant, as long.
        categories: Columns of the features that part the rows.

    Returns:
        A sentence each; none where they are too few to tell.
    """
    if hit.sum() < _SPLIT_ROWS:
        return ()
    when = _when(_hours(features, hit)).removeprefix(", ")
    return (*([when] if when else []), *_splits(features.select(categories), hit))


def _hours(features: pl.DataFrame, hit: pl.Series) -> tuple[tuple[int, int], ...]:
    if "event_time" not in features.columns or not hit.any():
        return ()
    by_hour = pl.DataFrame({"hour": features["event_time"].dt.hour(), "hit": hit}).drop_nulls()
    counts = by_hour.group_by("hour").agg(pl.col("hit").sum(), pl.len())
    found = {hour: (affected, rows) for hour, affected, rows in counts.iter_rows()}
    return tuple(found.get(hour, (0, 0)) for hour in range(24)) if found else ()


def _splits(categories: pl.DataFrame, hit: pl.Series) -> tuple[str, ...]:
    """Says of which values these rows are more than their share, the most telling columns first."""
    told, even, count = [], [], int(hit.sum())
    for values in categories.cast(pl.String).iter_columns():
        rows_of = pl.DataFrame({"value": values, "hit": hit}).drop_nulls()
        parts = rows_of.group_by("value").agg(pl.col("hit").sum(), pl.len())
        if not 1 < parts.height <= _VALUES:
            continue
        association = _cramers_v(parts["hit"].to_numpy(), parts["len"].to_numpy())
        share = pl.col("hit") / pl.col("len")
        over = parts.filter((pl.col("hit") >= _SPLIT_ROWS) & (share > hit.mean()))
        most = over.sort(share, "value", descending=[True, False]).head(_SPLIT_VALUES)
        if association >= _ASSOCIATED and most.height:
            shares = ", ".join(f"{value} {n / rows:.0%} ({n:,} of {rows:,})" for value, n, rows in most.iter_rows())
            told.append((association, f"by {values.name}, most of all {shares}"))
        elif association < _ASSOCIATED and int(rows_of["hit"].sum()) >= max(_EVEN_ROWS, _NEARLY_ALL * count):
            even.append(values.name)
    if even and not told:
        return (f"about evenly over {_listed(even[:_SPLIT_COLUMNS])}",)
    return tuple(message for _, message in sorted(told, reverse=True)[:_SPLIT_COLUMNS])


def _cramers_v(hits: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> float:
    """Gives how far being hit goes with a value, from 0 to 1, less what chance makes of so many values (Bergsma 2013).

    It is 0 where chance alone may have made it.
    """
    share, freedom, count = hits.sum() / rows.sum(), len(rows) - 1, int(rows.sum())
    if share in {0.0, 1.0}:
        return 0.0
    expected = share * rows
    chi_squared = float((np.square(hits - expected) * (1 / expected + 1 / (rows - expected))).sum())
    if chi_squared < freedom + _DEVIATIONS * np.sqrt(2 * freedom):
        return 0.0
    return float(np.sqrt(max(chi_squared / count - freedom / (count - 1), 0.0)))


def _of_values(effect: Effect, features: pl.DataFrame, known: Distribution, speak: Callable[[float], str]) -> Deviation:
    values = features[effect.name].drop_nulls() if effect.name in features.columns else pl.Series([], dtype=pl.Float64)
    if known.is_category and values.len():
        return Deviation((effect.name,), f"{effect.name}: {_of_categories(values, known)} ({effect.message})")
    if not values.len() or not values.dtype.is_numeric():
        return Deviation((effect.name,), f"{effect.name}: {effect.message}")
    middle, usual = float(np.median(values.to_numpy())), known.quantiles[len(known.quantiles) // 2]
    message = f"the median of {effect.name} is {speak(middle)}, usually {speak(usual)} ({effect.message})"
    return Deviation((effect.name,), message)


def _of_categories(values: pl.Series, known: Distribution) -> str:
    """Names the value whose share has changed the most, of the rows that have one."""
    counts = dict(values.cast(pl.String).value_counts(name="rows").iter_rows())
    now = {str(name): rows / values.len() for name, rows in counts.items()}
    usual = dict(zip(known.names, known.shares[:-1], strict=True))
    # Of a value without a name of its own only a new one's usual share is known, 0.
    usual |= {name: 0.0 for name in now if name not in usual and known.known is not None and name not in known.known}
    if not usual:
        return "other values than usual"
    most = max(usual, key=lambda name: (abs(now.get(name, 0.0) - usual[name]), name))
    was = f"usually {usual[most]:.1%}" if usual[most] else "and is new"
    return f"{most} is {now.get(most, 0.0):.1%} of its values, {was}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _number(value: float) -> str:
    return f"{value:.4g}"


def _clock(minutes: float) -> str:
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
