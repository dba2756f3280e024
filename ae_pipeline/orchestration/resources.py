"""Resources: where a project keeps its data and models, and the lock that a run of a dataset holds."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg
from pydantic import PrivateAttr

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.dead_runs import datasets_of_run, record_process, require_days
from ae_pipeline.orchestration.plain_config import PlainText
from ae_pipeline.orchestration.run_watch import RunWatch
from ae_pipeline.orchestration.side_by_side import is_side_by_side
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.location import data_folder, dataset_paths
from ae_pipeline.storage.lock_kinds import Holder
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.project import local_folder
from ae_pipeline.storage.session import hold_dataset, refresh, save
from ae_pipeline.storage.temporary import remove_temporary_files

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker

logger = logging.getLogger(__name__)

DAGSTER_URL, MLFLOW_URL, DATA_URL = (f"http://127.0.0.1:{port}" for port in (3000, 5000, 3001))
"""Default addresses of the servers that `ae-pipeline ui` starts."""


deployed: ContextVar["Workspace | None"] = ContextVar("deployed", default=None)
"""Workspace of the deployment whose definitions are being built; None in definitions without one, as in tests."""


class Workspace(dg.ConfigurableResource["Workspace"]):
    """Data folder and model store, and the addresses of the servers that show them.

    Attributes:
        data_folder: Folder that runs write to, or address of an object store.
        mlflow_folder: Folder of the MLflow store.
        tracking_uri: MLflow server to use instead of the folder.
        tables: Folder or object store of the published tables, if not in the data folder.
        project_folder: Folder to which the paths of a YAML are relative.
        dagster_url: Address of Dagster's web UI.
        mlflow_url: Address of MLflow's UI, if it differs from the tracking server.
        data_url: Address of the server of the data folder.
    """

    data_folder: PlainText
    mlflow_folder: PlainText
    tracking_uri: PlainText | None = None
    tables: PlainText | None = None
    project_folder: PlainText = "."
    dagster_url: PlainText = DAGSTER_URL
    mlflow_url: PlainText | None = None
    data_url: PlainText = DATA_URL

    def dataset(self, config: PipelineConfig) -> Dataset:
        """Return the dataset of a configuration."""
        return Dataset(config, self.paths(config.dataset))

    def paths(self, dataset: str) -> DatasetPaths:
        """Return the paths of a dataset."""
        return dataset_paths(dataset, self.data_folder, self.tables, Path(self.project_folder).resolve())

    @property
    def local_data(self) -> Path:
        """The data folder on this machine: for an object store, the folder of its working copy."""
        return data_folder(self.data_folder).resolve()

    def refresh(self, dataset: str, *, accepts_loss: bool = False) -> None:
        """Bring the files of this machine up to date with an object store, before they are read."""
        refresh(self.paths(dataset), accepts_loss=accepts_loss)

    def save(self, dataset: str) -> None:
        """Copy the state of a dataset that this run holds to an object store."""
        save(self.paths(dataset))

    def tracker(self) -> "Tracker":
        """Return the model store."""
        from ae_pipeline.registry.store import Tracker

        return Tracker(local_folder(self.mlflow_folder, "AE_PIPELINE_MLRUNS").resolve(), self.tracking_uri)

    def run_url(self, run_id: str) -> str:
        """Return the address of a run in Dagster's web UI."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}"

    def mlflow_run_url(self, dataset: str, mlflow_run: str) -> str:
        """Return the address of a training's run in MLflow's UI."""
        return f"{self._mlflow}/{self.mlflow_runs(dataset, f'/{mlflow_run}')}"

    def mlflow_runs(self, dataset: str, run: str = "") -> str:
        """Return the part of an address after MLflow's: the trainings of a dataset, or one with its id after a `/`."""
        # Without the type, MLflow's UI opens its pages about language models.
        return f"#/experiments/{self.tracker().experiment(dataset)}/runs{run}?workflowType=machine_learning"

    def model_version_url(self, dataset: str, version: int) -> str:
        """Return the address of a model version in MLflow's UI."""
        return f"{self._mlflow}/#/models/{quote(dataset)}/versions/{version}"

    def file_url(self, path: Path) -> str:
        """Return the address of a file in the data folder, which other pages can link to."""
        relative = path.relative_to(self.local_data)  # resolved like `paths`; folders may be links
        return f"{self.data_url.rstrip('/')}/{quote(relative.as_posix())}"

    @property
    def _mlflow(self) -> str:
        return (self.mlflow_url or self.tracker().web_url or MLFLOW_URL).rstrip("/")

    @contextmanager
    def locked(self, dataset: str, *, accepts_loss: bool = False, is_shared: bool = False) -> Iterator[None]:
        """Hold the lock of a dataset, and wait while another process holds it. A thread may hold it twice.

        With an object store, the state is copied from there first, and back at the end.

        Args:
            dataset: Name of the dataset.
            accepts_loss: Whether to go on without files that the object store has lost.
            is_shared: Whether other runs may share the dataset; see `hold_dataset`.
        """

        def log_wait(holder: Holder | None) -> None:
            logger.info(f"waiting for another run of {dataset!r} to end{f' ({holder})' if holder else ''}")

        with hold_dataset(self.paths(dataset), log_wait, accepts_loss=accepts_loss, is_shared=is_shared):
            yield


class RunLock(dg.ConfigurableResource["RunLock"]):
    """The locks of the datasets of a run, held while the run lasts, and the watch that stops it when it is cancelled.

    Dagster's pools serialize the runs that go through its queue. Runs of the command line do not, and a killed run
    keeps its slot in a pool, but gives its lock back.

    Attributes:
        workspace: Workspace with the datasets.
    """

    workspace: Workspace
    _watch: RunWatch | None = PrivateAttr(default=None)
    _datasets: tuple[str, ...] = PrivateAttr(default=())

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["RunLock"]:
        """Hold the locks, in the order of the names, so that two runs never wait for each other.

        Raises:
            ConfigError: The run names no day, although its assets have days.
        """
        run, instance = context.run, context.instance
        with ExitStack() as stack:
            if run is not None and instance is not None:
                require_days(run, instance)
                record_process(run, instance)
                self._watch = stack.enter_context(RunWatch(run, instance))
                self._datasets = tuple(datasets_of_run(run, instance))
                is_shared = is_side_by_side(run)
                for dataset in self._datasets:
                    stack.enter_context(self.workspace.locked(dataset, is_shared=is_shared))
                    if not is_shared:  # those of the others may be in use
                        remove_temporary_files(self.workspace.paths(dataset))
            yield self

    def require_active(self) -> None:
        """Stop here if the run was cancelled or has lost a lock, and save its state; call it before a commit.

        Raises:
            DagsterExecutionInterruptedError: The run is not active any more.
            StorageError: A lock was lost, or the state cannot be saved.
        """
        for dataset in self._datasets:
            self.workspace.save(dataset)
        for dataset in self._datasets:  # last, because a save can take long
            locks().require(dataset_lock(self.workspace.paths(dataset)))
        if self._watch is not None:
            self._watch.require_active()
