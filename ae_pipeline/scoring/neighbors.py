"""Distances to the nearest training rows.

A row that equals a reference is taken for that reference, which is then left out. So training rows and new rows are
compared with the same number of other rows, as in leave-one-out. If several references equal the row, the others are
duplicates at distance zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from ae_pipeline.common.device import full_float32
from ae_pipeline.scoring.blocks import blocks

Array = npt.NDArray[np.float64]

_TIE_TOLERANCE = 1e-12
"""Squared distance up to which two rows are equal, relative to their squared norms. It absorbs rounding errors."""

_BLOCK_DISTANCES = 2**18
"""Number of distances computed in one block, which fits into the cache of a processor."""

_CALLS_SHARE = 4
"""Blocks are this many times larger than a cache, so that the time of a call does not matter."""

_GROUP = 64
"""References whose lower bounds are first looked at together."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbors:
    """Distances to the nearest references, exact in float64.

    A product in float32 gives a lower bound of the distance to every reference. Only references whose bound is at most
    the distance to the best one are then measured in float64. These are one or two of thousands.

    Attributes:
        references: At most two of each value, shape (m, width), padded with NaN to whole groups in each part.
        norms: Squared norms, shape (m,).
        center: Mean of the references, shape (width,). Differences from it make the bounds closer.
        factors: Matrix that takes a centered row, a one and its norm to lower bounds of the squared distance minus the
            squared norm, shape (width + 2, m), float32.
        groups: For each count, the number of groups with its references.
    """

    references: Tensor
    norms: Tensor
    center: Tensor
    factors: Tensor
    groups: tuple[int, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the Euclidean distances of rows, shape (n, width), for each count, shape (n, counts)."""
        parts = blocks(rows, self.factors.shape[1] // _CALLS_SHARE)
        # One buffer for all blocks: new memory costs as much as the product that fills it.
        buffer = self.factors.new_empty(max(map(len, parts)), self.factors.shape[1])
        with full_float32:
            return torch.cat([self._block(block, buffer[: len(block)]) for block in parts])

    def _block(self, rows: Tensor, buffer: Tensor) -> Tensor:
        centered = rows - self.center
        squares = centered.square().sum(1, keepdim=True)
        augmented = torch.cat([centered, torch.ones_like(squares), squares.sqrt()], 1).float()
        bounds = torch.mm(augmented, self.factors, out=buffer).unflatten(1, (-1, _GROUP))
        lowest = bounds.amin(2)
        nearest, last = self._nearest(rows, squares, bounds, lowest)
        each = []
        for groups in self.groups[:-1]:
            of_count = nearest.clone()
            # The other rows have the same nearest reference among these.
            row = (last >= groups * _GROUP).nonzero().squeeze(1)
            of_rows = (rows[row], squares[row], bounds[row, :groups], lowest[row, :groups])
            of_count[row] = self._nearest(*of_rows)[0]
            each.append(of_count)
        return torch.stack([*each, nearest], 1).sqrt()

    def _nearest(self, rows: Tensor, squares: Tensor, bounds: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distance to the nearest reference after one equal reference is left out, shape (n,).

        Also return the highest index of the references that decide it: the nearest one, and the one left out.
        """
        nearest, index = self._closest(rows, squares, bounds, lowest)
        last = index
        equal = self._is_equal(nearest, rows, index).nonzero().squeeze(1)
        if len(equal):
            others = bounds[equal]
            others.flatten(1).scatter_(1, index[equal].unsqueeze(1), torch.inf)
            second, index = self._closest(rows[equal], squares[equal], others, others.amin(2))
            nearest[equal] = torch.where(self._is_equal(second, rows[equal], index), 0.0, second)
            last = last.index_put((equal,), torch.maximum(last[equal], index))
        return nearest, last

    def _is_equal(self, squares: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        return squares <= _TIE_TOLERANCE * (rows.square().sum(1) + self.norms[index])

    def _closest(self, rows: Tensor, squares: Tensor, bounds: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distance to the closest reference, and its index.

        Args:
            rows: Shape (n, width).
            squares: Squared norms of the centered rows, shape (n, 1).
            bounds: Lower bounds of squared distances minus these norms, shape (n, groups, references of a group).
            lowest: Lowest bound of each group, shape (n, groups).
        """
        group = lowest.argmin(1)
        row = torch.arange(len(rows), device=rows.device)
        index = group * _GROUP + bounds[row, group].argmin(1)
        nearest = (rows - self.references[index]).square().sum(1)
        limit = nearest.unsqueeze(1) - squares
        # The limit is rounded to float32, whose relative error is below this.
        limit = (limit + 1e-6 * limit.abs()).float()
        row, group = (lowest <= limit).nonzero().unbind(1)
        pair, within = (bounds[row, group] <= limit[row]).nonzero().unbind(1)
        row, candidate = row[pair], group[pair] * _GROUP + within
        is_other = candidate != index[row]
        row, candidate = row[is_other], candidate[is_other]
        if len(row):
            distances = (rows[row] - self.references[candidate]).square().sum(1)
            nearest = nearest.scatter_reduce(0, row, distances, "amin")
            is_closer = distances == nearest[row]
            index[row[is_closer]] = candidate[is_closer]
        return nearest, index


def nearest_neighbors(references: Tensor, counts: Sequence[int]) -> NearestNeighbors:
    """Return the distances to the nearest of the first `count` references, for each count.

    Several counts cost little more than one, because all share the bounds. Of equal references, the first two are kept:
    one can be left out, and the other is then at distance zero. So rows of a few flags do not tie with thousands.

    Args:
        references: Shape (m, width).
        counts: Ascending numbers of references, 2 to m; the last one is m.

    Examples:
        >>> references = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
        >>> nearest_neighbors(references, [2])(torch.tensor([[3.0, 3.0], [0.0, 0.0]], dtype=torch.float64)).tolist()
        [[1.0], [5.0]]
    """
    center = references.mean(0)
    kept = _first_two_of_each(references)
    counts = torch.searchsorted(kept, torch.tensor(counts, device=kept.device)).tolist()
    references = references[kept]
    norms = (references - center).square().sum(1, keepdim=True)
    # A sum of k float32 products is within this share of the sum of the absolute values of its terms.
    share = 1.1 * (references.shape[1] + 8) * torch.finfo(torch.float32).eps / 2
    columns = [-2 * (references - center), norms * (1 - share), -2.5 * share * norms.sqrt()]
    table = torch.cat(columns, 1)
    tables, padded, groups, first = [], [], [], 0
    for count in counts:
        missing = -(count - first) % _GROUP
        # The bound of a padded reference is infinite: its second column is multiplied by one.
        rest = pad(table[first:count], (0, 0, 0, missing))
        rest[count - first :, -2] = torch.inf
        tables.append(rest)
        padded.append(pad(references[first:count], (0, 0, 0, missing), value=torch.nan))
        groups.append(sum(map(len, padded)) // _GROUP)
        first = count
    whole = torch.cat(padded)
    return NearestNeighbors(
        references=whole,
        norms=whole.square().sum(1),
        center=center,
        factors=torch.cat(tables).T.float().contiguous(),
        groups=tuple(groups),
    )


def _first_two_of_each(references: Tensor) -> Tensor:
    """Return the ascending indices of the first two of all equal references."""
    inverse = references.unique(dim=0, return_inverse=True)[1]
    order = inverse.argsort(stable=True)
    is_later = inverse[order[2:]] == inverse[order[:-2]]
    kept: Tensor = order[~pad(is_later, (2, 0))].sort().values
    return kept


def mean_knn_distance(rows: Array, references: Array, count: int) -> Array:
    """Return the mean distance to the `count` nearest references, or to all others if there are fewer.

    It is also large for a small cluster of anomalies, such as many equal anomalies in a training set.

    Args:
        rows: Shape (n, width).
        references: Two or more, shape (m, width).
        count: Number of neighbors.

    Returns:
        Shape (n,).
    """
    count = min(count, len(references) - 1)
    parts = (np.partition(block, count - 1, axis=1)[:, :count] for block in _squared_distances(rows, references))
    return np.concatenate([np.empty(0), *(np.sqrt(part).mean(axis=1) for part in parts)])


def _squared_distances(rows: Array, references: Array) -> Iterator[Array]:
    """Yield blocks of squared distances, shape (block, m). The reference that equals a row gets infinity."""
    for block, row_norms, reference_norms in _partial_squares(rows, references):
        squares = np.maximum(block + row_norms[:, np.newaxis], 0.0)
        closest = squares.argmin(axis=1)
        tolerance = _TIE_TOLERANCE * (row_norms + reference_norms[closest])
        equal = np.flatnonzero(squares[np.arange(len(squares)), closest] <= tolerance)
        squares[equal] = _leave_one_out(squares[equal], row_norms[equal], reference_norms, closest[equal])
        yield squares


def _partial_squares(rows: Array, references: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Yield squared distances minus the squared norms of the rows, then the squared norms of rows and references."""
    reference_norms, factors = np.square(references).sum(axis=1), -2 * references.T
    step = max(1, _BLOCK_DISTANCES // len(references))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        squares = block @ factors
        squares += reference_norms
        yield squares, np.square(block).sum(axis=1), reference_norms


def _leave_one_out(squares: Array, row_norms: Array, reference_norms: Array, closest: npt.NDArray[np.intp]) -> Array:
    """Set the squared distance of each row to its closest reference to infinity, and to other equal ones to zero."""
    # The rounding error of a zero distance depends on the number of rows in a product.
    squares = np.where(squares <= _TIE_TOLERANCE * (row_norms[:, np.newaxis] + reference_norms), 0.0, squares)
    squares[np.arange(len(squares)), closest] = np.inf
    return squares
