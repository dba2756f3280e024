"""Locks of a PostgreSQL server: advisory locks of a session, which end with the connection."""

import hashlib
import importlib.util
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa

from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE, Holder, Lock, Locks

_DRIVERS = ("psycopg", "psycopg2")

_POLL_SECONDS = 0.05
"""Time between two tries. A statement that waits in the server would delay the handlers of signals."""

_SETTINGS = {
    # A host that vanished without a word keeps its locks for 10 + 3 × 5 seconds.
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "idle_session_timeout": 0,  # a lock outlives long steps
}

_HOLDER = sa.text(
    "SELECT activity.application_name FROM pg_locks JOIN pg_stat_activity activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND ((classid::bigint << 32) | objid::bigint) = :key "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@dataclass
class _Held:
    """A lock that a thread of this process holds.

    Attributes:
        connection: Session with the lock.
        count: How often the thread has acquired it.
    """

    connection: sa.Connection
    count: int = 1


class PostgresLocks(Locks):
    """Advisory locks in one database.

    Args:
        url: Address of the database.
    """

    def __init__(self, url: sa.URL) -> None:
        options = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        self._server = f"{url.host or 'localhost'}:{url.port or 5432}"
        self._engine = sa.create_engine(
            url,
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "connect_timeout": 10,
                "options": options,
                "application_name": _application(os.getpid()),
            },
        )
        self._held: dict[tuple[int, str], _Held] = {}

    def _acquire(self, lock: Lock, *, waits: bool) -> bool:
        slot = threading.get_ident(), lock.name
        if slot in self._held:
            self._held[slot].count += 1
            return True
        statement = sa.text(f"SELECT pg_try_advisory_lock{'_shared' if lock.is_shared else ''}(:key)")
        with self._errors():
            connection = self._engine.connect()
            try:
                while not connection.scalar(statement, {"key": _key(lock)}):
                    if not waits:
                        connection.close()
                        return False
                    time.sleep(_POLL_SECONDS)
            except BaseException:
                connection.close()
                raise
        self._held[slot] = _Held(connection)
        return True

    def _release(self, lock: Lock) -> None:
        slot = threading.get_ident(), lock.name
        held = self._held[slot]
        held.count -= 1
        if not held.count:
            del self._held[slot]
            held.connection.close()  # the session ends, and the lock with it, whether the server answers or not

    def _has(self, lock: Lock) -> bool:
        return (threading.get_ident(), lock.name) in self._held

    def is_held(self, lock: Lock) -> bool:
        """Return whether a process of any host holds a lock."""
        return bool(self._applications(lock))

    def holder(self, lock: Lock) -> Holder | None:
        """Return the process of any host that holds a lock."""
        for name in self._applications(lock):
            program, _, process = name.partition(" ")
            pid, _, host = process.partition(" ")
            if program == "ae_pipeline" and pid.isdigit():
                is_here = name == _application(int(pid))  # the name of the host may be cut
                return Holder(socket.gethostname() if is_here else host, int(pid))
        return None

    def require(self, lock: Lock) -> None:
        """Check that the session of a lock, which any thread of this process may hold, is alive.

        Raises:
            StorageError: It is not.
        """
        held = next((each for (_, name), each in list(self._held.items()) if name == lock.name), None)
        try:
            alive = held is not None and held.connection.scalar(sa.text("SELECT 1")) == 1
        except sa.exc.DBAPIError:
            alive = False
        if not alive:
            raise StorageError(
                f"the lock of {lock.name} was lost, because the connection to {self._server} ended; nothing was "
                "published, run it again"
            )

    def _applications(self, lock: Lock) -> list[str]:
        with self._errors(), self._engine.connect() as connection:
            return list(connection.scalars(_HOLDER, {"key": _key(lock)}))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            reason = str(error.orig).strip().partition("\n")[0]
            raise StorageError(
                f"the locks of the server {self._server} cannot be used ({reason}); start the server, or correct "
                f"{LOCKS_VARIABLE}"
            ) from None  # its text may contain the password


def _application(pid: int) -> str:
    """Return the name of a process of this host at the server, which keeps 63 characters of it."""
    return f"ae_pipeline {pid} {socket.gethostname()}"[:63]


def _key(lock: Lock) -> int:
    digest = hashlib.sha256(f"ae_pipeline {lock.name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


@lru_cache(maxsize=1)
def postgres_locks(address: str) -> PostgresLocks:
    """Return the locks of a server. A process has one object for each address, which knows what the process holds.

    Args:
        address: URL of the database; without a driver, the one that is installed is used.

    Raises:
        ConfigError: The URL cannot be read, or its driver is not installed.
    """
    try:
        url = sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            f"{LOCKS_VARIABLE} is no valid URL; write postgresql://user:password@host/database, with special "
            "characters percent-encoded"
        ) from None
    wanted = [driver] if (driver := url.drivername.partition("+")[2]) else list(_DRIVERS)
    installed = next((name for name in wanted if importlib.util.find_spec(name)), None)
    if installed is None:
        raise ConfigError(
            f"{LOCKS_VARIABLE} needs the package {wanted[-1]}; install it with `pip install 'ae-pipeline[postgres]'`"
        )
    return PostgresLocks(url.set(drivername=f"postgresql+{installed}"))
