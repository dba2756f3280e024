"""Who holds a lock next: the same for all kinds of locks."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ae_pipeline.storage.lock_kinds import Holder, Lock
from ae_pipeline.storage.locks import locks

WAITING = """
import sys
from pathlib import Path
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
with locks().hold(dataset_lock(DatasetPaths(Path(sys.argv[1]), "orders")), lambda _: print("waits", flush=True)):
    print("has it", flush=True)
"""
"""A program that waits to hold the lock of a dataset alone."""


def _holding(lock: Lock, name: str, order: list[str], pid: int | None = None) -> threading.Thread:
    """Start a thread that holds a lock for a moment, and return it when it waits, for a process if one is given."""

    def waits(holder: Holder | None) -> None:
        order.append(f"{name} waits" if pid is None or (holder and holder.pid == pid) else f"{name} waits for {holder}")

    def hold() -> None:
        with locks().hold(lock, waits):
            order.append(name)

    thread = threading.Thread(target=hold)
    thread.start()
    _until(lambda: bool(order) and order[-1] == f"{name} waits")
    return thread


def _until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def check_who_is_next(lock: Lock, root: Path) -> None:
    """Check that who waits to hold a lock alone comes before those that want to share it later, also after a kill.

    Args:
        lock: Lock of the dataset `orders`.
        root: Its data folder.
    """
    shared, order = replace(lock, is_shared=True), list[str]()
    with locks().hold(shared):
        command = [sys.executable, "-c", WAITING, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            _until(lambda: locks().is_held(lock.turnstile))
            sharing = _holding(shared, "shares", order, process.pid if Path("/proc/locks").exists() else None)
            with locks().hold(shared):  # who has it does not wait for it
                process.kill()
        sharing.join(10)
        assert order == ["shares waits", "shares"]
        alone = _holding(lock, "alone", order)
        _until(lambda: locks().is_held(lock.turnstile))
        sharing = _holding(shared, "shares", order)
        time.sleep(0.3)
        assert order[2:] == ["alone waits", "shares waits"]
    alone.join(10)
    sharing.join(10)
    assert order[4:] == ["alone", "shares"]
    # A server ends a session just after its connection is closed.
    _until(lambda: not locks().is_held(lock) and not locks().is_held(lock.turnstile))
