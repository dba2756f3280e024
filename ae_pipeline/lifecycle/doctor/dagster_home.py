"""Checks of the SQLite databases in Dagster's home. Another storage is not checked."""

from collections.abc import Iterator
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.lifecycle.doctor.problem import Problem
from ae_pipeline.storage.integrity import move_aside
from ae_pipeline.storage.sqlite import require_unlocked, sqlite_damage

_MAIN = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
"""Databases that each process opens. The others hold the events of one run each."""


def check_databases(home: Path) -> None:
    """Check the databases that Dagster opens when it starts.

    Raises:
        StorageError: A database is damaged, or another process holds its lock.
    """
    for path in (home / name for name in _MAIN):
        if damage := sqlite_damage(path):
            raise StorageError(
                f"Dagster's database {path} is damaged ({damage}); `ae-pipeline doctor --repair` moves it aside"
            )
        require_unlocked(path)


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


def _set_aside(path: Path) -> None:
    for each in (path, *(path.with_name(f"{path.name}-{end}") for end in ("journal", "wal", "shm"))):
        if each.exists():
            move_aside(each)
