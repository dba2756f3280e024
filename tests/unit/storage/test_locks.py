"""Choice of the locks, and lock files."""

import importlib.util
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.lock_kinds import Holder, Lock
from ae_pipeline.storage.locks import FileLocks, dataset_lock, locks, publication_lock
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.postgres_locks import PostgresLocks
from tests.support.turnstile import check_who_is_next


@pytest.mark.parametrize("value", [None, "", "file"])
def test_files_are_the_default(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("AE_PIPELINE_LOCKS", raising=False)
    if value is not None:
        monkeypatch.setenv("AE_PIPELINE_LOCKS", value)
    assert isinstance(locks(), FileLocks)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("redis://host:s3cret@x", "AE_PIPELINE_LOCKS is 'redis', which is no kind of locks; set it to `file`"),
        ("files", "AE_PIPELINE_LOCKS is 'files', which is no kind of locks"),
        ("postgresql://u:s3cret@host:port/db", "AE_PIPELINE_LOCKS is no valid URL; write postgresql://user:password@"),
        ("postgresql+pg8000://u:s3cret@host/db", "needs the package pg8000"),
    ],
)
def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv("AE_PIPELINE_LOCKS", value)
    with pytest.raises(ConfigError) as caught:
        locks()
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, *_: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    monkeypatch.setenv("AE_PIPELINE_LOCKS", "postgresql://u@host/missing_driver")
    with pytest.raises(ConfigError, match=r"needs the package psycopg2; install it with `pip install 'ae-pipeline\["):
        locks()


def test_a_lock_file_is_free_again_after_the_last_user(tmp_path: Path) -> None:
    lock, other = (make(DatasetPaths(tmp_path, "orders")) for make in (dataset_lock, publication_lock))
    assert not FileLocks().is_held(lock)
    with FileLocks().hold(lock), FileLocks().hold(other):
        with FileLocks().hold(lock), FileLocks().try_to_hold(lock) as is_free:
            assert not is_free
        assert FileLocks().is_held(lock)
        FileLocks().require(lock)
    assert not FileLocks().is_held(lock)
    with FileLocks().try_to_hold(lock) as is_free:
        assert is_free


def test_runs_share_a_lock_file_that_nobody_holds_alone(tmp_path: Path) -> None:
    alone, shared = (dataset_lock(DatasetPaths(tmp_path, "orders"), is_shared=each) for each in (False, True))
    others = ThreadPoolExecutor(1)  # a lock belongs to a thread

    def is_free(lock: Lock) -> bool:
        if not FileLocks()._acquire(lock, waits=False):
            return False
        FileLocks()._release(lock)
        return True

    with FileLocks().hold(shared):
        with FileLocks().hold(shared), FileLocks().hold(alone):  # the second hold of a thread asks for nothing
            assert others.submit(is_free, shared).result()
        assert not others.submit(is_free, alone).result()
        assert FileLocks().is_held(alone)
        assert FileLocks().holder(alone) == Holder(socket.gethostname(), os.getpid())
        waits: list[Holder | None] = []

        def hold_alone() -> None:
            with FileLocks().hold(alone, waits.append):
                pass

        waiting = others.submit(hold_alone)
        while not waits:
            time.sleep(0.01)
        assert not waiting.done()
    waiting.result(5)
    with FileLocks().hold(alone):
        with FileLocks().hold(shared):
            assert not others.submit(is_free, shared).result()
        assert not others.submit(is_free, shared).result()
        sharing = others.submit(FileLocks()._acquire, shared, waits=True)
        assert not wait([sharing], 0.1).done
    assert sharing.result(5)
    others.submit(FileLocks()._release, shared).result()
    assert not FileLocks().is_held(alone)


def test_who_waits_to_hold_a_lock_file_alone_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_LOCKS", "file")
    check_who_is_next(dataset_lock(DatasetPaths(tmp_path, "orders")), tmp_path)


@pytest.mark.parametrize(("host", "is_here"), [("worker-" * 10, True), ("other-" * 10, False)])
def test_a_host_with_a_long_name_knows_its_own_processes(
    monkeypatch: pytest.MonkeyPatch, host: str, is_here: bool
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "worker-" * 10)
    server = PostgresLocks(sa.make_url("sqlite://"))
    monkeypatch.setattr(server, "_applications", lambda _: [f"ae_pipeline 12345 {host}"[:63]])
    holder = server.holder(dataset_lock(DatasetPaths(Path("data"), "flights")))
    assert holder is not None
    assert (holder.pid, holder.is_here) == (12345, is_here)
