"""Piecewise linear functions of one number, one for each column of a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import blocks, double

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A function of one number: linear between breakpoints, constant beyond them, and of any value at each of them.

    Attributes:
        breakpoints: Strictly ascending, shape (k,).
        below: Limit of the function from below at each breakpoint, shape (k,).
        at: Value at each breakpoint, shape (k,).
        above: Limit from above at each breakpoint, shape (k,).
    """

    breakpoints: Array
    below: Array
    at: Array
    above: Array


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Functions for all columns as tables, which a branchless binary search over all values reads at once.

    Each column has `size` entries, a power of two. Entry i holds what applies if i breakpoints are at most the value.

    Attributes:
        size: Number of entries of a column.
        first: Index of the first entry of each column, shape (columns,), int32.
        breakpoints: Ascending in each column, and padded with NaN, which no value reaches, shape (columns * size,).
        start: Breakpoint from which an entry applies, shape (columns * size,).
        at: Value at this breakpoint, shape (columns * size,).
        level: Limit from above at this breakpoint, shape (columns * size,).
        slope: Slope above this breakpoint, shape (columns * size,).
    """

    size: int
    first: Tensor
    breakpoints: Tensor
    start: Tensor
    at: Tensor
    level: Tensor
    slope: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Return the functions of values, shape (n, columns). NaN stays NaN."""
        return torch.cat([self._block(block) for block in blocks(values, 4 * values.shape[1])])

    def _block(self, values: Tensor) -> Tensor:
        # Neighbors in memory are values of one column, whose table is then in the cache.
        by_column = values.T.contiguous()
        first = self.first.unsqueeze(1).expand(by_column.shape).reshape(-1)
        return self.look_up(by_column.view(-1), first).view(by_column.shape).T

    def look_up(self, values: Tensor, first: Tensor) -> Tensor:
        """Return the functions of values, shape (n,), with the first entries of the column of each, shape (n,)."""
        entry, step = first, self.size // 2
        while step:
            # index_select is several times faster than other ways to read a table, and than torch.searchsorted.
            reached = self.breakpoints.index_select(0, entry + (step - 1)) <= values
            entry = torch.add(entry, reached, alpha=step)
            step //= 2
        start, slope = self.start.index_select(0, entry), self.slope.index_select(0, entry)
        between = torch.addcmul(self.level.index_select(0, entry), slope, values - start)
        return torch.where(values == start, self.at.index_select(0, entry), between)


def tabulate(curves: Sequence[Curve], device: torch.device) -> Curves:
    """Return functions of one column each as tables on a device."""
    size = 2 ** max((len(curve.breakpoints) for curve in curves), default=1).bit_length()
    tables = {name: np.zeros((len(curves), size)) for name in ("breakpoints", "start", "at", "level", "slope")}
    tables["breakpoints"][:] = np.nan
    for index, curve in enumerate(curves):
        count = len(curve.breakpoints)
        tables["breakpoints"][index, :count] = curve.breakpoints
        tables["at"][index, 0] = tables["level"][index, 0] = curve.below[0]
        for name, values in (("start", curve.breakpoints), ("at", curve.at), ("level", curve.above)):
            tables[name][index, 1 : count + 1] = values
        tables["slope"][index, 1:count] = (curve.below[1:] - curve.above[:-1]) / np.diff(curve.breakpoints)
    first = torch.arange(len(curves), dtype=torch.int32, device=device) * size
    return Curves(size=size, first=first, **{name: double(table.ravel(), device) for name, table in tables.items()})
