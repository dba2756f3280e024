"""The store: experiments, runs, and versions of models by number and alias."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import RunStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ae_pipeline.common.errors import StorageError
from ae_pipeline.registry.names import CHAMPION, GATE_TAG
from ae_pipeline.registry.training_run import TrainingRun
from ae_pipeline.storage.files import make_folder

_LOCATION = "place"
"""Tag of a run: where it trained."""

_DOWNLOADED = 4
"""Bundles of a model on a tracking server elsewhere that are kept here."""


@dataclass(frozen=True)
class TrackedVersion:
    """A registered model version.

    Attributes:
        dataset: Registered model's name.
        version: Counted from 1 by the registry.
        run_id: MLflow run that made it.
        tags: Of the version; the gate's verdict is among them.
    """

    dataset: str
    version: int
    run_id: str
    tags: Mapping[str, str]


class Tracker:
    """The MLflow store of a project: sqlite beside its artifacts.

    Args:
        root: Folder of store and artifacts.
        uri: Another tracking server instead.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root = root
        # A database, such as MLflow itself names to processes that this one starts, keeps its artifacts here.
        self.is_remote = uri is not None and not re.match("(sqlite|mysql|postgresql|mssql)", uri)
        self.uri = uri or f"sqlite:///{root / 'mlflow.db'}"

    @property
    def web_url(self) -> str | None:
        """Where a server elsewhere shows its UI, without the password that its address may bear; None where unknown."""
        parsed = urlparse(self.uri)
        if parsed.scheme not in {"http", "https"}:
            return None
        return parsed._replace(netloc=parsed.netloc.rpartition("@")[2]).geturl().rstrip("/")

    @cached_property
    def client(self) -> MlflowClient:
        """The client; opening a fresh sqlite store from several processes at once would corrupt it, hence the lock."""
        make_folder(self.root)
        with FileLock(self.root / ".mlflow.lock"):
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            client = MlflowClient(self.uri, self.uri)
            client.search_experiments(max_results=1)
        return client

    def open(self) -> str:
        """Makes the store where there is none yet, and gives its address."""
        _ = self.client
        return self.uri

    def experiment(self, dataset: str) -> str:
        """Gives the id of the dataset's experiment, making it where there is none."""
        client = self.client
        with FileLock(self.root / ".mlflow.lock"):
            found = client.get_experiment_by_name(dataset)
            if found is not None:
                return str(found.experiment_id)
            # A tracking server elsewhere keeps artifacts where it chooses; only there can others read them.
            local = make_folder(self.root / "artifacts" / dataset).resolve().as_uri() if not self.is_remote else None
            return str(client.create_experiment(dataset, artifact_location=local))

    @contextmanager
    def training(self, dataset: str, name: str, tags: Mapping[str, str], location: str = "") -> Iterator[TrainingRun]:
        """Opens the MLflow run of a training; a retry of one that failed, by its tags, continues its run.

        One that was killed could not say so: it is marked as killed, and what it left half registered is withdrawn.

        Args:
            dataset: Names the experiment.
            name: Of the run.
            tags: What tells this training from all others, such as the Dagster run.
            location: What tells the place where this one trains, one at a time, from others that share the store: a run
                there that is still called running has been killed.
        """
        experiment = self.experiment(dataset)
        self._bury(dataset, experiment, location)
        same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        unfinished = f"{same} and attributes.status = 'FAILED'"
        found = self.client.search_runs([experiment], unfinished, max_results=1) if same else []
        if found:
            run_id = str(found[0].info.run_id)
            if "error" in found[0].data.tags:
                self.client.delete_tag(run_id, "error")
            self.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            run_id = str(
                self.client.create_run(experiment, run_name=name, tags={**tags, _LOCATION: location}).info.run_id
            )
        run = TrainingRun(self, dataset, run_id)
        try:
            yield run
            run.flush()
        except BaseException as error:
            with suppress(MlflowException):  # the epochs until then; the error itself is what counts
                run.flush()
            self.client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:500])
            self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
            raise
        self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))

    def _bury(self, dataset: str, experiment: str, location: str) -> None:
        """Withdraws versions of this place that nobody has judged, and marks runs there that were killed as such."""
        if not location:
            return
        own = f"tags.`{_LOCATION}` = '{location}' and attributes.status"
        dead = {str(run.info.run_id) for run in self.client.search_runs([experiment], f"{own} = 'RUNNING'")}
        champion = self.version(dataset, CHAMPION)
        for version in self.versions(dataset):
            if GATE_TAG in version.tags or (champion is not None and champion.version == version.version):
                continue
            try:
                run = self.client.get_run(version.run_id)
            except MlflowException:  # registered by somebody else
                continue
            if run.data.tags.get(_LOCATION) != location:
                continue
            self.client.delete_model_version(dataset, str(version.version))
            if run.info.status == "FINISHED":  # killed while it was registered, which ends a run for a moment
                dead.add(version.run_id)
        for run_id in dead:
            self.client.set_tag(run_id, "error", "its process was killed")
            self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))

    def version_of_run(self, dataset: str, run_id: str) -> TrackedVersion | None:
        """Gives the newest version that a run registered, if any."""
        found = self.client.search_model_versions(f"name = '{dataset}' and run_id = '{run_id}'")
        return max(map(_tracked, found), key=lambda version: version.version, default=None)

    def version(self, dataset: str, alias: str) -> TrackedVersion | None:
        """Gives the version that bears an alias, if any."""
        try:
            return _tracked(self.client.get_model_version_by_alias(dataset, alias))
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise

    def versions(self, dataset: str) -> list[TrackedVersion]:
        """Lists all versions of a model."""
        return [_tracked(version) for version in self.client.search_model_versions(f"name = '{dataset}'")]

    def version_number(self, dataset: str, version: int) -> TrackedVersion:
        """Gives a version by its number.

        Raises:
            StorageError: The registry does not have it.
        """
        try:
            return _tracked(self.client.get_model_version(dataset, str(version)))
        except MlflowException as error:
            raise StorageError(
                f"the registry has no version {version} of model {dataset!r}; the published table was scored with "
                "it: put the store back, or train and publish anew"
            ) from error

    def set_alias(self, dataset: str, alias: str, version: int) -> None:
        """Moves an alias."""
        self.client.set_registered_model_alias(dataset, alias, str(version))

    def tag_version(self, dataset: str, version: int, tags: Mapping[str, str]) -> None:
        """Tags a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(dataset, str(version), key, value)

    def bundle_folder(self, version: TrackedVersion) -> Path:
        """Gives the local folder of a version's bundle.

        Raises:
            StorageError: Its artifacts are not where the registry says.
        """
        uri = self.client.get_model_version_download_uri(version.dataset, str(version.version))
        parsed = urlparse(uri)
        if parsed.scheme in {"", "file"}:
            folder = Path(unquote(parsed.path)) / "artifacts" / "bundle"
        else:
            folder = self._downloaded(version, f"{uri}/artifacts/bundle")
        if not folder.is_dir():
            raise StorageError(
                f"version {version.version} of model {version.dataset!r} has no bundle at {folder}; the folder "
                "of MLflow's artifacts was moved or emptied: put it back, or train anew"
            )
        return folder

    def _downloaded(self, version: TrackedVersion, uri: str) -> Path:
        """Fetches a bundle once: a version never changes. Of each model the few that were fetched last are kept."""
        location = make_folder(self.root / "downloaded" / version.dataset)
        folder = location / f"{version.version}-{version.run_id}"
        if not folder.is_dir():
            with TemporaryDirectory(dir=location, prefix=".") as temporary:
                found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary))
                with suppress(OSError):  # another process was first
                    found.rename(folder)
            os.utime(folder)
            others = sorted(location.glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)
            for old in others[:-_DOWNLOADED]:
                rmtree(old, ignore_errors=True)
        return folder


def _tracked(version: ModelVersion) -> TrackedVersion:
    return TrackedVersion(str(version.name), int(version.version), str(version.run_id), dict(version.tags))
