"""Drift: how far the rows of a day are from those of the training window, as effect sizes.

A p-value would call every difference drift once there are rows enough. Effect sizes say how large it is: the population
stability index (Siddiqi 2006), the Wasserstein distance in units of spread, and plain shares.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import Section
from ae_pipeline.config.service import DriftConfig

Array = npt.NDArray[np.float64]

_BINS = 10
"""Bins of the stability index, of equal shares of the window's rows."""

_NAMED = 30
"""Categories that are bins of their own, the most frequent ones."""

_KNOWN = 50_000
"""Categories that are remembered; of a column with more, which ones are new cannot be told."""

_GRID = np.linspace(0.01, 0.99, 99)
"""Quantiles that the Wasserstein distance is taken over: without the ends, which one wild row would move."""

_USUAL = 0.95
"""Share of the window's days within whose effects a day counts as usual."""

_NORMAL_SPREAD = 0.9603
"""Standard deviation of these quantiles of a normal distribution whose own is 1."""


class Part(StrEnum):
    """What can drift."""

    COLUMN = "column"
    SCORE = "score"
    LATENT = "latent"


class Distribution(Section):
    """What is remembered of a column, the score or a latent over the training window.

    Shares are of the rows that have a value; `edges` cut numbers into bins, `names` are the categories with a bin of
    their own, before one for all others. `novelty` is the share of the window's newest rows whose category the rows
    before them do not know: flight numbers are new every day. The usual index and distance are those that all but one
    in twenty days of the window stay within: a Monday is never like a whole year, and that is no drift.
    """

    part: Part
    name: str
    rows: int
    missing: float = 0.0
    edges: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    deviation: float = 0.0
    names: tuple[str, ...] = ()
    known: tuple[str, ...] | None = None
    novelty: float = 0.0
    usual_psi: float = 0.0
    usual_distance: float = 0.0

    @property
    def is_category(self) -> bool:
        """Whether its values name and do not measure."""
        return not self.quantiles

    @property
    def std(self) -> float:
        """Standard deviation without the outer hundredths, as of a normal distribution; with them where there is none.

        Of a flag that is set on one row in two hundred all quantiles are the same, and a day with two in a hundred has
        not drifted beyond all measure.
        """
        return float(np.std(self.quantiles)) / _NORMAL_SPREAD or self.deviation


class Effect(Section):
    """How far a day is from the window in one respect.

    None stands for what such values do not have.
    """

    part: Part
    name: str
    psi: float = Field(
        description="Population stability index, less what chance makes of so few rows and what is usual of a day."
    )
    wasserstein: float | None = Field(default=None, description="In units of the window's spread, likewise.")
    new_categories: float | None = Field(
        default=None, description="Share of rows with a category new since, less novelty."
    )
    missing: float = Field(default=0.0, description="Change of the share of missing values.")
    is_drift: bool = False
    message: str = ""


def describe_columns(rows: pl.DataFrame, columns: Sequence[FeatureColumn], newest: int = 0) -> tuple[Distribution, ...]:
    """Remembers columns over the rows of a training window; images and times are not looked at.

    Args:
        rows: Features, n > 0, in the order of time.
        columns: Those that the model sees.
        newest: How many of the last rows tell how often new categories come.
    """
    found = []
    for column in columns:
        values = rows[column.name]
        if column.type == ColumnType.IMAGE or values.dtype.is_temporal():
            continue
        if _is_category(values):
            found.append(_of_categories(column.name, values, newest))
        else:
            found.append(describe_numbers(Part.COLUMN, column.name, _numbers(values), values.len()))
    return tuple(found)


def describe_numbers(part: Part, name: str, values: Array, rows: int | None = None) -> Distribution:
    """Remembers numbers.

    Args:
        part: What they are.
        name: Of the column or latent.
        values: Those that there are, (n,).
        rows: With those that are missing; n by default.
    """
    rows = len(values) if rows is None else rows
    if not len(values):
        return Distribution(part=part, name=name, rows=rows, missing=1.0, shares=(1.0,), quantiles=(0.0,) * len(_GRID))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    shares = _counts(values, edges) / len(values)
    return Distribution(
        part=part,
        name=name,
        rows=rows,
        missing=1 - len(values) / max(rows, 1),
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
        quantiles=tuple(np.quantile(values, _GRID).tolist()),
        deviation=float(np.std(values)),
    )


def _of_categories(name: str, values: pl.Series, newest: int) -> Distribution:
    names_of = values.cast(pl.String)
    cut = values.len() - newest
    previous, after = names_of[:cut].unique(), names_of[cut:].drop_nulls()
    present = values.cast(pl.String).drop_nulls()
    counts = present.value_counts(sort=True, name="rows").sort("rows", name, descending=[True, False])
    names = counts[name].head(_NAMED).to_list()
    shares = (counts["rows"].head(_NAMED) / max(present.len(), 1)).to_list()
    return Distribution(
        part=Part.COLUMN,
        name=name,
        rows=values.len(),
        missing=1 - present.len() / max(values.len(), 1),
        names=tuple(names),
        shares=(*shares, max(1 - sum(shares), 0.0)),
        known=tuple(sorted(counts[name])) if counts.height <= _KNOWN else None,
        novelty=float((~after.is_in(previous.implode())).sum()) / max(newest, 1) if cut else 0.0,
    )


def with_usual(known: Distribution, days: Sequence[Effect]) -> Distribution:
    """Adds what is usual of single days of the window.

    Args:
        known: What is remembered of the window, without that.
        days: Effects of its days beside it, in the same respect.
    """
    if not days:
        return known
    psi, distance = (
        float(np.quantile([value or 0.0 for value in values], _USUAL))
        for values in ([day.psi for day in days], [day.wasserstein for day in days])
    )
    return known.model_copy(update={"usual_psi": psi, "usual_distance": distance})


def measure_columns(rows: pl.DataFrame, window: Sequence[Distribution], config: DriftConfig) -> list[Effect]:
    """Holds the columns of a day against those of the window.

    Args:
        rows: Features of the day, n > 0; a column that is gone counts as missing everywhere.
        window: What is remembered; scores and latents among it are passed over.
        config: The thresholds.
    """
    effects = []
    for known in window:
        if known.part != Part.COLUMN:
            continue
        values = rows[known.name] if known.name in rows.columns else pl.Series(known.name, [None] * rows.height)
        if known.is_category:
            effects.append(_judged(_beside_categories(known, values), config))
        else:
            effects.append(measure_numbers(known, _numbers(values), rows.height, config))
    return effects


def measure_numbers(known: Distribution, values: Array, rows: int, config: DriftConfig) -> Effect:
    """Holds numbers against what is remembered of them.

    Args:
        known: What is remembered.
        values: Those that there are, (n,).
        rows: With those that are missing.
        config: The thresholds.
    """
    missing = 1 - len(values) / max(rows, 1) - known.missing
    if not len(values) or known.missing == 1.0:
        return _judged(Effect(part=known.part, name=known.name, psi=0.0, wasserstein=0.0, missing=missing), config)
    psi = _psi(_counts(values, np.asarray(known.edges)), known.shares, known.rows * (1 - known.missing))
    gap = float(np.abs(np.quantile(values, _GRID) - np.asarray(known.quantiles)).mean())
    gap = max(gap - _distance_by_chance(known, len(values)), 0.0)
    # Where all values were the same, any other is as far as can be.
    distance = gap / known.std if known.std else (0.0 if gap == 0 else 1e9)
    psi, distance = max(psi - known.usual_psi, 0.0), max(distance - known.usual_distance, 0.0)
    effect = Effect(part=known.part, name=known.name, psi=psi, wasserstein=distance, missing=missing)
    return _judged(effect, config)


def _beside_categories(known: Distribution, values: pl.Series) -> Effect:
    present = values.cast(pl.String).drop_nulls()
    missing = 1 - present.len() / max(values.len(), 1) - known.missing
    told: Mapping[str, int] = dict(present.value_counts(name="rows").iter_rows())
    named = np.array([told.get(name, 0) for name in known.names], dtype=float)
    counts = np.append(named, present.len() - named.sum())
    psi = _psi(counts, known.shares, known.rows * (1 - known.missing)) if present.len() else 0.0
    new = None
    if known.known is not None:
        new = float((~present.is_in(known.known)).sum()) / max(values.len(), 1) - known.novelty
    psi = max(psi - known.usual_psi, 0.0)
    return Effect(part=known.part, name=known.name, psi=psi, new_categories=new, missing=missing)


def _psi(counts: Array, shares: Sequence[float], rows: float) -> float:
    """Gives the index, less its mean where both are drawn from one distribution: bins less one over either count."""
    expected, total = np.asarray(shares), float(counts.sum())
    bins = len(expected)
    if bins < 2 and not counts[1:].any():
        return 0.0
    # Half a row in each bin keeps the logarithm of an empty one finite.
    now = (counts + 0.5) / (total + 0.5 * bins)
    then = (expected * rows + 0.5) / (rows + 0.5 * bins)
    index = float(((now - then) * np.log(now / then)).sum())
    return max(index - (bins - 1) * (1 / total + 1 / max(rows, 1)), 0.0)


def _distance_by_chance(known: Distribution, rows: int) -> float:
    """Gives the mean distance of two samples of one distribution, of each of whose shares the error is normal."""
    steps, middle = np.diff(known.quantiles), (_GRID[1:] + _GRID[:-1]) / 2
    count = 1 / rows + 1 / max(known.rows * (1 - known.missing), 1)
    return float((np.sqrt(middle * (1 - middle)) * steps).sum() * np.sqrt(2 / np.pi * count))


def _judged(effect: Effect, config: DriftConfig) -> Effect:
    told = []
    if effect.psi > config.psi:
        told.append(f"stability index {effect.psi:.2f}, at most {config.psi:g}")
    if effect.wasserstein is not None and effect.wasserstein > config.wasserstein:
        told.append(f"{effect.wasserstein:.2f} spreads away, at most {config.wasserstein:g}")
    if effect.new_categories is not None and effect.new_categories > config.new_categories:
        told.append(f"{effect.new_categories:.1%} more rows with new categories, at most {config.new_categories:.1%}")
    if abs(effect.missing) > config.missing:
        more = "more" if effect.missing > 0 else "fewer"
        told.append(f"{abs(effect.missing):.1%} {more} values missing, at most {config.missing:.1%}")
    return effect.model_copy(update={"is_drift": bool(told), "message": "; ".join(told)})


def _counts(values: Array, edges: Array) -> Array:
    places = np.searchsorted(edges, values, side="right")
    return np.bincount(places, minlength=len(edges) + 1).astype(float)


def _is_category(values: pl.Series) -> bool:
    return not (values.dtype.is_numeric())


def _numbers(values: pl.Series) -> Array:
    if values.dtype == pl.Null:
        return np.empty(0)
    numbers = values.cast(pl.Float64).drop_nulls().to_numpy()
    found: Array = numbers[np.isfinite(numbers)]
    return found
