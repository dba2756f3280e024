"""`ae-pipeline unblock`: it ends what is dead, refuses what is alive, and cancels that with --force."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ae_pipeline.cli.project import Project
from ae_pipeline.cli.unblock import unblock
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.orchestration.processes import identify
from ae_pipeline.orchestration.resources import Workspace
from ae_pipeline.orchestration.tags import DATASET_TAG, PROCESS_TAG
from ae_pipeline.storage.lock_kinds import Holder
from ae_pipeline.storage.locks import dataset_lock

_HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job
def orders_train() -> None:
    """A job of the dataset."""
    nothing()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The project that the command loads: no dataset, and an instance in memory."""
    workspace = Workspace(data_folder=str(tmp_path / "data"), mlflow_folder=str(tmp_path / "mlruns"))
    with dg.DagsterInstance.ephemeral() as instance:
        project = Project(dg.Definitions(), workspace, {}, instance)
        monkeypatch.setattr("ae_pipeline.cli.unblock.Project.load", lambda: project)
        yield project


@pytest.fixture
def process(project: Project) -> Iterator["subprocess.Popen[str]"]:
    """A living process that holds the lock of the dataset."""
    yield from _holding(project.workspace.paths("orders").lock)


@pytest.fixture
def waiting(project: Project) -> Iterator["subprocess.Popen[str]"]:
    """A living process that waits to hold the lock alone, as a stopped one does after the lock became free."""
    yield from _holding(dataset_lock(project.workspace.paths("orders")).turnstile.file)


def _holding(lock: Path) -> Iterator["subprocess.Popen[str]"]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def _run(project: Project, pid: int) -> str:
    run = project.instance.create_run_for_job(
        orders_train, tags={DATASET_TAG: "orders"}, status=dg.DagsterRunStatus.STARTED
    )
    project.instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{run.run_id} {identify(pid)}"})
    return run.run_id


def _status(project: Project, run_id: str) -> str:
    run = project.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value


def test_nothing_holds_an_idle_dataset(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert unblock("orders", force=False) == 0
    assert capsys.readouterr().out == "Nothing holds 'orders'.\n"


def test_a_dead_run_is_ended(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = _run(project, 2**22 + 1)  # above the largest process id
    assert unblock("orders", force=False) == 0
    assert _status(project, run_id) == "FAILURE"
    assert f"run {run_id} of orders_train: its process is dead; ended.\n" in capsys.readouterr().out


def test_a_living_run_is_refused(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = _run(project, os.getpid())
    with pytest.raises(ConfigError, match=r"in use by what is listed above.*unblock orders --force"):
        unblock("orders", force=False)
    assert _status(project, run_id) == "STARTED"
    assert f"run {run_id} of orders_train: started, process {os.getpid()} is alive.\n" in capsys.readouterr().out


def test_force_cancels_a_living_run(
    project: Project, process: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = _run(project, process.pid)
    assert unblock("orders", force=True) == 0
    assert _status(project, run_id) == "CANCELED"
    assert process.wait(timeout=5) == -15
    assert f"run {run_id} of orders_train: cancelled, process {process.pid} ended.\n" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux tells who holds a lock")
def test_a_command_that_holds_the_lock_is_named(
    project: Project, process: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="in use"):
        unblock("orders", force=False)
    assert f"process {process.pid} holds the lock: " in capsys.readouterr().out
    assert process.poll() is None
    assert unblock("orders", force=True) == 0
    assert process.wait(timeout=5) == -15


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux tells who holds a lock")
@pytest.mark.usefixtures("process")
def test_a_process_that_waits_for_the_lock_is_named(
    waiting: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="in use"):
        unblock("orders", force=False)
    assert f"process {waiting.pid} waits to hold the lock alone" in capsys.readouterr().out
    assert unblock("orders", force=True) == 0
    assert waiting.wait(timeout=5) == -15


def test_a_name_that_is_a_path_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match="is not the name of a dataset"):
        unblock("../orders", force=False)


@pytest.mark.parametrize("force", [False, True])
def test_a_holder_on_another_machine_is_named_and_left_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], force: bool
) -> None:
    monkeypatch.setattr("ae_pipeline.cli.unblock._lock_holder", lambda *_: Holder("worker-7", os.getpid()))
    with pytest.raises(ConfigError, match="run `ae-pipeline unblock` on that machine" if force else "in use"):
        unblock("orders", force=force)
    assert capsys.readouterr().out == f"process {os.getpid()} on worker-7 holds the lock\n"
