"""Dagster's databases."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ae_pipeline.lifecycle.doctor.dagster_home import check_databases

HEAD, FALLBACK = "29b539ebc72a", "5771160a95ad"


@pytest.mark.parametrize(
    ("written", "kept"),
    [([HEAD, FALLBACK], [HEAD]), ([FALLBACK, HEAD], [HEAD]), ([FALLBACK], [FALLBACK]), ([HEAD], [HEAD]), ([], [])],
)
@pytest.mark.parametrize("name", ["history/runs.db", "history/runs/index.db", "schedules/schedules.db"])
def test_of_two_revisions_the_newer_stays(tmp_path: Path, name: str, written: list[str], kept: list[str]) -> None:
    database = tmp_path / name
    database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.executemany("INSERT INTO alembic_version VALUES (?)", [(each,) for each in written])
    check_databases(tmp_path)
    with closing(sqlite3.connect(database)) as connection:
        assert [each for (each,) in connection.execute("SELECT version_num FROM alembic_version")] == kept


def test_a_database_without_revisions_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "schedules" / "schedules.db"
    database.parent.mkdir()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE jobs (id)")
    check_databases(tmp_path)
    assert not (tmp_path / "history").exists()
