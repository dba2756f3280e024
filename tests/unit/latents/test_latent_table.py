"""The published table: read back by others' readers, one space in every version, one commit for a run."""

import ast
import datetime as dt
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

import ae_pipeline
from ae_pipeline import Latents, read_latents
from ae_pipeline.common.errors import PublicationError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents import layout
from ae_pipeline.latents import publish as publication
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.layout import day_key, latent_schema, score_day, write_file
from ae_pipeline.latents.publish import Publication, publish, stale_days
from ae_pipeline.latents.read import (
    PublishedDay,
    current_files,
    latents_of,
    model_version_of,
    open_table,
    published_days,
    scores_of,
)
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from tests.support.sensors import Fitted


def published(dataset: Fitted, days: Iterable[str], bundle: ModelBundle | None = None, version: int = 1) -> Publication:
    return publish(
        list(days),
        Dataset((bundle or dataset.bundle).config, dataset.paths),
        bundle or dataset.bundle,
        version,
        {"dagster_run": "r1"},
    )


def table(paths: DatasetPaths, version: int | None = None) -> pl.DataFrame:
    return pl.read_delta(paths.latents, version=version).sort("event_time", "row_id")


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """Each day has a file of its own, as days of many rows have; `TestMonths` is about the others."""
    monkeypatch.setattr(layout, "ALONE", 1)


def files_by_day(paths: DatasetPaths) -> dict[str, str]:
    return {day: found.path for day, found in published_days(paths).items()}


def expected_path(day: str, features_hash: str, fingerprint: str, space: str) -> str:
    return f"{space}/{day}/part-{day_key(features_hash, fingerprint)}.parquet"


def files_of(paths: DatasetPaths, version: int | None = None) -> set[str]:
    return {Path(uri).name for uri in DeltaTable(paths.latents, version=version).file_uris()}


def assert_one_space_in_every_version(paths: DatasetPaths) -> None:
    for version in range(DeltaTable(paths.latents).version() + 1):
        rows = table(paths, version)
        assert rows["latent_space"].n_unique() <= 1, f"version {version} mixes spaces"
        assert rows["model_version"].n_unique() <= 1, f"version {version} mixes models"


@pytest.fixture
def days(fitted) -> tuple[str, ...]:
    return fitted.days[-4:]


@pytest.fixture
def first(dataset, days) -> Publication:
    """Four days published under version 1."""
    return published(dataset, days)


@pytest.fixture
def undated(fit_frame, tmp_path) -> DatasetPaths:
    """400 rows without event time, published."""
    frame = pl.DataFrame({"x": np.random.default_rng(0).normal(size=400)})
    bundle, _ = fit_frame(frame, [FeatureColumn("x", ColumnType.NUMBER)], model={"latent_dim": 1, "hidden": (4,)})
    paths = DatasetPaths(tmp_path, "frame")
    rows = frame.select(
        row_id=pl.format("r{}", pl.int_range(pl.len())), event_time=pl.lit(None, pl.Datetime("us", "UTC")), x="x"
    )
    write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
    result = publish([ALL_ROWS], Dataset(bundle.config, paths), bundle, 1, {})
    assert [(entry.day, entry.rows) for entry in result.days] == [(ALL_ROWS, 400)]
    return paths


class TestContent:
    def test_pandas_polars_and_duckdb_read_what_the_bundle_says(self, dataset, days, first):
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
        by_duckdb = duckdb.sql(f"select * from read_parquet({uris!r}) order by event_time, row_id")
        found = {
            "polars": table(dataset.paths),
            "pandas": pd.read_parquet(uris).sort_values(["event_time", "row_id"]),
            "duckdb": dict(zip(by_duckdb.columns, zip(*by_duckdb.fetchall(), strict=True), strict=True)),
        }
        for reader, rows in found.items():
            for name, values in expected.items():
                close = pytest.approx(values, rel=1e-6, abs=1e-6) if isinstance(values[0], float) else values
                assert list(rows[name]) == close, (reader, name)
        np.testing.assert_array_equal(found["pandas"]["score"], found["polars"]["score"])
        np.testing.assert_array_equal(np.array(found["duckdb"]["score"]), found["polars"]["score"])
        np.testing.assert_array_equal(found["pandas"]["event_time"], features["event_time"].to_pandas())
        assert found["polars"]["date"].to_list() == features["event_time"].dt.date().to_list()

    def test_each_days_file_bears_the_very_bytes_that_the_bundle_gives_for_the_day(self, dataset, first):
        for entry in first.days:
            scored, rows = (
                dataset.bundle.score(dataset.features(entry.day)),
                pl.read_parquet(Path(dataset.paths.latents) / entry.path),
            )
            np.testing.assert_array_equal(rows["score"], scored.score)
            np.testing.assert_array_equal(
                latents_of([PublishedDay(entry.day, entry.path, entry.key)], dataset.paths, 3), scored.latents
            )
            assert (entry.rows, entry.flagged) == (60, int(scored.is_anomaly.sum()))

    def test_rows_are_in_the_order_of_event_time(self, dataset, first):
        for path in current_files(dataset.paths):
            assert pl.read_parquet(Path(dataset.paths.latents) / path)["event_time"].is_sorted()

    def test_a_row_is_an_anomaly_where_its_p_value_lies_within_the_budget(self, dataset):
        published(dataset, dataset.days)
        rows = table(dataset.paths)
        assert rows.height == 40 * 60
        np.testing.assert_array_equal(rows["is_anomaly"], rows["p_value"] <= 0.01)
        np.testing.assert_array_equal(rows["is_anomaly"], rows["score"] > dataset.bundle.calibration.threshold)
        assert 0 < rows["is_anomaly"].sum() < 120

    def test_the_log_knows_the_least_and_greatest_event_time_of_each_file(self, dataset, days, rewrite_day):
        odd = dataset.features(days[0]).with_columns(pl.col("event_time") + pl.duration(microseconds=123_457))
        rewrite_day(dataset, days[0], odd)
        published(dataset, days)
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

    def test_a_filter_on_time_reads_the_rows_that_it_should(self, dataset, days, first):
        noon = dt.datetime.fromisoformat(f"{days[1]}T12:00:00Z")
        expected = table(dataset.paths).filter(pl.col("event_time") >= noon)["row_id"].to_list()
        scanned = pl.scan_delta(dataset.paths.latents).filter(pl.col("event_time") >= noon).collect()
        by_arrow = DeltaTable(dataset.paths.latents).to_pyarrow_table(filters=[("event_time", ">=", noon)])
        assert sorted(scanned["row_id"]) == sorted(by_arrow["row_id"].to_pylist()) == sorted(expected)

    def test_the_list_of_current_files_is_that_of_the_newest_version(self, dataset, days, first, rewrite_day):
        manifest = Path(dataset.paths.latents) / "_symlink_format_manifest" / "manifest"

        def listed() -> list[str]:
            return sorted(manifest.read_text().split())

        assert listed() == sorted(DeltaTable(dataset.paths.latents).file_uris())
        previous = manifest.read_text()
        rewrite_day(dataset, days[1], dataset.features(days[1]).head(25))
        published(dataset, days)
        assert len(listed()) == 4
        assert listed() == sorted(DeltaTable(dataset.paths.latents).file_uris())
        # as a run leaves it that was killed after its commit
        manifest.write_text(previous)
        published(dataset, days)
        assert duckdb.sql(f"select count(*) from read_parquet({listed()!r})").fetchall() == [(3 * 60 + 25,)]

    def test_a_commit_names_the_runs_that_it_comes_from(self, dataset, first):
        commit = DeltaTable(dataset.paths.latents).history(1)[0]
        space = latent_space_name(1, dataset.bundle.fingerprint)
        assert (commit["dagster_run"], commit["model_version"], commit["latent_space"]) == ("r1", "1", space)

    def test_rows_without_event_time_are_published_as_one_part(self, undated):
        found = pl.read_delta(str(undated.latents))
        assert list(files_by_day(undated)) == [ALL_ROWS]
        assert found["row_id"].to_list() == [f"r{index}" for index in range(400)]
        assert found["event_time"].null_count() == found["date"].null_count() == 400

    def test_a_root_with_blanks_and_signs_in_its_name_is_published_to(self, fitted, days, tmp_path):
        dataset = fitted.at(tmp_path / "my data, 100% über#1")
        published(dataset, days)
        assert len(current_files(dataset.paths)) == 4
        assert not published(dataset, days).committed
        assert model_version_of(dataset.paths) == 1


def test_the_documented_lines_read_all_rows(dataset, first):
    root = Path(__file__).parents[3]
    readme = (root / "README.md").read_text(encoding="utf-8")
    reference = (root / "docs" / "reference" / "tables-and-files.md").read_text(encoding="utf-8")
    section = reference.split("## Read the latent table")[1].split("## ")[0]
    short, *_ = re.findall(r"```python\n(.*?)```", readme.split("## Read the table")[1], re.DOTALL)
    (plain, ours) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"ae_pipeline": ae_pipeline}
    found = []
    short, plain = (code.replace("data/latents/flights", dataset.paths.latents) for code in (short, plain))
    ours = ours.replace('("flights"', f'("sensors", data={str(dataset.paths.root)!r}').replace("2013-", "2024-")
    for code in (short, plain, ours):
        for line in ast.parse(code).body:
            if isinstance(line, ast.Expr):
                found += [eval(compile(ast.Expression(line.value), "docs", "eval"), names)]
            else:
                exec(compile(ast.Module([line], []), "docs", "exec"), names)
    assert len(names["latents"]) == 240
    assert [len(rows) for rows in found[:4]] == [240] * 4
    assert found[4] == (first.latent_space, 1, first.table_version)
    assert names["earlier"].arrow.num_rows == 240


class TestReading:
    @staticmethod
    def read(dataset: Fitted, **choice: Any) -> Latents:
        return read_latents("sensors", data=dataset.paths.root, **choice)

    def test_all_rows_come_in_order_with_their_space_in_every_kind_of_frame(self, dataset, days, first):
        found, expected = self.read(dataset), table(dataset.paths)
        assert found.latent_space == latent_space_name(1, dataset.bundle.fingerprint)
        assert (found.model_version, found.table_version) == (1, first.table_version)
        assert found.polars()["event_time"].is_sorted()
        assert found.polars().sort("event_time", "row_id").equals(expected)
        frame = found.pandas()
        assert frame["score"].tolist() == found.arrow["score"].to_pylist()
        assert frame.attrs == {"latent_space": found.latent_space, "model_version": 1, "table_version": 1}

    @pytest.mark.parametrize("kind", ["text", "date", "moment"])
    def test_start_is_the_first_moment_and_end_the_one_after_the_last(self, dataset, days, first, kind):
        given = {
            "text": lambda day: day,
            "date": dt.date.fromisoformat,
            "moment": lambda day: dt.datetime.fromisoformat(f"{day}T02:00:00+02:00"),
        }[kind]
        found = self.read(dataset, start=given(days[1]), end=given(days[3])).polars()
        assert found["date"].dt.to_string().unique().sort().to_list() == list(days[1:3])
        assert found.height == 120
        assert self.read(dataset, start=given(days[3])).arrow.num_rows == 60
        assert self.read(dataset, end=given(days[1])).arrow.num_rows == 60
        assert self.read(dataset, end=given(days[0])).arrow.num_rows == 0

    def test_columns_come_as_named(self, dataset, first):
        assert self.read(dataset, columns=["score", "z_001"]).arrow.column_names == ["score", "z_001"]

    def test_an_earlier_space_is_read_as_it_last_was(self, dataset, days, first, wider_bundle):
        published(dataset, dataset.days[:1])
        old = self.read(dataset)
        published(dataset, days, wider_bundle, 2)
        new = self.read(dataset)
        assert (new.model_version, new.latent_space) == (2, latent_space_name(2, wider_bundle.fingerprint))
        assert "z_004" in new.arrow.column_names
        for choice in (1, old.latent_space):
            again = self.read(dataset, space=choice)
            assert again.arrow.equals(old.arrow)
            assert (again.latent_space, again.table_version) == (old.latent_space, old.table_version)
        published(dataset, days, dataset.bundle, 1)
        assert self.read(dataset, space=1).table_version == self.read(dataset).table_version == old.table_version + 2

    def test_the_data_folder_may_be_named_by_the_environment(self, dataset, first, monkeypatch):
        monkeypatch.setenv("AE_PIPELINE_DATA", str(dataset.paths.root))
        assert read_latents("sensors").arrow.num_rows == 240

    def test_rows_of_two_spaces_are_refused(self, dataset, days, first, other_bundle):
        # what no publication does: files of another space beside those that are there
        space = latent_space_name(2, other_bundle.fingerprint)
        path = expected_path(days[0], "other", other_bundle.fingerprint, space)
        rows = pa.concat_tables(score_day(other_bundle, 2, dataset.paths.features(days[0])))
        write_file([rows], {days[0]: "other"}, 3, path, TableFiles(dataset.paths.latents))
        delta = DeltaTable(dataset.paths.latents)
        added = AddAction(
            path, (Path(dataset.paths.latents) / path).stat().st_size, {}, 0, data_change=True, stats="{}"
        )
        delta.create_write_transaction([added], "append", latent_schema(3))
        with pytest.raises(PublicationError, match=rf"mixes the latent spaces v1_\w+ and {space}.*; restore"):
            self.read(dataset)

    @pytest.mark.parametrize(
        ("choice", "message"),
        [
            ({"space": 7}, r"have no space 7; choose among v1_\w+, or 'current'"),
            ({"space": "v9_x"}, r"have no space 'v9_x'; choose among v1_\w+"),
            ({"columns": ["score", "z_9"]}, r"have no column 'z_9'; choose among row_id, event_time"),
            ({"start": "July"}, r"'July' is no moment of ISO 8601; give a date such as"),
        ],
    )
    def test_what_is_not_there_is_told_with_what_is(self, dataset, first, choice, message):
        with pytest.raises(PublicationError, match=message):
            self.read(dataset, **choice)

    def test_a_table_that_is_not_there_is_told(self, dataset):
        with pytest.raises(PublicationError, match="holds no latent table; publish latents of 'sensors' first"):
            self.read(dataset)

    def test_rows_without_event_time_cannot_be_chosen_by_it(self, undated):
        assert read_latents("frame", data=undated.root).arrow["row_id"].to_pylist() == [f"r{i}" for i in range(400)]
        with pytest.raises(PublicationError, match="have no event time to choose by; leave start and end out"):
            read_latents("frame", data=undated.root, start="2024-01-01")


class TestCommits:
    def test_publishing_again_commits_nothing_and_writes_no_file(self, dataset, days, first):
        previous = {
            path: (Path(dataset.paths.latents) / path).stat().st_mtime_ns for path in current_files(dataset.paths)
        }
        again = published(dataset, days)
        assert (first.committed, again.committed) == (True, False)
        assert again.table_version == first.table_version
        assert [entry.built for entry in first.days] == [True] * 4
        assert [entry.built for entry in again.days] == [False] * 4
        assert {path: (Path(dataset.paths.latents) / path).stat().st_mtime_ns for path in previous} == previous

    def test_further_days_join_those_that_are_there_in_one_commit(self, dataset, days, first):
        second = published(dataset, dataset.days[:3])
        assert second.table_version == first.table_version + 1
        assert set(table(dataset.paths)["date"].dt.to_string()) == {*dataset.days[:3], *days}

    def test_a_changed_day_replaces_its_own_file_alone(self, dataset, days, first, rewrite_day):
        previous = {path.split("/")[1]: path for path in current_files(dataset.paths)}
        rewrite_day(dataset, days[1], dataset.features(days[1]).head(25))
        second = published(dataset, days)
        after = {path.split("/")[1]: path for path in current_files(dataset.paths)}
        assert {day for day in days if previous[day] != after[day]} == {days[1]}
        assert second.table_version == first.table_version + 1
        assert [entry.built for entry in second.days] == [False, True, False, False]
        assert table(dataset.paths).height == 3 * 60 + 25
        assert table(dataset.paths, first.table_version).height == 4 * 60

    def test_a_day_that_returns_to_what_it_was_takes_back_its_old_file(self, dataset, days, first, rewrite_day):
        previous, rows = files_of(dataset.paths), dataset.features(days[0])
        rewrite_day(dataset, days[0], rows.head(7))
        published(dataset, days)
        rewrite_day(dataset, days[0], rows)
        third = published(dataset, days)
        assert files_of(dataset.paths) == previous
        assert not any(entry.built for entry in third.days)
        assert table(dataset.paths).height == 240

    def test_a_day_that_lost_its_rows_leaves_the_table(self, dataset, days, first, rewrite_day):
        rewrite_day(dataset, days[2], dataset.features(days[2]).clear())
        second = published(dataset, days)
        assert second.days[2].rows == 0
        assert second.days[2].path is None
        assert set(table(dataset.paths)["date"].dt.to_string()) == set(days) - {days[2]}

    def test_a_day_that_never_had_rows_commits_nothing(self, dataset, days, rewrite_day):
        rewrite_day(dataset, days[0], dataset.features(days[0]).clear())
        result = published(dataset, days[:1])
        assert (result.committed, result.table_version, result.days[0].rows) == (False, -1, 0)
        assert open_table(dataset.paths) is None
        assert current_files(dataset.paths) == []


class TestSpaces:
    def test_another_model_of_the_same_number_has_a_space_of_its_own(self, dataset, days, first, other_bundle):
        published(dataset, days[:1], other_bundle, 1)
        rows = table(dataset.paths)
        assert rows.height == 240
        assert rows["latent_space"].unique().to_list() == [latent_space_name(1, other_bundle.fingerprint)]

    def test_a_new_model_moves_all_days_in_one_commit_though_one_was_asked_for(
        self, dataset, days, first, other_bundle
    ):
        second = published(dataset, days[:1], other_bundle, 2)
        assert second.table_version == first.table_version + 1
        assert sorted(entry.day for entry in second.days) == sorted(days)
        rows = table(dataset.paths)
        assert rows.height == 240
        assert set(rows["latent_space"]) == {latent_space_name(2, other_bundle.fingerprint)}
        assert model_version_of(dataset.paths) == 2
        assert_one_space_in_every_version(dataset.paths)
        expected = other_bundle.encode(dataset.features(days[3]))
        found = rows.filter(pl.col("date").dt.to_string() == days[3]).select(f"z_{index:03d}" for index in range(3))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_another_latent_width_brings_its_own_columns(self, dataset, days, first, wider_bundle):
        published(dataset, days[:2], wider_bundle, 2)
        assert [name for name in table(dataset.paths).columns if name.startswith("z_")] == [
            f"z_{i:03d}" for i in range(5)
        ]
        assert table(dataset.paths).height == 240
        back = published(dataset, days[:1], dataset.bundle, 3)
        assert [name for name in table(dataset.paths).columns if name.startswith("z_")] == [
            f"z_{i:03d}" for i in range(3)
        ]
        assert back.table_version == first.table_version + 2
        assert_one_space_in_every_version(dataset.paths)

    def test_every_version_of_the_table_can_still_be_read_as_it_was(
        self, dataset, days, first, other_bundle, wider_bundle
    ):
        kept = {first.table_version: table(dataset.paths)}
        for number, bundle in enumerate((other_bundle, wider_bundle), 2):
            version = published(dataset, days, bundle, number).table_version
            kept[version] = table(dataset.paths)
        for version, rows in kept.items():
            assert table(dataset.paths, version).equals(rows)
        assert len(kept) == 3

    def test_a_day_without_rows_does_not_hinder_the_move_to_another_space(
        self, dataset, days, first, rewrite_day, wider_bundle
    ):
        rewrite_day(dataset, days[2], dataset.features(days[2]).clear())
        published(dataset, days[:1], wider_bundle, 2)
        assert set(table(dataset.paths)["date"].dt.to_string()) == set(days) - {days[2]}
        assert_one_space_in_every_version(dataset.paths)


class TestStaleDays:
    def test_a_day_is_stale_where_features_or_model_are_not_those_of_the_table(
        self, dataset, days, first, rewrite_day, other_bundle
    ):
        assert stale_days(days, dataset.paths, dataset.bundle.fingerprint, 1) == []
        assert stale_days(dataset.days, dataset.paths, dataset.bundle.fingerprint, 1) == list(dataset.days[:-4])
        assert stale_days(days, dataset.paths, other_bundle.fingerprint, 2) == list(days)
        rewrite_day(dataset, days[0], dataset.features(days[0]).head(3))
        rewrite_day(dataset, days[1], dataset.features(days[1]).clear())
        assert stale_days(days, dataset.paths, dataset.bundle.fingerprint, 1) == list(days[:2])
        published(dataset, days)
        assert stale_days(days, dataset.paths, dataset.bundle.fingerprint, 1) == []
        assert stale_days(["1999-01-01"], dataset.paths, dataset.bundle.fingerprint, 1) == []


class TestRefusals:
    def test_a_day_without_features_is_named_and_the_table_stays_as_it_was(self, dataset, days, first):
        dataset.paths.features(days[0]).unlink()
        with pytest.raises(
            PublicationError, match=f"features of 'sensors' have no {days[0]}; materialize that partition"
        ):
            published(dataset, dataset.days)
        assert DeltaTable(dataset.paths.latents).version() == first.table_version

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            ("cut off", "cannot be read"),
            ("a changed byte", "cannot be read .*CRC"),
            ("too few rows", "holds 10 rows of 2024-.* where the features have 60"),
            ("of another space", "holds rows of v7_x, and not of v1_.*"),
            ("another type", "has the columns .*score: float, .* not those of the table"),
            ("a score that is no number", "breaks the contract of the table: values_are_finite counts 60 and not 0"),
            ("a latent without end", "breaks the contract of the table: values_are_finite counts 60 and not 0"),
        ],
    )
    def test_a_file_that_is_not_what_its_features_call_for_is_named_and_not_published(
        self, dataset, days, first, spoil, message
    ):
        (path,) = (entry.path for entry in first.days if entry.day == days[1])
        target = Path(dataset.paths.latents) / path
        rows = pq.read_table(target)

        def put(name: str, values: Any) -> pa.Table:
            index = rows.schema.get_field_index(name)
            return rows.set_column(index, pa.field(name, values.type, nullable=False), values)

        match spoil:
            case "cut off":
                target.write_bytes(target.read_bytes()[:500])
            case "a changed byte":
                content = bytearray(target.read_bytes())
                column = pq.ParquetFile(target).metadata.row_group(0).column(4)
                content[column.data_page_offset + column.total_compressed_size - 3] ^= 1
                target.write_bytes(content)
            case "too few rows":
                pq.write_table(rows.slice(0, 10), target)
            case "of another space":
                pq.write_table(put("latent_space", pa.array(["v7_x"] * 60)), target)
            case "another type":
                pq.write_table(put("score", rows["score"].cast(pa.float32())), target)
            case "a score that is no number":
                pq.write_table(put("score", pa.array([float("nan")] * 60)), target)
            case _:
                pq.write_table(put("z_002", pa.array([float("inf")] * 60, pa.float32())), target)
        with pytest.raises(PublicationError, match=f"{path} {message}.*remove that file and run again"):
            published(dataset, days)
        assert DeltaTable(dataset.paths.latents).version() == first.table_version


class TestTwoAtOnce:
    def test_one_wins_and_the_other_says_so(self, dataset, days, first, other_bundle):
        def meanwhile() -> None:
            published(dataset, dataset.days[-5:])

        with pytest.raises(PublicationError, match=r"another publication changed .*sensors meanwhile; .*run it again"):
            publish(days[:1], Dataset(other_bundle.config, dataset.paths), other_bundle, 2, {}, before_commit=meanwhile)
        assert_one_space_in_every_version(dataset.paths)
        assert (model_version_of(dataset.paths), table(dataset.paths).height) == (1, 300)
        again = published(dataset, days[:1], other_bundle, 2)
        assert (again.committed, table(dataset.paths).height) == (True, 300)

    def test_one_that_had_nothing_to_change_says_so_too(self, dataset, days, first, other_bundle, monkeypatch):
        plan = publication._Writing.plan

        def overtaken(*given: Any) -> Any:
            monkeypatch.setattr(publication._Writing, "plan", plan)
            published(dataset, days, other_bundle, 2)
            for path in Path(dataset.paths.latents).glob("v2*/*/*.parquet"):
                os.utime(path, (time.time() - 2 * 86_400,) * 2)
            return plan(*given)

        monkeypatch.setattr(publication._Writing, "plan", overtaken)
        with pytest.raises(PublicationError, match="another publication changed"):
            published(dataset, days)
        assert (model_version_of(dataset.paths), table(dataset.paths).height) == (2, 240)
        manifest = (Path(dataset.paths.latents) / "_symlink_format_manifest" / "manifest").read_text()
        assert all("/v2_" in line for line in manifest.split())
        assert read_latents("sensors", data=dataset.paths.root).model_version == 2

    def test_of_two_first_ones_one_makes_the_table(self, dataset, days):
        def meanwhile() -> None:
            published(dataset, days[:3])

        with pytest.raises(PublicationError, match=r"run it again"):
            publish(
                days[:1], Dataset(dataset.bundle.config, dataset.paths), dataset.bundle, 1, {}, before_commit=meanwhile
            )
        assert table(dataset.paths).height == 180


def removed_days_ago(dataset: Fitted, count: int) -> None:
    """Lets the log say that what left the table did so some days ago."""
    log = sorted((Path(dataset.paths.latents) / "_delta_log").glob("*.json"))
    for entry in log:
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for line in lines:
            if "remove" in line:
                line["remove"]["deletionTimestamp"] -= count * 86_400_000
        entry.write_text("\n".join(map(json.dumps, lines)))


def with_retention(dataset: Fitted, retention: int) -> PipelineConfig:
    return dataset.config.model_copy(update={"latents": LatentsConfig(retention_days=retention)})


class TestOtherHands:
    def test_a_restored_table_is_read_by_what_its_rows_say(self, dataset, days, first, other_bundle):
        published(dataset, days, other_bundle, 2)
        DeltaTable(dataset.paths.latents).restore(first.table_version)
        found = read_latents("sensors", data=dataset.paths.root)
        assert found.model_version == 1
        assert found.latent_space == latent_space_name(1, dataset.bundle.fingerprint)
        assert set(found.polars()["model_version"]) == {1}

    def test_a_table_that_a_tool_has_compacted_is_refused_in_words(self, dataset, days, first):
        DeltaTable(dataset.paths.latents).optimize.compact()
        for ask in (lambda: published_days(dataset.paths), lambda: published(dataset, dataset.days[-5:])):
            with pytest.raises(PublicationError, match="was not written by a publication; restore the version before"):
                ask()
        assert read_latents("sensors", data=dataset.paths.root).arrow.num_rows == 240

    def test_a_current_file_that_is_gone_is_named_as_such(self, dataset, days, first):
        (Path(dataset.paths.latents) / current_files(dataset.paths)[0]).unlink()
        with pytest.raises(PublicationError, match=r"a file of version 1 .* is gone; materialize latent_features"):
            read_latents("sensors", data=dataset.paths.root)

    def test_a_relative_folder_is_taken_from_where_one_is(self, dataset, days, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        paths = DatasetPaths(dataset.paths.root, "sensors", "tables")
        publish(days, Dataset(dataset.bundle.config, paths), dataset.bundle, 1, {})
        assert paths.latents == str(tmp_path / "tables" / "sensors")
        assert TableFiles(paths.latents).address().startswith("file:///")


class TestRetention:
    def spaces(self, dataset: Fitted) -> set[str]:
        return {path.parent.parent.name for path in Path(dataset.paths.latents).glob("v*/*/*.parquet")}

    def test_the_files_of_an_earlier_space_go_after_the_days_that_the_yaml_says(
        self, dataset, days, first, other_bundle
    ):
        published(dataset, days, other_bundle, 2)
        removed_days_ago(dataset, 10)
        config = with_retention(dataset, 11)
        publish(days, Dataset(config, dataset.paths), other_bundle, 2, {})
        assert len(self.spaces(dataset)) == 2
        assert read_latents("sensors", space=1, data=dataset.paths.root).arrow.num_rows == 240
        publish(days, Dataset(with_retention(dataset, 9), dataset.paths), other_bundle, 2, {})
        assert self.spaces(dataset) == {latent_space_name(2, other_bundle.fingerprint)}
        assert table(dataset.paths).height == 240

    def test_rows_that_were_collected_are_an_error_that_says_so(self, dataset, days, first, other_bundle):
        published(dataset, days, other_bundle, 2)
        removed_days_ago(dataset, 100)
        publish(days, Dataset(other_bundle.config, dataset.paths), other_bundle, 2, {})
        with pytest.raises(
            PublicationError, match=r"space v1_\w+, was collected after its retention; choose 'current'"
        ):
            read_latents("sensors", space=1, data=dataset.paths.root)
        assert read_latents("sensors", data=dataset.paths.root).model_version == 2

    def test_what_came_back_is_not_collected(self, dataset, days, first, other_bundle):
        published(dataset, days, other_bundle, 2)
        removed_days_ago(dataset, 100)
        back = published(dataset, days)
        assert (back.committed, sum(day.built for day in back.days)) == (True, 0)
        assert table(dataset.paths).height == 240
        assert model_version_of(dataset.paths) == 1

    def test_the_log_tells_other_tools_the_retention(self, dataset, days, first):
        configuration = DeltaTable(dataset.paths.latents).metadata().configuration
        assert configuration["delta.deletedFileRetentionDuration"] == "interval 90 days"
        publish(days, Dataset(with_retention(dataset, 30), dataset.paths), dataset.bundle, 1, {})
        configuration = DeltaTable(dataset.paths.latents).metadata().configuration
        assert configuration["delta.deletedFileRetentionDuration"] == "interval 30 days"
        assert configuration["delta.logRetentionDuration"] == "interval 90 days"

    def test_what_never_entered_the_table_is_swept_once_it_is_old(self, dataset, days, first):
        root = Path(dataset.paths.latents)
        space = latent_space_name(1, dataset.bundle.fingerprint)
        old, new, half = (
            root / space / days[0] / name
            for name in ("part-0123abcd.parquet", "part-4567abcd.parquet", ".part-89ab.parquet.1.tmp")
        )
        for path in (old, new, half):
            path.write_text("left by a killed run")
        theirs = root / "archive" / "notes.md"
        theirs.parent.mkdir()
        theirs.write_text("of somebody else")
        for path in (old, half, theirs):
            os.utime(path, (time.time() - 2 * 86_400,) * 2)
        published(dataset, days)
        assert [path.exists() for path in (old, new, half)] == [False, True, False]
        assert theirs.exists()
        assert table(dataset.paths).height == 240

    def test_an_old_file_that_no_commit_knows_is_written_anew(self, dataset, days, first):
        wanted = expected_path(
            dataset.days[-5],
            read_facts(dataset.paths.features(dataset.days[-5]))["content_hash"],
            dataset.bundle.fingerprint,
            latent_space_name(1, dataset.bundle.fingerprint),
        )
        path = Path(dataset.paths.latents) / wanted
        path.parent.mkdir(parents=True)
        path.write_text("half a file")
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
        result = published(dataset, dataset.days[-5:])
        assert [day.built for day in result.days] == [True, False, False, False, False]
        assert table(dataset.paths).height == 300


class TestMonths:
    """Days with few rows share the file of their month."""

    @pytest.fixture(autouse=True)
    def together(self, monkeypatch, alone) -> None:
        monkeypatch.setattr(layout, "ALONE", 20_000)

    def groups(self, dataset: Fitted) -> list[str]:
        return sorted(path.split("/")[1] for path in current_files(dataset.paths))

    def test_a_table_of_forty_days_has_two_files_and_the_rows_of_forty(self, dataset, monkeypatch, tmp_path):
        published(dataset, dataset.days)
        assert self.groups(dataset) == sorted({day[:7] for day in dataset.days})
        together = read_latents("sensors", data=dataset.paths.root).arrow
        monkeypatch.setattr(layout, "ALONE", 1)
        separate = DatasetPaths(dataset.paths.root, "sensors", str(tmp_path / "apart"))
        publish(dataset.days, Dataset(dataset.bundle.config, separate), dataset.bundle, 1, {})
        assert len(current_files(separate)) == 40
        assert together.equals(read_latents("sensors", data=dataset.paths.root, tables=separate.tables).arrow)

    def test_a_new_day_rewrites_the_file_of_its_month_and_scores_no_other_day(self, dataset, monkeypatch):
        published(dataset, dataset.days[:-1])
        previous = current_files(dataset.paths)
        scored: list[str] = []

        def spy(bundle: ModelBundle, version: int, features: Path) -> Iterator[pa.Table]:
            scored.append(features.stem)
            return score_day(bundle, version, features)

        monkeypatch.setattr(publication, "score_day", spy)
        result = published(dataset, dataset.days[-1:])
        assert scored == [dataset.days[-1]]
        assert [(day.day, day.built) for day in result.days] == [(dataset.days[-1], True)]
        after = current_files(dataset.paths)
        assert len(set(previous) - set(after)) == len(set(after) - set(previous)) == 1
        assert table(dataset.paths)["row_id"].n_unique() == 2400

    def test_a_corrected_day_replaces_its_rows_alone(self, dataset, rewrite_day):
        published(dataset, dataset.days)
        previous = table(dataset.paths)
        rewrite_day(dataset, dataset.days[5], dataset.features(dataset.days[5]).head(7))
        result = published(dataset, [dataset.days[5]])
        assert [(day.rows, day.built) for day in result.days] == [(7, True)]
        after = table(dataset.paths)
        day = dt.date.fromisoformat(dataset.days[5])
        assert after.filter(pl.col("date") != day).equals(previous.filter(pl.col("date") != day))
        assert after.filter(pl.col("date") == day).height == 7

    def test_a_day_that_lost_its_rows_leaves_the_file_of_its_month(self, dataset, rewrite_day):
        published(dataset, dataset.days)
        rewrite_day(dataset, dataset.days[5], dataset.features(dataset.days[5]).clear())
        published(dataset, [dataset.days[5]])
        assert dataset.days[5] not in published_days(dataset.paths)
        assert table(dataset.paths).height == 2340
        assert not stale_days(dataset.days, dataset.paths, dataset.bundle.fingerprint, 1)

    def test_a_day_moves_out_of_the_file_of_its_month_once_it_has_many_rows(self, dataset, monkeypatch, rewrite_day):
        monkeypatch.setattr(layout, "ALONE", 61)
        published(dataset, dataset.days)
        big = dataset.days[5]
        rows = dataset.features(big)
        more = rows.head(1).with_columns(row_id=pl.lit("one more"))
        rewrite_day(dataset, big, pl.concat([rows, more]).sort("event_time", "row_id"))
        published(dataset, [big])
        assert self.groups(dataset) == sorted({day[:7] for day in dataset.days} | {big})
        assert table(dataset.paths)["row_id"].n_unique() == 2401
        # The file of its own stands between those of the months; the rows are in the order of time all the same.
        found = read_latents("sensors", data=dataset.paths.root, columns=["row_id", "event_time"]).polars()
        assert found["event_time"].is_sorted()
        named = read_latents("sensors", data=dataset.paths.root, columns=["row_id"]).polars()
        assert named["row_id"].equals(found["row_id"])
        rewrite_day(dataset, big, rows)
        published(dataset, [big])
        assert self.groups(dataset) == sorted({day[:7] for day in dataset.days})
        assert table(dataset.paths).height == 2400

    def test_a_row_that_moved_to_another_day_of_the_month_stands_twice_until_the_day_it_left_is_published(
        self, dataset, rewrite_day
    ):
        published(dataset, dataset.days)
        left, come = dataset.days[5], dataset.days[9]
        moved = dataset.features(left).head(1).with_columns(pl.col("event_time") + pl.duration(days=4))
        rewrite_day(dataset, come, pl.concat([dataset.features(come), moved]).sort("event_time", "row_id"))
        rewrite_day(dataset, left, dataset.features(left).tail(59))
        published(dataset, [come])
        assert (table(dataset.paths).height, table(dataset.paths)["row_id"].n_unique()) == (2401, 2400)
        published(dataset, [left])
        assert (table(dataset.paths).height, table(dataset.paths)["row_id"].n_unique()) == (2400, 2400)

    def test_what_a_month_keeps_is_verified_too(self, dataset, monkeypatch, rewrite_day):
        published(dataset, dataset.days)
        looked_at: list[str] = []

        def spy(path: str, *given: Any) -> dict[str, int]:
            looked_at.append(path)
            return layout.verify_file(path, *given)

        monkeypatch.setattr(publication, "verify_file", spy)
        rewrite_day(dataset, dataset.days[5], dataset.features(dataset.days[5]).clear())
        published(dataset, [dataset.days[5]])
        assert len(looked_at) == 1
        assert looked_at[0] in current_files(dataset.paths)

    def test_days_whose_file_is_gone_are_scored_anew(self, dataset):
        published(dataset, dataset.days)
        previous = table(dataset.paths)
        lost = current_files(dataset.paths)[0]
        (Path(dataset.paths.latents) / lost).unlink()
        layout._keys_in.cache_clear()
        with pytest.raises(PublicationError, match=r"part-\w+.parquet is gone; .* put back"):
            published_days(dataset.paths)
        result = published(dataset, dataset.days[-1:])
        assert result.committed is False
        assert {day.day for day in result.days if day.built} == {day for day in dataset.days if day[:7] in lost}
        assert table(dataset.paths).equals(previous)

    def test_a_file_that_cannot_be_read_is_named_before_its_rows_are_copied(self, dataset, rewrite_day):
        published(dataset, dataset.days)
        spoilt = Path(dataset.paths.latents) / current_files(dataset.paths)[0]
        content = bytearray(spoilt.read_bytes())
        column = pq.ParquetFile(spoilt).metadata.row_group(0).column(4)
        content[column.data_page_offset + column.total_compressed_size - 3] ^= 1
        spoilt.write_bytes(content)
        rewrite_day(dataset, dataset.days[0], dataset.features(dataset.days[0]).head(7))
        with pytest.raises(PublicationError, match=r"part-\w+.parquet cannot be read .*; remove that file"):
            published(dataset, [dataset.days[0]])
        spoilt.unlink()
        published(dataset, [dataset.days[0]])
        assert table(dataset.paths).height == 2347

    def test_row_groups_span_days_and_stay_bounded(self, dataset, monkeypatch):
        monkeypatch.setattr(layout, "ROW_GROUP", 500)
        published(dataset, dataset.days)
        for path in current_files(dataset.paths):
            metadata = pq.ParquetFile(Path(dataset.paths.latents) / path).metadata
            sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            assert max(sizes) <= 500
            assert metadata.num_row_groups == -(-metadata.num_rows // 500)

    def test_the_scores_of_days_are_those_of_their_rows_alone(self, dataset):
        published(dataset, dataset.days)
        found = published_days(dataset.paths)
        for day in (dataset.days[0], dataset.days[17]):
            scored = dataset.bundle.score(dataset.features(day))
            np.testing.assert_array_equal(scores_of([found[day]], dataset.paths), scored.score)
            np.testing.assert_array_equal(latents_of([found[day]], dataset.paths, 3), scored.latents)
