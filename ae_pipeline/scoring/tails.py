"""Column losses to tail probabilities: how rarely a loss as high is seen in rows like those of the window."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_SAME = 1e-6
"""Values that differ by less, relative to the larger, are one: what rounding makes of ties must not part them."""

_TAIL = 0.01
_QUANTILES = 65
_SLOPE_FROM, _SLOPE_COUNTS = 0.1, 10
_MIN_EXCESS = 0.25
"""Least mean excess: a quarter of a nat, or of the usual loss or distance where that is the unit."""


@dataclass(frozen=True)
class TailCalibrator:
    """−ln P(loss of the column ≥ x), by column.

    Between knots it is interpolated; beyond the 99th percentile the tail is taken as exponential with the mean excess
    that was seen there (Pickands 1975 for the limit, with shape 0).

    Attributes:
        quantiles: Losses at falling survival probabilities, (columns, knots), rising along each row.
        levels: −ln of those probabilities, (knots,).
        excess: Mean excess over the last knot, (columns,), in the unit of the losses.
    """

    quantiles: Array
    levels: Array
    excess: Array

    def __call__(self, losses: Array, least: Array | None = None) -> Array:
        """Gives surprise of shape (n, columns), nats, for losses of that shape.

        Args:
            losses: Shape (n, columns).
            least: Surprise of each column up to which it makes no difference and is given as 0, (columns,).

        Raises:
            ValueError: Losses have another number of columns.
        """
        if losses.shape[1] != len(self.quantiles):
            raise ValueError(f"tails are of {len(self.quantiles)} columns, and losses of {losses.shape[1]}")
        surprisal = np.zeros_like(losses)
        for column, ((distinct, levels), excess) in enumerate(zip(self._rising, self.excess, strict=True)):
            reached = losses[:, column] - _SAME * np.abs(losses[:, column])
            told: npt.NDArray[np.intp] | slice = slice(None)
            if least is not None and least[column] > 0:
                # Only of the knots before, which nothing beyond that surprise lies within.
                told = np.flatnonzero(~(reached <= distinct[np.searchsorted(levels, least[column], side="right") - 1]))
            over = reached[told] - distinct[-1]
            within = np.interp(reached[told], distinct, levels)
            surprisal[told, column] = np.where(over > 0, self.levels[-1] + over / excess, within)
        return surprisal

    @cached_property
    def _rising(self) -> list[tuple[Array, Array]]:
        # Of equal knots the first bears the probability of reaching that loss, the last that of exceeding it.
        detach = np.diff(self.quantiles, prepend=-np.inf, axis=1) > _SAME * np.abs(self.quantiles)
        return [(quantiles[first], self.levels[first]) for quantiles, first in zip(self.quantiles, detach, strict=True)]

    @classmethod
    def none(cls) -> "TailCalibrator":
        """Tails of no column, where there are none yet."""
        return cls(np.empty((0, 0)), np.empty(0), np.empty(0))

    def arrays(self) -> dict[str, Array]:
        """Gives what to keep, by the name of the attribute."""
        return {"quantiles": self.quantiles, "levels": self.levels, "excess": self.excess}


def fit_tails(losses: Array) -> TailCalibrator:
    """Fits tails on the losses of rows that the weights were not fitted on, (n, columns).

    Of few rows fewer still lie beyond the 99th percentile, so the slope between the 90th and that one counts as ten
    more of them.
    """
    survival = np.geomspace(1, _TAIL, _QUANTILES)
    quantiles = np.quantile(losses, 1 - survival, axis=0).T
    over = np.maximum(losses - quantiles[:, -1], 0)
    count = (over > 0).sum(axis=0)
    slope = (quantiles[:, -1] - np.quantile(losses, 1 - _SLOPE_FROM, axis=0)) / np.log(_SLOPE_FROM / _TAIL)
    excess = (over.sum(axis=0) + _SLOPE_COUNTS * slope) / (count + _SLOPE_COUNTS)
    return TailCalibrator(np.ascontiguousarray(quantiles), -np.log(survival), np.maximum(excess, _MIN_EXCESS))
