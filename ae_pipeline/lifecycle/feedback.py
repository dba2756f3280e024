"""Marks of people: store them, and show them in the report at once."""

from filelock import FileLock, Timeout

from ae_pipeline.monitoring.feedback import Mark
from ae_pipeline.reports.page import refresh_operations
from ae_pipeline.reports.review import MarkRequest, mark
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import make_folder


def mark_and_show(request: MarkRequest, dataset: Dataset) -> Mark:
    """Store a mark, and show it in the report if no run holds the lock of the dataset; otherwise the run will show it.

    Args:
        request: What to mark.
        dataset: Configuration and paths of the dataset.

    Raises:
        ConfigError: The report has no such row, cause or day.
    """
    stored = mark(request, dataset)
    make_folder(dataset.paths.lock.parent)
    try:
        with FileLock(dataset.paths.lock).acquire(timeout=0):
            refresh_operations(dataset)
    except Timeout:
        pass
    return stored


def mark_within_run(request: MarkRequest, dataset: Dataset) -> Mark:
    """Store a mark and show it in the report. The caller holds the lock of the dataset.

    Args:
        request: What to mark.
        dataset: Configuration and paths of the dataset.

    Raises:
        ConfigError: The report has no such row, cause or day.
    """
    stored = mark(request, dataset)
    refresh_operations(dataset)
    return stored
