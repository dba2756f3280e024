"""The latent table and all data in an object store: local servers with the APIs of AWS, Azure and Google Cloud."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import dagster as dg
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
from ae_pipeline.orchestration import sensors
from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.object_store import ObjectStore
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.sensors import Fitted
from tests.support.shop import ATTRIBUTES, DAYS, ROWS, Shop, make_shop, orders_csv


@pytest.fixture
def remote(dataset: Fitted, store: str) -> Fitted:
    """The dataset with its tables in the object store."""
    return replace(dataset, paths=DatasetPaths(dataset.paths.root, dataset.paths.dataset, store))


def test_an_object_store_has_the_same_rows_as_a_folder(dataset: Fitted, remote: Fitted) -> None:
    days = dataset.days[-3:]
    for paths in (dataset.paths, remote.paths):
        publish(days, Dataset(dataset.bundle.config, paths), dataset.bundle, 1, {})
    assert current_files(remote.paths) == current_files(dataset.paths)
    local, in_store = (
        read_latents("sensors", data=dataset.paths.root, tables=tables) for tables in (None, remote.paths.tables)
    )
    assert in_store.arrow.equals(local.arrow)
    assert in_store.arrow.num_rows == 3 * 60
    assert in_store.latent_space == local.latent_space


def test_other_readers_can_open_the_table(remote: Fitted) -> None:
    publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})
    table = DeltaTable(remote.paths.latents)
    assert pa.table(table.to_pyarrow_dataset().to_table()).num_rows == 120
    # Polars looks for the credentials of a user of Google Cloud by itself, which the server of the tests does not need.
    provider = None if remote.paths.latents.startswith("gs:") else "auto"
    rows = pl.scan_delta(remote.paths.latents, credential_provider=provider)  # type: ignore[arg-type]
    assert rows.select(pl.len()).collect().item() == 120
    manifest = TableFiles(remote.paths.latents).read_text(MANIFEST)
    assert manifest is not None
    assert sorted(manifest.split()) == sorted(table.file_uris())


def test_a_new_model_is_one_commit_and_old_versions_stay(remote: Fitted, other_bundle: ModelBundle) -> None:
    first = publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})
    second = publish(remote.days[-1:], Dataset(other_bundle.config, remote.paths), other_bundle, 2, {})
    assert second.table_version == first.table_version + 1
    for space, expected in (("current", 2), (1, 1)):
        latents = read_latents("sensors", space=space, tables=str(remote.paths.tables))
        assert (latents.model_version, latents.arrow.num_rows) == (expected, 120)
    assert not stale_days(remote.days[-2:], remote.paths, other_bundle.fingerprint, 2)


def test_a_publication_that_lost_a_race_is_tried_again(remote: Fitted, other_bundle: ModelBundle) -> None:
    publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})

    def meanwhile() -> None:
        publish(remote.days[-3:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})

    publish(remote.days[-1:], Dataset(other_bundle.config, remote.paths), other_bundle, 2, {}, before_commit=meanwhile)
    latents = read_latents("sensors", tables=str(remote.paths.tables))
    assert (latents.model_version, latents.arrow.num_rows) == (2, 180)


def test_a_forgotten_table_leaves_the_others_in_the_bucket(remote: Fitted, tmp_path: Path) -> None:
    publish(remote.days[-2:], Dataset(remote.bundle.config, remote.paths), remote.bundle, 1, {})
    other = TableFiles(f"{remote.paths.tables}/sensors_2")
    other.write_text("_delta_log/00000000000000000000.json", "{}")
    table, *_ = stored_parts(remote.paths, Tracker(tmp_path))
    assert (table.name, table.address) == ("latent table", remote.paths.latents)
    assert table.size
    assert table.size > 10_000
    table.remove()
    assert TableFiles(remote.paths.latents).written() == {}
    assert list(other.written()) == ["_delta_log/00000000000000000000.json"]
    assert not (tmp_path / "mlflow.db").exists()


def land(store: ObjectStore, days: Sequence[str]) -> None:
    """Put the files of days into a store, as another program does."""
    for day in days:
        store.write(f"landing/orders/orders_{day}.csv", orders_csv(day).encode())


def built_files(shop: Shop) -> dict[str, bytes]:
    """Return raw rows, features and latents by the name of their files, and the names of the staged copies.

    The copies themselves have the times at which their files landed.
    """
    paths, table = shop.paths, TableFiles(shop.paths.latents)
    built = {path.as_posix(): path.read_bytes() for stage in (paths.raw, paths.features) for path in map(stage, DAYS)}
    files = {path.removeprefix(paths.root.as_posix()): data for path, data in built.items()}
    copies = dict.fromkeys((path.name for path in paths.staged("_").parent.iterdir()), b"")
    return {**files, **copies, **{path: hash_table(table.read(path)).encode() for path in current_files(paths)}}


def check_addresses(
    ingested: dg.ExecuteInProcessResult, address: str, objects: ObjectStore, paths: DatasetPaths
) -> None:
    """Check that what Dagster shows of raw rows and features can be opened by anybody."""
    for stage, path in {"raw_data": paths.raw, "features": paths.features}.items():
        events = ingested.asset_materializations_for_node(f"orders__{stage}")
        assert [event.partition for event in events] == DAYS[:-1]
        for event, day in zip(events, DAYS[:-1], strict=True):
            uri = str(event.metadata["dagster/uri"].value)
            answer = objects.read(uri.removeprefix(f"{address}/"))
            assert answer is not None
            assert answer.data == path(day).read_bytes()


def assert_no_metadata_names(folder: Path, results: Sequence[dg.ExecuteInProcessResult]) -> None:
    """Check that no metadata of an asset or of a check has a path that only one host knows."""
    events = [event for result in results for event in result.all_node_events]
    data = [
        event.event_specific_data
        for event in events
        if event.is_step_materialization or event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    assert len(data) > 20
    assert not [each for each in map(repr, data) if str(folder) in each]


def test_two_hosts_share_a_dataset_and_give_what_one_machine_gives(
    serving_shop: Shop, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{store}/data"
    objects = ObjectStore(address)
    monkeypatch.setattr(sensors, "_SETTLE_SECONDS", -2.0)  # objects that are as new as the test
    monkeypatch.setenv("AE_PIPELINE_SCRATCH", str(tmp_path / "one"))
    land(objects, DAYS[:-1])
    for shop in make_shop(tmp_path, data=address):
        ingested = shop.run("ingest", DAYS[0], DAYS[-2])
        results = [ingested, shop.run("train"), published := shop.run("publish", DAYS[0], DAYS[-2])]
        assert all(result.success for result in results)
        check_addresses(ingested, address, objects, shop.paths)
        assert_no_metadata_names(tmp_path / "one", results)
        tracker = shop.workspace.tracker()
        (run,) = tracker.client.search_runs([tracker.experiment("orders")])
        assert run.inputs is not None
        assert json.loads(run.inputs.dataset_inputs[0].dataset.source) == {"uri": f"{address}/state/orders/head.json"}
    report = published.asset_materializations_for_node("orders__anomaly_report")[-1].metadata
    for name, file in {"page": "report.html", "summary": "summary.json", "alerts": "alerts.parquet"}.items():
        assert report[name].value == f"{address}/reports/orders/{file}"  # not the copy of the host
        assert objects.read(f"reports/orders/{file}")
    land(objects, DAYS[-1:])
    serving_shop.land(DAYS[-1])
    expected = [f"orders_intake 1 new or changed file: orders_{DAYS[-1]}.csv", f"orders_ingest {DAYS[-1]}"]
    monkeypatch.setenv("AE_PIPELINE_SCRATCH", str(tmp_path / "other"))  # a host with nothing
    for shop in make_shop(tmp_path, data=address):
        for each in (serving_shop, shop):
            each.workspace.refresh("orders")
            assert each.run_requests(landing_requests) == expected
            assert each.run_requests(rebuild_requests) == [f"orders_publish {DAYS[-1]}"]
        assert built_files(shop) == built_files(serving_shop)
        latents = read_latents("orders", data=address)
        assert latents.arrow.equals(read_latents("orders", data=serving_shop.paths.root).arrow)
        assert latents.arrow.num_rows == ROWS * len(DAYS)
        page = objects.read("reports/orders/report.html")
        assert page
        assert page.data == (shop.paths.reports / "report.html").read_bytes()


HOST = """
import json, sys
from pathlib import Path
from tests.support.shop import make_shop
root, address, attributes, tags = sys.argv[1:]
for shop in make_shop(Path(root), json.loads(attributes), address):
    result = shop._execute(shop.defs.resolve_job_def("orders_ingest"), json.loads(tags))
    sys.exit(not result.success)
"""


def start_host(root: Path, address: str, attributes: Mapping[str, Any], request: dg.RunRequest) -> "Popen[str]":
    """Start a process that does what a sensor requested, with a working copy of its own."""
    command = [sys.executable, "-c", HOST, str(root), address, json.dumps(attributes), json.dumps(dict(request.tags))]
    return Popen(command, env={**os.environ, "AE_PIPELINE_SCRATCH": str(root)}, stdout=PIPE, stderr=STDOUT, text=True)


def ingested_files(shop: Shop) -> dict[str, bytes]:
    """Return raw rows and features by the name of their files."""
    stages = {"raw": shop.paths.raw, "features": shop.paths.features}
    return {f"{name}/{day}": path(day).read_bytes() for name, path in stages.items() for day in DAYS[:-1]}


@pytest.mark.slow
@pytest.mark.parametrize("store_server", ["s3"], indirect=True)
def test_two_hosts_build_ranges_at_the_same_time(
    serving_shop: Shop, store: str, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{store}/data"
    monkeypatch.setattr(sensors, "_SETTLE_SECONDS", -2.0)
    monkeypatch.setenv("AE_PIPELINE_LOCKS", postgres)
    monkeypatch.setenv("AE_PIPELINE_SCRATCH", str(tmp_path / "one"))
    land(ObjectStore(address), DAYS[:-1])
    attributes = {**ATTRIBUTES, "scale": {"days_per_run": 20, "runs_at_once": 2}}
    for shop in make_shop(tmp_path / "one", attributes, address):
        shop.workspace.refresh("orders")
        assert shop.run_request(shop.request(landing_requests)).success
        requests = landing_requests(shop.dataset, shop.workspace, shop.instance)
        assert isinstance(requests, list)
        ranges = [request.tags["ae_pipeline/reason"] for request in requests]
        assert ranges == [f"{DAYS[0]} to 2024-02-29", f"2024-03-01 to {DAYS[-2]}"]
        lock = dataset_lock(shop.paths, is_shared=True)
        with locks().hold(lock):  # both hosts end although it is held
            hosts = [
                start_host(tmp_path / f"{index}", address, attributes, each) for index, each in enumerate(requests)
            ]
            printed = [host.communicate(timeout=300)[0] for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], printed
        shop.workspace.refresh("orders")
        assert shop.requested(landing_requests) == "every landed file is read, and every day has its features"
        assert ingested_files(shop) == ingested_files(serving_shop)
        assert not locks().is_held(lock)


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
