"""Describe how a day as a whole differs from the training window, in terms of its columns."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ae_pipeline.common.text import short_number
from ae_pipeline.config.display import PLAIN, ColumnNames
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.locations import (
    HourCounts,
    count_by_hour,
    describe_categories,
    describe_hours,
    enumerate_names,
    timezone_of,
)
from ae_pipeline.scoring.drift import Distribution, Effect, Part

if TYPE_CHECKING:
    from ae_pipeline.detector.bundle import ModelBundle

_MAX_DISAGREEMENT = 0.03
"""Columns with missing values in the same rows, except for this share of the rows, form one deviation."""

_MAX_USUAL_DIFFERENCE = 0.1
"""Their usual shares of missing values may differ by at most this much."""

_LISTED_ROWS = (500, 100, 100, 100, 100)
"""Number of row identities listed for each deviation that is described in detail."""

DETAILED = len(_LISTED_ROWS)
"""Number of deviations of a day that are described with their hours and categories."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One way in which a day as a whole differs from the training window.

    Attributes:
        columns: Columns that deviate together.
        message: Description of the difference.
        rows: Number of affected rows; 0 if single rows cannot be identified.
        where: SQL condition that selects these rows from the features of the day; may be empty.
        hours: Affected rows and all rows of each hour, in the time zone of the dataset; empty if the hours are unknown.
        splits: Phrases that locate the affected rows in categories.
        row_ids: Identities of the first affected rows.
        is_missing: Whether values are missing that are usually present.
    """

    columns: tuple[str, ...]
    message: str
    rows: int = 0
    where: str = ""
    hours: HourCounts = ()
    splits: tuple[str, ...] = ()
    row_ids: tuple[str, ...] = ()
    is_missing: bool = False

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Deviation":
        """Return the deviation of JSON-compatible values."""
        tuples = {name: tuple(record[name]) for name in ("columns", "splits", "row_ids")}
        return cls(**{**record, **tuples, "hours": tuple(map(tuple, record["hours"]))})


def deviations_of(
    drift: DayDrift | None,
    features: pl.DataFrame,
    bundle: "ModelBundle",
    config: DriftConfig,
    names: ColumnNames = PLAIN,
) -> tuple[Deviation, ...]:
    """Return how a day as a whole differs from the training window.

    Columns with more missing values than usual come first. Changed values follow, then fewer missing values.

    Args:
        drift: Drift of the day; None if it was not measured.
        features: Features of the day: the drifted columns, and the columns that locate rows: `row_id`, `event_time`
            in the time zone of the dataset, and the categories.
        bundle: Model with the distributions of its training window.
        config: Drift thresholds.
        names: How messages name columns.
    """
    if drift is None:
        return ()
    known = {entry.name: entry for entry in bundle.reference if entry.part == Part.COLUMN}
    effects = [effect for effect in drift.effects if effect.part == Part.COLUMN and effect.name in known]
    more_missing = [effect for effect in effects if effect.missing > config.missing]
    missing = _missing_values(more_missing, features, known, names)
    described = {name for deviation in missing for name in deviation.columns}
    fewer_missing = [effect.name for effect in effects if effect.missing < -config.missing]
    clocks = {column.name for column in bundle.encoder.columns if column.is_clock}
    changed = [
        _changed_values(effect, features, known[effect.name], names, is_clock=effect.name in clocks)
        for effect in effects
        if effect.name not in {*described, *fewer_missing}
    ]
    return (*missing, *changed, *(_present_values(name, features, known[name], names) for name in fewer_missing))


def _value(column: str, value: float, names: ColumnNames, *, is_clock: bool) -> str:
    if is_clock:
        return f"{int(value) // 60:02d}:{int(value) % 60:02d}"
    return names.value(column, short_number(value))


def _missing_values(
    effects: Sequence[Effect], features: pl.DataFrame, known: Mapping[str, Distribution], names: ColumnNames
) -> list[Deviation]:
    """Group columns with missing values in the same rows; the column with the largest increase starts a group."""
    remaining = sorted(effects, key=lambda effect: -effect.missing)
    deviations: list[Deviation] = []
    while remaining:
        first = remaining[0].name
        columns = [effect.name for effect in remaining if _are_missing_together(first, effect.name, features, known)]
        remaining = [effect for effect in remaining if effect.name not in columns]
        listed_rows = _LISTED_ROWS[len(deviations)] if len(deviations) < DETAILED else 0
        deviations.append(_missing_together(columns, features, known, names, listed_rows))
    return deviations


def _is_missing(name: str, features: pl.DataFrame) -> pl.Series:
    """Return which rows have no value in a column; if the column is absent, all of them."""
    return features[name].is_null() if name in features.columns else pl.repeat(True, features.height, eager=True)


def _are_missing_together(first: str, second: str, features: pl.DataFrame, known: Mapping[str, Distribution]) -> bool:
    """Return whether two columns lack values in nearly the same rows, and usually lack a similar share."""
    disagreement = (_is_missing(first, features) != _is_missing(second, features)).mean()
    usual_difference = abs(known[first].missing - known[second].missing)
    return float(disagreement or 0.0) <= _MAX_DISAGREEMENT and usual_difference <= _MAX_USUAL_DIFFERENCE  # type: ignore[arg-type]


def _missing_together(
    columns: Sequence[str],
    features: pl.DataFrame,
    known: Mapping[str, Distribution],
    names: ColumnNames,
    listed_rows: int,
) -> Deviation:
    mask = reduce(operator.and_, (_is_missing(name, features) for name in columns))
    rows, usual = int(mask.sum()), float(np.mean([known[name].missing for name in columns]))
    share = rows / max(features.height, 1)
    titles = enumerate_names([names.title(name) for name in columns])
    message = f"{share:.0%} of {names.rows} ({rows:,}) lack {titles}, usually {usual:.1%}"
    hours = count_by_hour(features, mask)
    phrase = describe_hours(hours, timezone_of(features), names.row)
    categories = [
        name for name, entry in known.items() if entry.is_category and name in features.columns and name not in columns
    ]
    return Deviation(
        columns=tuple(columns),
        message=f"{message}, {phrase}" if phrase else message,
        rows=rows,
        where=" AND ".join(f"{_quoted(name)} IS NULL" for name in columns if name in features.columns),
        hours=hours if listed_rows else (),
        splits=describe_categories(features.select(categories), mask, names) if listed_rows else (),
        row_ids=tuple(features["row_id"].filter(mask).head(listed_rows)) if "row_id" in features.columns else (),
        is_missing=True,
    )


def _present_values(name: str, features: pl.DataFrame, known: Distribution, names: ColumnNames) -> Deviation:
    rows = int((~_is_missing(name, features)).sum())
    share = rows / max(features.height, 1)
    message = f"{share:.0%} of {names.rows} ({rows:,}) have {names.title(name)}, usually {1 - known.missing:.1%}"
    return Deviation(columns=(name,), message=message, rows=rows, where=f"{_quoted(name)} IS NOT NULL")


def _changed_values(
    effect: Effect, features: pl.DataFrame, known: Distribution, names: ColumnNames, *, is_clock: bool
) -> Deviation:
    values = features[effect.name].drop_nulls() if effect.name in features.columns else pl.Series([], dtype=pl.Float64)
    title = names.title(effect.name)
    if known.is_category and values.len():
        message = f"{title}: {_changed_category(values, known, names)} ({effect.message})"
    elif values.len() and values.dtype.is_numeric():
        median, usual = float(np.median(values.to_numpy())), known.quantiles[len(known.quantiles) // 2]
        texts = [_value(effect.name, value, names, is_clock=is_clock) for value in (median, usual)]
        message = f"the median of {title} is {texts[0]}, usually {texts[1]} ({effect.message})"
    else:
        message = f"{title}: {effect.message}"
    return Deviation(columns=(effect.name,), message=message)


def _changed_category(values: pl.Series, known: Distribution, names: ColumnNames) -> str:
    """Describe the value whose share has changed the most.

    Args:
        values: Values of the day, without missing ones; n > 0.
        known: Distribution in the training window.
        names: How the text names values.
    """
    counts = dict(values.cast(pl.String).value_counts(name="rows").iter_rows())
    shares = {str(name): rows / values.len() for name, rows in counts.items()}
    usual = dict(zip(known.names, known.shares[:-1], strict=True))
    # The usual share of a rare value is not stored. Only that of a new value is known: 0.
    usual |= {name: 0.0 for name in shares if name not in usual and known.known is not None and name not in known.known}
    if not usual:
        return "other values than usual"
    name = max(usual, key=lambda value: (abs(shares.get(value, 0.0) - usual[value]), value))
    comparison = f"usually {usual[name]:.1%}" if usual[name] else "and is new"
    return f"{names.value(known.name, name)} is {shares.get(name, 0.0):.1%} of its values, {comparison}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
