"""Isolation forest: how few random splits separate a row from the others."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import blocks, per_device

Array = npt.NDArray[np.float64]

_TREES, _TREE_ROWS = 100, 256


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

    def __call__(self, rows: Tensor) -> Tensor:
        """Return 2 to the power of minus the mean length of the paths, for rows of shape (n, width), shape (n,).

        It is between 0 and 1. Rows with shorter paths are more anomalous. Rows have no NaN.
        """
        (root_columns, root_thresholds), levels, lengths = self._tensors(rows.device)
        trees, width, parts = len(self.columns), rows.shape[1], []
        roots = torch.arange(trees, 0, -1, dtype=torch.int32, device=rows.device).unsqueeze(1)
        # The trees were fitted on float32, and a value that equals a threshold must stay on its side.
        for block in blocks(rows.float(), 4 * trees):
            values = block.reshape(-1)
            starts = torch.arange(0, len(values), width, dtype=torch.int32, device=rows.device)
            # All rows are at the root of a tree, so its column and its threshold need no table.
            margin = root_thresholds - block.T.contiguous().index_select(0, root_columns)
            node = _children(margin, roots).view(-1)
            for columns, thresholds in levels:
                cells = columns.index_select(0, node).view(trees, -1).add_(starts).view(-1)
                node = _children(thresholds.index_select(0, node).sub_(values.index_select(0, cells)), node)
            parts.append(torch.exp2(-lengths.index_select(0, node).view(trees, -1).mean(0)))
        return torch.cat(parts)

    @per_device
    def _tensors(self, device: torch.device) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]], Tensor]:
        """Return columns and thresholds of the roots and of each further level, and the lengths of the leaves.

        Nodes are counted from the last one, which is 1: the left child of node k is 2k, and the right one is 2k − 1.
        """
        # A float32 exceeds a threshold if and only if it exceeds the next lower float32.
        with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite, and then the largest float32
            lower = self.thresholds.astype(np.float32)
        lower = np.where(lower > self.thresholds, np.nextafter(lower, np.float32(-np.inf)), lower)
        lower += np.float32(0)  # zero minus zero is positive, but negative zero minus zero is not
        roots = torch.from_numpy(self.columns[:, 0].copy()), torch.from_numpy(lower[:, :1].copy())
        levels, first = [], 1
        while first < self.columns.shape[1]:
            level = slice(first, 2 * first + 1)
            levels.append((_reversed(self.columns[:, level], device), _reversed(lower[:, level], device)))
            first = 2 * first + 1
        return (roots[0].to(device), roots[1].to(device)), levels, _reversed(self.lengths, device)


def _children(margin: Tensor, node: Tensor) -> Tensor:
    """Return the children that rows go to, by their thresholds minus their values."""
    # The sign is −1 for a value over the threshold, and otherwise 0. A comparison takes five times as long.
    return margin.view(torch.int32).bitwise_right_shift_(31).add_(node, alpha=2)


def _reversed(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return values of all trees from the last one on, after one that no node has."""
    return torch.from_numpy(np.append(values.dtype.type(0), np.ravel(values)[::-1])).to(device)


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
