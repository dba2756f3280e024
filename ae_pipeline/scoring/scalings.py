"""Two more scales of encoded rows: z-scores and normal scores."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import double, per_device
from ae_pipeline.scoring.interpolation import Curve, Curves, tabulate

Array = npt.NDArray[np.float64]

_QUANTILES = 1001
_WINSORIZED_SHARE = 0.005
"""Share of rows winsorized at each end of a column, so that one broken value does not dominate mean and std."""

_MAX_Z_SCORE, _MAX_ASINH = 1e6, 20.0
_MIN_STD = 1e-6


@dataclass(frozen=True, kw_only=True)
class Scalings:
    """Map encoded rows, some columns of which may be asinh values, to z-scores and to normal scores.

    Distances depend on the scale. In z-scores, a distant value counts in full. In normal scores only its rank counts
    (van der Waerden 1952), so skewed and heavy-tailed columns have the same weight as the others.

    Attributes:
        asinh_mask: Columns of the matrix that are asinh values, shape (width,).
        mean: Mean of the training rows without asinh, winsorized, shape (width,).
        std: Standard deviation of the same values, shape (width,). Columns that are constant after winsorizing have the
            standard deviation of all rows.
        quantiles: Ascending quantiles of the training rows at evenly spaced levels, shape (width, levels).
        rows: Number of training rows, shape ().
    """

    asinh_mask: npt.NDArray[np.bool_]
    mean: Array
    std: Array
    quantiles: Array
    rows: npt.NDArray[np.int64]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by attribute name."""
        return {name: getattr(self, name) for name in ("asinh_mask", "mean", "std", "quantiles", "rows")}

    def standard(self, matrix: Tensor) -> Tensor:
        """Return z-scores of the values without asinh, shape (n, width)."""
        is_asinh, mean, std, _ = self._tensors(matrix.device)
        values = torch.where(is_asinh, matrix.clamp(-_MAX_ASINH, _MAX_ASINH).sinh(), matrix)
        return ((values - mean) / std).clamp(-_MAX_Z_SCORE, _MAX_Z_SCORE)

    def ranks(self, matrix: Tensor) -> Tensor:
        """Return the mean rank of each value in the training rows, strictly between 0 and 1, shape (n, width)."""
        lowest = 0.5 / float(self.rows)
        return self._tensors(matrix.device)[3](matrix).clamp(lowest, 1 - lowest)

    def normal(self, matrix: Tensor) -> Tensor:
        """Return the normal quantile of the mean rank of each value in the training rows, shape (n, width)."""
        return normal_scores(self.ranks(matrix))

    @per_device
    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Curves]:
        levels = np.linspace(0, 1, self.quantiles.shape[1])
        is_asinh = torch.from_numpy(self.asinh_mask).to(device)
        curves = tabulate([_rank_curve(quantiles, levels) for quantiles in self.quantiles], device)
        return is_asinh, double(self.mean, device), double(self.std, device), curves


def normal_scores(ranks: Tensor) -> Tensor:
    """Return the normal quantiles of ranks strictly between 0 and 1; twice as fast as `torch.special.ndtri`."""
    return torch.erfinv(torch.mul(ranks, 2).sub_(1)).mul_(math.sqrt(2))


def _rank_curve(quantiles: Array, levels: Array) -> Curve:
    """Return the mean rank of a value: of equal quantiles, below is the level of the first, above that of the last."""
    breakpoints, first = np.unique(quantiles, return_index=True)
    last = np.append(first[1:], len(quantiles)) - 1
    # Beyond the ends, all training rows are on one side.
    below, above = levels[first], levels[last]
    return Curve(breakpoints=breakpoints, below=below, at=(below + above) / 2, above=above)


def fit_scalings(matrix: Array, asinh_mask: npt.NDArray[np.bool_]) -> Scalings:
    """Fit both scales on encoded training rows, shape (n, width)."""
    values = _without_asinh(matrix, asinh_mask)
    winsorized = np.clip(
        values, *np.quantile(values, [_WINSORIZED_SHARE, 1 - _WINSORIZED_SHARE], axis=0, method="nearest")
    )
    std = np.where(winsorized.std(axis=0) > _MIN_STD, winsorized.std(axis=0), values.std(axis=0))
    quantiles = np.quantile(matrix, np.linspace(0, 1, min(_QUANTILES, len(matrix))), axis=0, method="nearest").T
    return Scalings(
        asinh_mask=asinh_mask,
        mean=winsorized.mean(axis=0),
        std=np.where(std > _MIN_STD, std, 1.0),
        quantiles=np.ascontiguousarray(quantiles),
        rows=np.array(len(matrix)),
    )


def _without_asinh(matrix: Array, asinh_mask: npt.NDArray[np.bool_]) -> Array:
    values = np.array(matrix, dtype=np.float64)
    values[:, asinh_mask] = np.sinh(np.clip(values[:, asinh_mask], -_MAX_ASINH, _MAX_ASINH))
    return values
