"""Locks of a PostgreSQL server between processes, and what becomes of them when a process or a session ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.lock_kinds import Holder, Lock
from ae_pipeline.storage.locks import dataset_lock, locks, publication_lock
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.turnstile import check_who_is_next

pytestmark = pytest.mark.slow

CHILD = """
import sys, time
from pathlib import Path
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
with locks().hold(dataset_lock(DatasetPaths(Path(sys.argv[1]), "orders"))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """The lock of a dataset, in the server."""
    monkeypatch.setenv("AE_PIPELINE_LOCKS", postgres.replace("+psycopg2", ""))
    return dataset_lock(DatasetPaths(tmp_path, "orders"))


def is_soon_free(lock: Lock) -> bool:
    """Return whether nobody holds a lock. The server ends a session just after its connection is closed."""
    deadline = time.monotonic() + 10
    while (is_held := locks().is_held(lock)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_held


def test_a_killed_process_gives_its_lock_back(lock: Lock, tmp_path: Path) -> None:
    other = tmp_path / "other_host"  # the data folders of two hosts differ
    command = [sys.executable, "-c", CHILD, str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert locks().is_held(lock)
        holder = locks().holder(lock)
        assert (holder, str(holder)) == (Holder(socket.gethostname(), child.pid), f"process {child.pid}")
        with locks().try_to_hold(lock) as is_free:
            assert not is_free
        waited: list[tuple[Holder | None, float]] = []

        def kill(found: Holder | None) -> None:
            child.kill()
            waited.append((found, time.monotonic()))

        with locks().hold(lock, kill):
            ((found, killed_at),) = waited
            assert time.monotonic() - killed_at < 5  # a tenth of a second, unless the machine is busy
            assert found == holder
            assert locks().holder(lock) == Holder(socket.gethostname(), os.getpid())
        assert child.wait() == -signal.SIGKILL
    assert is_soon_free(lock)
    assert not list(tmp_path.rglob("*.lock"))


def test_a_thread_may_hold_a_lock_twice_and_another_waits(lock: Lock) -> None:
    order: list[str] = []

    def wait() -> None:
        with locks().hold(lock, lambda _: order.append("waits")):
            order.append("has it")

    thread = threading.Thread(target=wait)
    with locks().hold(lock):
        with locks().hold(lock):
            thread.start()
            while not order:
                time.sleep(0.01)
        assert locks().is_held(lock)
        locks().require(lock)
        order.append("gives it back")
    thread.join(5)
    assert order == ["waits", "gives it back", "has it"]


def test_runs_share_a_lock_that_nobody_holds_alone(lock: Lock) -> None:
    shared, others = replace(lock, is_shared=True), ThreadPoolExecutor(1)  # a lock belongs to a thread

    def is_free(wanted: Lock) -> bool:
        if not locks()._acquire(wanted, waits=False):
            return False
        locks()._release(wanted)
        return True

    with locks().hold(shared):
        assert others.submit(is_free, shared).result()
        assert not others.submit(is_free, lock).result()
        assert locks().holder(lock) == Holder(socket.gethostname(), os.getpid())
    with locks().hold(lock):
        assert not others.submit(is_free, shared).result()
    assert is_soon_free(lock)


def test_who_waits_to_hold_a_lock_alone_is_next(lock: Lock, tmp_path: Path) -> None:
    check_who_is_next(lock, tmp_path)


def test_datasets_and_publications_have_locks_of_their_own(lock: Lock, tmp_path: Path) -> None:
    others = [
        dataset_lock(DatasetPaths(tmp_path, "visits")),
        publication_lock(DatasetPaths(tmp_path, "orders")),
        publication_lock(DatasetPaths(tmp_path, "orders", "s3://bucket")),
    ]
    with locks().hold(lock):
        for other in others:
            with locks().try_to_hold(other) as is_free:
                assert is_free


def test_a_lost_session_is_an_error_before_the_commit(lock: Lock, postgres: str) -> None:
    engine = sa.create_engine(postgres, poolclass=sa.NullPool)
    with locks().hold(lock):
        with engine.connect() as connection:
            ended = connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'ae_pipeline%%'"
            )
            assert ended.scalars().all() == [True]
        with pytest.raises(StorageError, match=r"the lock of dataset orders was lost, .* nothing was published"):
            locks().require(lock)
    assert is_soon_free(lock)


def test_a_server_that_refuses_is_named_without_the_password(
    lock: Lock, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sa.make_url(postgres)
    wrong = {
        url.set(password="wr0ng"): "password authentication failed",
        url.set(port=1): "Connection refused",
    }
    for address, reason in wrong.items():
        monkeypatch.setenv("AE_PIPELINE_LOCKS", address.render_as_string(hide_password=False))
        with pytest.raises(
            StorageError, match=rf"the locks of the server .*{reason}.*correct AE_PIPELINE_LOCKS"
        ) as caught:
            locks().is_held(lock)
        assert str(address.password) not in str(caught.value)
