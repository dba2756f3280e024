"""Alerts about failed Dagster runs, and the reasons of failures."""

import re
from collections.abc import Iterator, Sequence

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from ae_pipeline.common import errors
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.monitoring.alerts import Alert, AlertEvent, alerted_subjects
from ae_pipeline.orchestration.tags import DATASET_TAG, REQUEST_TAG
from ae_pipeline.storage.environment import environment_message
from ae_pipeline.storage.paths import DatasetPaths


def belongs_to(run: dg.DagsterRun, config: PipelineConfig) -> bool:
    """Return whether a run belongs to a dataset: by its tag, or by the assets that a person selected."""
    if DATASET_TAG in run.tags:
        return run.tags[DATASET_TAG] == config.dataset
    return any(key.path[0] == config.dataset for key in run.asset_selection or ())


def alert_key(run: dg.DagsterRun) -> str:
    """Return the key of the alert about a run. All attempts at the same work have one key."""
    return f"run {run.tags.get(REQUEST_TAG) or run.root_run_id or run.run_id}"


def failure_reason(run: dg.DagsterRun, failure: dg.DagsterEvent, instance: dg.DagsterInstance) -> str:
    """Return why a run failed, as far as that is known."""
    entries = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    reason = first_reason([*(entry.dagster_event for entry in entries if entry.dagster_event), failure])
    # Dagster's message about a process that is gone does not say that it was killed.
    return "its process was killed" if "outside the execution context" in reason else reason


def first_reason(events: Sequence[dg.DagsterEvent]) -> str:
    """Return the reason of the first failed step, or that of the run if no step failed."""
    for event in events:
        if event.is_step_failure:
            step = event.step_failure_data
            described = step.user_failure_data.description if step.user_failure_data else None
            if reason := described or own_message(step.error) or step.error_display_string:
                return reason.strip()
    failed = next((event for event in events if event.event_type == dg.DagsterEventType.RUN_FAILURE), None)
    if failed is None:
        return "it ended without a message"
    data = failed.job_failure_data  # None for a run whose process was lost
    error = data.error if data else None
    ending = own_message(error) or (error.to_string() if error else failed.message)
    return (ending or "it ended without a message").strip()


def own_message(error: SerializableErrorInfo | None) -> str | None:
    """Return the message of an error of ours that Dagster reports as its own, or None.

    A resource raises it before the first step, and the days of a run are read before an asset that depends on others.
    """
    for each in _chain(error):
        name, _, message = each.message.partition(": ")
        if issubclass(getattr(errors, name.rpartition(".")[2], object), errors.PipelineError):
            return message.strip()
        if known := environment_message(each.message):
            return known
        if "for a non-partitioned run" in each.message:
            return (
                "the asset has a partition for each day, but this run names no day; choose days, or run `ae-pipeline "
                "run NAME`, which chooses them"
            )
        if outside := re.search(
            r"Partition key range \w+ (\S+) is (before|after) the partitions definition", each.message
        ):
            return f"{outside[1]} is {outside[2]} the days of the dataset; choose other days, or change start or end"
    return None


def _chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    """Yield an error and its causes."""
    while error:
        yield error
        error = error.cause or error.context


def caused_by(kind: type[Exception], events: Sequence[dg.DagsterEvent]) -> bool:
    """Return whether a step failed because of a kind of error."""
    errors = [event.step_failure_data.error for event in events if event.is_step_failure]
    causes = [error.cause or error for error in errors if error]
    return any(
        kind.__name__ == name for cause in causes for name in (cause.cls_name, cause.cause and cause.cause.cls_name)
    )


def failure_alert(run: dg.DagsterRun, reason: str, paths: DatasetPaths) -> Alert | None:
    """Return the alert about a failed run, or None if an alert about a broken contract covers it."""
    if reason in alerted_subjects(paths, AlertEvent.CONTRACT_BROKEN):
        return None
    message = f"{run.job_name} failed: {reason[:1000]}"
    return Alert(event=AlertEvent.RUN_FAILED, key=alert_key(run), message=message, run_id=run.run_id)
