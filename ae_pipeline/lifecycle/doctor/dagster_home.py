"""Checks of the SQLite databases in Dagster's home. Another storage is not checked."""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.lifecycle.doctor.problem import Problem
from ae_pipeline.storage.integrity import move_aside
from ae_pipeline.storage.sqlite import require_unlocked, sqlite_damage

logger = logging.getLogger(__name__)

_FALLBACK_REVISION = "5771160a95ad"
"""What Dagster writes into a database that has its tables and no revision yet."""

_MAIN = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
"""Databases that each process opens. The others hold the events of one run each."""


def check_databases(home: Path) -> None:
    """Check the databases that Dagster opens when it starts, and repair a revision that was written twice.

    Raises:
        StorageError: A database is damaged, or another process holds its lock.
    """
    for path in (home / name for name in _MAIN):
        if damage := sqlite_damage(path):
            raise StorageError(
                f"Dagster's database {path} is damaged ({damage}); `ae-pipeline doctor --repair` moves it aside"
            )
        require_unlocked(path)
        _keep_one_revision(path)


def dagster_problems(home: Path) -> Iterator[Problem]:
    """Yield damaged databases."""
    for folder in ("history", "schedules", "storage"):
        for path in sorted((home / folder).rglob("*.db")):
            if damage := sqlite_damage(path, thorough=True):
                what = "runs and events in the UI" if path.name in {"runs.db", "index.db"} else "its entries in the UI"
                yield Problem(
                    kind="dagster",
                    subject=str(path),
                    message=damage,
                    remedy=f"move it aside; {what} are lost, data and models are not",
                    repair=lambda path=path: _set_aside(path),  # type: ignore[misc]
                )


def _keep_one_revision(path: Path) -> None:
    """Remove the older of two revisions.

    Two processes of Dagster that create a database at the same moment write one each: the first the current revision,
    the second, which sees tables without a revision, the fallback. No process can open the database after that.
    """
    if not path.is_file():
        return
    with closing(sqlite3.connect(path)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return
        revisions = {str(revision) for (revision,) in connection.execute("SELECT version_num FROM alembic_version")}
        if len(revisions) > 1 and _FALLBACK_REVISION in revisions:
            connection.execute("DELETE FROM alembic_version WHERE version_num = ?", [_FALLBACK_REVISION])
            logger.warning("Removed a second revision from %s, which two processes had created at once.", path)


def _set_aside(path: Path) -> None:
    for each in (path, *(path.with_name(f"{path.name}-{end}") for end in ("journal", "wal", "shm"))):
        if each.exists():
            move_aside(each)
