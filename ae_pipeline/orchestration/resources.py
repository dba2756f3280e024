"""Resources: where a project keeps its data and models, and the lock that a run of a dataset holds."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg
from filelock import FileLock, Timeout
from pydantic import PrivateAttr

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.dead_runs import datasets_of_run, record_process, require_days
from ae_pipeline.orchestration.plain_config import PlainText
from ae_pipeline.orchestration.processes import lock_holder
from ae_pipeline.orchestration.run_watch import RunWatch
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker

logger = logging.getLogger(__name__)

DAGSTER_URL, MLFLOW_URL, DATA_URL = (f"http://127.0.0.1:{port}" for port in (3000, 5000, 3001))
"""Default addresses of the servers that `ae-pipeline ui` starts."""


class Workspace(dg.ConfigurableResource["Workspace"]):
    """Data folder and model store, and the addresses of the servers that show them.

    Attributes:
        data_folder: Folder that runs write to.
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
        project = Path(self.project_folder).resolve()
        return DatasetPaths(Path(self.data_folder).resolve(), dataset, self.tables, project)

    def tracker(self) -> "Tracker":
        """Return the model store."""
        from ae_pipeline.registry.store import Tracker

        return Tracker(Path(self.mlflow_folder).resolve(), self.tracking_uri)

    def run_url(self, run_id: str) -> str:
        """Return the address of a run in Dagster's web UI."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}"

    def mlflow_run_url(self, dataset: str, mlflow_run: str) -> str:
        """Return the address of a training's run in MLflow's UI."""
        return f"{self._mlflow}/#/experiments/{self.tracker().experiment(dataset)}/runs/{mlflow_run}"

    def model_version_url(self, dataset: str, version: int) -> str:
        """Return the address of a model version in MLflow's UI."""
        return f"{self._mlflow}/#/models/{quote(dataset)}/versions/{version}"

    def file_url(self, path: Path) -> str:
        """Return the address of a file in the data folder, which other pages can link to."""
        relative = path.relative_to(Path(self.data_folder).resolve())  # resolved like `paths`; folders may be links
        return f"{self.data_url.rstrip('/')}/{quote(relative.as_posix())}"

    @property
    def _mlflow(self) -> str:
        return (self.mlflow_url or self.tracker().web_url or MLFLOW_URL).rstrip("/")

    @contextmanager
    def locked(self, dataset: str) -> Iterator[None]:
        """Hold the lock of a dataset, and wait while another process holds it. A process may hold it twice."""
        path = self.paths(dataset).lock
        make_folder(path.parent)
        lock = FileLock(path, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = lock_holder(path)
            logger.info(f"waiting for another run of {dataset!r} to end{f' (process {holder})' if holder else ''}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


class RunLock(dg.ConfigurableResource["RunLock"]):
    """The locks of the datasets of a run, held while the run lasts, and the watch that stops it when it is cancelled.

    Dagster's pools serialize the runs that go through its queue. Runs of the command line do not, and a killed run
    keeps its slot in a pool, but gives a file lock back.

    Attributes:
        workspace: Workspace with the lock files.
    """

    workspace: Workspace
    _watch: RunWatch | None = PrivateAttr(default=None)

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
                for dataset in datasets_of_run(run, instance):
                    stack.enter_context(self.workspace.locked(dataset))
            yield self

    def require_active(self) -> None:
        """Stop here if the run was cancelled. Call it before what cannot be undone.

        Raises:
            DagsterExecutionInterruptedError: The run is not active any more.
        """
        if self._watch is not None:
            self._watch.require_active()
