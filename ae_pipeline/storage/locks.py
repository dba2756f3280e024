"""Locks that serialize the work on a dataset: files for one machine, or a PostgreSQL server for several hosts.

`AE_PIPELINE_LOCKS` selects them. Both kinds end with the process that holds them, also if it is killed.
"""

import errno
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE, Holder, Lock, Locks
from ae_pipeline.storage.paths import DatasetPaths


def dataset_lock(paths: DatasetPaths, *, is_shared: bool = False) -> Lock:
    """Return the lock of a dataset: one run or command at a time changes its files, or several share it."""
    return Lock(paths.lock, f"dataset {paths.dataset}", is_shared)


def publication_lock(paths: DatasetPaths) -> Lock:
    """Return the lock of the texts beside a latent table: one publication at a time writes them."""
    table = paths.latents if "://" in paths.latents else paths.dataset
    return Lock(paths.lock.with_suffix(".publication.lock"), f"publication {table}")


class FileLocks(Locks):
    """Lock files in the data folder."""

    def _acquire(self, lock: Lock, *, waits: bool) -> bool:
        make_folder(lock.file.parent)
        slot = threading.get_ident(), lock.file
        if shared := _shared.get(slot):
            shared.count += 1
            return True
        if lock.is_shared and not _file_lock(lock.file).is_locked:
            while (descriptor := _share(lock.file)) is None:
                if not waits:
                    return False
                time.sleep(_POLL_SECONDS)
            _shared[slot] = _Shared(descriptor)
            return True
        try:
            _file_lock(lock.file).acquire(timeout=-1 if waits else 0)
        except Timeout:
            return False
        return True

    def _release(self, lock: Lock) -> None:
        slot = threading.get_ident(), lock.file
        shared = _shared.get(slot)
        if shared is None:
            _file_lock(lock.file).release()
            return
        shared.count -= 1
        if not shared.count:
            del _shared[slot]
            os.close(shared.descriptor)

    def _has(self, lock: Lock) -> bool:
        return (threading.get_ident(), lock.file) in _shared or _file_lock(lock.file).is_locked

    def is_held(self, lock: Lock) -> bool:
        """Return whether a process holds a lock file."""
        if not lock.file.exists():
            return False
        try:
            with FileLock(lock.file).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def holder(self, lock: Lock) -> Holder | None:
        """Return the process of this machine that holds a lock file, as far as the system tells it."""
        try:
            inode, table = lock.file.stat().st_ino, Path("/proc/locks").read_text(encoding="ascii")
        except OSError:
            return None
        for line in table.splitlines():
            match = re.match(r"\d+: FLOCK\s+\S+\s+(?:READ|WRITE) (\d+) \S+:(\d+) ", line)
            if match and int(match[2]) == inode:
                return Holder(socket.gethostname(), int(match[1]))
        return None

    def require(self, lock: Lock) -> None:
        """Do nothing: the system takes a file lock from no living process."""


@dataclass
class _Shared:
    """A lock file that a thread of this process shares.

    Attributes:
        descriptor: Descriptor of the open file, which has the lock.
        count: How often the thread has acquired it.
    """

    descriptor: int
    count: int = 1


_shared: dict[tuple[int, Path], _Shared] = {}
"""Lock files that threads of this process share."""

_POLL_SECONDS = 0.05
"""Time between two tries to share a lock file."""


def _share(path: Path) -> int | None:
    """Share a lock file unless a process holds it alone, and return the open file. `filelock` has no shared locks."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            return None
        raise
    return descriptor


@cache
def _file_lock(path: Path) -> FileLock:
    """Return the one object of a lock file. It counts how often a thread holds it, and its end would release it."""
    return FileLock(path)


def marks_lock(paths: DatasetPaths) -> Lock:
    """Return the lock of the marks of people, who do not wait for a run."""
    return Lock(paths.lock.with_suffix(".marks.lock"), f"marks {paths.dataset}")


def locks() -> Locks:
    """Return the locks that `AE_PIPELINE_LOCKS` selects; files by default.

    Raises:
        ConfigError: The variable has another value, or a driver is missing.
    """
    value = os.environ.get(LOCKS_VARIABLE) or "file"
    if value == "file":
        return FileLocks()
    if not re.match(r"postgresql(\+\w+)?://", value):
        scheme = value.partition("://")[0] if "://" in value else value
        raise ConfigError(
            f"{LOCKS_VARIABLE} is {scheme!r}, which is no kind of locks; set it to `file`, or to the address of a "
            "database, postgresql://user:password@host/database"
        )
    from ae_pipeline.storage.postgres_locks import postgres_locks

    return postgres_locks(value)
