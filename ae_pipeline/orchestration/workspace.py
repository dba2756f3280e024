"""Resources: where a project keeps its data and its models, and the lock that one run of a dataset holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from filelock import FileLock, Timeout

from ae_pipeline.storage import DatasetPaths, make_folder

if TYPE_CHECKING:
    from ae_pipeline.tracking import Tracker


class Workspace(dg.ConfigurableResource["Workspace"]):
    """Data folder and model store."""

    data_folder: str
    mlflow_folder: str
    tracking_uri: str | None = None
    tables: str | None = None

    def paths(self, dataset: str) -> DatasetPaths:
        """Gives a dataset's paths."""
        return DatasetPaths(Path(self.data_folder).resolve(), dataset, self.tables)

    def tracker(self) -> "Tracker":
        """Opens the model store."""
        from ae_pipeline.tracking import Tracker

        return Tracker(Path(self.mlflow_folder).resolve(), self.tracking_uri)

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
