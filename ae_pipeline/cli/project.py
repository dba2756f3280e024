"""The project as the command line sees it: definitions, datasets, and Dagster's instance."""

import getpass
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ae_pipeline.common.errors import ConfigError, PipelineError, RemovalError, StorageError
from ae_pipeline.common.escape import terminal_lines
from ae_pipeline.common.signals import Stopped, stop_signal
from ae_pipeline.common.text import first_line
from ae_pipeline.storage.environment import environment_error
from ae_pipeline.storage.files import make_folder

if TYPE_CHECKING:
    import dagster as dg

    from ae_pipeline.lifecycle.plan import Step
    from ae_pipeline.orchestration.defs_folder import BrokenFile, DefsFolder
    from ae_pipeline.orchestration.resources import Workspace
    from ae_pipeline.registry.store import Tracker
    from ae_pipeline.storage.dataset import Dataset


START_LOCK = ".start.lock"
"""File in DAGSTER_HOME that a command locks while it opens Dagster's instance."""


def open_instance(home: Path) -> "dg.DagsterInstance":
    """Open Dagster's instance.

    Args:
        home: DAGSTER_HOME, for the message.

    Raises:
        ConfigError: The storage that `dagster.yaml` names is not installed, misses a setting, or does not answer.
    """
    import dagster as dg
    from dagster_shared.check import CheckError
    from sqlalchemy.exc import SQLAlchemyError
    from yaml import YAMLError

    refusals: list[type[Exception]] = [CheckError, ImportError, SQLAlchemyError, YAMLError, dg.DagsterError]
    if find_spec("dagster_postgres"):
        refusals.append(import_module("dagster_postgres.utils").DagsterPostgresException)
    try:
        return dg.DagsterInstance.get()
    except tuple(refusals) as error:
        if environment_error(error):  # such as a full disk, which has a remedy of its own
            raise
        raise ConfigError(
            f"Dagster cannot use what {home / 'dagster.yaml'} configures ({first_line(error)}); start the server that "
            "it names, correct the file or the variables that it reads, or install `ae-pipeline[postgres,s3]`"
        ) from error


@dataclass(frozen=True)
class Project:
    """A loaded project.

    Attributes:
        definitions: Everything that Dagster loads.
        workspace: Where the project keeps its data and models.
        datasets: Its datasets, by name.
        instance: Dagster's instance, in DAGSTER_HOME.
        broken: Files of the defs folder that cannot be loaded.
    """

    definitions: "dg.Definitions"
    workspace: "Workspace"
    datasets: "dict[str, Dataset]"
    instance: "dg.DagsterInstance"
    broken: "tuple[BrokenFile, ...]" = ()

    @classmethod
    def load(cls, *, opens_instance: bool = True) -> "Project":
        """Load the project. A `defs.yaml` with an error takes only its own datasets out; see `broken`.

        Args:
            opens_instance: Whether to open Dagster's instance; otherwise the project has an empty one in memory.

        Raises:
            ConfigError: Files of the defs folder that can be loaded alone contradict one another, or the storage of
                Dagster's instance cannot be used.
            StorageError: A database of Dagster's instance is damaged, or another process holds its lock.
        """
        import dagster as dg
        from filelock import FileLock

        from ae_pipeline.lifecycle.doctor.dagster_home import check_databases
        from ae_pipeline.orchestration.console import print_package_messages
        from ae_pipeline.orchestration.side_by_side import set_pool_limits

        loaded = load_folder()
        workspace: Workspace = (loaded.definitions.resources or {})["workspace"]
        datasets = {name: workspace.dataset(config) for name, config in loaded.configs.items()}
        if not opens_instance:
            return cls(loaded.definitions, workspace, datasets, dg.DagsterInstance.ephemeral(), loaded.broken)
        home = make_folder(Path(os.environ["DAGSTER_HOME"]))
        with FileLock(home / START_LOCK):  # two processes cannot create a database at the same time
            check_databases(home)
            instance = open_instance(home)
            print_package_messages(instance)
            set_pool_limits(loaded.configs.values(), instance)
        return cls(loaded.definitions, workspace, datasets, instance, loaded.broken)

    @cached_property
    def tracker(self) -> "Tracker":
        """The model store."""
        return self.workspace.tracker()

    def dataset(self, name: str, *, refreshes: bool = True) -> "Dataset":
        """Return a dataset by name, and name the files that cannot be loaded on stderr.

        Args:
            name: Name of the dataset.
            refreshes: Whether its files are brought up to date with an object store.

        Raises:
            ConfigError: The project has no such dataset, or its `defs.yaml` cannot be loaded.
            StorageError: The data is in an object store that does not answer.
        """
        if name not in self.datasets:
            for broken in self.broken:
                if name in {broken.group, *broken.datasets}:
                    raise broken.as_exception(name)
            self.print_broken()
            names = ", ".join(sorted(self.datasets)) or "none"
            raise ConfigError(f"no dataset {name!r} in the defs folder; it has {names}")
        self.print_broken()
        if refreshes:
            self.workspace.refresh(name)
        return self.datasets[name]

    def print_broken(self) -> None:
        """Print a line on stderr for each file of the defs folder that cannot be loaded."""
        for each in self.broken:
            print(f"Not loaded: {terminal_lines(each.message)}", file=sys.stderr, flush=True)

    def run_job(
        self,
        dataset: "Dataset",
        job: "Step | str",
        days: tuple[str, str] | None = None,
        *,
        run_config: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Run a job of a dataset in this process, as one run that Dagster's UI shows.

        Args:
            dataset: Dataset of the job.
            job: End of the name of the job.
            days: First and last day, for a job over days.
            run_config: Run config; the console logger by default.
            tags: More tags of the run.

        Raises:
            RemovalError: The run would remove many rows, so that it changed nothing.
            PipelineError: The run failed. An alert was raised.
            Stopped: This process was asked to stop.
        """
        from ae_pipeline.orchestration.console import LOGGERS
        from ae_pipeline.orchestration.dead_runs import process_tag
        from ae_pipeline.orchestration.failures import caused_by, first_reason
        from ae_pipeline.orchestration.jobs import job_name
        from ae_pipeline.orchestration.runs import show_in_timeline
        from ae_pipeline.orchestration.tags import REPOSITORY, REPOSITORY_TAG, WHO_TAG, range_tags
        from ae_pipeline.storage.paths import ALL_ROWS

        name = job_name(dataset.config, str(job))
        span = (
            "" if days is None or days[0] == ALL_ROWS else days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"
        )
        print(f"\n{name} {span}".rstrip(), flush=True)
        all_tags = {WHO_TAG: f"{current_user()}, command line", REPOSITORY_TAG: REPOSITORY, **(tags or {})}
        if days:
            all_tags |= range_tags(*days)
        run_id = str(uuid.uuid4())
        result = self.definitions.resolve_job_def(name).execute_in_process(
            run_config=run_config or LOGGERS,
            instance=self.instance,
            tags={**all_tags, **process_tag(run_id, os.getpid())},
            run_id=run_id,
            raise_on_error=False,
        )
        show_in_timeline(result.dagster_run, self.instance)
        if (signum := stop_signal()) is not None:  # Dagster ends the run, and does not pass the interrupt on
            raise Stopped(signum)
        if not result.success:
            reason = first_reason(result.all_events)
            self._alert(dataset, result.dagster_run, reason)
            kind = RemovalError if caused_by(RemovalError, result.all_events) else PipelineError
            raise kind(f"{name} failed: {reason}\n(run {result.run_id}; `ae-pipeline ui` shows it)")

    def end_dead_runs(self, name: str) -> None:
        """End the runs of a dataset whose process is dead, and print a line for each."""
        from ae_pipeline.orchestration.dead_runs import describe_run, end_dead_runs

        for run in end_dead_runs(self.instance, self.workspace.paths, name):
            print(f"Ended {describe_run(run)}: its process was killed.", flush=True)

    @contextmanager
    def holding(self, dataset: "Dataset") -> Iterator[None]:
        """Hold the lock of a dataset over several runs, and say so if another process has it. End dead runs first."""
        from ae_pipeline.storage.locks import dataset_lock, locks

        self.end_dead_runs(dataset.name)
        lock = dataset_lock(dataset.paths)
        if locks().is_held(lock):
            holder = locks().holder(lock)
            who = f" ({holder})" if holder else ""
            print(f"Waiting for another run of {dataset.name!r} to end{who}.", flush=True)
        with self.workspace.locked(dataset.name):
            yield

    def _alert(self, dataset: "Dataset", run: "dg.DagsterRun", reason: str) -> None:
        """Raise an alert about a failed run. The failure sensor does the same for runs of the daemon."""
        from ae_pipeline.lifecycle.alerts import raise_without_lock
        from ae_pipeline.orchestration.failures import failure_alert

        try:
            if alert := failure_alert(run, reason, dataset.paths):
                raise_without_lock(alert, dataset)
        except (OSError, StorageError) as error:  # what hinders the run hinders the alert too
            print(f"The alert about it is not stored: {terminal_lines(environment_error(error) or error)}", flush=True)


def current_user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have a number and no name
        return f"user {os.getuid()}"


def load_folder() -> "DefsFolder":
    """Load the defs folder.

    Raises:
        ConfigError: Files that can be loaded alone contradict one another.
    """
    import dagster as dg

    from ae_pipeline.definitions import load_project

    try:
        return load_project()
    except dg.DagsterError as error:
        raise ConfigError(
            f"the defs folder cannot be loaded: {first_line(error)}; correct it, `dg check defs` shows more"
        ) from error


def print_error(error: PipelineError) -> None:
    """Print an error for a person."""
    print(f"\n{type(error).__name__}: {terminal_lines(error)}", file=sys.stderr)
