"""A mixture of normal distributions: where training rows are dense."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_COMPONENTS, _ROWS_EACH, _DIRECTIONS_EACH = 8, 20, 2
_DRAWS, _DRAWN, _PASSES = 4, 1000, 30
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
    """Fits a mixture on rows in units of spread, (n, width): the mean of several, each on rows drawn anew.

    One draw's components lie where chance has put them; the mean of several is smoother (bagging, Breiman 1996). Where
    rows are few there are fewer components.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    generator = np.random.default_rng(seed)
    drawn = min(_DRAWN, len(rows))
    components = max(1, min(_COMPONENTS, drawn // max(_ROWS_EACH, _DIRECTIONS_EACH * rows.shape[1])))
    parts = []
    for draw in range(_DRAWS):
        model = GaussianMixture(components, reg_covar=_FLOOR, max_iter=_PASSES, random_state=seed + draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows[generator.permutation(len(rows))[:drawn]])
        parts.append((model.weights_ / _DRAWS, model.means_, model.precisions_cholesky_))
    return Mixture(*(np.concatenate(part) for part in zip(*parts, strict=True)))
