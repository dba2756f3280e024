"""Resources: where a project keeps its data and its models, and the lock that one run of a dataset holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg
from filelock import FileLock, Timeout

from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.registry.store import Tracker

DAGSTER_URL, MLFLOW_URL, DATA_URL = (f"http://127.0.0.1:{port}" for port in (3000, 5000, 3001))
"""Where `ae-pipeline ui` serves them by default."""


class Workspace(dg.ConfigurableResource["Workspace"]):
    """Data folder and model store, and where people find the screens that show them.

    Attributes:
        data_folder: What runs write.
        mlflow_folder: Store of runs and models.
        tracking_uri: An MLflow server instead.
        tables: Folder or object store of the published tables instead.
        dagster_url: Of Dagster's web UI.
        mlflow_url: Of MLflow's, where it is not the server's.
        data_url: Where the data folder is served.
    """

    data_folder: str
    mlflow_folder: str
    tracking_uri: str | None = None
    tables: str | None = None
    dagster_url: str = DAGSTER_URL
    mlflow_url: str | None = None
    data_url: str = DATA_URL

    def paths(self, dataset: str) -> DatasetPaths:
        """Gives a dataset's paths."""
        return DatasetPaths(Path(self.data_folder).resolve(), dataset, self.tables)

    def tracker(self) -> "Tracker":
        """Opens the model store."""
        from ae_pipeline.registry.store import Tracker

        return Tracker(Path(self.mlflow_folder).resolve(), self.tracking_uri)

    def page_of_run(self, run_id: str) -> str:
        """Gives the address of a run in Dagster's web UI."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}"

    def page_of_training(self, dataset: str, mlflow_run: str) -> str:
        """Gives the address of a training's run in MLflow's UI."""
        return f"{self._mlflow}/#/experiments/{self.tracker().experiment(dataset)}/runs/{mlflow_run}"

    def page_of_version(self, dataset: str, version: int) -> str:
        """Gives the address of a model version in MLflow's UI."""
        return f"{self._mlflow}/#/models/{quote(dataset)}/versions/{version}"

    def page_of_file(self, path: Path) -> str:
        """Gives the address of a file of the data folder, which a browser may open from another page."""
        relative = path.relative_to(Path(self.data_folder).resolve())  # as `paths` gives it; folders may be links
        return f"{self.data_url.rstrip('/')}/{quote(relative.as_posix())}"

    @property
    def _mlflow(self) -> str:
        return (self.mlflow_url or self.tracker().web_url or MLFLOW_URL).rstrip("/")

    @contextmanager
    def locked(self, dataset: str, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Holds the lock of a dataset, and waits for it where another run has it."""
        path = self.paths(dataset).lock
        make_folder(path.parent)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another run of {dataset!r} to end")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def dataset_lock(dataset: str) -> dg.ResourceDefinition:
    """Makes the resource that serialises the runs of a dataset.

    Dagster's pool does the same for runs that go through its queue; runs of the command line do not, and a killed run
    gives a file lock back where it keeps its place in a pool.
    """

    @dg.resource(required_resource_keys={"workspace"}, description=f"Held by the one run of {dataset!r}.")
    @contextmanager
    def lock(context: dg.InitResourceContext) -> Iterator[None]:
        with context.resources.workspace.locked(dataset, context.log.info if context.log else print):
            yield

    return lock
