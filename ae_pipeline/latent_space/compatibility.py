"""How alike two latent spaces are over the same rows, and the map that takes one to the other."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.scoring.calibration import ks_distance

Array = npt.NDArray[np.float64]

NEIGHBORS = 10
LEAST_ROWS = 50
"""Rows that tell of a map between spaces, a half of them to fit it and a half to hold it against."""

_RIDGE = 1e-6
"""Of the mean variance of an axis: keeps the map of a direction that hardly varies from growing without bound."""

_MOST_ROWS = 5000
"""Rows whose neighbours are compared at most, evenly spread."""


@dataclass(frozen=True)
class AffineMap:
    """A map of latents z to z @ matrix + offset.

    Attributes:
        matrix: (from, to).
        offset: (to,).
    """

    matrix: Array
    offset: Array

    def __call__(self, latents: Array) -> Array:
        """Maps latents of n rows, (n, from), to (n, to)."""
        mapped: Array = latents @ self.matrix + self.offset
        return mapped


Fit = Callable[[Array, Array], AffineMap]


@dataclass(frozen=True)
class Compatibility:
    """A new latent space beside the one before, over the same rows.

    Explained variance is of the old latents by the mapped new ones, the maps fitted on every other row and held against
    those between; 1 is all, below 0 is worse than the mean.

    Attributes:
        rows: Compared.
        as_is: Explained variance without any map, for spaces of the same width; None otherwise.
        orthogonal: Explained variance of the best orthogonal map and shift (Procrustes; Schönemann 1966), likewise.
        affine: Explained variance of the best affine map.
        condition: Of that map in units of each axis' spread: the ratio of its greatest to its least stretch.
        neighbours: Mean share of a row's ten nearest rows in the old space that are so in the new one.
        axes: Correlation of each axis with that of the same place, likewise.
        score_shift: Greatest gap between the two shares of rows up to a score (Kolmogorov & Smirnov), 0 to 1.
    """

    rows: int
    as_is: float | None
    orthogonal: float | None
    affine: float
    condition: float
    neighbors: float
    axes: tuple[float, ...] | None
    score_shift: float

    def figures(self) -> dict[str, float]:
        """Gives each figure that is one number, by name, those that there are not left out."""
        named = {
            "as_is": self.as_is,
            "orthogonal": self.orthogonal,
            "affine": self.affine,
            "condition": self.condition,
            "neighbours": self.neighbors,
            "score_shift": self.score_shift,
        }
        return {name: value for name, value in named.items() if value is not None}


def compare_spaces(old: Array, new: Array, old_scores: Array, new_scores: Array) -> Compatibility:
    """Compares what two models say of the same n rows.

    Args:
        old: Latents of the one before, (n, d).
        new: Latents of the new one, (n, e).
        old_scores: (n,).
        new_scores: (n,).

    Raises:
        TrainingError: There are too few rows.
    """
    if len(old) < LEAST_ROWS:
        raise TrainingError(
            f"latent spaces are compared over {LEAST_ROWS} rows or more, and the reference window has {len(old)}; make "
            "validation_days longer"
        )
    is_as_wide = old.shape[1] == new.shape[1]
    return Compatibility(
        rows=len(old),
        as_is=explained_variance(old, new) if is_as_wide else None,
        orthogonal=cross_validated_variance(old, new, fit_orthogonal) if is_as_wide else None,
        affine=cross_validated_variance(old, new),
        condition=relative_condition(fit_affine(new, old), new, old),
        neighbors=_overlap(old, new),
        axes=tuple(_correlation(*pair) for pair in zip(old.T, new.T, strict=True)) if is_as_wide else None,
        score_shift=ks_distance(new_scores, old_scores),
    )


def explained_variance(wanted: Array, mapped: Array) -> float:
    """Gives the share of the variance of latents, over all axes, that others of the same rows explain."""
    rest, whole = np.square(wanted - mapped).sum(), np.square(wanted - wanted.mean(axis=0)).sum()
    return float(1 - rest / whole) if whole > 0 else float(rest == 0)


def cross_validated_variance(wanted: Array, latents: Array, fit: Fit | None = None) -> float:
    """Gives the share of the variance of latents that a map of others explains on every other row.

    Args:
        wanted: (n, d).
        latents: Others of the same rows, (n, e).
        fit: Fits the map, on the rows between; `fit_affine` by default.
    """
    affine = (fit or fit_affine)(latents[::2], wanted[::2])
    return explained_variance(wanted[1::2], affine(latents[1::2]))


def fit_orthogonal(source: Array, target: Array) -> AffineMap:
    """Fits the turn or reflection, and shift, that takes latents nearest to others of the same rows, (n, d) both."""
    middle, aim = source.mean(axis=0), target.mean(axis=0)
    left, _, right = np.linalg.svd((source - middle).T @ (target - aim))
    return AffineMap(left @ right, aim - middle @ left @ right)


def fit_affine(source: Array, target: Array) -> AffineMap:
    """Fits the affine map that takes latents, (n, d), nearest to others of the same rows, (n, e).

    It is a ridge regression on axes in units of spread, with a penalty that matters for directions that hardly vary.
    """
    middle, aim = source.mean(axis=0), target.mean(axis=0)
    std = _spread(source)
    scaled = (source - middle) / std
    gram = scaled.T @ scaled / len(scaled) + _RIDGE * np.eye(scaled.shape[1])
    matrix: Array = np.linalg.solve(gram, scaled.T @ (target - aim) / len(scaled)) / std[:, np.newaxis]
    return AffineMap(matrix, aim - middle @ matrix)


def fit_alignment(source: Array, target: Array) -> AffineMap:
    """Fits the invertible map between spaces of one width, (n, d) both, that gives latents the target's covariance.

    It is the best turn between the whitened spaces. The map of `fit_affine` shrinks what the spaces do not have in
    common; one retraining after another it would lose these directions.
    """
    middle, aim = source.mean(axis=0), target.mean(axis=0)
    (whiten, _), (whiten_target, colour) = (_whitening(latents) for latents in (source, target))
    left, _, right = np.linalg.svd(whiten.T @ (source - middle).T @ (target - aim) @ whiten_target)
    matrix: Array = whiten @ left @ right @ colour
    return AffineMap(matrix, aim - middle @ matrix)


def _whitening(latents: Array) -> tuple[Array, Array]:
    """Gives the matrix that makes the covariance the identity, and its inverse."""
    variances, directions = np.linalg.eigh(np.cov(latents, rowvar=False, bias=True).reshape([latents.shape[1]] * 2))
    std = np.sqrt(np.maximum(variances, _RIDGE * max(float(variances[-1]), 1e-12)))
    return directions / std, (directions * std).T


def relative_condition(affine: AffineMap, source: Array, target: Array) -> float:
    """Gives the condition of a map between axes in units of their spread, so that mere scale does not count."""
    matrix = affine.matrix * _spread(source)[:, np.newaxis] / _spread(target)
    return float(np.linalg.cond(matrix))


def _spread(latents: Array) -> Array:
    std = latents.std(axis=0)
    widest = float(std.max(initial=0.0)) or 1.0
    floored: Array = np.maximum(std, 1e-6 * widest)
    return floored


def _overlap(old: Array, new: Array) -> float:
    from sklearn.neighbors import NearestNeighbors

    step = -(-len(old) // _MOST_ROWS)
    near = [
        NearestNeighbors(n_neighbors=NEIGHBORS).fit(latents).kneighbors(return_distance=False)
        for latents in (old[::step] / _spread(old), new[::step] / _spread(new))
    ]
    shared = [len(np.intersect1d(*pair)) for pair in zip(*near, strict=True)]
    return float(np.mean(shared) / NEIGHBORS)


def _correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0
