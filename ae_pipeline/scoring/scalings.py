"""Two further views of an encoded row: in units of spread, and in normal scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

_QUANTILES = 1001
_OUTER = 0.005
"""Share of the rows at either end of a column whose values count as the last before them in mean and spread, so that
one broken value does not make all others alike."""

_FARTHEST = 1e6
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Scalings:
    """Maps encoded rows, whose numbers may be bent by asinh, to other scales of the same columns.

    Distances depend on the scale: in units of spread a far value counts in full; in normal scores only how many rows
    lie beyond it (van der Waerden 1952), so that skewed and heavy-tailed columns weigh like the others.

    Attributes:
        asinh_mask: Which columns of the matrix are asinh of something, (width,).
        mean: Of the training rows, unbent and winsorised, (width,).
        std: Standard deviation of the same; of columns that vary in their ends alone, of all rows, (width,).
        quantiles: Quantiles of the training rows at evenly spaced levels, rising, (width, knots).
        rows: How many rows these were taken from, ().
    """

    asinh_mask: npt.NDArray[np.bool_]
    mean: Array
    std: Array
    quantiles: Array
    rows: npt.NDArray[np.int64]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Gives what to keep, by the name of the attribute."""
        return {name: getattr(self, name) for name in ("asinh_mask", "mean", "std", "quantiles", "rows")}

    def standard(self, matrix: Array) -> Array:
        """Gives values in units of spread around the mean, (n, width)."""
        values: Array = np.clip((_unbend(matrix, self.asinh_mask) - self.mean) / self.std, -_FARTHEST, _FARTHEST)
        return values

    def normal(self, matrix: Array) -> Array:
        """Gives the normal quantile of each value's rank among the training rows, ties in the middle, (n, width)."""
        levels, least = np.linspace(0, 1, self.quantiles.shape[1]), 0.5 / float(self.rows)
        scores = np.empty(matrix.shape)
        for column, quantiles in enumerate(self.quantiles):
            below = np.interp(matrix[:, column], quantiles, levels)
            above = 1 - np.interp(-matrix[:, column], -quantiles[::-1], levels)
            scores[:, column] = np.clip((below + above) / 2, least, 1 - least)
        normal: Array = torch.special.ndtri(torch.from_numpy(scores)).numpy()
        return normal


def fit_scalings(matrix: Array, asinh_mask: npt.NDArray[np.bool_]) -> Scalings:
    """Fits both views on encoded training rows, (n, width)."""
    values = _unbend(matrix, asinh_mask)
    inner = np.clip(values, *np.quantile(values, [_OUTER, 1 - _OUTER], axis=0, method="nearest"))
    std = np.where(inner.std(axis=0) > _LEAST_SPREAD, inner.std(axis=0), values.std(axis=0))
    quantiles = np.quantile(matrix, np.linspace(0, 1, min(_QUANTILES, len(matrix))), axis=0, method="nearest").T
    return Scalings(
        asinh_mask,
        inner.mean(axis=0),
        np.where(std > _LEAST_SPREAD, std, 1.0),
        np.ascontiguousarray(quantiles),
        np.array(len(matrix)),
    )


def _unbend(matrix: Array, asinh_mask: npt.NDArray[np.bool_]) -> Array:
    values = np.array(matrix, dtype=np.float64)
    values[:, asinh_mask] = np.sinh(np.clip(values[:, asinh_mask], -20, 20))
    return values
