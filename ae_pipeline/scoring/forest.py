"""Isolation forest: how few random splits separate a row from the others."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_TREES, _TREE_ROWS = 100, 256
_BLOCK_CELLS = 2**20
"""Number of pairs of a row and a tree in one block. It bounds the memory of a scoring."""


@dataclass(frozen=True)
class IsolationForest:
    """Random trees that isolate rows (Liu, Ting & Zhou 2008, "Isolation Forest").

    Each tree is fitted on 256 rows, so the cost of a row does not depend on the number of training rows. Groups of
    anomalies among the training rows hide each other less than in a distance to the nearest row.

    All trees are complete: node k has the children 2k + 1 and 2k + 2. A path that ends early goes on to the left.

    Attributes:
        columns: Column that a node splits, shape (trees, 2 ** depth − 1).
        thresholds: Highest value that goes to the left child, shape (trees, 2 ** depth − 1). Infinite below the end of
            a path.
        lengths: Length of the path to each leaf as a share of the usual length, shape (trees, 2 ** depth).
    """

    columns: npt.NDArray[np.int32]
    thresholds: Array
    lengths: Array

    def __post_init__(self) -> None:
        """Raise ValueError unless the shapes match."""
        trees, nodes = self.columns.shape
        if self.thresholds.shape != (trees, nodes) or self.lengths.shape != (trees, nodes + 1):
            raise ValueError(
                f"the forest has columns of shape {(trees, nodes)}, thresholds of shape {self.thresholds.shape} and "
                f"lengths of shape {self.lengths.shape}"
            )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by attribute name."""
        return {"columns": self.columns, "thresholds": self.thresholds, "lengths": self.lengths}

    def __call__(self, rows: Array) -> Array:
        """Return 2 to the power of minus the mean length of the paths, for rows of shape (n, width), shape (n,).

        It is between 0 and 1. Rows with shorter paths are more anomalous.
        """
        trees, nodes = self.columns.shape
        depth = (nodes + 1).bit_length() - 1
        columns, thresholds, lengths = self.columns.ravel(), self.thresholds.ravel(), self.lengths.ravel()
        first_nodes, first_leaves = np.arange(trees) * nodes, np.arange(trees) * (nodes + 1)
        # The trees were fitted on float32, and a value that equals a threshold must stay on its side.
        rows = rows.astype(np.float32)
        parts = [np.empty(0)]
        step = max(1, _BLOCK_CELLS // trees)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            node = np.zeros((len(block), trees), dtype=np.intp)
            for _ in range(depth):
                index = first_nodes + node
                values = np.take_along_axis(block, columns[index], axis=1)
                node = 2 * node + 1 + (values > thresholds[index])
            parts.append(np.exp2(-lengths[first_leaves + node - nodes].mean(axis=1)))
        return np.concatenate(parts)


def fit_forest(rows: Array, seed: int) -> IsolationForest:
    """Fit a forest on rows of shape (n, width)."""
    from sklearn.ensemble import IsolationForest as Forest

    count = min(_TREE_ROWS, len(rows))
    fitted = Forest(n_estimators=_TREES, max_samples=count, random_state=seed).fit(rows)
    depth = max(1, math.ceil(math.log2(count)))
    usual = float(_mean_path(np.array([count]))[0])
    trees = [_complete(estimator.tree_, depth) for estimator in fitted.estimators_]
    columns, thresholds, lengths = (np.stack(arrays) for arrays in zip(*trees, strict=True))
    return IsolationForest(columns, thresholds, lengths / usual)


def _complete(tree: Any, depth: int) -> tuple[npt.NDArray[np.int32], Array, Array]:
    """Return columns, thresholds and path lengths of a tree of scikit-learn as a complete tree."""
    left, right = tree.children_left, tree.children_right
    columns, thresholds = [], []
    node, length = np.zeros(1, dtype=np.intp), np.zeros(1)
    for _ in range(depth):
        is_split = left[node] >= 0
        columns.append(np.where(is_split, tree.feature[node], 0))
        thresholds.append(np.where(is_split, tree.threshold[node], np.inf))
        children = np.column_stack([np.where(is_split, left[node], node), np.where(is_split, right[node], node)])
        node, length = children.ravel(), np.repeat(length + is_split, 2)
    length = length + _mean_path(tree.n_node_samples[node])
    return np.concatenate(columns).astype(np.int32), np.concatenate(thresholds).astype(np.float64), length


def _mean_path(counts: npt.NDArray[np.integer]) -> Array:
    """Return the mean length of a path in a random search tree of so many rows: what a leaf with them stands for."""
    n = np.maximum(counts, 2).astype(np.float64)
    lengths = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.where(counts > 2, lengths, np.where(counts == 2, 1.0, 0.0))
