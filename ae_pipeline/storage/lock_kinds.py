"""What a lock is, and who holds it, for each kind of locks."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

LOCKS_VARIABLE = "AE_PIPELINE_LOCKS"
"""Environment variable that selects the locks: `file`, or the URL of a PostgreSQL database."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        host: Name of its machine.
        pid: Its process id.
    """

    host: str
    pid: int

    @property
    def is_here(self) -> bool:
        """Whether the process is on this machine."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        """Return the process as part of a sentence."""
        return f"process {self.pid}" if self.is_here else f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Lock:
    """What is locked.

    Attributes:
        file: Lock file, for locks of one machine.
        name: Name, for locks of several hosts.
        is_shared: Whether several processes may hold it so at the same time, while nobody holds it alone.
    """

    file: Path
    name: str
    is_shared: bool = False

    @property
    def turnstile(self) -> "Lock":
        """Lock that a process holds while it waits to hold this one alone. Who shares this one takes it first."""
        return replace(self, file=self.file.with_suffix(".next.lock"), name=f"{self.name}, next")


class Locks(ABC):
    """A kind of locks. A thread may hold a lock more than once, and keeps the kind of hold that it acquired first.

    A process that waits to hold a lock alone comes before those that want to share it later. Otherwise it would wait
    until no process shares the lock, which may never happen.
    """

    @contextmanager
    def hold(self, lock: Lock, on_wait: Callable[[Holder | None], None] = lambda _: None) -> Iterator[None]:
        """Hold a lock, and wait while somebody else holds it.

        Args:
            lock: What to lock.
            on_wait: Called once with the holder, as far as it is known, before this process waits.

        Raises:
            StorageError: The locks cannot be reached.
        """
        if not self._enter(lock):
            # Who waits to hold it alone is in the way first, also if others share it.
            on_wait((self.holder(lock.turnstile) if lock.is_shared else None) or self.holder(lock))
            self._wait(lock)
        try:
            yield
        finally:
            self._release(lock)

    def _enter(self, lock: Lock) -> bool:
        """Acquire a lock unless somebody is in the way, and return whether this thread has it now."""
        if lock.is_shared and not self._has(lock):
            if not self._acquire(lock.turnstile, waits=False):
                return False
            self._release(lock.turnstile)
        return self._acquire(lock, waits=False)

    def _wait(self, lock: Lock) -> None:
        """Acquire a lock behind those that wait to hold it alone."""
        self._acquire(lock.turnstile, waits=True)
        if lock.is_shared:
            self._release(lock.turnstile)
            self._acquire(lock, waits=True)
            return
        try:
            self._acquire(lock, waits=True)
        finally:
            self._release(lock.turnstile)

    @contextmanager
    def try_to_hold(self, lock: Lock) -> Iterator[bool]:
        """Hold a lock unless somebody holds it, this thread included; yield whether it was free.

        Raises:
            StorageError: The locks cannot be reached.
        """
        if self.is_held(lock) or not self._acquire(lock, waits=False):
            yield False
            return
        try:
            yield True
        finally:
            self._release(lock)

    @abstractmethod
    def _acquire(self, lock: Lock, *, waits: bool) -> bool:
        """Acquire a lock, and return whether this thread has it now."""

    @abstractmethod
    def _release(self, lock: Lock) -> None:
        """Release a lock once."""

    @abstractmethod
    def _has(self, lock: Lock) -> bool:
        """Return whether this thread holds a lock."""

    @abstractmethod
    def is_held(self, lock: Lock) -> bool:
        """Return whether a process holds a lock, this one included."""

    @abstractmethod
    def holder(self, lock: Lock) -> Holder | None:
        """Return who holds a lock, as far as it is known."""

    @abstractmethod
    def require(self, lock: Lock) -> None:
        """Check that this process still has a lock that it holds.

        Raises:
            StorageError: The lock was lost, so that another process may hold it.
        """
