"""Labelled sets in files like those of ADBench, and how they are split for training and test."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MOST_ROWS = 10_000
PROTOCOLS = ("one-class", "contaminated")


class Table(NamedTuple):
    """A set as read from its file.

    Attributes:
        name: Name of the file without its suffix.
        values: Array X, (n, columns).
        is_anomaly: Mask of the anomalies, (n,).
    """

    name: str
    values: FloatArray
    is_anomaly: BoolArray


class Task(NamedTuple):
    """A set under a protocol.

    Attributes:
        train: Rows to learn from, (n, columns).
        test: Rows to score, (m, columns); the same object as `train` if the rows are the same.
        truth: Mask of the anomalies among the test rows, (m,).
    """

    train: FloatArray
    test: FloatArray
    truth: BoolArray


def find_sets(folder: Path) -> list[Path]:
    """Return the files of the sets in a folder, sorted by name."""
    return sorted(folder.glob("*.npz"))


def read_set(path: Path) -> Table:
    """Return the set of a file.

    Raises:
        ValueError: The file does not contain a set.
    """
    with np.load(path) as content:
        if missing := sorted({"X", "y"} - set(content.files)):
            raise ValueError(f"{path} has no array {missing[0]!r}; save a set as X, rows × features, and y, 0 or 1")
        values, labels = content["X"].astype(np.float64), content["y"]
    if values.ndim != 2 or labels.shape != values.shape[:1] or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"{path} has X of shape {values.shape} and y of shape {labels.shape}; save X as rows × features and y "
            "as one label, 0 or 1, for each row"
        )
    return Table(path.stem, values, labels == 1)


def cap_rows(table: Table, seed: int, most: int = MOST_ROWS) -> Table:
    """Return `most` random rows of a larger set; return a smaller set unchanged."""
    count = len(table.values)
    if count <= most:
        return table
    chosen = np.random.RandomState(seed).permutation(count)[:most]
    return Table(table.name, table.values[chosen], table.is_anomaly[chosen])


def halve_normal(is_anomaly: BoolArray, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the indices of the normal rows in random order: the training half and the other half."""
    normal = np.random.RandomState(seed).permutation(np.flatnonzero(~is_anomaly))
    half = len(normal) // 2
    return normal[:half], normal[half:]


def make_task(table: Table, protocol: str, seed: int) -> Task:
    """Split a capped set according to a protocol."""
    values, is_anomaly = table.values, table.is_anomaly
    if protocol == "contaminated":
        return Task(values, values, is_anomaly)
    train, rest = halve_normal(is_anomaly, seed)
    test = np.concatenate([rest, np.flatnonzero(is_anomaly)])
    return Task(values[train], values[test], is_anomaly[test])
