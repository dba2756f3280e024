"""A project with the small dataset `orders`, by a YAML and a folder of CSV files alone."""

import datetime as dt
import itertools
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration import console
from ae_pipeline.orchestration.assets.champion import ChampionConfig
from ae_pipeline.orchestration.component import AutoencoderPipeline
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.jobs import rollback_run_config
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.runs import Answer
from ae_pipeline.orchestration.schedules import training_request
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

FIRST = dt.date(2024, 2, 10)
DAYS = [(FIRST + dt.timedelta(days=i)).isoformat() for i in range(24)]  # a leap day among them
ROWS = 40
ATTRIBUTES = {
    "dataset": "orders",
    "description": "Orders of a shop.",
    "owners": ["team:shop"],
    "identity": ["order_id"],
    "event_time": "created_at",
    "start": FIRST.isoformat(),
    "end": DAYS[-1],
    "exclude": ["order_id"],
    "model": {"latent_dim": 2, "hidden": [16]},
    "training": {"validation_days": 4, "calibration_days": 6, "epochs": 3, "batch_size": 128},
    "alerts": {"budget": 0.01, "evidence": ["columns", "latent", "row"]},
    "retrain": {"min_new_rows": 50},
    "gate": {"days": 2},
}


def orders_csv(day: str, rows: int = ROWS, first_id: int | None = None) -> str:
    """CSV of a day's orders: the price follows from items and country."""
    chance = random.Random(day)
    start = first_id if first_id is not None else int(day.replace("-", "")) * 1000
    lines = ["order_id,created_at,items,country,price"]
    for index in range(rows):
        items, country = chance.randint(1, 9), chance.choice(["DE", "FR", "NA"])
        price = items * {"DE": 10, "FR": 12, "NA": 15}[country] + chance.random()
        lines.append(f"{start + index},{day}T{index % 24:02d}:30:00Z,{items},{country},{price:.2f}")
    return "\n".join(lines) + "\n"


Look = Callable[[Dataset, Workspace, dg.DagsterInstance], Answer]

_moments = itertools.count()


@dataclass
class Shop:
    """A project with the dataset `orders`."""

    root: Path
    defs: dg.Definitions
    instance: dg.DagsterInstance

    @property
    def landing(self) -> Path:
        return self.root / "data" / "landing" / "orders"

    def land(self, day: str, text: str | None = None) -> Path:
        self.landing.mkdir(parents=True, exist_ok=True)
        path = self.landing / f"orders_{day}.csv"
        path.write_text(text if text is not None else orders_csv(day))
        written = time.time() - 3600 + next(_moments)  # long enough ago to be read
        os.utime(path, (written, written))
        return path

    def run(self, job: str, start: str | None = None, end: str | None = None) -> dg.ExecuteInProcessResult:
        tags = {}
        if start:
            tags = {"dagster/asset_partition_range_start": start, "dagster/asset_partition_range_end": end or start}
        return self.defs.resolve_job_def(f"orders_{job}").execute_in_process(
            run_config=LOGGERS, instance=self.instance, tags=tags, raise_on_error=False
        )

    def bring_up(self, days: Sequence[str] = DAYS) -> None:
        """Lands days, and takes them the whole way under a first model."""
        for day in days:
            self.land(day)
        assert self.run("ingest", days[0], days[-1]).success
        assert self.run("train").success
        assert self.run("publish", days[0], days[-1]).success

    @property
    def config(self) -> PipelineConfig:
        tree = self.defs.component_tree
        assert tree is not None
        (component,) = tree.get_all_components(of_type=AutoencoderPipeline)
        return component.config

    @property
    def dataset(self) -> Dataset:
        return self.workspace.dataset(self.config)

    @property
    def paths(self) -> DatasetPaths:
        return self.workspace.paths("orders")

    def asks(self, look: Look) -> list[str] | str:
        """Gives what a sensor asks for, job and days, or why it asks for nothing."""
        found = look(self.dataset, self.workspace, self.instance)
        if isinstance(found, dg.SkipReason):
            return str(found.skip_message)
        return [f"{request.job_name} {request.tags['ae_pipeline/reason']}" for request in found]

    def obey(self, look: Look) -> list[str]:
        """Runs what a sensor asks for until it asks for nothing, as the daemon would."""
        done = []
        while not isinstance(found := look(self.dataset, self.workspace, self.instance), dg.SkipReason):
            for request in found:
                job = self.defs.resolve_job_def(str(request.job_name))
                result = job.execute_in_process(
                    run_config=LOGGERS, instance=self.instance, tags=dict(request.tags), raise_on_error=False
                )
                assert result.success
                done.append(f"{request.job_name} {request.tags['ae_pipeline/reason']}")
        return done

    def run_stage(self, stage: str, day: str | None = None) -> dg.ExecuteInProcessResult:
        """Materializes one asset, as a person does in the UI."""
        selection = {dg.AssetKey(["orders", stage])}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=selection)
        tags = {"dagster/partition": day} if day else {}
        return job.execute_in_process(run_config=LOGGERS, instance=self.instance, tags=tags, raise_on_error=False)

    def roll_back(self, version: int, **asked: Any) -> dg.ExecuteInProcessResult:
        champion = ChampionConfig(version=version, **{"why": "a test", **asked})
        config = rollback_run_config(self.config, champion)
        job = self.defs.resolve_job_def("orders_rollback")
        return job.execute_in_process(run_config=config, instance=self.instance, raise_on_error=False)

    def why_failed(self, result: dg.ExecuteInProcessResult) -> str:
        (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        assert failed.user_failure_data
        return str(failed.user_failure_data.description)

    def metadata_run(self, stage: str, partition: str) -> str:
        """Gives the run that materialized a partition last."""
        records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(["orders", stage]), asset_partitions=[partition])
        (record,) = self.instance.fetch_materializations(records, limit=1).records
        return record.run_id

    def metadata(self, stage: str, partition: str | None = None) -> dict[str, object]:
        key = dg.AssetKey(["orders", stage])
        records = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
        (record,) = self.instance.fetch_materializations(records, limit=1).records
        assert record.asset_materialization
        return {name: value.value for name, value in record.asset_materialization.metadata.items()}

    def schedule_says(self) -> str:
        dataset = self.workspace.dataset(PipelineConfig.model_validate(ATTRIBUTES))
        found = training_request(dataset, self.workspace, self.instance)
        return str(found.skip_message if isinstance(found, dg.SkipReason) else found.tags["ae_pipeline/reason"])

    @property
    def workspace(self) -> Workspace:
        return Workspace(data_folder=str(self.root / "data"), mlflow_folder=str(self.root / "mlruns"))


def make_shop(root: Path, attributes: dict[str, object] = ATTRIBUTES) -> Iterator[Shop]:
    workspace = Workspace(data_folder=str(root / "data"), mlflow_folder=str(root / "mlruns"))
    with create_defs_folder_sandbox() as sandbox, dg.DagsterInstance.ephemeral(settings=LOGS) as instance:
        sandbox.scaffold_component(
            component_cls=AutoencoderPipeline,
            defs_path="orders",
            defs_yaml_contents={
                "type": "ae_pipeline.orchestration.component.AutoencoderPipeline",
                "attributes": attributes,
            },
        )
        with sandbox.build_all_defs() as built:
            resources = dg.Definitions(
                resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)},
                executor=dg.in_process_executor,
                loggers={"console": console.line_logger},
            )
            yield Shop(root, dg.Definitions.merge(built, resources), instance)


@dataclass
class _Kept:
    """A shop as it was once brought up: its files, and what its Dagster remembers."""

    folder: Path
    instance: dg.DagsterInstance


_kept: dict[str, _Kept] = {}
"""Shops that were brought up, by what they were made of."""

LOGS = {"python_logs": {"managed_python_loggers": ["ae_pipeline"], "python_log_level": "INFO"}}
"""Dagster captures what the package logs, as .dagster/dagster.yaml says."""

STORE = Path("mlruns", "mlflow.db")


def served_shop(
    folders: pytest.TempPathFactory,
    attributes: dict[str, object] = ATTRIBUTES,
    days: Sequence[str] = DAYS,
    then: Callable[[Shop], None] | None = None,
) -> Iterator[Shop]:
    """A shop whose days went the whole way under a first model: once a session, and put back as it was for each test.

    It stays in its place, since the model store and Dagster's events know their files by absolute paths.
    """
    name = json.dumps([attributes, days, then and then.__qualname__])
    if name not in _kept:
        folder = folders.mktemp("served")
        instance = dg.DagsterInstance.ephemeral()
        for shop in make_shop(folder / "now", attributes):
            shop.bring_up(days)
            if then:
                then(shop)
            _copy_events(shop.instance, instance)
        shutil.copytree(folder / "now", folder / "kept")
        _kept[name] = _Kept(folder, instance)
    kept = _kept[name]
    _put_back(kept.folder / "now", kept.folder / "kept")
    for shop in make_shop(kept.folder / "now", attributes):
        _copy_events(kept.instance, shop.instance)
        yield shop


def _put_back(now: Path, kept: Path) -> None:
    """Makes a folder what it was, under the model store that this process holds open."""
    for path in (*now.iterdir(), *(now / STORE.parts[0]).iterdir()):
        if path.is_dir() and path.name != STORE.parts[0]:
            shutil.rmtree(path)
    shutil.copytree(kept, now, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STORE.name))
    with closing(sqlite3.connect(kept / STORE)) as previous, closing(sqlite3.connect(now / STORE)) as store:
        previous.backup(store)


def _copy_events(one: dg.DagsterInstance, other: dg.DagsterInstance) -> None:
    for held, wanted in ((one.event_log_storage, other.event_log_storage), (one.run_storage, other.run_storage)):
        previous, after = (storage._held_conn.connection.driver_connection for storage in (held, wanted))
        previous.backup(after)
