"""Runs of one dataset at the same time: pools, backfills, and which runs they are."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ae_pipeline.common.errors import ConfigError, StorageError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.lifecycle.ingest import build_raw_days
from ae_pipeline.orchestration.component import AutoencoderPipeline
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.side_by_side import is_side_by_side
from ae_pipeline.orchestration.tags import DATASET_TAG, READ_TAG, SIDE_BY_SIDE_TAG
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

ATTRIBUTES = {"dataset": "orders", "identity": ["id"], "event_time": "at", "start": "2024-01-01"}

TAGS = {DATASET_TAG: "orders", READ_TAG: "by an earlier run", SIDE_BY_SIDE_TAG: "at most 2"}


@pytest.mark.parametrize(
    ("scale", "pools", "days"),
    [
        ({}, {"orders"}, None),
        ({"days_per_run": 31}, {"orders"}, 31),
        ({"days_per_run": 31, "runs_at_once": 4}, {"orders", "orders/days"}, 31),
    ],
)
def test_scale_decides_on_pools_and_backfills(scale: dict[str, int], pools: set[str], days: int | None) -> None:
    context: Any = None  # no defs folder
    definitions = AutoencoderPipeline(PipelineConfig.model_validate({**ATTRIBUTES, "scale": scale})).build_defs(context)
    assets = {each.key.path[-1]: each for each in definitions.assets or () if isinstance(each, dg.AssetsDefinition)}
    built = {assets.pop(name) for name in ("raw_data", "features")}
    assert {each.op.pool for each in assets.values()} == {"orders"}
    assert {each.op.pool for each in built} | {"orders"} == pools
    daily = [each for each in (*built, *assets.values()) if each.partitions_def]
    assert len(daily) == 4
    assert {each.backfill_policy.max_partitions_per_run for each in daily if each.backfill_policy} == {days}
    workspace = Workspace(data_folder="data", mlflow_folder="mlruns")
    resources = dg.Definitions(resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)})
    job = dg.Definitions.merge(definitions, resources).resolve_job_def("orders_day")
    assert job.partitions_def == daily[0].partitions_def


def test_ranges_at_once_need_runs_that_hold_the_lock_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_EXECUTOR", "multiprocess")
    context: Any = None
    scale = {"days_per_run": 31, "runs_at_once": 4}
    with pytest.raises(ConfigError, match=r"'orders' has scale\.runs_at_once=4, .* unset AE_PIPELINE_EXECUTOR"):
        AutoencoderPipeline(PipelineConfig.model_validate({**ATTRIBUTES, "scale": scale})).build_defs(context)


@pytest.mark.parametrize(
    ("job", "tags", "expected"),
    [
        ("orders_ingest", TAGS, True),
        ("orders_day", TAGS, False),
        ("orders_publish", TAGS, False),
        ("visits_ingest", TAGS, False),
        *(("orders_ingest", {name: TAGS[name] for name in TAGS if name != left_out}, False) for left_out in TAGS),
    ],
)
def test_only_runs_over_days_that_read_nothing_share_a_dataset(job: str, tags: dict[str, str], expected: bool) -> None:
    assert is_side_by_side(dg.DagsterRun(job, tags=tags)) is expected


def test_a_run_beside_others_never_reads_landed_files(tmp_path: Path) -> None:
    dataset = Dataset(PipelineConfig.model_validate(ATTRIBUTES), DatasetPaths(tmp_path, "orders"))
    dataset.paths.landing.mkdir(parents=True)
    (dataset.paths.landing / "a.csv").write_text("id,at\n1,2024-01-01T00:00:00Z\n")
    with pytest.raises(StorageError, match="no landed file of 'orders' was read so far; run the job orders_intake"):
        build_raw_days(dataset, ["2024-01-01"], "run", read_landed=False, is_side_by_side=True)
    assert not dataset.paths.ledger.exists()
