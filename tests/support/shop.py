"""A project with the small dataset `orders`: a YAML file and a folder of CSV files."""

import datetime as dt
import itertools
import json
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import loss_fell
from ae_pipeline.orchestration import console
from ae_pipeline.orchestration.assets.champion import ChampionConfig
from ae_pipeline.orchestration.component import AutoencoderPipeline
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.failures import first_reason
from ae_pipeline.orchestration.jobs import rollback_run_config
from ae_pipeline.orchestration.resources import RunLock, Workspace
from ae_pipeline.orchestration.schedules import training_request
from ae_pipeline.orchestration.sensors import Look
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.loop import TrainingResult
from tests.support.model_store import make_model_store

FIRST = dt.date(2024, 2, 10)
DAYS = [(FIRST + dt.timedelta(days=i)).isoformat() for i in range(24)]  # with a leap day
ROWS = 40
ATTRIBUTES: dict[str, Any] = {
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
    """Return the orders of a day as CSV. The price depends on the number of items and the country."""
    rng = random.Random(day)
    start = first_id if first_id is not None else int(day.replace("-", "")) * 1000
    lines = ["order_id,created_at,items,country,price"]
    for index in range(rows):
        items, country = rng.randint(1, 9), rng.choice(["DE", "FR", "NA"])
        price = items * {"DE": 10, "FR": 12, "NA": 15}[country] + rng.random()
        lines.append(f"{start + index},{day}T{index % 24:02d}:30:00Z,{items},{country},{price:.2f}")
    return "\n".join(lines) + "\n"


_seconds = itertools.count()
"""Offsets of file times, so that each landed file is newer than the one before."""


@dataclass
class Shop:
    """A project with the dataset `orders`.

    Attributes:
        root: Folder of its data and its model store.
        defs: Its definitions, with executor and resources.
        instance: Its Dagster instance.
        workspace: Where the project keeps its data and models.
    """

    root: Path
    defs: dg.Definitions
    instance: dg.DagsterInstance
    workspace: Workspace

    @property
    def landing(self) -> Path:
        """The folder where files land."""
        return self.root / "data" / "landing" / "orders"

    def land(self, day: str, text: str | None = None) -> Path:
        """Write a landed file of a day; the content is `orders_csv(day)` by default."""
        self.landing.mkdir(parents=True, exist_ok=True)
        path = self.landing / f"orders_{day}.csv"
        path.write_text(text if text is not None else orders_csv(day))
        written = time.time() - 3600 + next(_seconds)  # old enough for the sensor to read it
        os.utime(path, (written, written))
        return path

    def run(self, job: str, start: str | None = None, end: str | None = None) -> dg.ExecuteInProcessResult:
        """Run a job, for a range of days if `start` is given."""
        tags = {}
        if start:
            tags = {"dagster/asset_partition_range_start": start, "dagster/asset_partition_range_end": end or start}
        return self._execute(self.defs.resolve_job_def(f"orders_{job}"), tags)

    def publish_first_version(self, days: Sequence[str] = DAYS) -> None:
        """Land days, ingest them, train the first model, and publish them."""
        for day in days:
            self.land(day)
        assert self.run("ingest", days[0], days[-1]).success
        assert self.run("train").success
        assert self.run("publish", days[0], days[-1]).success

    @property
    def config(self) -> PipelineConfig:
        """Configuration from the YAML."""
        tree = self.defs.component_tree
        assert tree is not None
        (component,) = tree.get_all_components(of_type=AutoencoderPipeline)
        return component.config

    @property
    def dataset(self) -> Dataset:
        """The dataset `orders`."""
        return self.workspace.dataset(self.config)

    @property
    def paths(self) -> DatasetPaths:
        """Paths of the dataset."""
        return self.workspace.paths("orders")

    @property
    def champion(self) -> TrackedVersion:
        """The version that serves."""
        champion = self.workspace.tracker().version("orders", CHAMPION)
        assert champion is not None
        return champion

    def request(self, look: Look) -> dg.RunRequest:
        """Return the only run that a sensor requests."""
        answer = look(self.dataset, self.workspace, self.instance)
        assert isinstance(answer, list)
        (request,) = answer
        return request

    def run_request(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run what a sensor requested, as the daemon does."""
        return self._execute(self.defs.resolve_job_def(str(request.job_name)), dict(request.tags))

    def requested(self, look: Look) -> list[str] | str:
        """Return the job and the days of each run that a sensor requests, or why it requests none."""
        answer = look(self.dataset, self.workspace, self.instance)
        if isinstance(answer, dg.SkipReason):
            return str(answer.skip_message)
        return [f"{request.job_name} {request.tags['ae_pipeline/reason']}" for request in answer]

    def run_requests(self, look: Look) -> list[str]:
        """Run what a sensor requests until it requests nothing, as the daemon does; return the runs."""
        done = []
        while not isinstance(answer := look(self.dataset, self.workspace, self.instance), dg.SkipReason):
            for request in answer:
                assert self.run_request(request).success
                done.append(f"{request.job_name} {request.tags['ae_pipeline/reason']}")
        return done

    def run_stage(self, stage: str, day: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialize one asset, as a person does in the UI."""
        selection = {dg.AssetKey(["orders", stage])}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=selection)
        tags = {"dagster/partition": day} if day else {}
        return self._execute(job, tags)

    def roll_back(self, version: int, **settings: Any) -> dg.ExecuteInProcessResult:
        """Run the rollback to a version; `settings` are other fields of `ChampionConfig`."""
        champion = ChampionConfig.model_construct(version=version, **{"why": "a test", **settings})
        config = rollback_run_config(self.config, champion)
        job = self.defs.resolve_job_def("orders_rollback")
        return self._execute(job, {}, config)

    def _execute(
        self, job: dg.JobDefinition, tags: Mapping[str, str], config: Any = LOGGERS
    ) -> dg.ExecuteInProcessResult:
        """Run a job and print why it failed, so that a failed test shows it."""
        result = job.execute_in_process(run_config=config, instance=self.instance, tags=tags, raise_on_error=False)
        if not result.success:
            sys.stdout.write(f"{first_reason(result.all_events)}\n")
        return result

    def failure_message(self, result: dg.ExecuteInProcessResult) -> str:
        """Return the message of the only step of a run that failed."""
        (failed,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        assert failed.user_failure_data
        return str(failed.user_failure_data.description)

    def metadata_run(self, stage: str, partition: str) -> str:
        """Return the id of the run that materialized a partition last."""
        records = dg.AssetRecordsFilter(asset_key=dg.AssetKey(["orders", stage]), asset_partitions=[partition])
        (record,) = self.instance.fetch_materializations(records, limit=1).records
        return record.run_id

    def metadata(self, stage: str, partition: str | None = None) -> dict[str, Any]:
        """Return the metadata of the newest materialization of an asset or of one of its partitions."""
        key = dg.AssetKey(["orders", stage])
        records = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
        (record,) = self.instance.fetch_materializations(records, limit=1).records
        assert record.asset_materialization
        return {name: value.value for name, value in record.asset_materialization.metadata.items()}

    def schedule_answer(self) -> str:
        """Return why the schedule requests a training, or why it skips."""
        answer = training_request(self.dataset, self.workspace, self.instance)
        return str(answer.skip_message if isinstance(answer, dg.SkipReason) else answer.tags["ae_pipeline/reason"])


def make_shop(root: Path, attributes: dict[str, Any] = ATTRIBUTES, data: str | None = None) -> Iterator[Shop]:
    """Yield a project without data, in a folder, while its definitions and its instance are open.

    Args:
        root: Folder of the project.
        attributes: Attributes of the YAML.
        data: Address of an object store that has the data; by default a folder of the project has them.
    """
    workspace = Workspace(data_folder=data or str(root / "data"), mlflow_folder=str(make_model_store(root / "mlruns")))
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
            yield Shop(root, dg.Definitions.merge(built, resources), instance, workspace)


def published_shop(
    folders: pytest.TempPathFactory,
    attributes: dict[str, Any] = ATTRIBUTES,
    days: Sequence[str] = DAYS,
    then: Callable[[Shop], None] | None = None,
) -> Iterator[Shop]:
    """Yield a project whose days are published under version 1. A test may change it; the next test gets it unchanged.

    Args:
        folders: Factory of temporary folders.
        attributes: Attributes of the YAML.
        days: Days that landed.
        then: What to do after the first publication.
    """

    def prepare(shop: Shop) -> None:
        shop.publish_first_version(days)
        if then:
            then(shop)

    yield from prepared_shop(folders, json.dumps([attributes, days, then and then.__qualname__]), prepare, attributes)


@dataclass
class _Snapshot:
    """A project after its preparation.

    Attributes:
        folder: Folder of the project, and of a copy of its files.
        instance: Instance with a copy of its events and runs.
    """

    folder: Path
    instance: dg.DagsterInstance


_snapshots: dict[str, _Snapshot] = {}

LOGS = {"python_logs": {"managed_python_loggers": ["ae_pipeline"], "python_log_level": "INFO"}}
"""Settings with which Dagster captures the log messages of the package, as in .dagster/dagster.yaml."""

STORE = Path("mlruns", "mlflow.db")
"""File of the model store in a project."""


def reject_every_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a rule of the gate fail for each version that is trained from now on."""

    def rejected(result: TrainingResult) -> GateResult:
        return replace(loss_fell(result), passed=False, figure=2.0, message="it rose")

    monkeypatch.setattr("ae_pipeline.lifecycle.train.loss_fell", rejected)


def prepared_shop(
    folders: pytest.TempPathFactory,
    name: str,
    prepare: Callable[[Shop], None],
    attributes: dict[str, Any] = ATTRIBUTES,
) -> Iterator[Shop]:
    """Yield a project that is prepared once in a session and restored for each test.

    The folder stays the same, because the model store and the events contain absolute paths.
    """
    if name not in _snapshots:
        folder = folders.mktemp("prepared")
        instance = dg.DagsterInstance.ephemeral()
        for shop in make_shop(folder / "project", attributes):
            prepare(shop)
            _copy_events(shop.instance, instance)
        shutil.copytree(folder / "project", folder / "copy")
        _snapshots[name] = _Snapshot(folder, instance)
    snapshot = _snapshots[name]
    _restore(snapshot.folder / "project", snapshot.folder / "copy")
    for shop in make_shop(snapshot.folder / "project", attributes):
        _copy_events(snapshot.instance, shop.instance)
        yield shop


def _restore(project: Path, copy: Path) -> None:
    """Restore the files of a project. This process keeps the model store open, so its file must stay."""
    for path in (*project.iterdir(), *(project / STORE.parts[0]).iterdir()):
        if path.is_dir() and path.name != STORE.parts[0]:
            shutil.rmtree(path)
    shutil.copytree(copy, project, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STORE.name))
    with closing(sqlite3.connect(copy / STORE)) as source, closing(sqlite3.connect(project / STORE)) as store:
        source.backup(store)


def _copy_events(source: dg.DagsterInstance, target: dg.DagsterInstance) -> None:
    """Copy the in-memory databases of one ephemeral instance to another."""
    for one, other in (
        (source.event_log_storage, target.event_log_storage),
        (source.run_storage, target.run_storage),
    ):
        _connection(one).backup(_connection(other))


def _connection(storage: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = storage._held_conn.connection.driver_connection
    return connection
