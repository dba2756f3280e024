"""Alerts of what runs find, and of runs that have failed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from filelock import FileLock, Timeout

from ae_pipeline.alerting import Alert, AlertEvent, raise_alert
from ae_pipeline.bundle import ModelBundle
from ae_pipeline.config import PipelineConfig
from ae_pipeline.orchestration.stages import DATASET_TAG
from ae_pipeline.orchestration.upkeep import REQUEST_TAG
from ae_pipeline.storage import DatasetPaths, make_folder

if TYPE_CHECKING:
    from ae_pipeline.reports.ranking import ReportDay


def tell(alert: Alert, config: PipelineConfig, paths: DatasetPaths, say: Callable[[str], None]) -> None:
    """Raises an alert, and shows it in the report as it stands; for who holds the dataset's lock."""
    from ae_pipeline.reports.page import refresh_operations

    if raise_alert(alert, config, paths, say):
        refresh_operations(paths, config.drift.min_rows)


def tell_from_outside(alert: Alert, config: PipelineConfig, paths: DatasetPaths, say: Callable[[str], None]) -> None:
    """Does the same for who does not hold the lock: where a run does, the report waits for the next one to show it."""
    make_folder(paths.lock.parent)
    try:
        with FileLock(paths.lock).acquire(timeout=0):
            tell(alert, config, paths, say)
    except Timeout:
        raise_alert(alert, config, paths, say)


def tell_over_budget(
    days: "Sequence[ReportDay]",
    bundle: ModelBundle,
    config: PipelineConfig,
    paths: DatasetPaths,
    run_id: str,
    say: Callable[[str], None],
) -> None:
    """Raises an alert of each day that is over its alert budget; of days that the model was fitted on, none."""
    from ae_pipeline.reports.ranking import is_over_budget

    budget = bundle.config.alerts.budget
    for day in days:
        rows, flagged = day.rows - day.known_anomalies, day.flagged - day.known_flagged
        is_new = not config.is_daily or day.day > bundle.window.days[-1]
        if is_new and is_over_budget(rows, flagged, budget):
            words = (
                f"{flagged:,} of {rows:,} rows of {day.day} are flagged, {flagged / rows / budget:.1f} times the budget"
            )
            figures = {"rows": float(rows), "flagged": float(flagged), "budget": budget}
            alert = Alert(AlertEvent.OVER_BUDGET, f"budget {day.day} {flagged}", words, run_id, figures)
            raise_alert(alert, config, paths, say)


def concerns(run: dg.DagsterRun, config: PipelineConfig) -> bool:
    """Tells whether a run is of a dataset: by its tag, or by the assets that a person chose."""
    if DATASET_TAG in run.tags:
        return run.tags[DATASET_TAG] == config.dataset
    return any(key.path[0] == config.dataset for key in run.asset_selection or ())


def alert_of(run: dg.DagsterRun, failure: dg.DagsterEvent, instance: dg.DagsterInstance) -> Alert:
    """Makes one alert of all attempts at the same thing: what failed, and why as far as it is known."""
    steps = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    reasons = [
        f"{data.user_failure_data.description if data.user_failure_data else data.error_display_string.strip()}"
        for entry in steps
        if entry.dagster_event and (data := entry.dagster_event.step_failure_data)
    ]
    reason = (reasons or [failure.message or "it ended without a word"])[0].strip()
    cause = run.tags.get(REQUEST_TAG) or run.root_run_id or run.run_id
    return Alert(AlertEvent.RUN_FAILED, f"run {cause}", f"{run.job_name} failed: {reason[:1000]}", run.run_id)
