"""Comparison of two latent spaces over the same rows, and the maps between them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.scoring.calibration import ks_distance

Array = npt.NDArray[np.float64]

NEIGHBORS = 10
MIN_ROWS = 50
"""Fewest rows for a comparison. Maps are fitted on one half of them and evaluated on the other half."""

_RIDGE = 1e-6
"""Ridge penalty, relative to the mean variance of an axis. It bounds the map in directions that hardly vary."""

_MAX_NEIGHBOR_ROWS = 5000
"""Rows whose nearest neighbors are compared; of more rows, every n-th is taken."""


@dataclass(frozen=True)
class AffineMap:
    """An affine map of latents: `z @ matrix + offset`.

    Attributes:
        matrix: Linear part, (source width, target width).
        offset: Shift, (target width,).

    Examples:
        >>> import numpy as np
        >>> shift_and_double = AffineMap(matrix=2 * np.eye(2), offset=np.array([1.0, 0.0]))
        >>> shift_and_double(np.array([[1.0, 3.0]]))
        array([[3., 6.]])
    """

    matrix: Array
    offset: Array

    def __call__(self, latents: Array) -> Array:
        """Return the mapped latents, (n, target width), of latents of n rows, (n, source width)."""
        mapped: Array = latents @ self.matrix + self.offset
        return mapped


Fit = Callable[[Array, Array], AffineMap]


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """Comparison of a new latent space with the previous one, over the same rows.

    Explained variance is the share of the variance of the old latents that the mapped new latents explain. Maps are
    fitted on every second row and evaluated on the others. 1 is a perfect map; below 0 is worse than the mean.

    Attributes:
        rows: Number of compared rows.
        as_is: Explained variance without a map; None for spaces of different widths.
        orthogonal: Explained variance of the best orthogonal map and shift (Procrustes; Schönemann 1966); None for
            spaces of different widths.
        affine: Explained variance of the best affine map.
        condition: Condition number of that map, with each axis in units of its standard deviation.
        neighbors: Mean share of the ten nearest neighbors of a row that both spaces have in common, 0 to 1.
        axes: Correlation of each axis with the axis of the same index; None for spaces of different widths.
        score_shift: Kolmogorov–Smirnov distance between the scores of both models, 0 to 1.
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
        """Return each figure that is a single number and not None, by name."""
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
    """Compare the latents and scores that two models give for the same n rows.

    Args:
        old: Latents of the previous model, (n, d).
        new: Latents of the new model, (n, e).
        old_scores: Scores of the previous model, (n,).
        new_scores: Scores of the new model, (n,).

    Raises:
        TrainingError: There are too few rows.
    """
    if len(old) < MIN_ROWS:
        raise TrainingError(
            f"a comparison of latent spaces needs at least {MIN_ROWS} rows, and the validation days have {len(old)}; "
            "increase training.validation_days"
        )
    is_same_width = old.shape[1] == new.shape[1]
    return Compatibility(
        rows=len(old),
        as_is=explained_variance(old, new) if is_same_width else None,
        orthogonal=cross_validated_variance(old, new, fit_orthogonal) if is_same_width else None,
        affine=cross_validated_variance(old, new),
        condition=relative_condition(fit_affine(new, old), new, old),
        neighbors=_neighbor_overlap(old, new),
        axes=tuple(_correlation(*pair) for pair in zip(old.T, new.T, strict=True)) if is_same_width else None,
        score_shift=ks_distance(new_scores, old_scores),
    )


def explained_variance(target: Array, mapped: Array) -> float:
    """Return the share of the variance of the target latents, over all axes, that mapped latents explain.

    Args:
        target: Target latents, (n, d).
        mapped: Mapped latents of the same rows, (n, d).

    Examples:
        >>> import numpy as np
        >>> target = np.array([[0.0], [2.0], [4.0]])
        >>> explained_variance(target, target)
        1.0
        >>> explained_variance(target, np.array([[1.0], [2.0], [3.0]]))
        0.75
    """
    residual, total = np.square(target - mapped).sum(), np.square(target - target.mean(axis=0)).sum()
    return float(1 - residual / total) if total > 0 else float(residual == 0)


def cross_validated_variance(target: Array, latents: Array, fit: Fit | None = None) -> float:
    """Return the explained variance of a map that is fitted on every second row and evaluated on the others.

    Args:
        target: Target latents, (n, d).
        latents: Latents of the same rows to map, (n, e).
        fit: Function that fits the map; `fit_affine` by default.
    """
    affine = (fit or fit_affine)(latents[::2], target[::2])
    return explained_variance(target[1::2], affine(latents[1::2]))


def fit_orthogonal(source: Array, target: Array) -> AffineMap:
    """Fit the rotation or reflection, and shift, that minimizes the squared error between latents of the same rows.

    Source: orthogonal Procrustes problem, Schönemann (1966).

    Args:
        source: Latents to map, (n, d).
        target: Target latents, (n, d).
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    left, _, right = np.linalg.svd((source - source_mean).T @ (target - target_mean))
    return AffineMap(left @ right, target_mean - source_mean @ left @ right)


def fit_affine(source: Array, target: Array) -> AffineMap:
    """Fit the affine map that minimizes the squared error between latents of the same rows.

    It is a ridge regression on standardized latents. The penalty only matters in directions that hardly vary.

    Args:
        source: Latents to map, (n, d).
        target: Target latents, (n, e).
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    scale = _scales(source)
    scaled = (source - source_mean) / scale
    gram = scaled.T @ scaled / len(scaled) + _RIDGE * np.eye(scaled.shape[1])
    matrix: Array = np.linalg.solve(gram, scaled.T @ (target - target_mean) / len(scaled)) / scale[:, np.newaxis]
    return AffineMap(matrix, target_mean - source_mean @ matrix)


def fit_alignment(source: Array, target: Array) -> AffineMap:
    """Fit the invertible map between spaces of the same width that gives latents the covariance of the target.

    It is the best orthogonal map between the whitened spaces. The map of `fit_affine` shrinks directions that the
    spaces do not share, so repeated retrainings would lose them.

    Args:
        source: Latents to map, (n, d).
        target: Target latents, (n, d).
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    (whiten, _), (whiten_target, unwhiten_target) = (_whitening(latents) for latents in (source, target))
    left, _, right = np.linalg.svd(whiten.T @ (source - source_mean).T @ (target - target_mean) @ whiten_target)
    matrix: Array = whiten @ left @ right @ unwhiten_target
    return AffineMap(matrix, target_mean - source_mean @ matrix)


def _whitening(latents: Array) -> tuple[Array, Array]:
    """Return the matrix that makes the covariance the identity, and its inverse."""
    variances, directions = np.linalg.eigh(np.cov(latents, rowvar=False, bias=True).reshape([latents.shape[1]] * 2))
    std = np.sqrt(np.maximum(variances, _RIDGE * max(float(variances[-1]), 1e-12)))
    return directions / std, (directions * std).T


def relative_condition(affine: AffineMap, source: Array, target: Array) -> float:
    """Return the condition number of a map, with each axis in units of its standard deviation.

    A mere change of scale therefore does not increase it.

    Args:
        affine: Map from the source to the target space.
        source: Latents of the source space, (n, d).
        target: Latents of the target space, (n, e).
    """
    matrix = affine.matrix * _scales(source)[:, np.newaxis] / _scales(target)
    return float(np.linalg.cond(matrix))


def _scales(latents: Array) -> Array:
    """Return the standard deviation of each axis, at least a millionth of the largest one."""
    std = latents.std(axis=0)
    largest = float(std.max(initial=0.0)) or 1.0
    floored: Array = np.maximum(std, 1e-6 * largest)
    return floored


def _neighbor_overlap(old: Array, new: Array) -> float:
    """Return the mean share of the nearest neighbors of a row that both spaces have in common."""
    from sklearn.neighbors import NearestNeighbors

    step = -(-len(old) // _MAX_NEIGHBOR_ROWS)
    neighbors = [
        NearestNeighbors(n_neighbors=NEIGHBORS).fit(latents).kneighbors(return_distance=False)
        for latents in (old[::step] / _scales(old), new[::step] / _scales(new))
    ]
    shared = [len(np.intersect1d(*pair)) for pair in zip(*neighbors, strict=True)]
    return float(np.mean(shared) / NEIGHBORS)


def _correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0
