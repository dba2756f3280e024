"""The project as the command line sees it: definitions, datasets, and Dagster's instance."""

import getpass
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ae_pipeline.common.errors import ConfigError, PipelineError
from ae_pipeline.common.escape import terminal_lines

if TYPE_CHECKING:
    import dagster as dg

    from ae_pipeline.lifecycle.plan import Step
    from ae_pipeline.orchestration.resources import Workspace
    from ae_pipeline.registry.store import Tracker
    from ae_pipeline.storage.dataset import Dataset


@dataclass(frozen=True)
class Project:
    """A loaded project.

    Attributes:
        definitions: Everything that Dagster loads.
        workspace: Where the project keeps its data and models.
        datasets: Its datasets, by name.
        instance: Dagster's instance, in DAGSTER_HOME.
    """

    definitions: "dg.Definitions"
    workspace: "Workspace"
    datasets: "dict[str, Dataset]"
    instance: "dg.DagsterInstance"

    @classmethod
    def load(cls) -> "Project":
        """Load the project.

        Raises:
            ConfigError: A `defs.yaml` is invalid.
        """
        import dagster as dg

        from ae_pipeline.orchestration.component import AutoencoderPipeline
        from ae_pipeline.orchestration.console import print_package_messages

        definitions = _load_definitions()
        workspace: Workspace = (definitions.resources or {})["workspace"]
        tree = definitions.component_tree
        components = tree.get_all_components(of_type=AutoencoderPipeline) if tree else []
        datasets = {component.config.dataset: workspace.dataset(component.config) for component in components}
        instance = dg.DagsterInstance.get()
        print_package_messages(instance)
        for name in datasets:
            # Dagster enforces a pool only after it has seen it.
            instance.event_log_storage.set_concurrency_slots(name, 1)
        return cls(definitions, workspace, datasets, instance)

    @cached_property
    def tracker(self) -> "Tracker":
        """The model store."""
        return self.workspace.tracker()

    def dataset(self, name: str) -> "Dataset":
        """Return a dataset by name.

        Raises:
            ConfigError: The project has no such dataset.
        """
        if name not in self.datasets:
            names = ", ".join(sorted(self.datasets)) or "none"
            raise ConfigError(f"no dataset {name!r} in the defs folder; it has {names}")
        return self.datasets[name]

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
            PipelineError: The run failed. An alert was raised.
        """
        from ae_pipeline.orchestration.console import LOGGERS
        from ae_pipeline.orchestration.failures import first_reason
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
        result = self.definitions.resolve_job_def(name).execute_in_process(
            run_config=run_config or LOGGERS, instance=self.instance, tags=all_tags, raise_on_error=False
        )
        show_in_timeline(result.dagster_run, self.instance)
        if not result.success:
            reason = first_reason(result.all_events)
            self._alert(dataset, result.dagster_run, reason)
            raise PipelineError(f"{name} failed: {reason}\n(run {result.run_id}; `make ui` shows it)")

    def _alert(self, dataset: "Dataset", run: "dg.DagsterRun", reason: str) -> None:
        """Raise an alert about a failed run. The failure sensor does the same for runs of the daemon."""
        from ae_pipeline.lifecycle.alerts import raise_without_lock
        from ae_pipeline.orchestration.failures import failure_alert

        if alert := failure_alert(run, reason, dataset.paths):
            raise_without_lock(alert, dataset)


def current_user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have a number and no name
        return f"user {os.getuid()}"


def _load_definitions() -> "dg.Definitions":
    import dagster as dg
    from pydantic import ValidationError
    from yaml import YAMLError

    from ae_pipeline import definitions

    try:
        return definitions.defs()
    except Exception as error:
        # Dagster wraps errors of a YAML and defects of the code alike. One line is enough for the former.
        expected = (ValidationError, YAMLError, dg.DagsterError, PipelineError)
        if not any(isinstance(each, expected) for each in _chain(error)):
            raise
        raise ConfigError(yaml_error(error)) from error


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return chain


def yaml_error(error: BaseException) -> str:
    """Return file, line, key and rule of an error in a `defs.yaml`, from a chain of errors."""
    chain = _chain(error)
    # Dagster adds file and line to pydantic's message about a key.
    error = next((each for each in reversed(chain) if ".yaml:" in str(each)), chain[-1])
    text = re.sub(r"\s*\[type=\w+, input_value=(.*), input_type=\w+\]", r", not \1", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return f"the defs folder cannot be loaded: {' '.join(lines[:6])}; fix it, `dg check defs` shows more"


def print_error(error: PipelineError) -> None:
    """Print an error for a person."""
    print(f"\n{type(error).__name__}: {terminal_lines(error)}", file=sys.stderr)
