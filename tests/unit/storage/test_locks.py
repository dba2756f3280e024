"""Choice of the locks, and lock files."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.locks import FileLocks, dataset_lock, locks, publication_lock
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.postgres_locks import PostgresLocks


@pytest.mark.parametrize("value", [None, "", "file"])
def test_files_are_the_default(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("AE_PIPELINE_LOCKS", raising=False)
    if value is not None:
        monkeypatch.setenv("AE_PIPELINE_LOCKS", value)
    assert isinstance(locks(), FileLocks)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("redis://host:s3cret@x", "AE_PIPELINE_LOCKS is 'redis', which is no kind of locks; set it to `file`"),
        ("files", "AE_PIPELINE_LOCKS is 'files', which is no kind of locks"),
        ("postgresql://u:s3cret@host:port/db", "AE_PIPELINE_LOCKS is no valid URL; write postgresql://user:password@"),
        ("postgresql+pg8000://u:s3cret@host/db", "needs the package pg8000"),
    ],
)
def test_other_values_are_refused(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv("AE_PIPELINE_LOCKS", value)
    with pytest.raises(ConfigError) as caught:
        locks()
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, *_: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    monkeypatch.setenv("AE_PIPELINE_LOCKS", "postgresql://u@host/missing_driver")
    with pytest.raises(ConfigError, match=r"needs the package psycopg2; install it with `pip install 'ae-pipeline\["):
        locks()


def test_a_lock_file_is_free_again_after_the_last_user(tmp_path: Path) -> None:
    lock, other = (make(DatasetPaths(tmp_path, "orders")) for make in (dataset_lock, publication_lock))
    assert not FileLocks().is_held(lock)
    with FileLocks().hold(lock), FileLocks().hold(other):
        with FileLocks().hold(lock), FileLocks().try_to_hold(lock) as is_free:
            assert not is_free
        assert FileLocks().is_held(lock)
        FileLocks().require(lock)
    assert not FileLocks().is_held(lock)
    with FileLocks().try_to_hold(lock) as is_free:
        assert is_free


@pytest.mark.parametrize(("host", "is_here"), [("worker-" * 10, True), ("other-" * 10, False)])
def test_a_host_with_a_long_name_knows_its_own_processes(
    monkeypatch: pytest.MonkeyPatch, host: str, is_here: bool
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "worker-" * 10)
    server = PostgresLocks(sa.make_url("sqlite://"))
    monkeypatch.setattr(server, "_applications", lambda _: [f"ae_pipeline 12345 {host}"[:63]])
    holder = server.holder(dataset_lock(DatasetPaths(Path("data"), "flights")))
    assert holder is not None
    assert (holder.pid, holder.is_here) == (12345, is_here)
