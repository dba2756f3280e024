"""Tests of ae_pipeline/ingestion/batch.py: one batch of files is written while the next is read."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion import batch, copy_writer
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.ingestion.readers.bounds import read_bounded
from ae_pipeline.storage.parquet import write_rows
from tests.support.datasets import HEADER, LandedDataset, leftovers, line, make_dataset


def shop_of_six_files(root: Path) -> LandedDataset:
    """Return a dataset of six files: rows 1 to 12, two in each file."""
    shop = make_dataset(root)
    shop.land("0.csv", HEADER + line(1, "2024-03-01T10:00:00", 1) + line(2, "2024-03-02T10:00:00", 1))
    assert len(shop.rows("id")) == 2  # the contract
    for file in range(1, 6):
        shop.land(f"{file}.csv", HEADER + line(2 * file + 1, "2024-03-01T10:00:00", 1) + line(2 * file + 2, "x", 1))
    shop.land("4.csv", HEADER + line(9, "x", 1) + line(10, "x", 1))
    return shop


def test_batches_of_any_size_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for size in (1, 2, 500):
        monkeypatch.setattr(batch, "_BATCH_FILES", size)
        shop = shop_of_six_files(tmp_path / str(size))
        entries = shop.ingest().ledger.files
        copies = {name: pl.read_parquet(shop.paths.staged(e.staged)).rows() for name, e in entries.items() if e.staged}
        ledger = {name: (e.rows, e.days, e.quarantined, e.refused) for name, e in entries.items()}
        results.append((ledger, copies, sorted(shop.quarantine())))
        assert leftovers(tmp_path) == []
    assert results[0] == results[1] == results[2]
    ledger, copies, quarantine = results[0]
    assert {name: rows for name, (rows, *_) in ledger.items()} == {f"{n}.csv": (2, 1, 1, 1, 0, 1)[n] for n in range(6)}
    assert [row[0] for name in sorted(copies) for row in copies[name]] == [1, 2, 3, 5, 7, 11]
    assert len(quarantine) == 6
    assert "none of its 2 rows" in str(ledger["4.csv"][-1])


@pytest.mark.parametrize("fault", ["read", "write"])
def test_files_on_the_disk_stay_read_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    shop = shop_of_six_files(tmp_path)

    def full(path: Path, table: Any, *values: Any, **options: Any) -> None:
        if "3.csv" in table["_source_file" if "_source_file" in table.column_names else "source_file"].to_pylist():
            raise StorageError("no space left")
        write_rows(path, table, *values, **options)

    def gone(path: Path, limits: Any, size: int | None = None) -> bytes:
        if path.name == "5.csv":
            raise StorageError("no space left")
        return read_bounded(path, limits, size)

    monkeypatch.setattr(batch, "_BATCH_FILES", 2)
    with monkeypatch.context() as patch:
        if fault == "write":
            patch.setattr(copy_writer, "write_rows", full)
        else:
            patch.setattr(batch, "read_bounded", gone)
        with pytest.raises(StorageError, match="no space left"):
            shop.ingest()
    entries = Ledger.load(shop.paths.ledger).files
    assert sorted(entries) == [f"{number}.csv" for number in range(3 if fault == "write" else 5)]
    copies = {path.stem for path in shop.paths.staged("_").parent.glob("*.parquet")}
    assert copies == {entry.staged for entry in entries.values() if entry.staged}
    assert shop.ids() == [1, 2, 3, 5, 7, 11]
    assert leftovers(tmp_path) == []
