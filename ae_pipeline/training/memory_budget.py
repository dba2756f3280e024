"""How many rows a training may hold in memory."""

import polars as pl

from ae_pipeline.common.memory import machine_memory
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import Window
from ae_pipeline.storage.paths import DatasetPaths

MIN_ROWS, _MIN_BYTES, _MIN_IMAGES = 4096, 64 << 20, 64
"""Rows that are held in memory whatever the memory budget is; and with large rows, their bytes, but as many rows."""

_MOST = 4 << 30
"""Bytes of the default budget on every machine with four times as much, so that all of them fit the same model."""


def share_of(config: PipelineConfig) -> int:
    """Return the bytes for each of four: training features, the same rows encoded, validation, and computation."""
    return (config.training.memory_budget or min(_MOST, machine_memory() // 4)) // 4


def max_rows(window: Window, paths: DatasetPaths, memory: int) -> int:
    """Return how many rows of features fit into memory.

    Args:
        window: Days of the training.
        paths: Paths of the dataset.
        memory: Bytes for the features.
    """
    first = next((rows for rows in window.batches("train", paths) if rows.height), pl.DataFrame())
    return rows_within(memory, int(first.estimated_size()), first.height)


def rows_within(memory: int, size: int, rows: int = 1) -> int:
    """Return how many rows may be in memory. Whatever the budget is, a model is fitted on a few.

    Args:
        memory: Bytes for the rows.
        size: Bytes of some rows.
        rows: Number of these rows.

    >>> rows_within(1 << 30, 1000), rows_within(1 << 20, 1000), rows_within(1 << 20, 4 << 20)
    (1073741, 4096, 64)
    """
    size, rows = max(size, 1), max(rows, 1)
    fewest = min(MIN_ROWS, max(_MIN_IMAGES, _MIN_BYTES * rows // size))
    return max(fewest, memory * rows // size)
