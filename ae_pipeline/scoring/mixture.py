"""A mixture of normal distributions: where training rows are dense."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_COMPONENTS, _ROWS_EACH, _DIRECTIONS_EACH = 8, 20, 2
_FITTED_ROWS, _PASSES = 3000, 30
_FLOOR = 0.01
"""Variance that is added to each column, whose own is 1: no component shrinks to a point or a line."""


@dataclass(frozen=True)
class Mixture:
    """Log density under a mixture of normal distributions.

    Attributes:
        weights: Of the components, (k,).
        means: (k, width).
        whitening: Makes each one's covariance the identity, triangular, (k, width, width).
    """

    weights: Array
    means: Array
    whitening: Array

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Gives what to keep, by the name of the attribute."""
        return {"weights": self.weights, "means": self.means, "whitening": self.whitening}

    def __call__(self, rows: Array) -> Array:
        """Gives −ln of the density at rows of shape (n, width), up to a constant, (n,)."""
        each = np.empty((len(rows), len(self.weights)))
        for place, (weight, mean, whitening) in enumerate(zip(self.weights, self.means, self.whitening, strict=True)):
            volume = np.log(np.diagonal(whitening)).sum()
            each[:, place] = np.log(weight) + volume - 0.5 * np.square((rows - mean) @ whitening).sum(axis=1)
        rarity: Array = -np.logaddexp.reduce(each, axis=1)
        return rarity


def fit_mixture(rows: Array, seed: int) -> Mixture:
    """Fits a mixture on rows in units of spread, (n, width), with fewer components where rows are few."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = rows[:_FITTED_ROWS]
    components = len(rows) // max(_ROWS_EACH, _DIRECTIONS_EACH * rows.shape[1])
    model = GaussianMixture(max(1, min(_COMPONENTS, components)), reg_covar=_FLOOR, max_iter=_PASSES, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    arrays = (model.weights_, model.means_, model.precisions_cholesky_)
    return Mixture(*map(np.ascontiguousarray, arrays))
