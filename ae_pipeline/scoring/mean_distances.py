"""Mean distances to the nearest training rows, which tell the core of the training rows."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ae_pipeline.scoring.neighbors import TIE_TOLERANCE

Array = npt.NDArray[np.float64]

_BLOCK_DISTANCES = 2**18
"""Number of distances computed in one block, which fits into the cache of a processor."""


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
        tolerance = TIE_TOLERANCE * (row_norms + reference_norms[closest])
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
    squares = np.where(squares <= TIE_TOLERANCE * (row_norms[:, np.newaxis] + reference_norms), 0.0, squares)
    squares[np.arange(len(squares)), closest] = np.inf
    return squares
