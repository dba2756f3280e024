"""Files of months: days with few rows share the file of their month."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ae_pipeline import read_latents
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents import layout, table_update
from ae_pipeline.latents.layout import score_batch
from ae_pipeline.latents.publish import publish, stale_days
from ae_pipeline.latents.read import current_files, latents_of, published_day, published_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.latents import RewriteDay, publish_days, table
from tests.support.sensors import Fitted

pytestmark = pytest.mark.slow


class TestMonths:
    """Days with few rows share the file of their month."""

    def groups(self, dataset: Fitted) -> list[str]:
        return sorted(path.split("/")[1] for path in current_files(dataset.paths))

    def test_forty_days_are_two_files(self, dataset: Fitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        publish_days(dataset, dataset.days)
        assert self.groups(dataset) == sorted({day[:7] for day in dataset.days})
        together = read_latents("sensors", data=dataset.paths.root).arrow
        monkeypatch.setattr(layout, "MIN_ROWS_FOR_OWN_FILE", 1)
        separate = DatasetPaths(dataset.paths.root, "sensors", str(tmp_path / "separate"))
        publish(dataset.days, Dataset(dataset.bundle.config, separate), dataset.bundle, 1, {})
        assert len(current_files(separate)) == 40
        assert together.equals(read_latents("sensors", data=dataset.paths.root, tables=separate.tables).arrow)

    def test_a_new_day_rewrites_its_month_and_only_scores_itself(
        self, dataset: Fitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish_days(dataset, dataset.days[:-1])
        previous = current_files(dataset.paths)
        scored: list[str] = []

        def spy(bundle: ModelBundle, version: int, batch: pa.RecordBatch, day: str) -> pa.Table:
            scored.append(day)
            return score_batch(bundle, version, batch, day)

        monkeypatch.setattr(table_update, "score_batch", spy)
        result = publish_days(dataset, dataset.days[-1:])
        assert scored == [dataset.days[-1]]
        assert [(day.day, day.built) for day in result.days] == [(dataset.days[-1], True)]
        after = current_files(dataset.paths)
        assert len(set(previous) - set(after)) == len(set(after) - set(previous)) == 1
        assert table(dataset.paths)["row_id"].n_unique() == 2400

    def test_a_corrected_day_only_replaces_its_rows(self, dataset: Fitted, rewrite_day: RewriteDay) -> None:
        publish_days(dataset, dataset.days)
        previous = table(dataset.paths)
        rewrite_day(dataset, dataset.days[5], dataset.features(dataset.days[5]).head(7))
        result = publish_days(dataset, [dataset.days[5]])
        assert [(day.rows, day.built) for day in result.days] == [(7, True)]
        after = table(dataset.paths)
        day = dt.date.fromisoformat(dataset.days[5])
        assert after.filter(pl.col("date") != day).equals(previous.filter(pl.col("date") != day))
        assert after.filter(pl.col("date") == day).height == 7

    def test_a_day_that_lost_its_rows_leaves_its_month(self, dataset: Fitted, rewrite_day: RewriteDay) -> None:
        publish_days(dataset, dataset.days)
        rewrite_day(dataset, dataset.days[5], dataset.features(dataset.days[5]).clear())
        publish_days(dataset, [dataset.days[5]])
        assert dataset.days[5] not in published_days(dataset.paths)
        assert table(dataset.paths).height == 2340
        assert not stale_days(dataset.days, dataset.paths, dataset.bundle.fingerprint, 1)

    def test_a_day_with_many_rows_gets_its_own_file(
        self, dataset: Fitted, monkeypatch: pytest.MonkeyPatch, rewrite_day: RewriteDay
    ) -> None:
        monkeypatch.setattr(layout, "MIN_ROWS_FOR_OWN_FILE", 61)
        publish_days(dataset, dataset.days)
        big = dataset.days[5]
        rows = dataset.features(big)
        more = rows.head(1).with_columns(row_id=pl.lit("one more"))
        rewrite_day(dataset, big, pl.concat([rows, more]).sort("event_time", "row_id"))
        publish_days(dataset, [big])
        assert self.groups(dataset) == sorted({day[:7] for day in dataset.days} | {big})
        assert table(dataset.paths)["row_id"].n_unique() == 2401
        # Its own file sorts after the file of the month, but the rows are in the order of event time.
        all_columns = read_latents("sensors", data=dataset.paths.root, columns=["row_id", "event_time"]).polars()
        assert all_columns["event_time"].is_sorted()
        ids = read_latents("sensors", data=dataset.paths.root, columns=["row_id"]).polars()
        assert ids["row_id"].equals(all_columns["row_id"])
        rewrite_day(dataset, big, rows)
        publish_days(dataset, [big])
        assert self.groups(dataset) == sorted({day[:7] for day in dataset.days})
        assert table(dataset.paths).height == 2400

    def test_a_moved_row_is_in_both_days_until_both_are_published(
        self, dataset: Fitted, rewrite_day: RewriteDay
    ) -> None:
        publish_days(dataset, dataset.days)
        left, come = dataset.days[5], dataset.days[9]
        moved = dataset.features(left).head(1).with_columns(pl.col("event_time") + pl.duration(days=4))
        rewrite_day(dataset, come, pl.concat([dataset.features(come), moved]).sort("event_time", "row_id"))
        rewrite_day(dataset, left, dataset.features(left).tail(59))
        publish_days(dataset, [come])
        assert (table(dataset.paths).height, table(dataset.paths)["row_id"].n_unique()) == (2401, 2400)
        publish_days(dataset, [left])
        assert (table(dataset.paths).height, table(dataset.paths)["row_id"].n_unique()) == (2400, 2400)

    def test_the_copied_days_of_a_month_are_verified(
        self, dataset: Fitted, monkeypatch: pytest.MonkeyPatch, rewrite_day: RewriteDay
    ) -> None:
        publish_days(dataset, dataset.days)
        verified: list[str] = []

        def spy(path: str, *given: Any) -> dict[str, int]:
            verified.append(path)
            return layout.verify_file(path, *given)

        monkeypatch.setattr(table_update, "verify_file", spy)
        rewrite_day(dataset, dataset.days[5], dataset.features(dataset.days[5]).clear())
        publish_days(dataset, [dataset.days[5]])
        assert len(verified) == 1
        assert verified[0] in current_files(dataset.paths)

    def test_the_days_of_a_missing_file_are_scored_again(self, dataset: Fitted) -> None:
        publish_days(dataset, dataset.days)
        previous = table(dataset.paths)
        lost = current_files(dataset.paths)[0]
        (Path(dataset.paths.latents) / lost).unlink()
        assert set(published_days(dataset.paths)) == {day for day in dataset.days if day[:7] not in lost}
        result = publish_days(dataset, dataset.days[-1:])
        assert result.committed is False
        assert {day.day for day in result.days if day.built} == {day for day in dataset.days if day[:7] in lost}
        assert table(dataset.paths).equals(previous)

    def test_the_days_of_an_unreadable_file_are_scored_again(self, dataset: Fitted, rewrite_day: RewriteDay) -> None:
        publish_days(dataset, dataset.days)
        damaged = Path(dataset.paths.latents) / current_files(dataset.paths)[0]
        content = bytearray(damaged.read_bytes())
        column = pq.ParquetFile(damaged).metadata.row_group(0).column(4)
        content[column.data_page_offset + column.total_compressed_size - 3] ^= 1
        damaged.write_bytes(content)
        rewrite_day(dataset, dataset.days[0], dataset.features(dataset.days[0]).head(7))
        publish_days(dataset, [dataset.days[0]])
        assert table(dataset.paths).height == 2347

    def test_row_groups_span_days_and_stay_bounded(self, dataset: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "ROW_GROUP", 500)
        publish_days(dataset, dataset.days)
        assert len(current_files(dataset.paths)) == 2
        for path in current_files(dataset.paths):
            metadata = pq.ParquetFile(Path(dataset.paths.latents) / path).metadata
            sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            assert max(sizes) <= 500
            assert metadata.num_row_groups == -(-metadata.num_rows // 500)

    def test_scores_and_latents_are_read_by_day(self, dataset: Fitted) -> None:
        publish_days(dataset, dataset.days)
        published = published_days(dataset.paths)
        for day in (dataset.days[0], dataset.days[17]):
            scored = dataset.bundle.score(dataset.features(day))
            np.testing.assert_array_equal(published_day(published[day], dataset.paths)["score"], scored.score)
            np.testing.assert_array_equal(latents_of([published[day]], dataset.paths, 3), scored.latents)
