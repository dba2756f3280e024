"""Distances to training rows.

A row that equals one of the references counts as that one, which is left out: training rows and rows like them are
held against the same number of others, as if each training row had been left out of its own references. Where more
than one equals it, it has a twin at distance zero.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_SAME = 1e-12
"""Squared distance, as a share of the squared lengths, up to which two rows are one: what rounding leaves of zero."""

_AT_ONCE = 2**18
"""Distances that are held at once: so many stay in a processor's cache."""


def nearest(rows: Array, references: Array) -> Array:
    """Gives the Euclidean distance to the nearest reference.

    Args:
        rows: (n, width).
        references: Two or more, (m, width).

    Returns:
        Shape (n,).
    """
    found = [np.empty(0)]
    for block, own, lengths in _products(rows, references):
        # To all of a row's squares its own length is added at last, so the least of them is known before.
        first = block.argmin(axis=1)
        least = np.maximum(block[np.arange(len(block)), first] + own, 0.0)
        same = np.flatnonzero(least <= _SAME * (own + lengths[first]))
        least[same] = _without_itself(block[same] + own[same, np.newaxis], own[same], lengths, first[same]).min(axis=1)
        found.append(np.sqrt(least))
    return np.concatenate(found)


def mean_knn_distance(rows: Array, references: Array, count: int) -> Array:
    """Gives the mean distance to the `count` nearest references, or to all others where they are fewer.

    Large beside a small crowd of its own kind too, as anomalies are that a training set holds many of.

    Args:
        rows: (n, width).
        references: Two or more, (m, width).
        count: How many.

    Returns:
        Shape (n,).
    """
    count = min(count, len(references) - 1)
    parts = (np.partition(block, count - 1, axis=1)[:, :count] for block in _squares(rows, references))
    return np.concatenate([np.empty(0), *(np.sqrt(part).mean(axis=1) for part in parts)])


def _squares(rows: Array, references: Array) -> Iterator[Array]:
    """Gives squared distances block by block, (rows of the block, m), infinite to the reference that a row equals."""
    for products, own, lengths in _products(rows, references):
        squares = np.maximum(products + own[:, np.newaxis], 0.0)
        first = squares.argmin(axis=1)
        same = np.flatnonzero(squares[np.arange(len(squares)), first] <= _SAME * (own + lengths[first]))
        squares[same] = _without_itself(squares[same], own[same], lengths, first[same])
        yield squares


def _products(rows: Array, references: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Gives squared distances less the rows' own squared lengths, block by block, with these and the references'."""
    lengths, factors = np.square(references).sum(axis=1), -2 * references.T
    step = max(1, _AT_ONCE // len(references))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        products = block @ factors
        products += lengths
        yield products, np.square(block).sum(axis=1), lengths


def _without_itself(squares: Array, own: Array, lengths: Array, first: npt.NDArray[np.intp]) -> Array:
    """Leaves out of the squared distances of rows that equal a reference that one; another equal one is at zero."""
    # What rounding leaves of zero depends on how many rows are multiplied at once.
    squares = np.where(squares <= _SAME * (own[:, np.newaxis] + lengths), 0.0, squares)
    squares[np.arange(len(squares)), first] = np.inf
    return squares
