"""How many rows a training may hold in memory."""

import polars as pl

from ae_pipeline.common.memory import machine_memory
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import Window
from ae_pipeline.storage.paths import DatasetPaths

MIN_ROWS = 4096
"""Rows that are held in memory whatever the memory budget is."""


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
    return max(MIN_ROWS, memory * first.height // max(int(first.estimated_size()), 1))
