"""Drift of a day from the training window, as effect sizes.

With enough rows, a significance test reports every difference. Effect sizes measure how large a difference is: the
population stability index (PSI, Siddiqi 2006), the Wasserstein distance in standard deviations, and plain shares.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.section import Section
from ae_pipeline.config.service import DriftConfig

Array = npt.NDArray[np.float64]

_BINS = 10
"""Bins of the PSI of numbers. Each has the same share of the rows of the window."""

_CATEGORY_BINS = 30
"""Most frequent categories with their own bin."""

_MAX_KNOWN_CATEGORIES = 50_000
"""Limit on stored categories. New categories are not measured for columns with more."""

_GRID = np.linspace(0.01, 0.99, 99)
"""Quantile levels of the Wasserstein distance. They exclude the ends, which one outlier would move."""

_DAY_QUANTILE = 0.95
"""Quantile of the effects of the days of the window that counts as normal day-to-day variation."""

_NORMAL_STD = 0.9603
"""Standard deviation of these quantiles of a standard normal distribution."""


class Part(StrEnum):
    """The part of a row whose distribution is measured."""

    COLUMN = "column"
    SCORE = "score"
    LATENT = "latent"


class Distribution(Section):
    """The stored distribution of a column, the score or a latent over the training window.

    `shares` refer to rows with a value. `edges` are the bin edges of numbers. `names` are the categories with their own
    bin; the last share is that of all other categories. `novelty` is the share of the newest rows of the window whose
    category does not occur in earlier rows: flight numbers are new every day. `usual_psi` and `usual_distance` are the
    95 % quantiles over the days of the window. A single day always differs from a whole year, which is not drift.
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
        """Whether the values are categories."""
        return not self.quantiles

    @property
    def std(self) -> float:
        """Robust standard deviation from the 1 % to 99 % quantiles, or the plain one if all quantiles are equal.

        All quantiles of a flag that is set on one row in two hundred are equal. Its plain standard deviation keeps the
        distance of a day with two such rows in a hundred finite.
        """
        return float(np.std(self.quantiles)) / _NORMAL_STD or self.deviation


_LARGEST = 1e100
"""Numbers are clipped to ± this value, so that their squares and differences stay finite."""

_MAX_DISTANCE = 1e9
"""Largest distance in standard deviations, also if all values of the window are equal."""


class Effect(Section):
    """The difference of a day from the training window in a column, the score or a latent.

    Effects that do not apply to the type of the values are None.
    """

    part: Part
    name: str
    psi: float = Field(
        description="Population stability index, after subtracting sampling noise and normal day-to-day variation."
    )
    wasserstein: float | None = Field(
        default=None,
        description="Wasserstein distance in standard deviations of the window, after subtracting the same.",
    )
    new_categories: float | None = Field(
        default=None, description="Share of rows with a new category, minus the novelty of the window."
    )
    missing: float = Field(default=0.0, description="Change of the share of missing values.")
    is_drift: bool = False
    message: str = ""


def describe_columns(rows: pl.DataFrame, columns: Sequence[FeatureColumn], newest: int = 0) -> tuple[Distribution, ...]:
    """Return the distributions of columns over the rows of a training window, except images and times.

    Args:
        rows: Features in order of time, one row or more.
        columns: Input columns of the model.
        newest: Number of rows at the end from which the rate of new categories is estimated.
    """
    distributions = []
    for column in columns:
        values = rows[column.name]
        if column.type == ColumnType.IMAGE or values.dtype.is_temporal():
            continue
        if _is_category(values):
            distributions.append(_describe_categories(column.name, values, newest))
        else:
            distributions.append(describe_numbers(Part.COLUMN, column.name, _numbers(values), values.len()))
    return tuple(distributions)


def describe_numbers(part: Part, name: str, values: Array, rows: int | None = None) -> Distribution:
    """Return the distribution of numbers.

    Args:
        part: Part of a row that the numbers belong to.
        name: Name of the column or latent.
        values: Values that are present, shape (n,).
        rows: Number of rows including missing values; n by default.
    """
    rows = len(values) if rows is None else rows
    if not len(values):
        return Distribution(part=part, name=name, rows=rows, missing=1.0, shares=(1.0,), quantiles=(0.0,) * len(_GRID))
    values = np.clip(values, -_LARGEST, _LARGEST)
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


def _describe_categories(name: str, values: pl.Series, newest: int) -> Distribution:
    texts = values.cast(pl.String)
    cut = values.len() - newest
    earlier, later = texts[:cut].unique(), texts[cut:].drop_nulls()
    present = texts.drop_nulls()
    counts = present.value_counts(sort=True, name="rows").sort("rows", name, descending=[True, False])
    names = counts[name].head(_CATEGORY_BINS).to_list()
    shares = (counts["rows"].head(_CATEGORY_BINS) / max(present.len(), 1)).to_list()
    return Distribution(
        part=Part.COLUMN,
        name=name,
        rows=values.len(),
        missing=1 - present.len() / max(values.len(), 1),
        names=tuple(names),
        shares=(*shares, max(1 - sum(shares), 0.0)),
        known=tuple(sorted(counts[name])) if counts.height <= _MAX_KNOWN_CATEGORIES else None,
        novelty=float((~later.is_in(earlier.implode())).sum()) / max(newest, 1) if cut else 0.0,
    )


def with_usual(known: Distribution, days: Sequence[Effect]) -> Distribution:
    """Return a distribution with the normal day-to-day variation of the window.

    Args:
        known: Distribution of the window without it.
        days: Effects of the days of the window, measured against `known`.
    """
    if not days:
        return known
    psi, distance = (
        float(np.quantile([value or 0.0 for value in values], _DAY_QUANTILE))
        for values in ([day.psi for day in days], [day.wasserstein for day in days])
    )
    return known.model_copy(update={"usual_psi": psi, "usual_distance": distance})


def measure_columns(rows: pl.DataFrame, window: Sequence[Distribution], config: DriftConfig) -> list[Effect]:
    """Return the effects of the columns of a day.

    Args:
        rows: Features of the day, one row or more. An absent column counts as missing in all rows.
        window: Distributions of the window. Those of scores and latents are ignored.
        config: Thresholds.
    """
    effects = []
    for known in window:
        if known.part != Part.COLUMN:
            continue
        values = rows[known.name] if known.name in rows.columns else pl.Series(known.name, [None] * rows.height)
        if known.is_category:
            effects.append(_apply_thresholds(_measure_categories(known, values), config))
        else:
            effects.append(measure_numbers(known, _numbers(values), rows.height, config))
    return effects


def measure_numbers(known: Distribution, values: Array, rows: int, config: DriftConfig) -> Effect:
    """Return the effect of numbers compared with the distribution of the window.

    Args:
        known: Distribution of the window.
        values: Values that are present, shape (n,).
        rows: Number of rows including missing values.
        config: Thresholds.
    """
    missing = 1 - len(values) / max(rows, 1) - known.missing
    if not len(values) or known.missing == 1.0:
        return _apply_thresholds(
            Effect(part=known.part, name=known.name, psi=0.0, wasserstein=0.0, missing=missing), config
        )
    values = np.clip(values, -_LARGEST, _LARGEST)
    psi = _psi(_counts(values, np.asarray(known.edges)), known.shares, known.rows * (1 - known.missing))
    gap = float(np.abs(np.quantile(values, _GRID) - np.asarray(known.quantiles)).mean())
    gap = max(gap - _expected_distance(known, len(values)), 0.0)
    # If all values of the window are equal, any other value gets the largest distance.
    is_near = known.std > 0 and gap / _MAX_DISTANCE < known.std
    distance = gap / known.std if is_near else (0.0 if gap == 0 else _MAX_DISTANCE)
    psi, distance = max(psi - known.usual_psi, 0.0), max(distance - known.usual_distance, 0.0)
    effect = Effect(part=known.part, name=known.name, psi=psi, wasserstein=distance, missing=missing)
    return _apply_thresholds(effect, config)


def _measure_categories(known: Distribution, values: pl.Series) -> Effect:
    present = values.cast(pl.String).drop_nulls()
    missing = 1 - present.len() / max(values.len(), 1) - known.missing
    counts_by_name: Mapping[str, int] = dict(present.value_counts(name="rows").iter_rows())
    named = np.array([counts_by_name.get(name, 0) for name in known.names], dtype=float)
    counts = np.append(named, present.len() - named.sum())
    psi = _psi(counts, known.shares, known.rows * (1 - known.missing)) if present.len() else 0.0
    new = None
    if known.known is not None:
        new = float((~present.is_in(known.known)).sum()) / max(values.len(), 1) - known.novelty
    psi = max(psi - known.usual_psi, 0.0)
    return Effect(part=known.part, name=known.name, psi=psi, new_categories=new, missing=missing)


def _psi(counts: Array, shares: Sequence[float], rows: float) -> float:
    """Return the PSI minus its mean for two samples of one distribution, (bins − 1) (1 / n + 1 / m); at least 0."""
    expected, total = np.asarray(shares), float(counts.sum())
    bins = len(expected)
    if bins < 2 and not counts[1:].any():
        return 0.0
    # Half a row in each bin keeps the logarithm of an empty bin finite.
    day = (counts + 0.5) / (total + 0.5 * bins)
    window = (expected * rows + 0.5) / (rows + 0.5 * bins)
    index = float(((day - window) * np.log(day / window)).sum())
    return max(index - (bins - 1) * (1 / total + 1 / max(rows, 1)), 0.0)


def _expected_distance(known: Distribution, rows: int) -> float:
    """Return the mean distance of two samples of one distribution, by the normal approximation of each quantile."""
    steps, middle = np.diff(known.quantiles), (_GRID[1:] + _GRID[:-1]) / 2
    count = 1 / rows + 1 / max(known.rows * (1 - known.missing), 1)
    return float((np.sqrt(middle * (1 - middle)) * steps).sum() * np.sqrt(2 / np.pi * count))


def _apply_thresholds(effect: Effect, config: DriftConfig) -> Effect:
    messages = []
    if effect.psi > config.psi:
        index = _rounded(effect.psi, config.psi)
        messages.append(f"stability index {index}: 0 is like the training window, above {config.psi:g} is a shift")
    if effect.wasserstein is not None and effect.wasserstein > config.wasserstein:
        distance = _rounded(effect.wasserstein, config.wasserstein)
        messages.append(f"{distance} standard deviations away, at most {config.wasserstein:g}")
    if effect.new_categories is not None and effect.new_categories > config.new_categories:
        more, most = _rounded(100 * effect.new_categories, 100 * config.new_categories, 1), config.new_categories
        messages.append(f"{more}% more rows with new categories, at most {most:.1%}")
    if abs(effect.missing) > config.missing:
        more = "more" if effect.missing > 0 else "fewer"
        share = _rounded(100 * abs(effect.missing), 100 * config.missing, 1)
        messages.append(f"{share}% {more} values missing, at most {config.missing:.1%}")
    return effect.model_copy(update={"is_drift": bool(messages), "message": "; ".join(messages)})


def _rounded(value: float, limit: float, digits: int = 2) -> str:
    """Return a value above a limit with so many decimals, or with as many as tell it from the limit."""
    texts = (f"{value:.{more}f}" for more in range(digits, 17))
    return next((text for text in texts if float(text) > limit), str(value))


def _counts(values: Array, edges: Array) -> Array:
    bins = np.searchsorted(edges, values, side="right")
    return np.bincount(bins, minlength=len(edges) + 1).astype(float)


def _is_category(values: pl.Series) -> bool:
    return not values.dtype.is_numeric()


def _numbers(values: pl.Series) -> Array:
    if values.dtype == pl.Null:
        return np.empty(0)
    numbers = values.cast(pl.Float64).drop_nulls().to_numpy()
    finite: Array = numbers[np.isfinite(numbers)]
    return finite
