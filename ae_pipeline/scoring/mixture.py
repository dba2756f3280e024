"""Mixtures of normal distributions: where training rows are dense."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_COMPONENTS, _ROWS_EACH, _DIRECTIONS_EACH = 8, 20, 2
_DRAWS, _FITTED_ROWS, _PASSES = 3, 2000, 30
_FLOOR = 0.01
"""Variance that is added to each column, whose own is 1: no component shrinks to a point or a line."""


@dataclass(frozen=True)
class Mixture:
    """Log density under mixtures of normal distributions, as a mean over several that were fitted on other draws.

    What one fit makes of few rows depends on where it began; the mean of some changes less from one training to the
    next.

    Attributes:
        weights: Of each one's components, (draws, k).
        means: (draws, k, width).
        whitening: Makes each component's covariance the identity, triangular, (draws, k, width, width).
    """

    weights: Array
    means: Array
    whitening: Array

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Gives what to keep, by the name of the attribute."""
        return {"weights": self.weights, "means": self.means, "whitening": self.whitening}

    def __call__(self, rows: Array) -> Array:
        """Gives −ln of the density at rows of shape (n, width), up to a constant, (n,)."""
        each = np.empty((*self.weights.shape, len(rows)))
        for index in np.ndindex(self.weights.shape):
            whitening = self.whitening[index]
            log_volume = np.log(np.diagonal(whitening)).sum()
            squares = np.square((rows - self.means[index]) @ whitening).sum(axis=1)
            each[index] = np.log(self.weights[index]) + log_volume - 0.5 * squares
        rarity: Array = -np.logaddexp.reduce(each, axis=1).mean(axis=0)
        return rarity


def fit_mixture(rows: Array, seed: int) -> Mixture:
    """Fits mixtures on rows in units of spread, (n, width), with fewer components where rows are few.

    Each is fitted on a draw of 2,000 rows, or of four fifths where they are fewer.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    generator = np.random.default_rng(seed)
    count = _FITTED_ROWS if len(rows) > _FITTED_ROWS else max(1, len(rows) * 4 // 5)
    components = max(1, min(_COMPONENTS, count // max(_ROWS_EACH, _DIRECTIONS_EACH * rows.shape[1])))
    found = []
    for draw in range(_DRAWS):
        model = GaussianMixture(components, reg_covar=_FLOOR, max_iter=_PASSES, random_state=seed + draw)
        # Products this small wait longer for a second thread than they take.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows[generator.permutation(len(rows))[:count]])
        found.append((model.weights_, model.means_, model.precisions_cholesky_))
    return Mixture(*(np.stack(arrays) for arrays in zip(*found, strict=True)))
