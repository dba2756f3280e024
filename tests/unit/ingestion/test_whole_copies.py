"""Copies of landed files count as whole for a day without being read again, unless their files change."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion import whole_copies
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.staged import require_staged
from ae_pipeline.ingestion.whole_copies import WholeCopies
from ae_pipeline.storage.integrity import is_sealed
from ae_pipeline.storage.parquet import write_rows
from ae_pipeline.storage.paths import DatasetPaths

ENTRY = LandedFile(size=1, modified_ns=0, sha256="", landed_ns=0, contract="", staged="a", rejected_copy="b")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the copies whose bytes were read."""
    names: list[str] = []

    def read(path: Path) -> bool:
        names.append(path.stem)
        return is_sealed(path)

    monkeypatch.setattr(whole_copies, "is_sealed", read)
    monkeypatch.setattr(whole_copies, "_WORTH_KEEPING", 1)
    return names


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    """The paths of a dataset with a staged copy and a quarantine file."""
    paths = DatasetPaths(tmp_path, "orders")
    for path in (paths.staged("a"), paths.quarantined("b")):
        write_rows(path, pa.table({"id": ["1", "2"]}))
    return paths


def has(paths: DatasetPaths, entry: LandedFile = ENTRY) -> bool:
    """Return the answer of a new process, and keep what it found."""
    copies = WholeCopies(paths)
    answer = copies.has(entry)
    copies.keep()
    return answer


def test_the_next_process_reads_no_copy_again(paths: DatasetPaths, reads: list[str]) -> None:
    assert [has(paths), has(paths)] == [True, True]
    assert reads == ["a", "b"]


def test_a_pack_is_read_once_for_all_its_files(paths: DatasetPaths, reads: list[str]) -> None:
    write_rows(paths.staged("bad"), pa.table({"id": ["1"]}))
    paths.staged("bad").write_bytes(b"nothing")
    copies = WholeCopies(paths)
    for pack, is_whole in (("a", True), ("bad", False)):
        members = [replace(ENTRY, staged=f"{pack}@{first}", rejected_copy=None) for first in range(3)]
        assert [copies.has(entry) for entry in members] == [is_whole] * 3
    assert reads == ["a", "bad"]


def test_few_large_copies_are_worth_keeping(
    paths: DatasetPaths, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_copies, "_WORTH_KEEPING", 10)
    assert [has(paths), has(paths)] == [True, True]
    assert reads == ["a", "b"] * 2
    monkeypatch.setattr(whole_copies, "_BYTES_OF_A_COPY", paths.staged("a").stat().st_size // 5)
    assert [has(paths), has(paths)] == [True, True]
    assert reads == ["a", "b"] * 3


def test_a_changed_copy_is_read_again(paths: DatasetPaths, reads: list[str]) -> None:
    assert has(paths)
    data = paths.quarantined("b").read_bytes()
    paths.quarantined("b").write_bytes(data[:8] + bytes([data[8] ^ 1]) + data[9:])
    assert not has(paths)
    assert reads == ["a", "b", "b"]


def test_a_damage_that_a_reader_finds_is_looked_for_in_all_copies(paths: DatasetPaths, reads: list[str]) -> None:
    assert has(paths)
    copy = paths.staged("a")
    stat, data = copy.stat(), copy.read_bytes()
    copy.write_bytes(data[:8] + bytes([data[8] ^ 1]) + data[9:])
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(StorageError, match=r"the staged copy of a\.csv is damaged"):
        require_staged(copy, "a.csv")
    reads.clear()
    assert not has(paths)
    assert reads == ["a"]


def test_a_missing_copy_is_not_whole(paths: DatasetPaths, reads: list[str]) -> None:
    assert has(paths)
    paths.staged("a").unlink()
    assert not has(paths)
    assert has(paths, replace(ENTRY, staged=None))
    assert not has(paths, replace(ENTRY, staged="never"))
    assert reads == ["a", "b"]


def test_every_copy_is_read_again_after_a_day(
    paths: DatasetPaths, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has(paths)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_401)
    assert has(paths)
    assert reads == ["a", "b"] * 2


@pytest.mark.parametrize("content", [b"", b"cut", b"\x00" * 8, b"\xff" * 24])
def test_damaged_states_are_found_again(content: bytes, paths: DatasetPaths, reads: list[str]) -> None:
    assert has(paths)
    (kept,) = (paths.ledger.parent / "whole").iterdir()
    kept.write_bytes(content)
    assert has(paths)
    assert reads == ["a", "b"] * 2
