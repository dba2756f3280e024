"""Publication of latents and scores: content, commits, latent spaces, errors and concurrency."""

import datetime as dt
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from ae_pipeline import read_latents
from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents import table_update
from ae_pipeline.latents.contract_versions import read_contract
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.publish import Publication, publish, stale_days
from ae_pipeline.latents.read import (
    MANIFEST,
    PublishedDay,
    current_files,
    latents_of,
    model_version_of,
    open_table,
)
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from tests.support.latents import (
    RewriteDay,
    assert_one_space_in_every_version,
    files_by_day,
    files_of,
    publish_days,
    query_with_duckdb,
    table,
)
from tests.support.sensors import Fitted

pytestmark = pytest.mark.usefixtures("own_files")


class TestContent:
    def test_pandas_polars_and_duckdb_read_the_scores_of_the_bundle(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        uris = DeltaTable(dataset.paths.latents).file_uris()
        features = pl.concat([dataset.features(day) for day in days]).sort("event_time", "row_id")
        scored = dataset.bundle.score(features)
        expected = {
            "row_id": features["row_id"].to_list(),
            **{f"z_{index:03d}": scored.latents[:, index].tolist() for index in range(3)},
            "score": scored.score.tolist(),
            "p_value": scored.p_value.tolist(),
            "is_anomaly": scored.is_anomaly.tolist(),
            "model_version": [1] * 240,
            "latent_space": [latent_space_name(1, dataset.bundle.fingerprint)] * 240,
        }
        by_duckdb = query_with_duckdb(f"select * from read_parquet({uris!r}) order by event_time, row_id")
        by_reader: dict[str, Any] = {
            "polars": table(dataset.paths),
            "pandas": pd.read_parquet(uris).sort_values(["event_time", "row_id"]),  # type: ignore[call-overload]
            "duckdb": by_duckdb,
        }
        for reader, rows in by_reader.items():
            for name, values in expected.items():
                close = pytest.approx(values, rel=1e-6, abs=1e-6) if isinstance(values[0], float) else values
                assert list(rows[name]) == close, (reader, name)
        np.testing.assert_array_equal(by_reader["pandas"]["score"], by_reader["polars"]["score"])
        np.testing.assert_array_equal(np.array(by_reader["duckdb"]["score"]), by_reader["polars"]["score"])
        np.testing.assert_array_equal(by_reader["pandas"]["event_time"], features["event_time"].to_pandas())
        assert by_reader["polars"]["date"].to_list() == features["event_time"].dt.date().to_list()

    def test_the_file_of_a_day_has_exactly_the_scores_of_the_day(self, dataset: Fitted, first: Publication) -> None:
        assert len(first.days) == 4
        for entry in first.days:
            assert entry.path is not None
            scored = dataset.bundle.score(dataset.features(entry.day))
            rows = pl.read_parquet(Path(dataset.paths.latents) / entry.path)
            np.testing.assert_array_equal(rows["score"], scored.score)
            np.testing.assert_array_equal(
                latents_of([PublishedDay(entry.day, entry.path, entry.key)], dataset.paths, 3), scored.latents
            )
            assert (entry.rows, entry.flagged) == (60, int(scored.is_anomaly.sum()))

    def test_rows_are_in_the_order_of_event_time(self, dataset: Fitted, first: Publication) -> None:
        assert len(current_files(dataset.paths)) == 4
        for path in current_files(dataset.paths):
            assert pl.read_parquet(Path(dataset.paths.latents) / path)["event_time"].is_sorted()

    def test_a_row_is_flagged_if_its_p_value_is_within_the_budget(self, dataset: Fitted) -> None:
        publish_days(dataset, dataset.days)
        rows = table(dataset.paths)
        assert rows.height == 40 * 60
        np.testing.assert_array_equal(rows["is_anomaly"], rows["p_value"] <= 0.01)
        np.testing.assert_array_equal(rows["is_anomaly"], rows["score"] > dataset.bundle.calibration.threshold)
        assert 0 < rows["is_anomaly"].sum() < 120

    def test_the_log_has_the_time_range_of_each_file(
        self, dataset: Fitted, days: tuple[str, ...], rewrite_day: RewriteDay
    ) -> None:
        odd = dataset.features(days[0]).with_columns(pl.col("event_time") + pl.duration(microseconds=123_457))
        rewrite_day(dataset, days[0], odd)
        publish_days(dataset, days)
        actions = pl.DataFrame(DeltaTable(dataset.paths.latents).get_add_actions(flatten=True))
        assert actions.height == 4
        for action in actions.iter_rows(named=True):
            path = Path(dataset.paths.latents) / action["path"]
            rows = pl.read_parquet(path)
            day = action["path"].split("/")[1]
            assert action["num_records"] == rows.height == 60
            assert action["size_bytes"] == path.stat().st_size
            for end in ("min", "max"):
                moment = getattr(rows["event_time"], end)()
                assert action[f"{end}.event_time"].replace(tzinfo=dt.UTC) == moment
                assert action[f"{end}.date"] == dt.date.fromisoformat(day)

    def test_readers_can_filter_by_time(self, dataset: Fitted, days: tuple[str, ...], first: Publication) -> None:
        noon = dt.datetime.fromisoformat(f"{days[1]}T12:00:00Z")
        expected = table(dataset.paths).filter(pl.col("event_time") >= noon)["row_id"].to_list()
        scanned = pl.scan_delta(dataset.paths.latents).filter(pl.col("event_time") >= noon).collect()
        by_arrow = DeltaTable(dataset.paths.latents).to_pyarrow_table(filters=[("event_time", ">=", noon)])
        assert sorted(scanned["row_id"]) == sorted(by_arrow["row_id"].to_pylist()) == sorted(expected)

    def test_the_manifest_lists_the_files_of_the_newest_version(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
    ) -> None:
        manifest = Path(dataset.paths.latents) / "_symlink_format_manifest" / "manifest"

        def manifest_files() -> list[str]:
            return sorted(manifest.read_text().split())

        assert manifest_files() == sorted(DeltaTable(dataset.paths.latents).file_uris())
        previous = manifest.read_text()
        rewrite_day(dataset, days[1], dataset.features(days[1]).head(25))
        publish_days(dataset, days)
        assert len(manifest_files()) == 4
        assert manifest_files() == sorted(DeltaTable(dataset.paths.latents).file_uris())
        # A run that was killed after its commit leaves the old manifest.
        manifest.write_text(previous)
        publish_days(dataset, days)
        assert query_with_duckdb(f"select count(*) from read_parquet({manifest_files()!r})").item() == 3 * 60 + 25

    def test_a_commit_has_the_ids_of_its_runs(self, dataset: Fitted, first: Publication) -> None:
        commit = DeltaTable(dataset.paths.latents).history(1)[0]
        space = latent_space_name(1, dataset.bundle.fingerprint)
        assert (commit["dagster_run"], commit["model_version"], commit["latent_space"]) == ("r1", "1", space)

    def test_rows_without_event_time_are_one_file(self, undated: DatasetPaths) -> None:
        rows = pl.read_delta(str(undated.latents))
        assert list(files_by_day(undated)) == [ALL_ROWS]
        assert rows["row_id"].to_list() == [f"r{index}" for index in range(400)]
        assert rows["event_time"].null_count() == rows["date"].null_count() == 400

    def test_the_data_folder_may_have_special_characters(
        self, fitted: Fitted, days: tuple[str, ...], tmp_path: Path
    ) -> None:
        dataset = fitted.at(tmp_path / "my data, 100% über#1")
        publish_days(dataset, days)
        assert len(current_files(dataset.paths)) == 4
        assert not publish_days(dataset, days).committed
        assert model_version_of(dataset.paths) == 1


class TestCommits:
    def test_publishing_again_commits_nothing_and_writes_no_file(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        previous = {
            path: (Path(dataset.paths.latents) / path).stat().st_mtime_ns for path in current_files(dataset.paths)
        }
        again = publish_days(dataset, days)
        assert (first.committed, again.committed) == (True, False)
        assert again.table_version == first.table_version
        assert [entry.built for entry in first.days] == [True] * 4
        assert [entry.built for entry in again.days] == [False] * 4
        assert {path: (Path(dataset.paths.latents) / path).stat().st_mtime_ns for path in previous} == previous

    def test_further_days_are_added_in_one_commit(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        second = publish_days(dataset, dataset.days[:3])
        assert second.table_version == first.table_version + 1
        assert set(table(dataset.paths)["date"].dt.to_string()) == {*dataset.days[:3], *days}

    def test_a_changed_day_only_replaces_its_own_file(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
    ) -> None:
        previous = {path.split("/")[1]: path for path in current_files(dataset.paths)}
        rewrite_day(dataset, days[1], dataset.features(days[1]).head(25))
        second = publish_days(dataset, days)
        after = {path.split("/")[1]: path for path in current_files(dataset.paths)}
        assert {day for day in days if previous[day] != after[day]} == {days[1]}
        assert second.table_version == first.table_version + 1
        assert [entry.built for entry in second.days] == [False, True, False, False]
        assert table(dataset.paths).height == 3 * 60 + 25
        assert table(dataset.paths, first.table_version).height == 4 * 60

    def test_a_day_that_is_reverted_reuses_its_old_file(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
    ) -> None:
        previous, rows = files_of(dataset.paths), dataset.features(days[0])
        rewrite_day(dataset, days[0], rows.head(7))
        publish_days(dataset, days)
        rewrite_day(dataset, days[0], rows)
        third = publish_days(dataset, days)
        assert files_of(dataset.paths) == previous
        assert not any(entry.built for entry in third.days)
        assert table(dataset.paths).height == 240

    def test_a_day_that_lost_its_rows_leaves_the_table(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, rewrite_day: RewriteDay
    ) -> None:
        rewrite_day(dataset, days[2], dataset.features(days[2]).clear())
        second = publish_days(dataset, days)
        assert second.days[2].rows == 0
        assert second.days[2].path is None
        assert set(table(dataset.paths)["date"].dt.to_string()) == set(days) - {days[2]}

    def test_a_day_that_never_had_rows_commits_nothing(
        self, dataset: Fitted, days: tuple[str, ...], rewrite_day: RewriteDay
    ) -> None:
        rewrite_day(dataset, days[0], dataset.features(days[0]).clear())
        result = publish_days(dataset, days[:1])
        assert (result.committed, result.table_version, result.days[0].rows) == (False, -1, 0)
        assert open_table(dataset.paths) is None
        assert current_files(dataset.paths) == []


class TestSpaces:
    def test_another_model_with_the_same_number_is_another_space(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, days[:1], other_bundle, 1)
        rows = table(dataset.paths)
        assert rows.height == 240
        assert rows["latent_space"].unique().to_list() == [latent_space_name(1, other_bundle.fingerprint)]

    def test_a_new_model_replaces_all_days_in_one_commit(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        second = publish_days(dataset, days[:1], other_bundle, 2)
        assert second.table_version == first.table_version + 1
        assert sorted(entry.day for entry in second.days) == sorted(days)
        rows = table(dataset.paths)
        assert rows.height == 240
        assert set(rows["latent_space"]) == {latent_space_name(2, other_bundle.fingerprint)}
        assert model_version_of(dataset.paths) == 2
        assert_one_space_in_every_version(dataset.paths)
        expected = other_bundle.encode(dataset.features(days[3]))
        latents = rows.filter(pl.col("date").dt.to_string() == days[3]).select(f"z_{index:03d}" for index in range(3))
        np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-6)

    def test_another_latent_width_changes_the_columns(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, wider_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, days[:2], wider_bundle, 2)
        assert [name for name in table(dataset.paths).columns if name.startswith("z_")] == [
            f"z_{i:03d}" for i in range(5)
        ]
        assert table(dataset.paths).height == 240
        back = publish_days(dataset, days[:1], dataset.bundle, 3)
        assert [name for name in table(dataset.paths).columns if name.startswith("z_")] == [
            f"z_{i:03d}" for i in range(3)
        ]
        assert back.table_version == first.table_version + 2
        assert_one_space_in_every_version(dataset.paths)

    def test_earlier_versions_of_the_table_stay_readable(
        self,
        dataset: Fitted,
        days: tuple[str, ...],
        first: Publication,
        other_bundle: ModelBundle,
        wider_bundle: ModelBundle,
    ) -> None:
        kept = {first.table_version: table(dataset.paths)}
        for number, bundle in enumerate((other_bundle, wider_bundle), 2):
            version = publish_days(dataset, days, bundle, number).table_version
            kept[version] = table(dataset.paths)
        for version, rows in kept.items():
            assert table(dataset.paths, version).equals(rows)
        assert len(kept) == 3

    def test_the_space_can_change_with_a_day_without_rows(
        self,
        dataset: Fitted,
        days: tuple[str, ...],
        first: Publication,
        rewrite_day: RewriteDay,
        wider_bundle: ModelBundle,
    ) -> None:
        rewrite_day(dataset, days[2], dataset.features(days[2]).clear())
        publish_days(dataset, days[:1], wider_bundle, 2)
        assert set(table(dataset.paths)["date"].dt.to_string()) == set(days) - {days[2]}
        assert_one_space_in_every_version(dataset.paths)


class TestStaleDays:
    def test_a_day_is_stale_if_its_features_or_the_model_changed(
        self,
        dataset: Fitted,
        days: tuple[str, ...],
        first: Publication,
        rewrite_day: RewriteDay,
        other_bundle: ModelBundle,
    ) -> None:
        assert stale_days(days, dataset.paths, dataset.bundle.fingerprint, 1) == []
        assert stale_days(dataset.days, dataset.paths, dataset.bundle.fingerprint, 1) == list(dataset.days[:-4])
        assert stale_days(days, dataset.paths, other_bundle.fingerprint, 2) == list(days)
        rewrite_day(dataset, days[0], dataset.features(days[0]).head(3))
        rewrite_day(dataset, days[1], dataset.features(days[1]).clear())
        assert stale_days(days, dataset.paths, dataset.bundle.fingerprint, 1) == list(days[:2])
        publish_days(dataset, days)
        assert stale_days(days, dataset.paths, dataset.bundle.fingerprint, 1) == []
        assert stale_days(["1999-01-01"], dataset.paths, dataset.bundle.fingerprint, 1) == []


class TestErrors:
    def test_a_day_without_features_is_named(self, dataset: Fitted, days: tuple[str, ...], first: Publication) -> None:
        dataset.paths.features(days[0]).unlink()
        with pytest.raises(
            PublicationError, match=f"features of 'sensors' have no {days[0]}; materialize that partition"
        ):
            publish_days(dataset, dataset.days)
        assert DeltaTable(dataset.paths.latents).version() == first.table_version

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("too few rows", "has 10 rows of 2024-.*, but the features have 60"),
            ("another space", "has rows of latent space v7_x instead of v1_.*"),
            ("another type", "has the columns .*score: float, .* not those of the table"),
            ("a score that is NaN", "violates the data contract: values_are_finite is 60 instead of 0"),
            ("an infinite latent", "violates the data contract: values_are_finite is 60 instead of 0"),
        ],
    )
    def test_an_unexpected_file_is_named_and_not_published(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, damage: str, message: str
    ) -> None:
        (path,) = (entry.path for entry in first.days if entry.day == days[1])
        assert path is not None
        target = Path(dataset.paths.latents) / path
        rows = pq.read_table(target)

        def put(name: str, values: Any) -> pa.Table:
            index = rows.schema.get_field_index(name)
            return rows.set_column(index, pa.field(name, values.type, nullable=False), values)

        match damage:
            case "too few rows":
                pq.write_table(rows.slice(0, 10), target)
            case "another space":
                pq.write_table(put("latent_space", pa.array(["v7_x"] * 60)), target)
            case "another type":
                pq.write_table(put("score", rows["score"].cast(pa.float32())), target)
            case "a score that is NaN":
                pq.write_table(put("score", pa.array([float("nan")] * 60)), target)
            case _:
                pq.write_table(put("z_002", pa.array([float("inf")] * 60, pa.float32())), target)
        with pytest.raises(PublicationError, match=f"{path} {message}.*delete this file and run again"):
            publish_days(dataset, days)
        assert DeltaTable(dataset.paths.latents).version() == first.table_version


def assert_texts_match(paths: DatasetPaths) -> None:
    """Check that the list of files and the data contract describe the newest version of the table."""
    files = TableFiles(paths.latents)
    opened, manifest, contract = files.open(), files.read_text(MANIFEST), read_contract(files)
    assert opened is not None
    assert manifest is not None
    assert contract is not None
    assert sorted(manifest.split()) == [files.full_path(path) for path in live_files(opened)]
    properties = {entry.property: entry.value for entry in contract.customProperties or []}
    assert (properties["latentSpace"], properties["modelVersion"]) == (
        read_latents("sensors", data=paths.root).latent_space,
        model_version_of(paths),
    )


class TestConcurrentPublications:
    def test_the_loser_is_tried_again_with_its_files(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        written: list[dict[Path, int]] = []

        def meanwhile() -> None:
            written.append({path: path.stat().st_mtime_ns for path in Path(dataset.paths.latents).glob("v2_*/*/*")})
            if len(written) == 1:
                publish_days(dataset, dataset.days[-5:])

        done = publish(
            days[:1], Dataset(other_bundle.config, dataset.paths), other_bundle, 2, {}, before_commit=meanwhile
        )
        assert_one_space_in_every_version(dataset.paths)
        assert (model_version_of(dataset.paths), table(dataset.paths).height) == (2, 300)
        assert (done.table_version, done.committed) == (first.table_version + 2, True)
        assert {day.day for day in done.days if day.built} == set(dataset.days[-5:])
        first_try, second_try = written
        assert len(first_try) == 4
        assert first_try.items() <= second_try.items()
        assert_texts_match(dataset.paths)

    def test_it_gives_up_after_eight_retries(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ae_pipeline.latents.publish._RETRY_SECONDS", 0)
        tries: list[int] = []

        def meanwhile() -> None:
            tries.append(len(tries))
            DeltaTable(dataset.paths.latents).alter.set_table_properties({"delta.appendOnly": "false"})

        with pytest.raises(
            PublicationError, match=r"another publication changed .*sensors at the same time, .*; run it again"
        ):
            publish(
                dataset.days[-5:],
                Dataset(dataset.bundle.config, dataset.paths),
                dataset.bundle,
                1,
                {},
                before_commit=meanwhile,
            )
        assert len(tries) == 9
        assert table(dataset.paths).height == 240

    def test_an_older_model_does_not_undo_a_newer_one(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        def meanwhile() -> None:
            publish_days(dataset, days, other_bundle, 2)

        with pytest.raises(PublicationError, match="another publication changed"):
            publish(
                dataset.days[-5:],
                Dataset(dataset.bundle.config, dataset.paths),
                dataset.bundle,
                1,
                {},
                before_commit=meanwhile,
            )
        assert (model_version_of(dataset.paths), table(dataset.paths).height) == (2, 240)
        assert_texts_match(dataset.paths)

    def test_texts_of_a_slow_publication_tell_the_newest_version(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_text = TableFiles.write_text

        def slow(files: TableFiles, path: str, text: str) -> None:
            if path == MANIFEST:
                monkeypatch.setattr(TableFiles, "write_text", write_text)
                publish_days(dataset, dataset.days[-6:])  # of a host that does not know the lock
            write_text(files, path, text)

        monkeypatch.setattr(TableFiles, "write_text", slow)
        done = publish_days(dataset, dataset.days[-5:])
        assert done.table_version == first.table_version + 2
        assert_texts_match(dataset.paths)
        assert table(dataset.paths).height == 360

    def test_one_without_changes_fails_too(
        self,
        dataset: Fitted,
        days: tuple[str, ...],
        first: Publication,
        other_bundle: ModelBundle,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plan = table_update.TableUpdate.plan

        def overtaken(*given: Any) -> Any:
            monkeypatch.setattr(table_update.TableUpdate, "plan", plan)
            publish_days(dataset, days, other_bundle, 2)
            for path in Path(dataset.paths.latents).glob("v2*/*/*.parquet"):
                os.utime(path, (time.time() - 2 * 86_400,) * 2)
            return plan(*given)

        monkeypatch.setattr(table_update.TableUpdate, "plan", overtaken)
        with pytest.raises(PublicationError, match="another publication changed"):
            publish_days(dataset, days)
        assert (model_version_of(dataset.paths), table(dataset.paths).height) == (2, 240)
        manifest = (Path(dataset.paths.latents) / "_symlink_format_manifest" / "manifest").read_text()
        assert all("/v2_" in line for line in manifest.split())
        assert read_latents("sensors", data=dataset.paths.root).model_version == 2

    def test_two_that_create_the_table_are_both_in_it(self, dataset: Fitted, days: tuple[str, ...]) -> None:
        def meanwhile() -> None:
            publish_days(dataset, days[1:3])

        publish(days[:1], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {}, before_commit=meanwhile)
        assert table(dataset.paths).height == 180
        assert_texts_match(dataset.paths)
