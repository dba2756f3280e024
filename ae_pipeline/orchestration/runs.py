"""Runs that are active, and requests for runs that are repeated until their work is done."""

import datetime as dt
import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.dead_runs import ACTIVE, active_records, describe_run, end_dead_runs
from ae_pipeline.orchestration.jobs import job_name
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.side_by_side import set_pool_limits
from ae_pipeline.orchestration.tags import (
    READ_TAG,
    REASON_TAG,
    REPOSITORY,
    REQUEST_TAG,
    SIDE_BY_SIDE_TAG,
    range_tags,
)
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.locks import dataset_lock, locks

if TYPE_CHECKING:
    from ae_pipeline.lifecycle.plan import Plan, Work

_FIRST_DELAY, _MAX_DELAY = 60.0, 3600.0
"""Seconds before unfinished work is requested again: after the first attempt, and at most. Each attempt doubles it."""

_NEW_AFTER = 2 * _MAX_DELAY
"""Seconds between two runs from which the second one is a first attempt: the work was done, and is to be done again."""

Answer = list[dg.RunRequest] | dg.SkipReason


def request_runs(plan: "Plan", config: PipelineConfig, instance: dg.DagsterInstance) -> Answer:
    """Request the most urgent work of a plan that is not waiting after a failed attempt.

    Work that waits does not block the work after it: a file that cannot be read must not hold up the days of others.
    """
    waiting: list[str] = []
    for work in plan.work:
        requests, delayed = _requests(work, config, instance)
        if requests:
            return requests
        waiting += delayed
    return dg.SkipReason("; ".join(waiting) or plan.idle)


def _requests(
    work: "Work", config: PipelineConfig, instance: dg.DagsterInstance
) -> tuple[list[dg.RunRequest], list[str]]:
    """Return requests for the runs of some work, and a message for each run that waits after a failed attempt."""
    from ae_pipeline.lifecycle.plan import Step
    from ae_pipeline.lifecycle.ranges import range_name

    requests, delayed = [], []
    read = {READ_TAG: "by an earlier run"} if work.step == Step.INGEST else {}
    if read and config.scale.runs_at_once > 1:
        set_pool_limits([config], instance)
        read[SIDE_BY_SIDE_TAG] = f"at most {config.scale.runs_at_once}"
    parts = [(range_name(*days), range_tags(*days)) for days in work.ranges] or [("", {})]
    for part, tags in parts:
        reason = part or work.reason
        key, name = f"{work.step} {part} {work.state}", job_name(config, work.step)
        attempts = instance.get_run_records(dg.RunsFilter(job_name=name, tags={REQUEST_TAG: key}), limit=20)
        if message := _delay_message(attempts, reason):
            delayed.append(message)
            continue
        # Dagster drops a request whose run key it has seen, so each attempt has its own.
        run_key = f"{key} after {attempts[0].dagster_run.run_id if attempts else 'none'}"
        all_tags = {REQUEST_TAG: key, REASON_TAG: reason, **tags, **read}
        requests.append(dg.RunRequest(run_key=run_key, job_name=name, tags=all_tags, run_config=LOGGERS))
    return requests, delayed


def _delay_message(attempts: Sequence[dg.RunRecord], reason: str) -> str | None:
    """Return why work waits, or None if it may be requested now."""
    if not attempts:
        return None
    pairs = itertools.pairwise(attempts)
    gaps = (later.create_timestamp.timestamp() - _end(earlier) for later, earlier in pairs)
    repeated = sum(1 for _ in itertools.takewhile(lambda gap: gap < _NEW_AFTER, gaps))
    again = _end(attempts[0]) + min(_FIRST_DELAY * 2**repeated, _MAX_DELAY)
    if time.time() >= again:
        return None
    run = attempts[0].dagster_run
    ending = f"run {run.run_id} ended ({run.status.value.lower()}) and did not finish it"
    return f"{reason}: {ending}; next attempt at {dt.datetime.fromtimestamp(again, dt.UTC):%H:%M:%S} UTC"


def _end(attempt: dg.RunRecord) -> float:
    return attempt.end_time or attempt.update_timestamp.timestamp()


def active_run(dataset: Dataset, workspace: Workspace, instance: dg.DagsterInstance) -> str | None:
    """Return a message about what holds a dataset, or None. End runs whose process is dead first.

    A run holds a dataset whatever started it. A command that holds the lock counts as well: it works on the dataset.
    """
    end_dead_runs(instance, workspace.paths, dataset.name)
    for record in active_records(dataset.name, instance):
        run = record.dagster_run
        return f"{describe_run(run)} is active ({run.status.value.lower()})"
    lock = dataset_lock(dataset.paths)
    if locks().is_held(lock):
        holder = locks().holder(lock)
        return f"a command holds the lock of {dataset.name!r}{f' ({holder})' if holder else ''}"
    return None


def active_training(dataset: Dataset, workspace: Workspace, instance: dg.DagsterInstance) -> str | None:
    """Return a message about the active training of a dataset, or about what may train, or None."""
    message = active_run(dataset, workspace, instance)
    filters = dg.RunsFilter(job_name=job_name(dataset.config, "train"), statuses=ACTIVE)
    runs = instance.get_runs(filters, limit=1)
    return f"a training is active: run {runs[0].run_id}" if runs else message


def show_in_timeline(run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
    """Assign a run of this process to the code location of `workspace.yaml`, so that the timeline of the UI shows it.

    Dagster assigns the runs that its own servers launch. The job pages go by `REPOSITORY_TAG`, the timeline does not.
    """
    from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    repository, location = REPOSITORY.split("@")
    target = LoadableTargetOrigin(module_name=f"{location}.definitions")
    origin = RemoteRepositoryOrigin(ManagedGrpcPythonEnvCodeLocationOrigin(target, location), repository)
    instance.run_storage.replace_job_origin(run, origin.get_job_origin(run.job_name))
