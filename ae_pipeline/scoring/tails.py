"""Convert losses to surprisal: −ln of the share of normal rows with a loss at least as high."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import double, per_device
from ae_pipeline.scoring.interpolation import Curve, Curves, tabulate

Array = npt.NDArray[np.float64]

_TIE_TOLERANCE = 1e-6
"""Relative difference up to which two values tie. Rounding must not break ties."""

_ROUNDING = 1e-9
"""Relative difference up to which a loss is at a quantile. Few losses are this close to one by chance."""

_TAIL = 0.01
_QUANTILES = 65
_SLOPE_FROM, _SLOPE_ROWS = 0.1, 10
_MIN_EXCESS = 0.25
"""Lowest mean excess: a quarter of a nat, or of the usual loss or distance if that is the unit."""


@dataclass(frozen=True)
class TailCalibrator:
    """Surprisal of losses: −ln P(loss of the column ≥ x), for each column.

    It interpolates between the quantiles. Beyond the 99th percentile it assumes an exponential tail with the observed
    mean excess, the limit of Pickands (1975) with shape 0.

    Attributes:
        quantiles: Losses at decreasing survival probabilities, shape (columns, levels), ascending in each row.
        levels: −ln of the survival probabilities, shape (levels,).
        excess: Mean excess over the last quantile in the unit of the losses, shape (columns,).

    Examples:
        >>> import numpy as np
        >>> losses = np.arange(1000.0)[:, np.newaxis]
        >>> tails = fit_tails(losses)
        >>> tails(torch.tensor([[499.5]], dtype=torch.float64)).numpy().round(2).tolist()
        [[0.69]]
    """

    quantiles: Array
    levels: Array
    excess: Array

    def __call__(self, losses: Tensor, least: Array | None = None) -> Tensor:
        """Return the surprisal of losses, nats, shape (n, columns).

        Args:
            losses: Shape (n, columns).
            least: Surprisal of each column that does not matter, shape (columns,). Lower values may be returned as 0,
                which saves time.

        Raises:
            ValueError: The losses have a different number of columns.
        """
        if losses.shape[1] != len(self.quantiles):
            raise ValueError(f"the tails have {len(self.quantiles)} columns, but the losses have {losses.shape[1]}")
        tensors = self._tensors(losses.device)
        reached = losses - _TIE_TOLERANCE * losses.abs()
        if least is None:
            within = tensors.curves(reached)
        else:
            # Skip losses up to the last quantile whose surprisal is at most `least`. The negation keeps NaN.
            last = np.searchsorted(self.levels, least, side="right") - 1
            unimportant = np.where(least > 0, self.quantiles[np.arange(len(last)), last], -np.inf)
            row, column = (~(reached <= double(unimportant, losses.device))).nonzero().unbind(1)
            within = torch.zeros_like(losses)
            within[row, column] = tensors.curves.look_up(reached[row, column], column)
        over = reached - tensors.last
        return torch.where(over > 0, float(self.levels[-1]) + over / tensors.excess, within)

    @per_device
    def _tensors(self, device: torch.device) -> "_TailTensors":
        # The first of equal quantiles has the probability of reaching the loss, the last that of exceeding it.
        is_first = np.diff(self.quantiles, prepend=-np.inf, axis=1) > _TIE_TOLERANCE * np.abs(self.quantiles)
        curves = [
            Curve(
                breakpoints=quantiles[first], below=self.levels[first], at=self.levels[first], above=self.levels[first]
            )
            for quantiles, first in zip(self.quantiles, is_first, strict=True)
        ]
        last, excess = double(self.quantiles[:, -1], device), double(self.excess, device)
        return _TailTensors(tabulate(curves, device), last, excess)

    @classmethod
    def none(cls) -> "TailCalibrator":
        """Return a calibrator of zero columns, for detectors whose tails are not fitted yet."""
        return cls(np.empty((0, 0)), np.empty(0), np.empty(0))

    def arrays(self) -> dict[str, Array]:
        """Return the arrays to save, by attribute name."""
        return {"quantiles": self.quantiles, "levels": self.levels, "excess": self.excess}


class _TailTensors(NamedTuple):
    """Surprisal up to the last quantile of each column, this quantile, and the mean excess over it, on one device."""

    curves: Curves
    last: Tensor
    excess: Tensor


def fit_tails(losses: Array) -> TailCalibrator:
    """Fit tails on the losses of rows that the weights were not fitted on, shape (n, columns).

    Few rows lie beyond the 99th percentile. Therefore the mean excess includes the slope between the 90th and the 99th
    percentile with the weight of ten rows.
    """
    survival = np.geomspace(1, _TAIL, _QUANTILES)
    quantiles = np.quantile(losses, 1 - survival, axis=0).T
    over = np.maximum(losses - quantiles[:, -1], 0)
    # A loss that ties with the quantile is not beyond it, however the interpolation rounds.
    count = (over > _ROUNDING * np.abs(quantiles[:, -1])).sum(axis=0)
    slope = (quantiles[:, -1] - np.quantile(losses, 1 - _SLOPE_FROM, axis=0)) / np.log(_SLOPE_FROM / _TAIL)
    excess = (over.sum(axis=0) + _SLOPE_ROWS * slope) / (count + _SLOPE_ROWS)
    return TailCalibrator(np.ascontiguousarray(quantiles), -np.log(survival), np.maximum(excess, _MIN_EXCESS))
