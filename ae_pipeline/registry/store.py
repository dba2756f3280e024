"""The MLflow store of a project: experiments, runs, and model versions by number and alias."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from ae_pipeline.common.errors import StorageError
from ae_pipeline.registry.answer import require_answer
from ae_pipeline.registry.database import prepare_database
from ae_pipeline.registry.names import CHAMPION, GATE_TAG
from ae_pipeline.registry.training_run import NOTE_TAG, TrainingRun
from ae_pipeline.registry.versions import (
    RunFacts,
    TrackedVersion,
    as_tracked,
    facts_of_runs,
    newest_version_of_run,
    version_by_alias,
)
from ae_pipeline.storage.aliases import alias_of
from ae_pipeline.storage.environment import environment_error
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.sqlite import copy_database, sqlite_damage

_SQLITE = "sqlite:///"

_LOCATION_TAG = "place"
"""Tag of a run with the data folder that it trained in."""

_KIND_TAG = "mlflow.experimentKind"
"""Tag of an experiment that the UI chooses its pages by; without it, a page of token usage comes first."""

_END_OF_LEAD = "\n\n<!-- end of the verdict -->\n\n"
"""End of the paragraph that reports put before the description of a run. MLflow does not show it."""

_OWN_NOTE_TAG = "note_digest"
"""Tag of an experiment with the hash of the description that a training set, which tells it from a person's."""

_MAX_DOWNLOADED = 4
"""Bundles of a model that are kept after a download from a remote tracking server."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(folder: Path) -> Path:
    """Return a path to a folder that MLflow does not take for a URL with a query or encoded characters."""
    return alias_of(folder) if re.search("[?%#]", str(folder)) else folder


class Tracker:
    """The MLflow store of a project: an SQLite database and a folder of artifacts, or a tracking server.

    Args:
        root: Folder of the database, the artifacts and the downloaded bundles.
        uri: Address of another database or of a tracking server, which replaces the database in `root`.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.root = root
        # MLflow passes the URI of its database to child processes. Such a store is local: its artifacts are in `root`.
        self.is_remote = uri is not None and not re.match("(sqlite|mysql|postgresql|mssql)", uri)
        self.uri = uri or f"sqlite:///{_plain(root) / 'mlflow.db'}"

    @property
    def web_url(self) -> str | None:
        """Address of the tracking server's web page, without user name and password; None for a local store."""
        parsed = urlparse(self.uri)
        if parsed.scheme not in {"http", "https"}:
            return None
        return parsed._replace(netloc=parsed.netloc.rpartition("@")[2]).geturl().rstrip("/")

    @property
    def database(self) -> Path | None:
        """File of the database of a local store; None for another store."""
        return Path(self.uri.removeprefix(_SQLITE)) if self.uri.startswith(_SQLITE) else None

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow client of the store. A lock keeps processes from creating the database at the same time."""
        make_folder(self.root)
        if self.is_remote and self.web_url:
            require_answer(self.web_url)
        with FileLock(self.root / ".mlflow.lock"):
            if self.database and self.backup:
                prepare_database(self.database, self.backup)
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            client = MlflowClient(self.uri, self.uri)
            client.search_experiments(max_results=1)
        return client

    @property
    def backup(self) -> Path | None:
        """Copy of the database after the last training, decision or rollback; None without a file."""
        return self.database.with_name(f"{self.database.name}.backup") if self.database else None

    def back_up(self) -> None:
        """Copy the database beside itself, unless it is damaged, so that it can be restored."""
        if self.database and self.backup and self.database.is_file() and not sqlite_damage(self.database):
            copy_database(self.database, self.backup)

    def open(self) -> str:
        """Create the store if it does not exist, and return its URI."""
        _ = self.client
        return self.uri

    def experiment(self, dataset: str) -> str:
        """Return the id of the dataset's experiment. Create the experiment if it does not exist."""
        client = self.client
        with FileLock(self.root / ".mlflow.lock"):
            experiment = client.get_experiment_by_name(dataset)
            if experiment is not None:
                return str(experiment.experiment_id)
            # A tracking server chooses where artifacts go: a folder of this machine is not readable by others.
            if self.is_remote:
                return str(client.create_experiment(dataset))
            folder = make_folder(self.root / "artifacts" / dataset).resolve()
            return str(client.create_experiment(dataset, artifact_location=_plain(folder).as_uri()))

    def describe_experiment(self, dataset: str, note: str) -> None:
        """Set the description of the dataset's experiment, and let the UI show it as trainings of a model.

        A description that a person wrote or changed stays.
        """
        with self._answers():
            experiment = self.experiment(dataset)
            tags = self.client.get_experiment(experiment).tags
            present = tags.get(NOTE_TAG, "")
            if present in {"", note} or _digest(present) == tags.get(_OWN_NOTE_TAG):
                self.client.set_experiment_tag(experiment, NOTE_TAG, note)
                self.client.set_experiment_tag(experiment, _OWN_NOTE_TAG, _digest(note))
            self.client.set_experiment_tag(experiment, _KIND_TAG, "custom_model_development")

    @contextmanager
    def training(self, dataset: str, name: str, tags: Mapping[str, str], location: str = "") -> Iterator[TrainingRun]:
        """Open the MLflow run of a training. A retry of a failed training with the same tags continues its run.

        First, runs of killed trainings are marked as killed and the versions that they left without a gate result are
        deleted.

        Args:
            dataset: Name of the experiment and of the registered model.
            name: Name of the run.
            tags: Tags that identify this training, such as the id of the Dagster run.
            location: Identifier of the data folder, in which one training runs at a time. Another run with this
                location that is still marked as running was killed. Without a location, nothing is cleaned up.
        """
        experiment = self.experiment(dataset)
        self._clean_up_killed_runs(dataset, experiment, location)
        run_id = self._continue_failed_run(experiment, tags)
        if run_id is None:
            created = self.client.create_run(experiment, run_name=name, tags={**tags, _LOCATION_TAG: location})
            run_id = str(created.info.run_id)
        run = TrainingRun(self.client, dataset, run_id)
        try:
            yield run
            run.flush()
        except BaseException as error:
            with suppress(MlflowException):  # the original error must not be hidden by one of the store
                run.flush()
            stopped = not isinstance(error, Exception)  # an interrupt: the training was stopped, and did not fail
            message = "it was stopped" if stopped else f"{type(error).__name__}: {error}"
            self.client.set_tag(run_id, "error", message[:500])
            status = RunStatus.KILLED if stopped else RunStatus.FAILED
            self.client.set_terminated(run_id, RunStatus.to_string(status))
            raise
        self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
        self.back_up()

    def _continue_failed_run(self, experiment: str, tags: Mapping[str, str]) -> str | None:
        """Reopen the newest failed run with these tags and return its id, or return None if there is none."""
        if not tags:
            return None
        same_tags = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        failed = self.client.search_runs([experiment], f"{same_tags} and attributes.status = 'FAILED'", max_results=1)
        if not failed:
            return None
        run_id = str(failed[0].info.run_id)
        if "error" in failed[0].data.tags:
            self.client.delete_tag(run_id, "error")
        self.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        return run_id

    def _clean_up_killed_runs(self, dataset: str, experiment: str, location: str) -> None:
        """Delete versions of this location that have no gate result, and mark killed runs of it as killed."""
        if not location:
            return
        running = f"tags.`{_LOCATION_TAG}` = '{location}' and attributes.status = 'RUNNING'"
        killed = {str(run.info.run_id) for run in self.client.search_runs([experiment], running)}
        champion = self.version(dataset, CHAMPION)
        for version in self.versions(dataset):
            if GATE_TAG in version.tags or (champion is not None and champion.version == version.version):
                continue
            try:
                run = self.client.get_run(version.run_id)
            except MlflowException:  # the version was registered without a run of this store
                continue
            if run.data.tags.get(_LOCATION_TAG) != location:
                continue
            self.client.delete_model_version(dataset, str(version.version))
            if run.info.status == "FINISHED":  # registering a model sets this status before the training ends
                killed.add(version.run_id)
        for run_id in killed:
            self.client.set_tag(run_id, "error", "its process was killed")
            self.client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))

    def version_of_run(self, dataset: str, run_id: str) -> TrackedVersion | None:
        """Return the newest version that a run registered, or None if it registered none."""
        return newest_version_of_run(self.client, dataset, run_id)

    def version(self, dataset: str, alias: str) -> TrackedVersion | None:
        """Return the version that has an alias, or None if no version has it.

        Raises:
            StorageError: The store does not answer.
        """
        with self._answers():
            return version_by_alias(self.client, dataset, alias)

    def versions(self, dataset: str) -> list[TrackedVersion]:
        """Return all versions of a model.

        Raises:
            StorageError: The store does not answer.
        """
        with self._answers():
            return [as_tracked(version) for version in self.client.search_model_versions(f"name = '{dataset}'")]

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            if fault := environment_error(error):
                raise fault from error
            store = self.web_url or self.database or "its database"
            raise StorageError(
                f"the model store, {store}, does not answer ({error.message}); start it, or correct "
                "MLFLOW_TRACKING_URI, and try again"
            ) from error

    def version_number(self, dataset: str, version: int) -> TrackedVersion:
        """Return a version by its number.

        Raises:
            StorageError: The registry does not have this version.
        """
        try:
            return as_tracked(self.client.get_model_version(dataset, str(version)))
        except MlflowException as error:
            raise StorageError(
                f"the registry has no version {version} of model {dataset!r}, which the published table was scored "
                "with; restore the MLflow store, or train and publish again"
            ) from error

    def set_alias(self, dataset: str, alias: str, version: int | None) -> None:
        """Move an alias to a version, or remove it if the version is None."""
        if version is None:
            self.client.delete_registered_model_alias(dataset, alias)
        else:
            self.client.set_registered_model_alias(dataset, alias, str(version))
        self.back_up()

    def withdraw(self, version: TrackedVersion, why: str) -> None:
        """Delete a version that never served, and mark its run as killed, with the reason as its error."""
        self.client.delete_model_version(version.dataset, str(version.version))
        self.client.set_tag(version.run_id, "error", why[:500])
        self.client.set_terminated(version.run_id, RunStatus.to_string(RunStatus.KILLED))
        self.back_up()

    def facts_of_runs(self, dataset: str) -> RunFacts:
        """Return the tags and the newest metrics of all runs of a dataset by run, deleted ones too."""
        with self._answers():
            experiment = self.client.get_experiment_by_name(dataset)
            return facts_of_runs(self.client, experiment.experiment_id) if experiment else {}

    def tag_run(self, run_id: str, key: str, value: str) -> None:
        """Set a tag of a run, or raise `StorageError` if the store does not answer."""
        with self._answers():
            self.client.set_tag(run_id, key, value[:5000])

    def lead_description(self, run_id: str, lead: str) -> None:
        """Put a paragraph, Markdown, before the description of a run, in place of an earlier one. The rest stays."""
        with self._answers():
            note = self.client.get_run(run_id).data.tags.get(NOTE_TAG, "")
            rest = note.partition(_END_OF_LEAD)[2] if _END_OF_LEAD in note else note
            self.client.set_tag(run_id, NOTE_TAG, f"{lead[:2000]}{_END_OF_LEAD}{rest}"[:7500])

    def tag_version(self, dataset: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version, in the given order."""
        for key, value in tags.items():
            self.client.set_model_version_tag(dataset, str(version), key, value)
        self.back_up()

    def bundle_uri(self, version: TrackedVersion) -> str:
        """Return the URI with which other machines find a version's bundle. It can be one of the tracking server.

        Raises:
            StorageError: The store does not answer.
        """
        with self._answers():
            uri = self.client.get_model_version_download_uri(version.dataset, str(version.version))
        parsed = urlparse(uri)
        folder = Path(unquote(parsed.path)).as_uri() if parsed.scheme in {"", "file"} else uri
        return f"{folder}/artifacts/bundle"

    def bundle_folder(self, version: TrackedVersion) -> Path:
        """Return the local folder of a version's bundle. A bundle on a tracking server is downloaded.

        Raises:
            StorageError: The artifacts are not at the path that the registry has, or the store does not answer.
        """
        parsed = urlparse(uri := self.bundle_uri(version))
        folder = Path(unquote(parsed.path)) if parsed.scheme == "file" else self._download(version, uri)
        if not folder.is_dir():
            raise StorageError(
                f"version {version.version} of model {version.dataset!r} has no bundle at {folder}; the folder of "
                "MLflow's artifacts was moved or emptied: restore it, or train again"
            )
        return folder

    def _download(self, version: TrackedVersion, uri: str) -> Path:
        """Download a bundle unless it was downloaded before, and keep the most recently used bundles of the model."""
        cache = make_folder(self.root / "downloaded" / version.dataset)
        folder = cache / f"{version.version}-{version.run_id}"
        if not folder.is_dir():
            with TemporaryDirectory(dir=cache, prefix=".") as temporary:
                downloaded = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary))
                with suppress(OSError):  # another process has downloaded it at the same time
                    downloaded.rename(folder)
            os.utime(folder)
            by_age = sorted(cache.glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)
            for old in by_age[:-_MAX_DOWNLOADED]:
                rmtree(old, ignore_errors=True)
        return folder
