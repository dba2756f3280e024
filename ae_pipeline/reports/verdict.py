"""What somebody wants to know in the morning: is anything wrong, how bad is it, can the model be trusted."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.drift import Distribution, Effect, Part
from ae_pipeline.reports.drifted import DriftedDay
from ae_pipeline.reports.ranking import ReportDay, is_over_budget
from ae_pipeline.service_config import DriftConfig

_ALIKE = 0.03
"""Columns that lack their values in the same rows, but for this share of all rows, belong to one cause."""

_WEEKS = 8
"""Same weekdays before a day that tell how many rows it usually has."""

_PART_OF_DAY = 18
"""Hours; rows that are spread over more are spread over the day."""

_COMPLETE = 0.8
"""Share of the usual number of rows below which a day looks incomplete."""


@dataclass(frozen=True)
class Deviation:
    """One way in which a day as a whole is unlike the training window.

    Attributes:
        columns: That deviate together.
        words: How.
        rows: That show it, where they can be told; 0 otherwise.
    """

    columns: tuple[str, ...]
    words: str
    rows: int = 0


@dataclass(frozen=True)
class Verdict:
    """Of a day.

    Attributes:
        day: ISO date.
        is_wrong: Whether somebody should look.
        words: Why, or that nothing is.
        rows: On that day.
        flagged: Of them.
        known: Of these, known anomalies.
        expected: Flagged rows that the budget would have, of those that are no known anomalies.
        usual_rows: Median of the same weekday in the weeks before; None where there are none.
        deviations: The day as a whole.
    """

    day: str
    is_wrong: bool
    words: str
    rows: int
    flagged: int
    known: int
    expected: float
    usual_rows: int | None
    deviations: tuple[Deviation, ...]

    @property
    def completeness(self) -> float | None:
        """Rows beside the usual number, 1 for as many."""
        return self.rows / self.usual_rows if self.usual_rows else None


def judge_day(
    entry: ReportDay,
    before: Mapping[str, int],
    drift: DriftedDay | None,
    deviations: Sequence[Deviation],
    budget: float,
) -> Verdict:
    """Judges a day.

    Args:
        entry: Its ranked rows.
        before: Rows of the days before it, by day.
        drift: How far it is from the training window, where that was measured.
        deviations: The same in words.
        budget: Share of rows that may be flagged.
    """
    rows, flagged = entry.rows - entry.known_anomalies, entry.flagged - entry.known_flagged
    usual = _usual_rows(entry.day, before)
    wrong = []
    if is_over_budget(rows, flagged, budget):
        wrong.append(f"{flagged:,} rows are flagged, {flagged / max(budget * rows, 1e-9):.0f} times the budget")
    if deviations or (drift and drift.effects):
        words = "" if deviations else f" ({drift.words})" if drift else ""
        wrong.append(f"the day as a whole is unlike the training window{words}")
    if usual and entry.rows < _COMPLETE * usual:
        wrong.append(f"{entry.rows:,} rows came, where the same weekday usually has {usual:,}")
    judged = "" if drift is None or drift.is_judged else "; too few rows to hold the day as a whole against the window"
    but = " that are not known anomalies" if entry.known_anomalies else ""
    calm = f"nothing unusual: {flagged:,} of {rows:,} rows{but} are flagged, and the budget has {_few(budget * rows)}"
    return Verdict(
        entry.day,
        bool(wrong),
        "; ".join(wrong) or f"{calm}{judged}",
        entry.rows,
        entry.flagged,
        entry.known_flagged,
        budget * rows,
        usual,
        tuple(deviations),
    )


def _few(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}"


def _usual_rows(day: str, before: Mapping[str, int]) -> int | None:
    try:
        date = dt.date.fromisoformat(day)
    except ValueError:  # rows without event time
        return None
    weeks = [(date - dt.timedelta(weeks=number)).isoformat() for number in range(1, _WEEKS + 1)]
    known = [before[week] for week in weeks if week in before]
    return int(np.median(known)) if len(known) >= 2 else None


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
    rows = int(features.select(pl.all_horizontal(pl.col(there).is_null())).to_series().sum()) if there else 0
    usual = float(np.mean([known[name].missing for name in names]))
    share = rows / max(features.height, 1)
    verb = "is" if len(names) == 1 else "are"
    words = f"{_listed(names)} {verb} missing in {rows:,} rows, {share:.0%}, usually {usual:.1%}"
    return Deviation(tuple(names), words + _when(features, there), rows)


def _when(features: pl.DataFrame, names: Sequence[str]) -> str:
    """Says between which hours nine tenths of the rows without these values lie, where that is a part of the day."""
    if "event_time" not in features.columns or not names:
        return ""
    times = features.filter(pl.all_horizontal(pl.col(names).is_null()))["event_time"].drop_nulls()
    if not times.len():
        return ""
    first, last = (times.dt.hour().quantile(level, "nearest") for level in (0.05, 0.95))
    if first is None or last is None or last - first > _PART_OF_DAY:
        return ""
    return f", most of them between {int(first):02d}:00 and {int(last):02d}:59 UTC"


def _of_values(effect: Effect, features: pl.DataFrame, known: Distribution, speak: Callable[[float], str]) -> Deviation:
    values = features[effect.name].drop_nulls() if effect.name in features.columns else pl.Series([], dtype=pl.Float64)
    if known.is_category or not values.len() or not values.dtype.is_numeric():
        return Deviation((effect.name,), f"{effect.name}: {effect.words}")
    middle, usual = float(np.median(values.to_numpy())), known.quantiles[len(known.quantiles) // 2]
    words = f"{effect.name} is {speak(middle)} in the middle, usually {speak(usual)} ({effect.words})"
    return Deviation((effect.name,), words)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _clock(minutes: float) -> str:
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def as_facts(verdict: Verdict) -> dict[str, Any]:
    """Gives what summary.json keeps of a verdict."""
    return {
        "day": verdict.day,
        "is_wrong": verdict.is_wrong,
        "words": verdict.words,
        "rows": verdict.rows,
        "flagged": verdict.flagged,
        "known": verdict.known,
        "expected": verdict.expected,
        "usual_rows": verdict.usual_rows,
        "deviations": [
            {"columns": list(each.columns), "words": each.words, "rows": each.rows} for each in verdict.deviations
        ],
    }
