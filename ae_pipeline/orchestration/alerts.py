"""Alerts of what runs find, and of runs that have failed."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from filelock import FileLock, Timeout

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.monitoring.alerts import Alert, AlertEvent, alerted_subjects, raise_alert
from ae_pipeline.orchestration.stages import DATASET_TAG, REQUEST_TAG
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.ingestion.ledger import LandedFile, Ledger
    from ae_pipeline.monitoring.budget import ReportDay


def tell(alert: Alert, dataset: Dataset) -> None:
    """Raises an alert, and shows it in the report as it stands; for who holds the dataset's lock."""
    config, paths = dataset.config, dataset.paths
    from ae_pipeline.reports.page import refresh_operations

    if raise_alert(alert, dataset):
        refresh_operations(paths, config.drift.min_rows)


def raise_alert_unlocked(alert: Alert, dataset: Dataset) -> None:
    """Does the same for who does not hold the lock: where a run does, the report waits for the next one to show it."""
    _config, paths = dataset.config, dataset.paths
    make_folder(paths.lock.parent)
    try:
        with FileLock(paths.lock).acquire(timeout=0):
            tell(alert, dataset)
    except Timeout:
        raise_alert(alert, dataset)


def alert_broken_contract(
    ledger: "Ledger",
    days: Collection[str] | None,
    dataset: Dataset,
    run_id: str,
    names: Collection[str] = (),
) -> None:
    """Raises an alert of landed files that break the schema contract, one of all that none was raised of before.

    Args:
        ledger: As it stands.
        days: Files with rows on these are looked at for rows in quarantine; none where there are `names`.
        dataset: Configuration and paths of the dataset.
        run_id: Dagster run that found it.
        names: Files to look at instead; a file that is refused as a whole is told of in any case.
    """
    config, paths = dataset.config, dataset.paths
    known = alerted_subjects(paths, AlertEvent.CONTRACT_BROKEN)
    subjects, told = [], []
    refused = {
        name: entry for name, entry in ledger.files.items() if entry.refused and _subject(name, entry) not in known
    }
    if refused:
        name, entry = next(iter(refused.items()))
        more = f" ({pluralize(len(refused) - 1, 'further file')} likewise)" if len(refused) > 1 else ""
        told.append(f"{name} is refused: {entry.refused}{more}; mend it and land it again")
        subjects += [_subject(*item) for item in refused.items()]
    looked_at = {
        name: entry
        for name, entry in ledger.files.items()
        if name in names or (days is not None and (not entry.days or not entry.days.keys().isdisjoint(days)))
    }
    broken = {name: sum(entry.quarantined.values()) for name, entry in looked_at.items() if entry.quarantined}
    rows = sum(entry.rows for entry in looked_at.values()) + sum(broken.values())
    fresh = [name for name in broken if name not in refused and _subject(name, looked_at[name]) not in known]
    if fresh and sum(broken.values()) > config.max_quarantine_share * rows:
        name = max(fresh, key=lambda name: broken[name])
        rule = max(looked_at[name].quarantined.items(), key=lambda item: item[1])[0]
        told.append(
            f"{sum(broken.values()):,} of {rows:,} rows of {pluralize(len(looked_at), 'file')} are in quarantine, at "
            f"most {config.max_quarantine_share:.1%} may be: {broken[name]:,} of {name}, mostly by the rule {rule!r}; "
            f"look at {paths.quarantined(looked_at[name].rejected_copy or '')}, mend the file and land it again"
        )
        subjects += [_subject(name, looked_at[name]) for name in fresh]
    if subjects:
        key = f"contract {hash_json(sorted(subjects))}"
        alert = Alert(AlertEvent.CONTRACT_BROKEN, key, "; ".join(told), run_id, subjects=tuple(subjects))
        tell(alert, dataset)


def _subject(name: str, entry: "LandedFile") -> str:
    return f"{name} {entry.sha256[:16]}"


def alert_over_budget(
    days: "Sequence[ReportDay]",
    bundle: ModelBundle,
    dataset: Dataset,
    run_id: str,
) -> None:
    """Raises an alert of each day that is over its alert budget; of days that the model was fitted on, none."""
    config, _paths = dataset.config, dataset.paths
    from ae_pipeline.monitoring.budget import is_over_budget

    budget = bundle.config.alerts.budget
    for day in days:
        rows, flagged = day.rows - day.known_anomalies, day.flagged - day.known_flagged
        is_new = not config.is_daily or day.day > bundle.window.days[-1]
        if is_new and is_over_budget(rows, flagged, budget):
            message = (
                f"{flagged:,} of {rows:,} rows of {day.day} are flagged, {flagged / rows / budget:.1f} times the budget"
            )
            figures = {"rows": float(rows), "flagged": float(flagged), "budget": budget}
            alert = Alert(AlertEvent.OVER_BUDGET, f"budget {day.day} {day.rows}", message, run_id, figures)
            raise_alert(alert, dataset)


def concerns(run: dg.DagsterRun, config: PipelineConfig) -> bool:
    """Tells whether a run is of a dataset: by its tag, or by the assets that a person chose."""
    if DATASET_TAG in run.tags:
        return run.tags[DATASET_TAG] == config.dataset
    return any(key.path[0] == config.dataset for key in run.asset_selection or ())


def key_of(run: dg.DagsterRun) -> str:
    """Names what a run was to do, so that all attempts at it are one alert."""
    return f"run {run.tags.get(REQUEST_TAG) or run.root_run_id or run.run_id}"


def reason_of(run: dg.DagsterRun, failure: dg.DagsterEvent, instance: dg.DagsterInstance) -> str:
    """Says why a run has failed, as far as it is known."""
    steps = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    reasons = [
        f"{data.user_failure_data.description if data.user_failure_data else data.error_display_string.strip()}"
        for entry in steps
        if entry.dagster_event and (data := entry.dagster_event.step_failure_data)
    ]
    told = (reasons or [failure.message or "it ended without a word"])[0].strip()
    # What Dagster says of a process that is gone tells nobody that it was killed.
    return "its process was killed, or has died" if "outside the execution context" in told else told


def failure_alert(run: dg.DagsterRun, reason: str, paths: DatasetPaths) -> Alert | None:
    """Makes one alert of all attempts at the same thing; none where it is known already as a broken contract."""
    if reason in alerted_subjects(paths, AlertEvent.CONTRACT_BROKEN):
        return None
    return Alert(AlertEvent.RUN_FAILED, key_of(run), f"{run.job_name} failed: {reason[:1000]}", run.run_id)
