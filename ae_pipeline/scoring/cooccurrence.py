"""Find combinations of categories that are rarer than their parts make expected, such as a carrier on a new route."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import double, per_device

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int32]

_SMOOTHING = 2.0
"""Rows that each combination is seen and expected in addition, so that a few rows of chance count little."""

_USUAL = math.log(2)
"""Measure below which a combination is usual: it is more than half as frequent as independent columns would make it.

It is saved with the counts. Bundles without it have tails and a calibration that were fitted without it.
"""

_MAX_COLUMNS, _MAX_EACH = 16, 8
"""Maximum of categorical columns that are combined, and of combinations of two and of three columns."""

_MAX_CELLS = 2**18
"""Maximum of combinations of categories of one entry. More are left out, so that memory stays bounded."""

_CHOICE_ROWS = 20_000
"""Training rows that the choice of the combinations looks at."""

_MIN_INFORMATION = 0.01
"""Nats that the columns of a combination must say about each other, beyond what chance gives."""

_ABSENT = -1
"""Third column of a combination of two."""


class Combination(NamedTuple):
    """A combination of categories of one row.

    Attributes:
        columns: Indices of the categorical columns.
        codes: Category of each of them.
        rows: Number of rows that have the combination.
        expected: Number of rows that would have it if the columns were independent.
    """

    columns: tuple[int, ...]
    codes: tuple[int, ...]
    rows: int
    expected: float


@dataclass(frozen=True, kw_only=True)
class Cooccurrence:
    """How often categories of two or three columns occur together.

    The measure of a row is ln((expected + 2) / (rows + 2)) of its rarest combination: expected is the number of rows
    if the columns were independent. A rare category by itself is therefore not rare here. Below ln 2 it is 0, so that
    usual combinations are no evidence.

    Attributes:
        blocks: Start and width of the one-hot code of each categorical column, shape (k, 2).
        chosen: Columns of each combination, shape (m, 3). The third is −1 in combinations of two.
        counts: Number of rows of each combination of categories, one entry after the other, each in C order.
        usual: Measure below which a row has 0; 0 in bundles of earlier formats.
        excluded: 1 to measure rows that were counted as if each of them alone was not.

    Examples:
        >>> rows = np.repeat([[1, 0, 1, 0], [0, 1, 0, 1]], 500, axis=0).astype(np.float32)
        >>> fitted = fit_cooccurrence([rows], [(0, 2), (2, 2)])
        >>> fitted(torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]])).numpy().round(2).tolist()
        [0.0, 4.84]
    """

    blocks: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    usual: float = _USUAL
    excluded: int = 0

    def __call__(self, matrix: Tensor) -> Tensor:
        """Return the measure of encoded rows, shape (n, width), shape (n,): 0, or `usual` or more. It is in nats."""
        rarest = self._ratios(matrix).amax(1)
        return torch.where(rarest < self.usual, 0.0, rarest)

    def rarest(self, matrix: npt.NDArray[np.floating]) -> list[Combination]:
        """Return the combination that determines the measure of each encoded row, shape (n, width)."""
        codes = _codes(matrix, self.blocks)
        combinations = []
        for row, index in zip(codes, self._ratios(torch.from_numpy(matrix)).argmax(1).tolist(), strict=True):
            columns, counts = self._tables[index]
            cell = tuple(int(row[column]) for column in columns)
            combinations.append(Combination(columns, cell, int(counts[cell]), float(_expected(counts)[cell])))
        return combinations

    @property
    def rows(self) -> int:
        """Number of rows that were counted."""
        return int(self._tables[0][1].sum())

    def adding(self, matrices: Iterable[npt.NDArray[np.floating]]) -> "Cooccurrence":
        """Return the counts with those of further encoded rows, in batches of shape (n, width)."""
        batches = (_codes(matrix, self.blocks) for matrix in matrices)
        tables = [(columns, counts.shape) for columns, counts in self._tables]
        return replace(self, counts=self.counts + _count_all(batches, tables))

    def _ratios(self, matrix: Tensor) -> Tensor:
        """Return the measure of each combination, shape (n, m)."""
        codes = [matrix[:, start : start + width].argmax(1) for start, width in self.blocks.tolist()]
        tables = zip(self._tables, self._logs(matrix.device), strict=True)
        return torch.stack([ratios[tuple(codes[column] for column in columns)] for (columns, _), ratios in tables], 1)

    @cached_property
    def _tables(self) -> list[tuple[tuple[int, ...], npt.NDArray[np.int64]]]:
        tables, start = [], 0
        for chosen in self.chosen.tolist():
            columns = tuple(column for column in chosen if column != _ABSENT)
            shape = tuple(int(self.blocks[column, 1]) for column in columns)
            tables.append((columns, self.counts[start : start + math.prod(shape)].reshape(shape)))
            start += math.prod(shape)
        return tables

    @per_device
    def _logs(self, device: torch.device) -> list[Tensor]:
        logs = (
            np.log((_expected(counts) + _SMOOTHING) / (np.maximum(counts - self.excluded, 0) + _SMOOTHING))
            for _, counts in self._tables
        )
        return [double(ratios, device) for ratios in logs]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by attribute name."""
        cut = {"usual": np.array([self.usual])} if self.usual else {}
        return {"blocks": self.blocks, "chosen": self.chosen, "counts": self.counts, **cut}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Cooccurrence":
        """Return the counts that `arrays` describes.

        Raises:
            KeyError: An array is missing.
            ValueError: The counts do not fit the combinations.
        """
        usual = float(arrays["usual"][0]) if "usual" in arrays else 0.0
        fitted = cls(blocks=arrays["blocks"], chosen=arrays["chosen"], counts=arrays["counts"], usual=usual)
        widths = [[int(fitted.blocks[i, 1]) for i in row if i != _ABSENT] for row in fitted.chosen.tolist()]
        cells = sum(map(math.prod, widths))
        if cells != len(fitted.counts):
            raise ValueError(f"cooccurrence.counts has {len(fitted.counts)} values, but its combinations are {cells}")
        return fitted


def fit_cooccurrence(
    matrices: Iterable[npt.NDArray[np.floating]], blocks: Sequence[tuple[int, int]]
) -> Cooccurrence | None:
    """Count combinations of categories in encoded training rows.

    It chooses the combinations whose columns say most about each other: at most eight of two and eight of three of the
    first sixteen columns. A third column must say something about the other two.

    Args:
        matrices: Encoded training rows in batches, each of shape (n, width).
        blocks: Start and width of the one-hot code of each categorical column.

    Returns:
        The counts; None if there are no rows, fewer than two categorical columns, or all are independent.
    """
    if len(blocks) < 2:
        return None
    used = np.array(blocks[:_MAX_COLUMNS], dtype=np.int64)
    # Codes take four bytes for each column. The batches stay apart, because one array of all would be a second copy.
    batches = [_codes(matrix, used) for matrix in matrices]
    rows = sum(map(len, batches))
    if not rows:
        return None
    sample = _every_few(batches, math.ceil(rows / _CHOICE_ROWS))
    widths = used[:, 1]
    of_two = _informative(sample, widths, 2, {})
    of_three = _informative(sample, widths, 3, of_two)
    chosen = [*_best(of_two), *_best(of_three)]
    if not chosen:
        return None
    counts = _count_all(batches, [(columns, tuple(widths[list(columns)].tolist())) for columns in chosen])
    padded = [(*columns, _ABSENT)[:3] for columns in chosen]
    return Cooccurrence(blocks=used, chosen=np.array(padded, dtype=np.int64), counts=counts)


def _codes(matrix: npt.NDArray[np.floating], blocks: npt.NDArray[np.int64]) -> Codes:
    """Return the category of each column, shape (n, k)."""
    codes = np.empty((len(matrix), len(blocks)), dtype=np.int32)
    for index, (start, width) in enumerate(blocks.tolist()):
        codes[:, index] = matrix[:, start : start + width].argmax(axis=1)
    return codes


def _every_few(batches: Sequence[Codes], step: int) -> Codes:
    """Return every `step`-th row of all batches."""
    starts = itertools.accumulate(map(len, batches), initial=0)
    return np.concatenate([codes[-start % step :: step] for codes, start in zip(batches, starts, strict=False)])


def _count_all(
    batches: Iterable[Codes], tables: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> npt.NDArray[np.int64]:
    """Return the rows of each cell of tables with these columns and shapes, one table after the other."""
    totals = [np.zeros(shape, dtype=np.int64) for _, shape in tables]
    for codes in batches:
        for index, (columns, shape) in enumerate(tables):
            totals[index] += _count(codes[:, columns], shape)
    return np.concatenate([total.ravel() for total in totals])


def _count(codes: Codes, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    cells = np.ravel_multi_index(tuple(codes.T), shape)
    return np.bincount(cells, minlength=math.prod(shape)).reshape(shape).astype(np.int64, copy=False)


def _expected(counts: npt.NDArray[np.int64]) -> Array:
    """Return the number of rows of each combination if the columns were independent."""
    rows = max(int(counts.sum()), 1)
    expected = np.array(float(rows))
    for axis in range(counts.ndim):
        others = tuple(other for other in range(counts.ndim) if other != axis)
        share = counts.sum(axis=others, keepdims=True) / rows
        expected = expected * share
    return expected


def _informative(
    codes: Codes, widths: npt.NDArray[np.int64], size: int, pairs: Mapping[tuple[int, ...], float]
) -> dict[tuple[int, ...], float]:
    """Return the combinations of columns that say enough about each other, with the nats that they say.

    Of three columns, it is what the third says about the pair that says most. The Miller–Madow correction subtracts
    what chance gives.
    """
    nats_by_columns = {}
    for columns in itertools.combinations(range(len(widths)), size):
        shape = tuple(int(widths[column]) for column in columns)
        if math.prod(shape) > _MAX_CELLS:
            continue
        counts = _count(codes[:, columns], shape)
        occupied = counts > 0
        nats = float((counts[occupied] * np.log(counts[occupied] / _expected(counts)[occupied])).sum() / len(codes))
        levels = [int((counts.sum(axis=tuple(o for o in range(size) if o != axis)) > 0).sum()) for axis in range(size)]
        known = max((pairs.get(pair, 0.0) for pair in itertools.combinations(columns, 2)), default=0.0)
        by_chance = (math.prod(levels) - sum(levels) + size - 1) / (2 * len(codes))
        gain = nats - by_chance - (known if size > 2 else 0.0)
        if gain > _MIN_INFORMATION:
            nats_by_columns[columns] = gain
    return nats_by_columns


def _best(nats_by_columns: Mapping[tuple[int, ...], float]) -> list[tuple[int, ...]]:
    return sorted(sorted(nats_by_columns, key=lambda columns: (-nats_by_columns[columns], columns))[:_MAX_EACH])
