"""Convert losses to surprisal: −ln of the share of normal rows with a loss at least as high."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_TIE_TOLERANCE = 1e-6
"""Relative difference up to which two values tie. Rounding must not break ties."""

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
        >>> tails(np.array([[499.5]])).round(2).tolist()
        [[0.69]]
    """

    quantiles: Array
    levels: Array
    excess: Array

    def __call__(self, losses: Array, least: Array | None = None) -> Array:
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
        surprisal = np.zeros_like(losses)
        for column, ((quantiles, levels), excess) in enumerate(zip(self._distinct_quantiles, self.excess, strict=True)):
            reached = losses[:, column] - _TIE_TOLERANCE * np.abs(losses[:, column])
            rows: npt.NDArray[np.intp] | slice = slice(None)
            if least is not None and least[column] > 0:
                # Skip losses up to the last quantile whose surprisal is at most `least`. The negation keeps NaN.
                last = np.searchsorted(levels, least[column], side="right") - 1
                rows = np.flatnonzero(~(reached <= quantiles[last]))
            over = reached[rows] - quantiles[-1]
            within = np.interp(reached[rows], quantiles, levels)
            surprisal[rows, column] = np.where(over > 0, self.levels[-1] + over / excess, within)
        return surprisal

    @cached_property
    def _distinct_quantiles(self) -> list[tuple[Array, Array]]:
        """Strictly ascending quantiles of each column, with their levels."""
        # The first of equal quantiles has the probability of reaching the loss, the last that of exceeding it.
        is_first = np.diff(self.quantiles, prepend=-np.inf, axis=1) > _TIE_TOLERANCE * np.abs(self.quantiles)
        return [
            (quantiles[first], self.levels[first]) for quantiles, first in zip(self.quantiles, is_first, strict=True)
        ]

    @classmethod
    def none(cls) -> "TailCalibrator":
        """Return a calibrator of zero columns, for detectors whose tails are not fitted yet."""
        return cls(np.empty((0, 0)), np.empty(0), np.empty(0))

    def arrays(self) -> dict[str, Array]:
        """Return the arrays to save, by attribute name."""
        return {"quantiles": self.quantiles, "levels": self.levels, "excess": self.excess}


def fit_tails(losses: Array) -> TailCalibrator:
    """Fit tails on the losses of rows that the weights were not fitted on, shape (n, columns).

    Few rows lie beyond the 99th percentile. Therefore the mean excess includes the slope between the 90th and the 99th
    percentile with the weight of ten rows.
    """
    survival = np.geomspace(1, _TAIL, _QUANTILES)
    quantiles = np.quantile(losses, 1 - survival, axis=0).T
    over = np.maximum(losses - quantiles[:, -1], 0)
    count = (over > 0).sum(axis=0)
    slope = (quantiles[:, -1] - np.quantile(losses, 1 - _SLOPE_FROM, axis=0)) / np.log(_SLOPE_FROM / _TAIL)
    excess = (over.sum(axis=0) + _SLOPE_ROWS * slope) / (count + _SLOPE_ROWS)
    return TailCalibrator(np.ascontiguousarray(quantiles), -np.log(survival), np.maximum(excess, _MIN_EXCESS))
