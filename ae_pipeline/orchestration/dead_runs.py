"""Runs that Dagster counts as active although their process is dead, whatever started them."""

import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing

import dagster as dg
from dagster._core.execution.plan.outputs import StepOutputProperties
from dagster._core.launcher.base import WorkerStatus

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.orchestration.processes import ProcessId, identify, parse_process, run_process, start_ticks
from ae_pipeline.orchestration.tags import DATASET_TAG, PRIORITY_TAG, PROCESS_TAG, RETRY_PRIORITY, named_days
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

_SILENT_SECONDS = 45.0
"""Seconds without an event after which a run counts as dead that no known process executes and that holds no lock."""

_REMOTE_SILENT_SECONDS = 600.0
"""The same for a run whose process is on another machine."""

_LAUNCH_SECONDS = 30.0
"""Seconds that a run launcher may take to start what it reports as failed until then, such as a new container."""

_START_SECONDS = 300.0
"""Seconds that a code server may take to start the process of a run."""

_SERVER_TAG = ".dagster/grpc_info"
"""Dagster's own tag with the address of the code server that started a run."""


def datasets_of_run(run: dg.DagsterRun, instance: dg.DagsterInstance) -> list[str]:
    """Return the datasets of a run: by its tag, by the assets that a person selected, or by the assets of its plan."""
    if DATASET_TAG in run.tags:
        return [run.tags[DATASET_TAG]]
    keys = set(run.asset_selection or ())
    if not keys:  # a job that somebody else defined
        keys = {output.asset_key for output in _planned_outputs(run, instance) if output.asset_key}
    return sorted({key.path[0] for key in keys})


def require_days(run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
    """Check that a run names days if its assets have days. Dagster itself fails in a step, without a remedy.

    Raises:
        ConfigError: It names none.
    """
    if named_days(run.tags):
        return
    if key := next((each.asset_key for each in _planned_outputs(run, instance) if each.is_asset_partitioned), None):
        raise ConfigError(
            f"{key.path[0]!r} has a partition for each day, but this run names no day; choose days, or run "
            f"`ae-pipeline run {key.path[0]}`, which chooses them"
        )


def _planned_outputs(run: dg.DagsterRun, instance: dg.DagsterInstance) -> list[StepOutputProperties]:
    if not run.execution_plan_snapshot_id:
        return []
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    return [output.properties for step in plan.steps for output in step.outputs if output.properties]


def active_records(dataset: str | None, instance: dg.DagsterInstance) -> list[dg.RunRecord]:
    """Return the active runs of a dataset, or of all datasets, the oldest first."""
    records = instance.get_run_records(dg.RunsFilter(statuses=ACTIVE), ascending=True)
    return [each for each in records if dataset is None or dataset in datasets_of_run(each.dagster_run, instance)]


def record_process(run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
    """Record in a tag which process executes a run. Call it in that process, or in the process of a step."""
    if process_of(run) is None:
        pid = _launched_process(run, instance) if _SERVER_TAG in run.tags else run_process()
        # A retry gets the tags of the run, and so goes before runs that were queued meanwhile.
        instance.add_run_tags(run.run_id, {**_retry_priority(run), **process_tag(run.run_id, pid or os.getpid())})


def _retry_priority(run: dg.DagsterRun) -> dict[str, str]:
    """Return the tag that lets the retry of a run go first, unless somebody has given the run a priority."""
    return {} if PRIORITY_TAG in run.tags else {PRIORITY_TAG: RETRY_PRIORITY}


def process_tag(run_id: str, pid: int) -> dict[str, str]:
    """Return the tag of a run that a process executes. A run that has it from the start counts as dead at once."""
    return {PROCESS_TAG: f"{run_id} {identify(pid)}"}


def process_of(run: dg.DagsterRun) -> ProcessId | None:
    """Return the process that executes a run, or None if the run has none so far."""
    run_id, _, text = run.tags.get(PROCESS_TAG, "").partition(" ")
    return parse_process(text) if run_id == run.run_id else None  # a retry has the tags of the run that it retries


def is_dead(
    record: dg.RunRecord,
    instance: dg.DagsterInstance,
    paths_of: Callable[[str], DatasetPaths],
    *,
    asks_launcher: bool = False,
) -> bool:
    """Return whether the process of an active run has ended without a message.

    Args:
        record: Run to look at.
        instance: Dagster's instance.
        paths_of: Function that returns the paths of a dataset.
        asks_launcher: Whether the run launcher is asked, which can take long.
    """
    run = record.dagster_run
    if run.status == dg.DagsterRunStatus.QUEUED:
        return False
    process = process_of(run)
    alive = process.is_alive if process else None
    if alive is not None:
        return not alive
    # Where runs have machines of their own, neither their process ids nor their locks say anything here.
    if not (instance.is_ephemeral or isinstance(instance.run_launcher, dg.DefaultRunLauncher)):
        return asks_launcher and _is_lost(record, instance)
    limit = _SILENT_SECONDS if process is None else _REMOTE_SILENT_SECONDS
    if process is None and _is_launched_here(run):
        pid = _launched_process(run, instance)
        if pid is not None and start_ticks(pid) is None:
            return True
        if pid is None and run.status == dg.DagsterRunStatus.STARTING:
            if not _server_answers(run):
                return True
            limit = _START_SECONDS
    return _is_silent(record, instance, limit) and not any(
        is_locked(paths_of(name)) for name in datasets_of_run(run, instance)
    )


def end_dead_runs(
    instance: dg.DagsterInstance,
    paths_of: Callable[[str], DatasetPaths],
    dataset: str | None = None,
    *,
    asks_launcher: bool = False,
) -> list[dg.DagsterRun]:
    """End the dead runs of a dataset, or of all datasets, give their slots back, and return them.

    Args:
        instance: Dagster's instance.
        paths_of: Function that returns the paths of a dataset.
        dataset: Dataset; all by default.
        asks_launcher: Whether the run launcher is asked, which can take long.
    """
    ended = []
    for record in active_records(dataset, instance):
        run = record.dagster_run
        if is_dead(record, instance, paths_of, asks_launcher=asks_launcher):
            current = instance.get_run_by_id(run.run_id)
            if current is None or current.status != run.status:
                continue  # it went on, or ended by itself, meanwhile
            if tags := _retry_priority(current):  # it may have been killed before it had a process
                instance.add_run_tags(run.run_id, tags)
            end_run(run, instance, "its process ended without a message; it was killed, or the machine was restarted")
            ended.append(run)
    return ended


def end_run(run: dg.DagsterRun, instance: dg.DagsterInstance, message: str) -> None:
    """Mark a run as ended, cancelled if somebody asked for that, and give its slots back."""
    current = instance.get_run_by_id(run.run_id)
    if current is not None and not current.is_finished:
        if current.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(current, message)
        else:
            instance.report_run_failed(current, message)
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def describe_run(run: dg.DagsterRun) -> str:
    """Return which run this is, for a person."""
    if run.job_name.startswith("__ASSET_JOB"):
        names = ", ".join(sorted(key.path[-1] for key in run.asset_selection or ())) or "assets"
        backfill = run.tags.get("dagster/backfill")
        return f"run {run.run_id} of {names}" + (f" (backfill {backfill})" if backfill else "")
    return f"run {run.run_id} of {run.job_name}"


def is_locked(paths: DatasetPaths) -> bool:
    """Return whether a process holds the lock of a dataset."""
    return locks().is_held(dataset_lock(paths))


def _is_lost(record: dg.RunRecord, instance: dg.DagsterInstance) -> bool:
    """Return whether the launcher of a run that is starting knows that its machine or container has failed.

    Dagster's daemon asks this only of runs that have started. A run that was killed before would block its dataset
    until `start_timeout_seconds` have passed. Some launchers find the machine by a tag. A retry has that of the run
    that it retries, so the launcher is not asked about it.
    """
    run, launcher = record.dagster_run, instance.run_launcher
    is_starting = run.status in {dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING}
    if not launcher.supports_check_run_worker_health or not is_starting or run.parent_run_id:
        return False
    if not _is_silent(record, instance, _LAUNCH_SECONDS):
        return False
    try:
        result = launcher.check_run_worker_health(run)
    except Exception as error:  # noqa: BLE001 - a code server may have no access to what runs the containers
        logger.warning(f"the run launcher does not say whether run {run.run_id} is alive: {error}")
        return False
    if result.status != WorkerStatus.FAILED:
        return False
    logger.warning(f"the run launcher reports that run {run.run_id} has failed: {result.msg or 'without a reason'}")
    return True


def _is_silent(record: dg.RunRecord, instance: dg.DagsterInstance, limit: float) -> bool:
    """Return whether nothing was heard of a run for some time, also if the clock was set back meanwhile."""
    newest = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    heard = newest[0].timestamp if newest else record.start_time or record.create_timestamp.timestamp()
    return abs(time.time() - heard) > limit


def _is_launched_here(run: dg.DagsterRun) -> bool:
    return _server_of(run).get("host") in {"localhost", "127.0.0.1"}


def _server_of(run: dg.DagsterRun) -> dict[str, str]:
    server: dict[str, str] = json.loads(run.tags.get(_SERVER_TAG, "{}"))
    return server


def _server_answers(run: dg.DagsterRun) -> bool:
    """Return whether the code server that is about to start a run still listens."""
    server = _server_of(run)
    unix = server.get("socket")
    address = unix or ("127.0.0.1", int(server.get("port") or 0))
    with closing(socket.socket(socket.AF_UNIX if unix else socket.AF_INET)) as probe:
        probe.settimeout(2)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def _launched_process(run: dg.DagsterRun, instance: dg.DagsterInstance) -> int | None:
    """Return the id of the process that a code server has started for a run, by its message."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=50).records
    for record in records:
        event = record.event_log_entry.dagster_event
        if match := re.search(r"Started process for run \(pid: (\d+)\)", (event.message if event else "") or ""):
            return int(match[1])
    return None
