"""Marks of people: store them, and show them in the report at once."""

from dataclasses import replace

from ae_pipeline.gate.blindness import RecentAlerts
from ae_pipeline.monitoring.feedback import Mark, MarkState, marks_of
from ae_pipeline.monitoring.marks_summary import days_in_state, rows_in_state
from ae_pipeline.reports.page import refresh_operations
from ae_pipeline.reports.review import MarkRequest, mark
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import try_to_hold_dataset
from ae_pipeline.training.reviewed import Reviewed


def mark_and_show(request: MarkRequest, dataset: Dataset) -> Mark:
    """Store a mark, and show it in the report if no run holds the lock of the dataset; otherwise the run will show it.

    Args:
        request: What to mark.
        dataset: Configuration and paths of the dataset.

    Raises:
        ConfigError: The report has no such row, cause or day.
    """
    with try_to_hold_dataset(dataset.paths) as is_free:
        return mark_within_run(request, dataset) if is_free else mark(request, dataset)


def reviewed_rows(paths: DatasetPaths) -> Reviewed:
    """Return what a training reads of the marks of a dataset.

    Args:
        paths: Paths of the dataset.
    """
    marks = marks_of(paths)
    return Reviewed(
        real=rows_in_state(marks, MarkState.REAL),
        false_alarms=rows_in_state(marks, MarkState.FALSE_ALARM),
        real_days=days_in_state(marks, MarkState.REAL),
        usual_days=days_in_state(marks, MarkState.FALSE_ALARM),
    )


def without_false_alarms(alerts: RecentAlerts, reviewed: Reviewed) -> RecentAlerts:
    """Return recent alerts without false alarms, which the challenger has learned. Real anomalies stay.

    Args:
        alerts: Alerts of the version that serves.
        reviewed: Marks of people.
    """
    if alerts.rows.is_empty():
        return alerts
    is_kept = ~reviewed.is_false_alarm(alerts.rows)
    return replace(alerts, rows=alerts.rows.filter(is_kept), scores=alerts.scores[is_kept.to_numpy()])


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
