"""The newest day of a dataset, while it is still filling."""

from ae_pipeline.features.build import features_content
from ae_pipeline.monitoring.newest_day import FillingDay, filling_day
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset


def newest_filling_day(dataset: Dataset) -> FillingDay | None:
    """Return the newest day with features if it is still filling."""
    return filling_day({day: rows for day, (_, rows) in features_content(dataset).items()}, dataset)


def day_that_filled(dataset: Dataset) -> str | None:
    """Return the day that the report calls still filling, if it is over meanwhile."""
    reported = (read_summary(dataset.paths) or {}).get("filling")
    return str(reported["day"]) if reported and newest_filling_day(dataset) is None else None
