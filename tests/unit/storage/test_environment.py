"""Errors of the machine in one line: path, need and remedy."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage import environment
from ae_pipeline.storage.environment import FOLDERS, environment_error, environment_message
from ae_pipeline.storage.files import atomic_write, write_text
from ae_pipeline.storage.sqlite import require_unlocked, sqlite_damage


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The folders of a project, which the environment names."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return {name: tmp_path / name for name in FOLDERS}


@pytest.fixture
def locked(folders: dict[str, Path]) -> Iterator[Path]:
    """A database that another connection has locked."""
    path = folders["AE_PIPELINE_MLRUNS"] / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield path


def caused(cause: Exception) -> Exception:
    """Return an error of a library that comes from another one."""
    error = RuntimeError("a library failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_path_and_the_space(code: int, folders: dict[str, Path]) -> None:
    path = folders["AE_PIPELINE_DATA"] / "raw" / "x.parquet"
    message = str(environment_error(caused(OSError(code, os.strerror(code), str(path)))))
    assert message.startswith(f"no space left on the disk of {path} (AE_PIPELINE_DATA): ")
    assert message.endswith(" MB are free, and more are needed; free some space and run again")


def test_without_a_path_the_fullest_disk_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = folders["DAGSTER_HOME"]
    monkeypatch.setattr(environment, "_free", lambda folder: 0 if folder == home else 10**9)
    message = str(environment_error(caused(sqlite3.OperationalError("database or disk is full"))))
    assert message.startswith(f"no space left on the disk of {home} (DAGSTER_HOME): 0.0 MB are free")


def test_a_read_only_folder_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store = folders["AE_PIPELINE_MLRUNS"]
    monkeypatch.setattr(environment, "_is_writable", lambda folder: folder != store)
    expected = (
        f"{store} (AE_PIPELINE_MLRUNS) cannot be written; grant this user write permission, or mount its disk for "
        "writing"
    )
    for message in ("attempt to write a readonly database", "unable to open database file"):
        assert str(environment_error(sqlite3.OperationalError(message))) == expected


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_without_permission_is_named(code: int, folders: dict[str, Path]) -> None:
    path = folders["AE_PIPELINE_DATA"] / "locks" / "orders.lock"
    message = str(environment_error(OSError(code, os.strerror(code), str(path))))
    assert message.startswith(f"{path} (AE_PIPELINE_DATA) cannot be written; grant this user")


def test_a_locked_database_is_named(locked: Path) -> None:
    message = str(environment_error(caused(sqlite3.OperationalError("database is locked"))))
    assert message.startswith(f"the database {locked} is locked by another process")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_no_memory_names_the_setting(error: Exception) -> None:
    message = str(environment_error(error))
    assert message.startswith("there is not enough memory for this step: the machine has ")
    assert message.endswith("end other programs, or set training.memory_budget lower")


def test_an_allocation_of_numpy_that_fails_is_a_lack_of_memory() -> None:
    with pytest.raises(MemoryError) as failed:
        np.empty(1 << 60, np.int8)
    assert "Unable to allocate" in str(environment_error(failed.value))


def test_a_damaged_database_names_the_command() -> None:
    message = str(environment_error(caused(sqlite3.DatabaseError("file is not a database"))))
    assert "`ae-pipeline doctor --repair`" in message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("else"),
        KeyError("x"),
        FileNotFoundError(2, "No such file", "x"),
        sqlite3.IntegrityError("UNIQUE constraint failed: concurrency_limits.concurrency_key"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert environment_error(error) is None
    assert environment_message(f"{type(error).__name__}: {error}") is None


def test_a_text_of_an_error_is_enough(folders: dict[str, Path]) -> None:
    path = folders["AE_PIPELINE_DATA"] / "locks" / "orders.lock"
    message = environment_message(f"OSError: [Errno 30] Read-only file system: '{path}'\n")
    assert str(message).startswith(f"{path} (AE_PIPELINE_DATA) cannot be written")


def test_a_locked_database_is_not_taken_for_a_damaged_one(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ae_pipeline.storage.sqlite._CHECK_SECONDS", 0.1)
    with pytest.raises(StorageError, match=r"mlflow\.db is locked by another process"):
        sqlite_damage(locked)


def test_a_write_lock_that_reads_do_not_meet_is_found_first(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ae_pipeline.storage.sqlite._CHECK_SECONDS", 0.1)
    path = folders["DAGSTER_HOME"] / "runs.db"
    require_unlocked(path)
    assert not path.exists()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE runs (id)")
        require_unlocked(path)
        connection.execute("BEGIN EXCLUSIVE")
        assert sqlite_damage(path) is None
        with pytest.raises(StorageError, match=r"runs\.db is locked by another process"):
            require_unlocked(path)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.EIO, OSError, "Input/output error"),
        (errno.ENAMETOOLONG, StorageError, "it is too long; choose a shorter one"),
        (errno.ENOSPC, StorageError, "free some space"),
    ],
)
def test_no_error_of_a_write_is_its_own_cause(code: int, kind: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message) as caught, atomic_write(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    assert caught.value is not caught.value.__cause__
    environment_error(caught.value)  # which follows the causes


def test_a_name_that_is_too_long_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="too long; choose a shorter one"):
        write_text(tmp_path / ("x" * 250), "")
