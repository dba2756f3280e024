"""Density of the training rows: an average of Gaussian mixtures."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import blocks, double, per_device

Array = npt.NDArray[np.float64]

_COMPONENTS, _COMPONENT_ROWS, _ROWS_PER_COLUMN = 8, 20, 2
_DRAWS, _FITTED_ROWS, _MAX_ITERATIONS = 3, 2000, 30
_REGULARIZATION = 0.01
"""Variance added to each column, whose variance is 1. It keeps components from collapsing to a point or a line."""


@dataclass(frozen=True)
class Mixture:
    """Negative log density under Gaussian mixtures, averaged over several fits on random samples of the rows.

    A single fit on few rows depends on its initialization. The average changes less from one training to the next.

    Attributes:
        weights: Weights of the components, shape (draws, k).
        means: Means of the components, shape (draws, k, width).
        whitening: Triangular matrices that make the covariance of each component the identity, shape (draws, k, width,
            width).
    """

    weights: Array
    means: Array
    whitening: Array

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by attribute name."""
        return {"weights": self.weights, "means": self.means, "whitening": self.whitening}

    def __call__(self, rows: Tensor) -> Tensor:
        """Return −ln of the density at rows of shape (n, width), up to a constant, shape (n,)."""
        halves, constants = self._tensors(rows.device)
        parts = []
        for block in blocks(rows, max(len(offsets) for _, offsets in halves)):
            # One column for each row: the products are faster, and a sum over components adds whole vectors.
            columns, squares = block.T, rows.new_zeros(())
            for directions, offsets in halves:
                white = torch.addmm(offsets, directions, columns[: directions.shape[1]])
                squares = squares + white.square_().unflatten(0, (*constants.shape[:2], -1)).sum(2)
            parts.append(-torch.logsumexp(constants - 0.5 * squares, 1).mean(0))
        return torch.cat(parts)

    @per_device
    def _tensors(self, device: torch.device) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return whitening matrices and white means with a minus in two halves, and the constants by component.

        The matrices are triangular: the first half of the directions has only the first half of the columns.
        """
        means, whitening, weights = (double(array, device) for array in (self.means, self.whitening, self.weights))
        volumes = torch.diagonal(whitening, dim1=2, dim2=3).log().sum(2)
        offsets = -(means.unsqueeze(2) @ whitening).squeeze(2)
        width, halves = whitening.shape[3], []
        for first, last in ((0, width // 2), (width // 2, width)):
            if last > first:
                directions = whitening[..., :last, first:last].transpose(2, 3).flatten(0, 2)
                halves.append((directions.contiguous(), offsets[..., first:last].reshape(-1, 1)))
        return halves, (weights.log() + volumes).unsqueeze(2)


def fit_mixture(rows: Array, seed: int) -> Mixture:
    """Fit mixtures on z-scores, shape (n, width). Fewer rows get fewer components.

    Each mixture is fitted on a random sample of 2,000 rows, or of 80 % of them if there are at most 2,000.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(seed)
    count = _FITTED_ROWS if len(rows) > _FITTED_ROWS else max(1, len(rows) * 4 // 5)
    components = max(1, min(_COMPONENTS, count // max(_COMPONENT_ROWS, _ROWS_PER_COLUMN * rows.shape[1])))
    fits = []
    for draw in range(_DRAWS):
        model = GaussianMixture(
            components, reg_covar=_REGULARIZATION, max_iter=_MAX_ITERATIONS, random_state=seed + draw
        )
        # For products this small, starting a second thread takes longer than the product.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows[rng.permutation(len(rows))[:count]])
        fits.append((model.weights_, model.means_, model.precisions_cholesky_))
    return Mixture(*(np.stack(arrays) for arrays in zip(*fits, strict=True)))
