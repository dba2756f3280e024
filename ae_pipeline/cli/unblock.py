"""`ae-pipeline unblock`: what holds a dataset, and how to free it."""

import os
import re
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ae_pipeline.cli.project import Project
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.lock_kinds import Holder
from ae_pipeline.storage.locks import dataset_lock, locks

if TYPE_CHECKING:
    import dagster as dg

_STOP_SECONDS = 5.0
"""Time that a process has to stop after SIGTERM. Then it is killed."""


def unblock(name: str, *, force: bool) -> int:
    """List what holds a dataset, end dead runs, and free their slots in its pools; return the exit status.

    Args:
        name: Name of the dataset, which need not be defined any more.
        force: Whether to cancel living runs, and to end the processes that hold the dataset.

    Raises:
        ConfigError: The name is not valid; a living process holds the dataset and `force` is not set; or a process on
            another machine holds it.
    """
    from ae_pipeline.orchestration.dead_runs import active_records, end_dead_runs
    from ae_pipeline.orchestration.side_by_side import pool_of_days

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"{name!r} is not the name of a dataset; write it as in its YAML")
    project = Project.load()
    instance = project.instance
    for run in end_dead_runs(instance, project.workspace.paths, name, asks_launcher=True):
        print(f"{_describe(run)}: its process is dead; ended.", flush=True)
    living = [record.dagster_run for record in active_records(name, instance)]
    holders = [_holder(run) for run in living]
    lock_holder = _lock_holder(project, name)
    lock_pid = lock_holder.pid if lock_holder and lock_holder.is_here else None
    if lock_holder and (lock_pid is None or lock_pid not in holders):
        from ae_pipeline.orchestration.processes import command_of

        print(f"{lock_holder} holds the lock{f': {command_of(lock_pid)}' if lock_pid else ''}", flush=True)
    if (waiting := _waiting(project, name)) and waiting != lock_holder:
        print(f"{waiting} waits to hold the lock alone, before runs that share it", flush=True)
    if not force:
        for run, pid in zip(living, holders, strict=True):
            print(f"{_describe(run)}: {_condition(run, pid)}", flush=True)
        if lock_holder or any(not _is_queued(run) for run in living):
            raise ConfigError(
                f"{name!r} is in use by what is listed above, which is alive; wait for its end, or cancel it with "
                f"`ae-pipeline unblock {name} --force`: unfinished work of it is done again later"
            )
    else:
        for run, pid in zip(living, holders, strict=True):
            _cancel(run, pid, project)
        _end_holders(project, name)
    for pool in (name, pool_of_days(name)):
        for slot in _free_slots(project, pool):
            print(f"slot of run {slot} in the pool {pool!r}: freed.", flush=True)
    print(
        f"Nothing holds {name!r}." if force or not living else f"{name!r} waits for Dagster's daemon to start its runs."
    )
    return 0


def _end_holders(project: Project, name: str) -> None:
    """End the processes of this machine that hold the lock of a dataset. Several may share it."""
    ended: set[int] = set()
    while holder := _lock_holder(project, name):
        if not holder.is_here:
            raise ConfigError(f"{holder} holds the lock of {name!r}; run `ae-pipeline unblock` on that machine")
        if holder.pid in ended:
            raise ConfigError(f"{holder} still holds the lock of {name!r} after SIGKILL; look at the state of its disk")
        _end_process(holder.pid)
        ended.add(holder.pid)
        print(f"process {holder.pid}: ended.", flush=True)


def _cancel(run: "dg.DagsterRun", pid: int | None, project: Project) -> None:
    """Cancel a run, end its process, and print both."""
    from ae_pipeline.orchestration.dead_runs import end_run

    project.instance.report_run_canceling(run, "cancelled by `ae-pipeline unblock --force`")
    if pid:
        _end_process(pid)
    end_run(run, project.instance, "cancelled by `ae-pipeline unblock --force`")
    print(f"{_describe(run)}: cancelled{f', process {pid} ended' if pid else ''}.", flush=True)


def _end_process(pid: int) -> None:
    from ae_pipeline.orchestration.processes import start_ticks

    started = start_ticks(pid)
    for signum, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
        end = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        while time.monotonic() < end:
            if started is None or start_ticks(pid) != started:
                return
            time.sleep(0.05)


def _holder(run: "dg.DagsterRun") -> int | None:
    """Return the id of the living process of a run on this machine, or None."""
    from ae_pipeline.orchestration.dead_runs import process_of

    process = process_of(run)
    return process.pid if process and process.is_alive else None


def _lock_holder(project: Project, name: str) -> Holder | None:
    """Return the process that holds the lock of a dataset, or None.

    If nobody holds it, a stopped process that waits to hold it alone can still be in the way of those that share it.
    """
    lock = dataset_lock(project.workspace.paths(name))
    return next((locks().holder(each) for each in (lock, lock.turnstile) if locks().is_held(each)), None)


def _waiting(project: Project, name: str) -> Holder | None:
    """Return the process that waits to hold the lock of a dataset alone, or None."""
    turnstile = dataset_lock(project.workspace.paths(name)).turnstile
    return locks().holder(turnstile) if locks().is_held(turnstile) else None


def _free_slots(project: Project, name: str) -> list[str]:
    """Free the slots of a pool that ended or deleted runs hold, and return the ids of these runs."""
    storage = project.instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    slots = {slot.run_id for slot in storage.get_concurrency_info(name).claimed_slots}
    freed = []
    for run_id in sorted(slots):
        run = project.instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
            freed.append(run_id)
    return freed


def _is_queued(run: "dg.DagsterRun") -> bool:
    return run.status.value == "QUEUED"


def _condition(run: "dg.DagsterRun", pid: int | None) -> str:
    if _is_queued(run):
        return "queued; Dagster's daemon starts it when the dataset is free."
    return f"{run.status.value.lower()}, {f'process {pid} is alive' if pid else 'its process is not known'}."


def _describe(run: "dg.DagsterRun") -> str:
    from ae_pipeline.orchestration.dead_runs import describe_run

    return describe_run(run)
