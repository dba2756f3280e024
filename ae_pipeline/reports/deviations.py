"""How a day as a whole is unlike the days that the model learnt from, in the columns' own terms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.drift import Distribution, Effect, Part
from ae_pipeline.reports.drifted import DriftedDay
from ae_pipeline.service_config import DriftConfig

_ALIKE = 0.03
"""Columns that lack their values in the same rows, but for this share of all rows, belong to one cause."""

_PART_OF_DAY = 18
"""Hours; rows that are spread over more are spread over the day."""

_NEARLY_ALL = 0.95
"""Share of an hour's rows."""

_ASSOCIATED = 0.15
"""Cramér's V from which a column goes with what is missing."""

_VALUES, _SPLIT_ROWS, _SPLIT_COLUMNS, _SPLIT_VALUES = 100, 10, 3, 3
"""Of a column that rows are split by the most values, of a part the fewest rows; columns that are told, and parts."""


@dataclass(frozen=True)
class Deviation:
    """One way in which a day as a whole is unlike the training window.

    Attributes:
        columns: That deviate together.
        words: How.
        rows: That show it, where they can be told; 0 otherwise.
        where: What finds them in the day's features, as an SQL condition; empty where they cannot be told.
        hours: Of each hour, UTC, how many rows show it and how many there are; empty where they cannot be told.
        splits: In which parts of the day's rows most of them lie, a sentence for each column that tells.
    """

    columns: tuple[str, ...]
    words: str
    rows: int = 0
    where: str = ""
    hours: tuple[tuple[int, int], ...] = ()
    splits: tuple[str, ...] = ()


def deviations_of(
    drift: DriftedDay | None, features: pl.DataFrame, bundle: ModelBundle, config: DriftConfig
) -> tuple[Deviation, ...]:
    """Says in the columns' own terms how a day as a whole is unlike the training window.

    Args:
        drift: How far it is.
        features: Its rows.
        bundle: What it was held against.
        config: The thresholds.
    """
    if drift is None:
        return ()
    known = {entry.name: entry for entry in bundle.reference if entry.part == Part.COLUMN}
    columns = [effect for effect in drift.effects if effect.part == Part.COLUMN and effect.name in known]
    missing = sorted((e for e in columns if abs(e.missing) > config.missing), key=lambda e: -e.missing)
    found = []
    while missing:
        first = missing[0]
        alike = [effect for effect in missing if effect is first or _together(first, effect, features)]
        missing = [effect for effect in missing if effect not in alike]
        found.append(_of_missing([effect.name for effect in alike], features, known))
    told = {name for deviation in found for name in deviation.columns}
    clocks = {column.name for column in bundle.encoder.columns if column.is_clock}
    found += [
        _of_values(effect, features, known[effect.name], _clock if effect.name in clocks else _number)
        for effect in columns
        if effect.name not in told
    ]
    return tuple(found)


def _together(one: Effect, other: Effect, features: pl.DataFrame) -> bool:
    """Whether two columns lack their values in the same rows, but for few."""
    if not {one.name, other.name} <= set(features.columns):
        return one.missing == other.missing
    apart = features.select((pl.col(one.name).is_null() != pl.col(other.name).is_null()).mean()).item()
    return float(apart or 0.0) <= _ALIKE


def _of_missing(names: Sequence[str], features: pl.DataFrame, known: Mapping[str, Distribution]) -> Deviation:
    there = [name for name in names if name in features.columns]
    usual = float(np.mean([known[name].missing for name in names]))
    if not there:
        words = f"no row has {_listed(names)}, which {usual:.1%} usually lack"
        return Deviation(tuple(names), words, features.height)
    hit = features.select(pl.all_horizontal(pl.col(there).is_null()).alias("hit")).to_series()
    rows, share = int(hit.sum()), float(hit.sum()) / max(features.height, 1)
    words = f"{share:.0%} of rows ({rows:,}) lack {_listed(names)}, usually {usual:.1%}"
    categories = [name for name, entry in known.items() if entry.is_category and name in features.columns]
    hours = _hours(features, hit)
    return Deviation(
        tuple(names),
        words + _when(hours),
        rows,
        " AND ".join(f"{_quoted(name)} IS NULL" for name in there),
        hours,
        _splits(features.select(name for name in categories if name not in there), hit),
    )


def _when(hours: Sequence[tuple[int, int]]) -> str:
    """Says of which hours nearly all rows are hit, or between which nine tenths of those lie that are."""
    total = sum(hit for hit, _ in hours)
    if not total:
        return ""
    runs: list[list[int]] = [[]]
    for hour, (hit, rows) in enumerate(hours):
        if rows and hit >= _NEARLY_ALL * rows:
            runs[-1].append(hour)
        elif rows:
            runs.append([])
    most = max(runs, key=lambda run: sum(hours[hour][0] for hour in run))
    if len(most) > 1 and sum(hours[hour][0] for hour in most) > total / 2:
        return f", nearly every one from {most[0]:02d}:00 to {most[-1]:02d}:59 UTC"
    reached = np.cumsum([hit for hit, _ in hours]) / total
    first, last = (int(np.searchsorted(reached, level)) for level in (0.05, 0.95))
    if last - first > _PART_OF_DAY:
        return ", all over the day"
    return f", most of them between {first:02d}:00 and {last:02d}:59 UTC"


def _hours(features: pl.DataFrame, hit: pl.Series) -> tuple[tuple[int, int], ...]:
    if "event_time" not in features.columns or not hit.any():
        return ()
    by_hour = pl.DataFrame({"hour": features["event_time"].dt.hour(), "hit": hit}).drop_nulls()
    counts = by_hour.group_by("hour").agg(pl.col("hit").sum(), pl.len())
    found = {hour: (affected, rows) for hour, affected, rows in counts.iter_rows()}
    return tuple(found.get(hour, (0, 0)) for hour in range(24))


def _splits(categories: pl.DataFrame, hit: pl.Series) -> tuple[str, ...]:
    """Says of which values these rows are more than their share, the most telling columns first."""
    told = []
    for values in categories.cast(pl.String).iter_columns():
        parts = pl.DataFrame({"value": values, "hit": hit}).group_by("value").agg(pl.col("hit").sum(), pl.len())
        if not 1 < parts.height <= _VALUES:
            continue
        association = _cramers_v(parts["hit"].to_numpy(), parts["len"].to_numpy())
        share = pl.col("hit") / pl.col("len")
        over = parts.filter((pl.col("hit") >= _SPLIT_ROWS) & (share > hit.mean()))
        most = over.sort(share, "value", descending=[True, False]).head(_SPLIT_VALUES)
        if association >= _ASSOCIATED and most.height:
            shares = ", ".join(f"{value} {n / rows:.0%} ({n:,} of {rows:,})" for value, n, rows in most.iter_rows())
            told.append((association, f"by {values.name}, most of all {shares}"))
    return tuple(words for _, words in sorted(told, reverse=True)[:_SPLIT_COLUMNS])


def _cramers_v(hits: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> float:
    """Gives how far being hit goes with a value, from 0 to 1: the root of chi-squared over n, of a table of 2 × k."""
    share = hits.sum() / rows.sum()
    if share in {0.0, 1.0}:
        return 0.0
    expected = share * rows
    chi_squared = (np.square(hits - expected) * (1 / expected + 1 / (rows - expected))).sum()
    return float(np.sqrt(chi_squared / rows.sum()))


def _of_values(effect: Effect, features: pl.DataFrame, known: Distribution, speak: Callable[[float], str]) -> Deviation:
    values = features[effect.name].drop_nulls() if effect.name in features.columns else pl.Series([], dtype=pl.Float64)
    if known.is_category and values.len():
        return Deviation((effect.name,), f"{effect.name}: {_of_categories(values, known)} ({effect.words})")
    if not values.len() or not values.dtype.is_numeric():
        return Deviation((effect.name,), f"{effect.name}: {effect.words}")
    middle, usual = float(np.median(values.to_numpy())), known.quantiles[len(known.quantiles) // 2]
    words = f"the median of {effect.name} is {speak(middle)}, usually {speak(usual)} ({effect.words})"
    return Deviation((effect.name,), words)


def _of_categories(values: pl.Series, known: Distribution) -> str:
    """Names the value whose share of the rows has changed the most."""
    counts = dict(values.cast(pl.String).value_counts(name="rows").iter_rows())
    now = {str(name): rows / values.len() for name, rows in counts.items()}
    usual = dict(zip(known.names, known.shares[:-1], strict=True))
    # Of a value without a name of its own only a new one's usual share is known, 0.
    told = {name: usual.get(name) for name in (*usual, *now)}
    told |= {name: 0.0 for name in now if name not in usual and known.known is not None and name not in known.known}
    changes = {name: abs(now.get(name, 0.0) - share) for name, share in told.items() if share is not None}
    if not changes:
        return "other values than usual"
    most = max(changes, key=lambda name: (changes[name], name))
    before = told[most]
    was = f"usually {before:.1%}" if before else "and is new"
    return f"{most} is {now.get(most, 0.0):.1%} of rows, {was}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _number(value: float) -> str:
    return f"{value:.4g}"


def _clock(minutes: float) -> str:
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
