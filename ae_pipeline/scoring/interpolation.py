"""Piecewise linear functions of one number, one for each column of a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import blocks, double

Array = npt.NDArray[np.float64]

_BEYOND = (0, 2, 8, 32)
"""Numbers of breakpoints on each side that may be beyond the range of a column: outliers would widen its buckets."""


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
    """Functions for all columns as tables, which a branchless search over all values reads at once.

    Each column has `size` entries. Entry i holds what applies if i breakpoints are at most the value. The range of a
    column is divided into `buckets` of equal width, so that the binary search is only over the breakpoints of a bucket.

    Attributes:
        buckets: Number of buckets of a column.
        steps: Number of steps of the binary search.
        low: Start of the range of each column, shape (columns,).
        per_unit: Buckets per unit of each column, shape (columns,).
        entry: Entry below the breakpoints of a bucket, shape (columns * buckets,), int32.
        breakpoints: Ascending in each column, and padded with NaN, which no value reaches, shape (columns * size,).
        start: Breakpoint from which an entry applies, shape (columns * size,).
        at: Value at this breakpoint, shape (columns * size,).
        level: Limit from above at this breakpoint, shape (columns * size,).
        slope: Slope above this breakpoint, shape (columns * size,).
    """

    buckets: int
    steps: int
    low: Tensor
    per_unit: Tensor
    entry: Tensor
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
        column = torch.arange(len(by_column), dtype=torch.int32, device=values.device).unsqueeze(1)
        bucket = _bucket(by_column, self.low.unsqueeze(1), self.per_unit.unsqueeze(1), self.buckets)
        bucket = torch.add(bucket, column, alpha=self.buckets)
        return self._interpolate(by_column.view(-1), bucket.view(-1)).view(by_column.shape).T

    def look_up(self, values: Tensor, column: Tensor) -> Tensor:
        """Return the functions of values, shape (n,), with the index of the column of each, shape (n,)."""
        low, per_unit = self.low.index_select(0, column), self.per_unit.index_select(0, column)
        bucket = torch.add(_bucket(values, low, per_unit, self.buckets), column, alpha=self.buckets)
        return self._interpolate(values, bucket)

    def _interpolate(self, values: Tensor, bucket: Tensor) -> Tensor:
        # index_select is several times faster than other ways to read a table, and than torch.searchsorted.
        entry = self.entry.index_select(0, bucket)
        for step in (2**power for power in reversed(range(self.steps))):
            reached = self.breakpoints.index_select(0, entry + (step - 1)) <= values
            entry = torch.add(entry, reached, alpha=step)
        start, slope = self.start.index_select(0, entry), self.slope.index_select(0, entry)
        between = torch.addcmul(self.level.index_select(0, entry), slope, values - start)
        return torch.where(values == start, self.at.index_select(0, entry), between)


def _bucket(values: Tensor, low: Tensor, per_unit: Tensor, buckets: int) -> Tensor:
    """Return the bucket of each value, which never falls as the value rises, int32."""
    position = torch.sub(values, low).mul_(per_unit)
    return position.nan_to_num_(0.0).clamp_(0, buckets - 1).to(torch.int32)


def tabulate(curves: Sequence[Curve], device: torch.device) -> Curves:
    """Return functions of one column each as tables on a device."""
    most = max((len(curve.breakpoints) for curve in curves), default=1)
    buckets = 2 ** (2 * most).bit_length()
    divided = [_divide(curve.breakpoints, buckets) for curve in curves]
    counts = np.array([each.counts for each in divided], dtype=np.int64).reshape(-1, buckets)
    steps = int(counts.max(initial=1)).bit_length()
    # The search reads this many entries from the one below a bucket.
    size = most + 2**steps
    tables = {name: np.zeros((len(curves), size)) for name in ("breakpoints", "start", "at", "level", "slope")}
    tables["breakpoints"][:] = np.nan
    for index, curve in enumerate(curves):
        count = len(curve.breakpoints)
        tables["breakpoints"][index, :count] = curve.breakpoints
        tables["at"][index, 0] = tables["level"][index, 0] = curve.below[0]
        for name, values in (("start", curve.breakpoints), ("at", curve.at), ("level", curve.above)):
            tables[name][index, 1 : count + 1] = values
        tables["slope"][index, 1:count] = (curve.below[1:] - curve.above[:-1]) / np.diff(curve.breakpoints)
    below = np.cumsum(counts, axis=1) - counts + size * np.arange(len(curves))[:, np.newaxis]
    return Curves(
        buckets=buckets,
        steps=steps,
        low=double(np.array([each.low for each in divided]), device),
        per_unit=double(np.array([each.per_unit for each in divided]), device),
        entry=torch.from_numpy(below.astype(np.int32).ravel()).to(device),
        **{name: double(table.ravel(), device) for name, table in tables.items()},
    )


class _Division(NamedTuple):
    """Buckets of one column: see `Curves`, and the number of breakpoints in each bucket."""

    low: float
    per_unit: float
    counts: npt.NDArray[np.int64]


def _divide(breakpoints: Array, buckets: int) -> _Division:
    """Return buckets of which none has many breakpoints. The first and the last one have no end."""
    points, last, divisions = torch.from_numpy(breakpoints), len(breakpoints) - 1, []
    for beyond in _BEYOND:
        low, high = breakpoints[min(beyond, last)], breakpoints[max(last - beyond, 0)]
        with np.errstate(over="ignore"):
            per_unit = buckets / (high - low) if high > low else 0.0
        bucket = _bucket(points, torch.tensor(low), torch.tensor(per_unit), buckets)
        divisions.append(_Division(low, per_unit, np.bincount(bucket.numpy(), minlength=buckets)))
    return min(divisions, key=lambda division: int(division.counts.max()))
