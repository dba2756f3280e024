"""Dead runs of any origin are ended, also behind a live one; living ones and those of other machines are kept."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import TAGS_TO_MAYBE_OMIT_ON_RETRY
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from filelock import FileLock

from ae_pipeline.orchestration import dead_runs
from ae_pipeline.orchestration.dead_runs import (
    active_records,
    datasets_of_run,
    describe_run,
    end_dead_runs,
    process_of,
    record_process,
)
from ae_pipeline.orchestration.processes import identify, parse_process, start_ticks
from ae_pipeline.orchestration.tags import DATASET_TAG, PERSON_PRIORITY, PRIORITY_TAG, PROCESS_TAG
from ae_pipeline.storage.lock_kinds import Holder
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths


@dg.asset(key=["orders", "raw_data"])
def raw_data() -> None:
    """An asset of the dataset."""


@dg.asset(key=["other", "raw_data"])
def other() -> None:
    """An asset of another dataset."""


ORDERS = dg.Definitions([raw_data, other], jobs=[dg.define_asset_job("orders_train", selection=[raw_data])])


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def _run(
    instance: dg.DagsterInstance,
    process: str = "",
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
    parent: str | None = None,
) -> dg.DagsterRun:
    """Create a run of a person's selection, without the tag of the dataset, with a process."""
    job = ORDERS.resolve_implicit_global_asset_job_def().get_subset(asset_selection={raw_data.key})
    selection = frozenset({raw_data.key})
    run = instance.create_run_for_job(
        job, status=status, asset_selection=selection, parent_run_id=parent, root_run_id=parent
    )
    if process:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{run.run_id} {process}"})
    return run


def _status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    current = instance.get_run_by_id(run.run_id)
    assert current is not None
    return current.status


def _dead() -> str:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    identity = str(identify(process.pid))
    process.communicate()
    return identity


def _end(
    instance: dg.DagsterInstance, root: Path, dataset: str | None = "orders", *, asks_launcher: bool = False
) -> list[str]:
    ended = end_dead_runs(instance, lambda name: DatasetPaths(root, name), dataset, asks_launcher=asks_launcher)
    return [run.run_id for run in ended]


def test_a_dead_run_between_living_ones_is_ended(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    first, dead = _run(instance, str(identify(os.getpid()))), _run(instance, _dead())
    last = _run(instance, str(identify(os.getpid())))
    assert _end(instance, tmp_path) == [dead.run_id]
    assert _status(instance, dead) == dg.DagsterRunStatus.FAILURE
    assert _status(instance, first) == _status(instance, last) == dg.DagsterRunStatus.STARTED


def test_a_run_of_before_a_reboot_is_dead(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = _run(instance, str(replace(identify(os.getpid()), boot="another-start")))
    assert _end(instance, tmp_path, None) == [run.run_id]


def test_a_process_id_that_was_used_again_is_dead(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = _run(instance, str(replace(identify(os.getpid()), ticks=1)))
    assert _end(instance, tmp_path) == [run.run_id]


def test_a_living_run_and_one_of_another_machine_are_kept(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    mine = identify(os.getpid())
    for process in (mine, replace(mine, host="elsewhere", pid=1)):
        _run(instance, str(process))
    assert _end(instance, tmp_path) == []


def test_a_launcher_says_which_host_was_lost_while_its_run_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = {"module": "benchmarks.hosts_launcher", "class": "HostLauncher", "config": {"hosts": str(tmp_path)}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"run_launcher": launcher}) as instance:
        lost, alive, not_launched = (_run(instance, status=dg.DagsterRunStatus.STARTING) for _ in range(3))
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        for run, pid in ((lost, ended.pid), (alive, os.getpid())):
            (tmp_path / run.run_id).mkdir()
            (tmp_path / run.run_id / "pid").write_text(str(pid))
        retry = _run(instance, status=dg.DagsterRunStatus.STARTING, parent=lost.run_id)
        (tmp_path / retry.run_id).mkdir()
        (tmp_path / retry.run_id / "pid").write_text(str(ended.pid))
        assert _end(instance, tmp_path, asks_launcher=True) == []  # the launcher may still start it
        monkeypatch.setattr(dead_runs, "_LAUNCH_SECONDS", -1.0)
        assert _end(instance, tmp_path) == []
        assert _end(instance, tmp_path, asks_launcher=True) == [lost.run_id]
        assert f"the run launcher reports that run {lost.run_id} has failed" in caplog.text
        assert _status(instance, lost) == dg.DagsterRunStatus.FAILURE
        for run in (alive, not_launched, retry):
            assert _status(instance, run) == dg.DagsterRunStatus.STARTING

        def fail(_: dg.DagsterRun) -> None:
            raise ConnectionError("no route")

        monkeypatch.setattr(instance.run_launcher, "check_run_worker_health", fail)
        assert _end(instance, tmp_path, asks_launcher=True) == []
        assert f"does not say whether run {alive.run_id} is alive: no route" in caplog.text


def test_a_run_that_was_cancelled_ends_as_cancelled(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = _run(instance, _dead(), dg.DagsterRunStatus.CANCELING)
    assert _end(instance, tmp_path) == [run.run_id]
    assert _status(instance, run) == dg.DagsterRunStatus.CANCELED


def test_another_dataset_is_left_alone(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = _run(instance, _dead())
    assert _end(instance, tmp_path, "other") == []
    assert [record.dagster_run.run_id for record in active_records("orders", instance)] == [run.run_id]


@pytest.mark.parametrize("shift", [600.0, -600.0])
def test_a_silent_run_without_a_process_is_dead(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """Also if the clock was set back."""
    run = _run(instance)
    assert _end(instance, tmp_path) == []
    lock = DatasetPaths(tmp_path, "orders").lock
    lock.parent.mkdir()
    moment = time.time() + shift
    monkeypatch.setattr("ae_pipeline.orchestration.dead_runs.time.time", lambda: moment)
    with FileLock(lock):
        assert _end(instance, tmp_path) == []  # its process is alive: it holds the lock
    assert _end(instance, tmp_path) == [run.run_id]


def test_a_retry_does_not_inherit_the_process(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    first = _run(instance, _dead())
    retried = _run(instance)
    dead = instance.get_run_by_id(first.run_id)
    assert dead is not None
    instance.add_run_tags(retried.run_id, {PROCESS_TAG: dead.tags[PROCESS_TAG]})
    assert _end(instance, tmp_path) == [first.run_id]
    current = instance.get_run_by_id(retried.run_id)
    assert current is not None
    record_process(current, instance)
    current = instance.get_run_by_id(retried.run_id)
    assert current is not None
    process = process_of(current)
    assert process is not None
    assert (process.pid, process.is_alive) == (os.getpid(), True)


def _next_in_queue(instance: dg.DagsterInstance, runs: Sequence[dg.DagsterRun]) -> list[str]:
    """Return the ids of runs in the order in which Dagster's daemon starts them."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    current = [run for each in runs if (run := instance.get_run_by_id(each.run_id))]
    return [run.run_id for run in daemon._priority_sort(current)]


@pytest.mark.parametrize("has_begun", [True, False])
def test_the_retry_of_a_lost_run_goes_before_runs_that_were_queued_meanwhile(
    instance: dg.DagsterInstance, tmp_path: Path, *, has_begun: bool
) -> None:
    lost = _run(instance, "" if has_begun else _dead())
    if has_begun:
        record_process(lost, instance)
    else:
        assert _end(instance, tmp_path) == [lost.run_id]
    queued = [_run(instance, status=dg.DagsterRunStatus.NOT_STARTED) for _ in range(2)]
    parent = instance.get_run_by_id(lost.run_id)
    assert parent is not None
    retry = _run(instance, status=dg.DagsterRunStatus.NOT_STARTED, parent=lost.run_id)
    kept = {key: value for key, value in parent.tags.items() if key not in TAGS_TO_MAYBE_OMIT_ON_RETRY}
    instance.add_run_tags(retry.run_id, kept)  # as Dagster's daemon does
    rollback = _run(instance, status=dg.DagsterRunStatus.NOT_STARTED)
    instance.add_run_tags(rollback.run_id, {PRIORITY_TAG: PERSON_PRIORITY})
    order = [rollback.run_id, retry.run_id, *(run.run_id for run in queued)]
    assert _next_in_queue(instance, [*queued, retry, rollback]) == order


def test_a_priority_that_a_person_gave_stays(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run = _run(instance, _dead())
    instance.add_run_tags(run.run_id, {PRIORITY_TAG: "-3"})
    assert _end(instance, tmp_path) == [run.run_id]
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    record_process(ended, instance)
    current = instance.get_run_by_id(run.run_id)
    assert current is not None
    assert current.tags[PRIORITY_TAG] == "-3"


def test_the_datasets_of_a_run_come_from_tag_selection_or_plan(instance: dg.DagsterInstance) -> None:
    by_plan = instance.create_run_for_job(ORDERS.resolve_job_def("orders_train"))
    by_tag = instance.create_run_for_job(ORDERS.resolve_job_def("orders_train"), tags={DATASET_TAG: "tagged"})
    assert [datasets_of_run(run, instance) for run in (_run(instance), by_plan, by_tag)] == [
        ["orders"],
        ["orders"],
        ["tagged"],
    ]


def test_a_person_reads_what_a_run_does(instance: dg.DagsterInstance) -> None:
    run = _run(instance)
    assert describe_run(run) == f"run {run.run_id} of raw_data"
    job = instance.create_run_for_job(ORDERS.resolve_job_def("orders_train"))
    assert describe_run(job) == f"run {job.run_id} of orders_train"


def test_the_identity_of_a_process_survives_a_tag() -> None:
    mine = identify(os.getpid())
    assert parse_process(str(mine)) == mine
    assert parse_process(str(replace(mine, boot=""))) == replace(mine, boot="")
    assert parse_process("anything else") is None
    assert mine.is_alive


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(process.pid) is None
    process.communicate()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux tells who holds a lock")
def test_the_holder_of_a_lock_is_found(tmp_path: Path) -> None:
    lock = dataset_lock(DatasetPaths(tmp_path, "orders"))
    assert locks().holder(lock) is None
    with locks().hold(lock):
        assert locks().holder(lock) == Holder(socket.gethostname(), os.getpid())
    assert locks().holder(lock) is None


def test_a_run_that_goes_on_while_it_is_looked_at_is_kept(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(instance, status=dg.DagsterRunStatus.STARTING)

    def start(*_: object, **__: object) -> bool:
        instance.report_dagster_event(dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name), run.run_id)
        return True

    monkeypatch.setattr(dead_runs, "is_dead", start)
    assert _end(instance, tmp_path) == []
    assert _status(instance, run) == dg.DagsterRunStatus.STARTED
