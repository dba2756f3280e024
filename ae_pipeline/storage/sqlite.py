"""SQLite databases of other programs: whether they are whole, their backup, and its restoration."""

import sqlite3
from contextlib import closing
from pathlib import Path

from ae_pipeline.storage.environment import Fault, environment_error, fault_of
from ae_pipeline.storage.files import atomic_write

_BUSY_SECONDS, _CHECK_SECONDS = 30.0, 8.0
"""Time to wait for a transaction of another process: before a copy, and before a check."""


def sqlite_damage(path: Path, *, thorough: bool = False) -> str | None:
    """Return how a database is damaged, or None if it is whole or missing.

    Args:
        path: File of the database.
        thorough: Whether to compare indexes with their tables, too.

    Raises:
        StorageError: The database cannot be read, because another process holds its lock for seconds, its folder is
            read-only, or its disk is full.
    """
    if not path.exists():
        return None
    if not path.is_file():
        return "it is not a file"
    try:
        with closing(sqlite3.connect(path, timeout=_CHECK_SECONDS)) as connection:
            (answer,) = connection.execute(f"PRAGMA {'integrity_check' if thorough else 'quick_check'}(1)").fetchone()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if fault_of(error) in {Fault.FULL, Fault.READ_ONLY, Fault.LOCKED} and (known := environment_error(error)):
            raise known from error
        return str(error)
    return None if answer == "ok" else str(answer).splitlines()[0]


def require_unlocked(path: Path) -> None:
    """Wait a few seconds until a database can be written. Libraries wait for minutes in all, without a word.

    Args:
        path: File of the database. Nothing is checked if it is missing, damaged or read-only.

    Raises:
        StorageError: Another process holds its lock all the time.
    """
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(path, timeout=_CHECK_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if fault_of(error) == Fault.LOCKED and (known := environment_error(error)):
            raise known from error


def is_empty(path: Path) -> bool:
    """Return whether a database does not exist or has no table."""
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def copy_database(source: Path, target: Path) -> None:
    """Copy a database in a consistent state, also while others write to it. The copy appears in one step."""
    with (
        atomic_write(target) as temporary,
        closing(sqlite3.connect(source, timeout=_BUSY_SECONDS)) as connection,
        closing(sqlite3.connect(temporary)) as copy,
    ):
        connection.backup(copy)
