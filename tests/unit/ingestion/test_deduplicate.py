"""Rows of the same identity side by side, also where there are more than are held at once."""

import numpy as np
import polars as pl
import pytest

from ae_pipeline.ingestion import deduplicate as identities
from ae_pipeline.ingestion.deduplicate import by_identity


def batches(count: int, names: int) -> list[pl.DataFrame]:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"row_id": [f"r{n}" for n in rng.integers(0, names, count)], "place": range(count)})
    return list(rows.iter_slices(70))


class TestByIdentity:
    @pytest.mark.parametrize("at_once", [40, 100, 10_000])
    def test_each_row_comes_once_and_those_of_an_identity_together_in_their_order(self, tmp_path, monkeypatch, at_once):
        monkeypatch.setattr(identities, "_AT_ONCE", at_once)
        parts = list(by_identity(batches(1000, 300), 1000, tmp_path))
        assert len(parts) == max(1, 1000 // at_once)
        assert pl.concat(parts).sort("place").equals(pl.concat(batches(1000, 300)))
        assert all(part["place"].is_sorted() for part in parts)
        homes = pl.concat([part.select("row_id", home=pl.lit(index)) for index, part in enumerate(parts)])
        assert homes.unique().height == homes["row_id"].n_unique()

    def test_no_rows_are_no_parts(self, tmp_path):
        assert list(by_identity([], 0, tmp_path)) == []
        assert list(by_identity([], 10**7, tmp_path)) == []

    def test_no_more_files_are_open_than_may_be(self, tmp_path, monkeypatch):
        monkeypatch.setattr(identities, "_AT_ONCE", 1)
        monkeypatch.setattr(identities, "_MOST_PARTS", 5)
        assert len(list(by_identity(batches(500, 200), 500, tmp_path))) == 5
        assert list(tmp_path.iterdir()) == [], "its files have no names"
