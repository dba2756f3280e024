"""Distances to the nearest training rows.

A row that equals a reference is taken for that reference, which is then left out. So training rows and new rows are
compared with the same number of other rows, as in leave-one-out. If several references equal the row, the others are
duplicates at distance zero.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_TIE_TOLERANCE = 1e-12
"""Squared distance up to which two rows are equal, relative to their squared norms. It absorbs rounding errors."""

_BLOCK_DISTANCES = 2**18
"""Number of distances computed in one block, which fits into the cache of a processor."""


def nearest(rows: Array, references: Array) -> Array:
    """Return the Euclidean distance to the nearest reference.

    Args:
        rows: Shape (n, width).
        references: Two or more, shape (m, width).

    Returns:
        Shape (n,).

    Examples:
        >>> import numpy as np
        >>> references = np.array([[0.0, 0.0], [3.0, 4.0]])
        >>> nearest(np.array([[3.0, 3.0], [0.0, 0.0]]), references).tolist()
        [1.0, 5.0]
    """
    distances: Array = nearest_of_first(rows, references, [len(references)])[:, 0]
    return distances


def nearest_of_first(rows: Array, references: Array, counts: Sequence[int]) -> Array:
    """Return the Euclidean distances to the nearest of the first `count` references, for each count.

    Several counts cost little more than one, because all share the distances.

    Args:
        rows: Shape (n, width).
        references: Shape (m, width).
        counts: Numbers of references, 2 to m.

    Returns:
        Shape (n, len(counts)).
    """
    distances = [np.empty((0, len(counts)))]
    for block, row_norms, norms in _partial_squares(rows, references):
        distances.append(np.column_stack([_closest(block[:, :count], row_norms, norms[:count]) for count in counts]))
    return np.concatenate(distances)


def _closest(block: Array, row_norms: Array, reference_norms: Array) -> Array:
    """Return the distance to the nearest reference, shape (block,), from a block of `_partial_squares`."""
    # The norm of a row is the same for all references, so it can be added after the search for the minimum.
    closest = block.argmin(axis=1)
    squares = np.maximum(block[np.arange(len(block)), closest] + row_norms, 0.0)
    equal = np.flatnonzero(squares <= _TIE_TOLERANCE * (row_norms + reference_norms[closest]))
    whole = block[equal] + row_norms[equal, np.newaxis]
    squares[equal] = _leave_one_out(whole, row_norms[equal], reference_norms, closest[equal]).min(axis=1)
    distances: Array = np.sqrt(squares)
    return distances


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
