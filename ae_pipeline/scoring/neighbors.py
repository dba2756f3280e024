"""Distances to the nearest training rows.

A row that equals a reference is taken for that reference, which is then left out. So training rows and new rows are
compared with the same number of other rows, as in leave-one-out. If several references equal the row, the others are
duplicates at distance zero.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ae_pipeline.common.device import full_float32
from ae_pipeline.scoring.blocks import blocks

TIE_TOLERANCE = 1e-12
"""Squared distance up to which two rows are equal, relative to their squared norms. It absorbs rounding errors."""

_CALLS_SHARE = 4
"""Blocks are this many times larger than a cache, so that the time of a call does not matter."""

_GROUPS = 64
"""Groups of references. Only the groups with the highest bounds are looked at in detail."""

_SAMPLED, _MAX_PAIRS = 256, 8
"""References that the type of the product is chosen with, and the mean of further ones to measure that suits it."""

_MAX_COLLECTED = 2**18
"""Pairs of row and reference from which they are reduced, so that many ties need little memory."""

_TENSOR_CORES = (8, 0)
"""Compute capability from which a CUDA device has tensor cores for bfloat16."""

_SUM_ERROR = 2.2
"""Rounding error of one addition in units of the precision of float32. Tensor cores cut digits off."""

_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Integers of the same size. Positive numbers have the same order as the integers of their bits."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbors:
    """Distances to the nearest references, exact in float64.

    A product in bfloat16 or float32 gives an upper bound of the closeness of every reference: a constant minus the
    squared distance. Only references whose bound reaches the closeness of the best one are then measured in float64.
    These are one or two of thousands. So the type of the product does not change the distances.

    Attributes:
        references: At most two of each value, shape (m, width), padded with NaN to equal groups in each part.
        norms: Squared norms, shape (m,).
        center: Mean of the references, shape (width,). Differences from it make the bounds closer.
        offset: Closeness of a reference that is as far from a row as the center is. With it, the highest bound of a row
            is positive.
        share: Rounding error of a sum in float32, as a share of the sum of its absolute terms.
        factors: Matrix that takes the rows of `_augmented` to bounds, shape (width + 4 or more, m), bfloat16 or
            float32. The last rows may be zero.
        ends: For each count, the number of references with padding.
    """

    references: Tensor
    norms: Tensor
    center: Tensor
    offset: float
    share: float
    factors: Tensor
    ends: tuple[int, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the Euclidean distances of rows, shape (n, width), for each count, shape (n, counts)."""
        nearest, index = self._closest(rows, self.ends)
        is_equal = self._is_equal(nearest, rows, index)
        equal = is_equal.any(1).nonzero().squeeze(1)
        if len(equal):
            # At later ends, another reference that equals the row is a copy of the one that is left out.
            left_out = index[equal, is_equal[equal].int().argmax(1)]
            second, other = self._closest(rows[equal], self.ends, left_out)
            nearest[equal] = second.masked_fill_(self._is_equal(second, rows[equal], other), 0.0)
        return nearest.sqrt()

    def _is_equal(self, squares: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        return squares <= TIE_TOLERANCE * (rows.square().sum(1, keepdim=True) + self.norms[index])

    def _closest(self, rows: Tensor, ends: tuple[int, ...], left_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the squared distance to the closest reference up to each end, and its index, shape (n, ends).

        Args:
            rows: Shape (n, width).
            ends: Ascending numbers of references.
            left_out: Reference that each row is not compared with, shape (n,).
        """
        nearest = rows.new_full((len(rows), len(ends)), torch.inf)
        index = torch.zeros_like(nearest, dtype=torch.long)
        for row, candidate in self._pairs(rows, nearest, index, ends, left_out):
            distances = self._squares_of_pairs(rows, row, candidate)
            for count, end in enumerate(ends):
                counted = distances.masked_fill(candidate >= end, torch.inf)
                lowest = nearest[:, count].scatter_reduce_(0, row, counted, "amin")
                closest = candidate.masked_fill(counted > lowest.index_select(0, row), -1)
                closer = torch.full_like(index[:, count], -1).scatter_reduce_(0, row, closest, "amax")
                index[:, count] = torch.where(closer < 0, index[:, count], closer)
        return nearest, index

    def _pairs(
        self, rows: Tensor, nearest: Tensor, index: Tensor, ends: tuple[int, ...], left_out: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Measure the reference with the highest bound for each row, and yield the pairs that may be closer.

        All pairs of a row come together. Most come at once: only rows with many ties have many pairs.

        Args:
            rows: Shape (n, width).
            nearest: Set to the squared distance of the measured reference, shape (n, ends).
            index: Set to the index of the measured reference, shape (n, ends).
            ends: Ascending numbers of references.
            left_out: Reference that each row is not compared with, shape (n,).
        """
        augmented, offsets = self._augmented(rows)
        factors = self.factors[:, : ends[-1]]
        size = max(1, len(blocks(augmented, self.factors.shape[1] // _CALLS_SHARE)[0]))
        # One buffer for all blocks: new memory costs as much as the product that fills it.
        buffer = self.factors.new_empty(size, factors.shape[1])
        pairs: list[tuple[Tensor, Tensor]] = []
        with full_float32:
            for first in range(0, len(rows), size):
                block = slice(first, first + size)
                bounds = torch.mm(augmented[block], factors, out=buffer[: len(augmented[block])])
                if left_out is not None:
                    bounds.scatter_(1, left_out[block].unsqueeze(1), -torch.inf)
                row, candidate = self._candidates(
                    rows[block], offsets[block], bounds, nearest[block], index[block], ends
                )
                pairs.append((row.add_(first), candidate))
                if first + size >= len(rows) or sum(len(each[0]) for each in pairs) >= _MAX_COLLECTED:
                    row, candidate = map(torch.cat, zip(*pairs, strict=True))
                    yield row, candidate
                    pairs.clear()

    def _candidates(
        self,
        rows: Tensor,
        offsets: Tensor,
        bounds: Tensor,
        nearest: Tensor,
        index: Tensor,
        ends: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """Measure the reference with the highest bound up to the first end, and return the pairs that may be closer.

        Args:
            rows: Shape (n, width).
            offsets: Closeness of a reference at distance zero, shape (n,).
            bounds: Upper bounds of the closeness, shape (n, references).
            nearest: Set to the squared distance of the measured reference, shape (n, ends).
            index: Set to the index of the measured reference, shape (n, ends).
            ends: Ascending numbers of references.
        """
        every, parts = torch.arange(len(rows), device=rows.device), []
        for first, end in itertools.pairwise((0, *self.ends)):
            if first == end or end > ends[-1]:
                continue
            # The references of a group are as far apart as there are groups: vectors then hold one of each group.
            grouped = bounds[:, first:end].unflatten(1, (-1, _GROUPS))
            # Integers are compared, because processors have no instructions for the highest of several bfloat16.
            integers = grouped.view(_INTEGERS[bounds.dtype])
            highest = integers.amax(1).clamp_(min=0)
            if end <= ends[0]:
                group = highest.argmax(1)
                within_group = integers[every, :, group]
                bound, within = within_group.view(bounds.dtype).float().max(1)
                best = torch.add(group, within, alpha=_GROUPS).add_(first)
                # A group may have no reference but the one that is left out. All others are then measured.
                squares = self._squares(rows, best).masked_fill_(bound == -torch.inf, torch.inf)
                is_closer = squares < nearest[:, 0]
                nearest.copy_(torch.where(is_closer, squares, nearest[:, 0]).unsqueeze(1))
                index.copy_(torch.where(is_closer, best, index[:, 0]).unsqueeze(1))
                # The others of the group are still to be compared.
                rest = within_group.scatter_(1, within.unsqueeze(1), -1).amax(1).clamp_(min=0)
                highest.scatter_(1, group.unsqueeze(1), rest.unsqueeze(1))
            parts.append((first, grouped, highest))
        limit = offsets - nearest[:, 0]
        # Rounding keeps the order, so that a bound of at least the limit is also at least the rounded limit.
        rounded = (limit - 1e-6 * limit.abs()).to(bounds.dtype).clamp_(min=torch.finfo(bounds.dtype).min).unsqueeze(1)
        pairs = []
        for first, grouped, highest in parts:
            row, group = (highest >= rounded.view(highest.dtype)).nonzero().unbind(1)
            pair, within = (grouped[row, :, group] >= rounded.index_select(0, row)).nonzero().unbind(1)
            candidate = torch.add(group.index_select(0, pair), within, alpha=_GROUPS).add_(first)
            pairs.append((row.index_select(0, pair), candidate))
        row, candidate = map(torch.cat, zip(*pairs, strict=True))
        return row, candidate

    def _squares_of_pairs(self, rows: Tensor, row: Tensor, index: Tensor) -> Tensor:
        """Return the squared distances of some rows to one reference each, in parts that bound the memory."""
        parts = zip(blocks(row, rows.shape[1]), blocks(index, rows.shape[1]), strict=True)
        return torch.cat([self._squares(rows.index_select(0, some), references) for some, references in parts])

    def _squares(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the squared distances of rows to one reference each."""
        return (rows - self.references.index_select(0, index)).square_().sum(1)

    def is_selective(self) -> bool:
        """Return whether the bounds leave few references to measure, for some references as rows."""
        sample = self.norms.isfinite().nonzero().squeeze(1)
        sample = sample[:: max(1, len(sample) // _SAMPLED)]
        nearest, index = self.references.new_full((len(sample), 1), torch.inf), sample.new_zeros((len(sample), 1))
        pairs = self._pairs(self.references[sample], nearest, index, self.ends[-1:], sample)
        return sum(len(row) for row, _ in pairs) <= _MAX_PAIRS * len(sample)

    def _augmented(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a product with the factors makes bounds of, and the closeness of a reference at distance zero.

        The columns are the centered row, two ones, the rounding error of the row, its norm, and zeros.
        """
        centered = rows - self.center
        rounded = centered.to(self.factors.dtype)
        squares = centered.square().sum(1)
        norms = squares.sqrt()
        errors = (centered - rounded).square_().sum(1).sqrt() + self.share * norms
        ends = _rounded_up(torch.stack([errors, norms], 1), rounded.dtype)
        columns = [rounded, rounded.new_ones(len(rows), 2), ends]
        columns.append(rounded.new_zeros(len(rows), len(self.factors) - sum(part.shape[1] for part in columns)))
        return torch.cat(columns, 1), squares + self.offset


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
    kept = _first_two_of_each(references)
    counts = torch.searchsorted(kept, torch.tensor(counts, device=kept.device)).tolist()
    arguments = references[kept], references[kept].mean(0), counts
    if _multiplies_bfloat16(references.device):
        fitted = _with_products_in(torch.bfloat16, *arguments)
        # Where references are very near one another, as on a line, the digits of a bfloat16 do not tell them apart.
        if fitted.is_selective():
            return fitted
    return _with_products_in(torch.float32, *arguments)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 faster than float32, with sums in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _TENSOR_CORES
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return bool(torch.backends.mkldnn.is_available() and has_instructions())


def _with_products_in(
    dtype: torch.dtype, references: Tensor, center: Tensor, counts: Sequence[int]
) -> NearestNeighbors:
    """Return the distances to references, shape (m, width), whose bounds are computed in a type."""
    offset = 1.01 * float((references - center).square().sum(1).mean())
    share = _SUM_ERROR * (references.shape[1] + 8) * torch.finfo(torch.float32).eps
    table = _factors(references - center, offset, share, dtype)
    tables, padded, ends, first = [], [], [], 0
    for count in counts:
        missing = -(count - first) % _GROUPS
        # The bound of a padded reference is minus infinity: its fourth last column is multiplied by one.
        rest = pad(table[first:count], (0, 0, 0, missing))
        rest[count - first :, -4] = -torch.inf
        tables.append(rest)
        padded.append(pad(references[first:count], (0, 0, 0, missing), value=torch.nan))
        ends.append(sum(map(len, padded)))
        first = count
    whole, factors = torch.cat(padded), torch.cat(tables).T
    return NearestNeighbors(
        references=whole,
        norms=whole.square().sum(1),
        center=center,
        offset=offset,
        share=share,
        # A product is faster if the number of factors of each is a multiple of eight.
        factors=pad(factors, (0, 0, 0, -len(factors) % 8)).contiguous(),
        ends=tuple(ends),
    )


def _factors(centered: Tensor, offset: float, share: float, dtype: torch.dtype) -> Tensor:
    """Return factors of references, shape (m, width + 4).

    With x' and r' for a rounded row and reference, their product with a row of `_augmented` is 2 x'·r' + offset − |r|²,
    plus bounds of the errors: 2 |x − x'| |r'| + 2 |x| |r − r'|, and those of a sum in float32.
    """
    rounded = centered.to(dtype)
    squares = centered.square().sum(1)
    norms = torch.maximum(squares.sqrt(), rounded.double().square().sum(1).sqrt())
    errors = (centered - rounded).square().sum(1).sqrt()
    constant = offset - squares + 2 * share * (offset + squares)
    # Two numbers of few digits hold one of more digits.
    leading = constant.to(dtype)
    rest = constant - leading.double()
    rest = rest + 2 * torch.finfo(dtype).eps * rest.abs()
    ends = _rounded_up(torch.stack([2 * norms, 2 * errors], 1), dtype)
    return torch.cat([2 * rounded, leading.unsqueeze(1), rest.unsqueeze(1).to(dtype), ends], 1)


def _rounded_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers of 0 or more that are not lower, even if a product of two of them is rounded."""
    return (values * (1 + 2 * torch.finfo(dtype).eps)).to(dtype)


def _first_two_of_each(references: Tensor) -> Tensor:
    """Return the ascending indices of the first two of all equal references."""
    inverse = references.unique(dim=0, return_inverse=True)[1]
    order = inverse.argsort(stable=True)
    is_later = inverse[order[2:]] == inverse[order[:-2]]
    kept: Tensor = order[~pad(is_later, (2, 0))].sort().values
    return kept
