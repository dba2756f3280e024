"""Partitions of rows by identity, also for more rows than fit into one partition."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ae_pipeline.ingestion import deduplicate
from ae_pipeline.ingestion.deduplicate import partition_by_identity


def batches(count: int, names: int) -> list[pl.DataFrame]:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"row_id": [f"r{n}" for n in rng.integers(0, names, count)], "index": range(count)})
    return list(rows.iter_slices(70))


class TestPartitionByIdentity:
    @pytest.mark.parametrize("partition_rows", [40, 100, 10_000])
    def test_rows_of_an_identity_are_together_and_in_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_rows: int
    ) -> None:
        monkeypatch.setattr(deduplicate, "_PARTITION_ROWS", partition_rows)
        parts = list(partition_by_identity(batches(1000, 300), 1000, tmp_path))
        assert len(parts) == max(1, 1000 // partition_rows)
        assert pl.concat(parts).sort("index").equals(pl.concat(batches(1000, 300)))
        assert all(part["index"].is_sorted() for part in parts)
        homes = pl.concat([part.select("row_id", home=pl.lit(index)) for index, part in enumerate(parts)])
        assert homes.unique().height == homes["row_id"].n_unique()

    def test_no_rows_give_no_partitions(self, tmp_path: Path) -> None:
        assert list(partition_by_identity([], 0, tmp_path)) == []
        assert list(partition_by_identity([], 10**7, tmp_path)) == []

    def test_the_number_of_open_files_is_limited(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deduplicate, "_PARTITION_ROWS", 1)
        monkeypatch.setattr(deduplicate, "MAX_PARTITIONS", 5)
        assert len(list(partition_by_identity(batches(500, 200), 500, tmp_path))) == 5
        assert list(tmp_path.iterdir()) == [], "its temporary files have no names"
