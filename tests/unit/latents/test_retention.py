"""Retention of earlier versions of the latent table, and orphaned files."""

import json
import os
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from ae_pipeline import read_latents
from ae_pipeline.common.errors import PublicationError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.log import DIGESTS
from ae_pipeline.latents.publish import Publication, publish
from ae_pipeline.latents.read import (
    model_version_of,
)
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from tests.support.latents import path_of_day, publish_days, table
from tests.support.sensors import Fitted

pytestmark = pytest.mark.usefixtures("own_files")


def shift_removals(dataset: Fitted, count: int) -> None:
    """Change the log so that the removed files were removed some days earlier."""
    log = sorted((Path(dataset.paths.latents) / "_delta_log").glob("*.json"))
    for entry in log:
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for line in lines:
            if "remove" in line:
                line["remove"]["deletionTimestamp"] -= count * 86_400_000
        entry.write_text("\n".join(map(json.dumps, lines)))
    (Path(dataset.paths.latents) / DIGESTS).unlink()  # which would say that the log is damaged


def with_retention(dataset: Fitted, retention: int) -> PipelineConfig:
    return dataset.config.model_copy(update={"latents": LatentsConfig(retention_days=retention)})


class TestRetention:
    def spaces(self, dataset: Fitted) -> set[str]:
        return {path.parent.parent.name for path in Path(dataset.paths.latents).glob("v*/*/*.parquet")}

    def test_an_earlier_space_is_vacuumed_after_the_retention(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, days, other_bundle, 2)
        shift_removals(dataset, 10)
        config = with_retention(dataset, 11)
        publish(days, Dataset(config, dataset.paths), other_bundle, 2, {})
        assert len(self.spaces(dataset)) == 2
        assert read_latents("sensors", space=1, data=dataset.paths.root).arrow.num_rows == 240
        publish(days, Dataset(with_retention(dataset, 9), dataset.paths), other_bundle, 2, {})
        assert self.spaces(dataset) == {latent_space_name(2, other_bundle.fingerprint)}
        assert table(dataset.paths).height == 240

    def test_reading_a_vacuumed_space_is_an_error_with_a_remedy(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, days, other_bundle, 2)
        shift_removals(dataset, 100)
        publish(days, Dataset(other_bundle.config, dataset.paths), other_bundle, 2, {})
        with pytest.raises(PublicationError, match=r"space v1_\w+, was vacuumed after the retention; choose 'current'"):
            read_latents("sensors", space=1, data=dataset.paths.root)
        assert read_latents("sensors", data=dataset.paths.root).model_version == 2

    def test_a_space_that_is_current_again_is_not_vacuumed(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, other_bundle: ModelBundle
    ) -> None:
        publish_days(dataset, days, other_bundle, 2)
        shift_removals(dataset, 100)
        back = publish_days(dataset, days)
        assert (back.committed, sum(day.built for day in back.days)) == (True, 0)
        assert table(dataset.paths).height == 240
        assert model_version_of(dataset.paths) == 1

    def test_the_table_properties_have_the_retention(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        configuration = DeltaTable(dataset.paths.latents).metadata().configuration
        assert configuration["delta.deletedFileRetentionDuration"] == "interval 90 days"
        publish(days, Dataset(with_retention(dataset, 30), dataset.paths), dataset.bundle, 1, {})
        configuration = DeltaTable(dataset.paths.latents).metadata().configuration
        assert configuration["delta.deletedFileRetentionDuration"] == "interval 30 days"
        assert configuration["delta.logRetentionDuration"] == "interval 90 days"

    def test_old_orphaned_files_are_deleted(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = Path(dataset.paths.latents)
        space = latent_space_name(1, dataset.bundle.fingerprint)
        old, new, half = (
            root / space / days[0] / name
            for name in ("part-0123abcd.parquet", "part-4567abcd.parquet", ".part-89ab.parquet.1.tmp")
        )
        newer_half = half.with_name(".part-cdef.parquet.1.tmp")
        for path in (old, new, half, newer_half):
            path.write_text("left by a killed run")
        theirs = root / "archive" / "notes.md"
        theirs.parent.mkdir()
        theirs.write_text("of another tool")
        for path in (old, half, theirs):
            os.utime(path, (time.time() - 2 * 86_400,) * 2)
        publish_days(dataset, days)
        assert [path.exists() for path in (old, new, half, newer_half)] == [False, True, False, True]
        assert [record.getMessage().split()[0] for record in caplog.records if "is damaged" in record.message] == [
            str(new)
        ]
        assert theirs.exists()
        assert table(dataset.paths).height == 240

    def test_an_old_file_that_no_commit_references_is_rewritten(
        self, dataset: Fitted, days: tuple[str, ...], first: Publication
    ) -> None:
        relative_path = path_of_day(
            dataset.days[-5],
            read_facts(dataset.paths.features(dataset.days[-5]))["content_hash"],
            dataset.bundle.fingerprint,
            latent_space_name(1, dataset.bundle.fingerprint),
        )
        path = Path(dataset.paths.latents) / relative_path
        path.parent.mkdir(parents=True)
        path.write_text("half a file")
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
        result = publish_days(dataset, dataset.days[-5:])
        assert [day.built for day in result.days] == [True, False, False, False, False]
        assert table(dataset.paths).height == 300
