"""Temporary files of killed processes are deleted; those of living ones and files of other names stay."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.temporary import remove_temporary_files, server_folder

OLD = time.time() - 60


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def _write(folder: Path, name: str, at: float = OLD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("cut")
    os.utime(path, (at, at))
    return path


def test_files_of_a_dead_process_are_deleted_in_each_folder(tmp_path: Path, dead: int) -> None:
    paths = DatasetPaths(tmp_path, "orders", store="s3://bucket/data")
    folders = (
        paths.landing / "2025",
        paths.raw("_").parent,
        paths.features("_").parent,
        paths.staged("_").parent,
        paths.ledger.parent,
        paths.reports / "days",
        Path(paths.latents) / "v1_ab" / "2025-01-01",
    )
    left = [_write(folder, f".a.parquet.{dead}.0123abcd.tmp") for folder in folders]
    single = (paths.contract, paths.history, paths.alerts, tmp_path / ".store" / "orders.landing.json")
    left += [_write(file.parent, f".{file.name}.{dead}.0123abcd.tmp") for file in single]
    remove_temporary_files(paths)
    assert [path for path in left if path.exists()] == []


def test_what_another_process_may_write_stays(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = DatasetPaths(tmp_path, "orders")
    folder = paths.raw("_").parent
    kept = [
        _write(folder, f".a.parquet.{os.getpid()}.0123abcd.tmp", time.time() - 7200),
        _write(folder, f".a.parquet.{dead}.0123abcd.tmp", time.time()),
        _write(folder, "notes.tmp"),
        _write(paths.contract.parent, f".shops.yaml.{dead}.0123abcd.tmp"),
        _write(paths.landing, f".a.csv.{dead}.0123abcd.tmp"),  # of another program, without an object store
    ]
    remove_temporary_files(paths)
    assert [path for path in kept if not path.exists()] == []
    of_dead = _write(folder, f".b.parquet.{dead}.0123abcd.tmp")
    monkeypatch.setenv("AE_PIPELINE_LOCKS", "postgresql://host/database")
    remove_temporary_files(paths)
    assert of_dead.exists()
    monkeypatch.delenv("AE_PIPELINE_LOCKS")
    remove_temporary_files(paths)
    assert not of_dead.exists()


def test_an_old_file_is_deleted_whatever_has_its_process_id_now(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "orders")
    left = [_write(paths.raw("_").parent, f".a.parquet.{pid}.0123abcd.tmp", OLD - 86_400) for pid in (1, os.getpid())]
    remove_temporary_files(paths)
    assert [path for path in left if path.exists()] == []


def test_the_folder_of_a_killed_server_is_deleted(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _write(tmp_path / f"ae_pipeline_{dead}_ab12", "code.sock")
    kept = [_write(tmp_path / name, "a").parent for name in (f"ae_pipeline_{os.getpid()}_ab12", "ae_pipeline_report")]
    with server_folder() as folder:
        assert sorted(tmp_path.iterdir()) == sorted([*kept, Path(folder)])
    assert sorted(tmp_path.iterdir()) == sorted(kept)
