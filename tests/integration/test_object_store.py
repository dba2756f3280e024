"""The latent table in an object store: a local server with the S3 API."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from ae_pipeline import read_latents
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.latents.publish import publish, stale_days
from ae_pipeline.latents.read import MANIFEST, current_files
from ae_pipeline.lifecycle.forget import stored_parts
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.stores import s3_environment, s3_request, s3_server
from tests.support.sensors import Fitted

BUCKET = "s3://latents"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """Port of a running S3 server."""
    with s3_server() as port:
        yield port


@pytest.fixture
def store(server: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty bucket. The environment has the credentials for it."""
    for name, value in s3_environment(server).items():
        monkeypatch.setenv(name, value)
    assert s3_request(server, "POST", "/moto-api/reset") == 200
    assert s3_request(server, "PUT", f"/{BUCKET.removeprefix('s3://')}") == 200
    return BUCKET


@pytest.fixture
def remote(dataset: Fitted, store: str) -> Fitted:
    """The dataset with its tables in the object store."""
    return replace(dataset, paths=DatasetPaths(dataset.paths.root, dataset.paths.dataset, store))


def test_an_object_store_has_the_same_rows_as_a_folder(dataset: Fitted, remote: Fitted) -> None:
    days = dataset.days[-3:]
    for paths in (dataset.paths, remote.paths):
        publish(days, Dataset(dataset.bundle.config, paths), dataset.bundle, 1, {})
    assert current_files(remote.paths) == current_files(dataset.paths)
    local, in_store = (read_latents("sensors", data=dataset.paths.root, tables=tables) for tables in (None, BUCKET))
    assert in_store.arrow.equals(local.arrow)
    assert in_store.arrow.num_rows == 3 * 60
    assert in_store.latent_space == local.latent_space


def test_other_readers_can_open_the_table(remote: Fitted) -> None:
    publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})
    table = DeltaTable(f"{BUCKET}/sensors")
    assert pa.table(table.to_pyarrow_dataset().to_table()).num_rows == 120
    assert pl.scan_delta(f"{BUCKET}/sensors").select(pl.len()).collect().item() == 120
    manifest = TableFiles(remote.paths.latents).read_text(MANIFEST)
    assert manifest is not None
    assert sorted(manifest.split()) == sorted(table.file_uris())


def test_a_new_model_is_one_commit_and_old_versions_stay(remote: Fitted, other_bundle: ModelBundle) -> None:
    first = publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})
    second = publish(remote.days[-1:], Dataset(other_bundle.config, remote.paths), other_bundle, 2, {})
    assert second.table_version == first.table_version + 1
    for space, expected in (("current", 2), (1, 1)):
        latents = read_latents("sensors", space=space, tables=BUCKET)
        assert (latents.model_version, latents.arrow.num_rows) == (expected, 120)
    assert not stale_days(remote.days[-2:], remote.paths, other_bundle.fingerprint, 2)


def test_a_publication_that_lost_a_race_is_tried_again(remote: Fitted, other_bundle: ModelBundle) -> None:
    publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})

    def meanwhile() -> None:
        publish(remote.days[-3:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})

    publish(remote.days[-1:], Dataset(other_bundle.config, remote.paths), other_bundle, 2, {}, before_commit=meanwhile)
    latents = read_latents("sensors", tables=BUCKET)
    assert (latents.model_version, latents.arrow.num_rows) == (2, 180)


def test_a_forgotten_table_leaves_the_others_in_the_bucket(remote: Fitted, tmp_path: Path) -> None:
    publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})
    other = TableFiles(f"{BUCKET}/sensors_2")
    other.write_text("_delta_log/00000000000000000000.json", "{}")
    table, *_ = stored_parts(remote.paths, Tracker(tmp_path))
    assert (table.name, table.address) == ("latent table", f"{BUCKET}/sensors")
    assert table.size
    assert table.size > 10_000
    table.remove()
    assert TableFiles(remote.paths.latents).written() == {}
    assert list(other.written()) == ["_delta_log/00000000000000000000.json"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_failed_write_leaves_no_file(remote: Fitted, store: str) -> None:
    files = TableFiles(remote.paths.latents)

    def fail() -> None:
        with files.writing("v1/day/part.parquet") as temporary:
            temporary.write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert not files.has("v1/day/part.parquet")
    assert files.written() == {}
