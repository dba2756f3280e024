"""The command line: `ae-pipeline run <dataset>` brings a dataset up to date through Dagster and says what it did."""

import argparse
import datetime as dt
import getpass
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ae_pipeline.cli.servers import Ports, serve
from ae_pipeline.common.errors import ConfigError, PipelineError, SchemaError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS

if TYPE_CHECKING:
    import dagster as dg

    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.ingestion.landing import IngestResult
    from ae_pipeline.orchestration.resources import Workspace

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="ae-pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ingest what has landed, train if there is enough new, publish and report")
    run.add_argument("dataset", help="a dataset of the defs folder, such as flights")
    back = commands.add_parser("rollback", help="let another version of the model serve, its table and reports with it")
    back.add_argument("dataset", help="a dataset of the defs folder")
    back.add_argument("version", type=int, help="which version is to serve; `history` lists them")
    back.add_argument("--why", required=True, help="kept in the history")
    back.add_argument("--even-if-rejected", action="store_true", help="also a version that the gate has rejected")
    past = commands.add_parser("history", help="say which versions of the model served, since when and why")
    past.add_argument("dataset", help="a dataset of the defs folder")
    page = commands.add_parser("page", help="make the page of one day of the report, and say where it is")
    page.add_argument("dataset", help="a dataset of the defs folder")
    page.add_argument("day", help="ISO date, such as 2013-02-08")
    screens = commands.add_parser(
        "ui", help="serve Dagster's web UI with its daemon, MLflow's and reports on 127.0.0.1"
    )
    screens.add_argument("--port", type=int, default=3000, help="of Dagster's web UI")
    screens.add_argument("--mlflow-port", type=int, default=5000, help="of MLflow's")
    screens.add_argument("--data-port", type=int, default=3001, help="of the data folder, where reports are")
    chosen = parser.parse_args(arguments)
    _set_environment()
    try:
        match chosen.command:
            case "run":
                return _run(chosen.dataset)
            case "rollback":
                return _roll_back(chosen.dataset, chosen.version, chosen.why, chosen.even_if_rejected)
            case "history":
                return _show_history(chosen.dataset)
            case "page":
                return _make_page(chosen.dataset, chosen.day)
        return _show_screens(Ports(chosen.port, chosen.mlflow_port, chosen.data_port))
    except PipelineError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _show_screens(ports: Ports) -> int:
    _, workspace, configs, _ = _load()
    return serve(ports, workspace, list(configs))


def _set_environment() -> None:
    os.environ.setdefault("DAGSTER_HOME", str(ROOT / ".dagster"))
    # Threads that spin while they wait slow a busy machine down twentyfold; read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # a worker pool for what is not used here


def _load() -> tuple["dg.Definitions", "Workspace", dict[str, "PipelineConfig"], "dg.DagsterInstance"]:
    import dagster as dg
    from pydantic import ValidationError
    from yaml import YAMLError

    from ae_pipeline.definitions import defs
    from ae_pipeline.orchestration.component import AutoencoderPipeline

    try:
        definitions = defs()
    except Exception as error:
        # Dagster wraps a mistake in a YAML and a defect of the code alike; only of the first is a line enough.
        told = (ValidationError, YAMLError, dg.DagsterError, PipelineError)
        if not any(isinstance(each, told) for each in _chain(error)):
            raise
        raise ConfigError(_innermost(error)) from error
    tree = definitions.component_tree
    components = tree.get_all_components(of_type=AutoencoderPipeline) if tree else []
    configs = {component.config.dataset: component.config for component in components}
    workspace: Workspace = (definitions.resources or {})["workspace"]
    instance = dg.DagsterInstance.get()
    for dataset in configs:
        # Dagster enforces a pool only once it has been seen.
        instance.event_log_storage.set_concurrency_slots(dataset, 1)
    return definitions, workspace, configs, instance


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while below := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(below)
    return chain


def _innermost(error: BaseException) -> str:
    """Finds the words at the bottom of a chain of errors: file, line, key and rule of a mistake in a defs.yaml."""
    chain = _chain(error)
    # Dagster adds file and line to what pydantic says of a key.
    error = next((each for each in reversed(chain) if ".yaml:" in str(each)), chain[-1])
    text = re.sub(r"\s*\[type=\w+, input_value=(.*), input_type=\w+\]", r", not \1", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return f"the defs folder cannot be loaded: {' '.join(lines[:6])}; mend it, `dg check defs` tells more"


def _run(dataset: str) -> int:
    from ae_pipeline.features.build import features_content
    from ae_pipeline.orchestration.retraining import Due, is_training_due, last_training
    from ae_pipeline.registry.names import CHAMPION

    began = time.monotonic()
    print(f"Bringing {dataset!r} up to date.")
    definitions, workspace, configs, instance = _load()
    config = _chosen(dataset, configs)
    paths = workspace.paths(dataset)
    _land_demo(config, workspace)

    from ae_pipeline.lifecycle.pending import contiguous, days_without_features, days_without_report
    from ae_pipeline.lifecycle.promote import undecided_challenger
    from ae_pipeline.orchestration.stages import READ_TAG

    worked = False
    intake, failure = _read_landed(config, workspace)
    pending = sorted({*intake.pending_days(Dataset(config, paths)), *days_without_features(Dataset(config, paths))})
    for days in contiguous(pending):
        _execute(definitions, instance, config, "ingest", days, tags={READ_TAG: "by the command line"})
        worked = True

    tracker = workspace.tracker()
    due = is_training_due(config, features_content(Dataset(config, paths)), last_training(instance, config))
    if not due.yes and tracker.version(dataset, CHAMPION) is None:
        due = Due(True, "the model store has no version that serves")
    if due.yes:
        _heading(f"Training: {due.message}.")
        worked = True
        try:
            _execute(definitions, instance, config, "train", None)
        except PipelineError as error:
            if tracker.version(dataset, CHAMPION) is None:
                raise
            failure = error  # the version that serves goes on serving, also for the new days
    else:
        _heading(f"Not training: {due.message}.")

    if undecided_challenger(config, tracker):
        _execute(definitions, instance, config, "decide", None)
        worked = True
    stale = days_without_report(Dataset(config, paths), tracker)
    for days in contiguous(stale):
        _execute(definitions, instance, config, "publish", days)
        worked = True
    if not worked:
        read = "every other landed file is read" if failure else "every landed file is read"
        _heading(f"Nothing to do: {read}, every day is published under the model that serves.")
    from ae_pipeline.cli.summary import summarize

    print(summarize(Dataset(config, paths), tracker, instance))
    print(f"Took {time.monotonic() - began:.0f} s.")
    if failure:
        raise failure
    return 0


def _read_landed(config: "PipelineConfig", workspace: "Workspace") -> "tuple[IngestResult, PipelineError | None]":
    """Reads what has landed; a file with other columns holds up no other, and is told of now and at the end."""
    from ae_pipeline.common.progress import ProgressLogger
    from ae_pipeline.ingestion.landing import ingest, last_ingest
    from ae_pipeline.monitoring.alerts import Alert, AlertEvent
    from ae_pipeline.orchestration.alerts import tell

    def tell_person(message: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {'landing':<16} {message}", flush=True)

    paths, pace = workspace.paths(config.dataset), ProgressLogger(tell_person, seconds=2)
    with workspace.locked(config.dataset):
        try:
            return ingest(Dataset(config, paths), dt.datetime.now(dt.UTC).date(), pace), None
        except SchemaError as error:
            known = last_ingest(Dataset(config, paths))
            if known is None:
                raise
            tell_person(str(error))
            alert = Alert(AlertEvent.CONTRACT_BROKEN, f"columns {error}", str(error), subjects=(str(error),))
            tell(alert, Dataset(config, paths), tell_person)
            return known, error


def _chosen(dataset: str, configs: "dict[str, PipelineConfig]") -> "PipelineConfig":
    if dataset not in configs:
        raise ConfigError(
            f"no dataset {dataset!r} in the defs folder; there are {', '.join(sorted(configs)) or 'none'}"
        )
    return configs[dataset]


def _roll_back(dataset: str, version: int, why: str, even_if_rejected: bool) -> int:
    definitions, workspace, configs, instance = _load()
    config = _chosen(dataset, configs)

    from ae_pipeline.lifecycle.pending import contiguous, days_without_report
    from ae_pipeline.orchestration.rollback import RollbackConfig, rollback_config

    asked = RollbackConfig(version=version, why=why, who=_user(), even_if_rejected=even_if_rejected)
    _execute(definitions, instance, config, "rollback", None, rollback_config(config, asked))
    for days in contiguous(days_without_report(Dataset(config, workspace.paths(dataset)), workspace.tracker())):
        _execute(definitions, instance, config, "publish", days)
    return 0


def _show_history(dataset: str) -> int:
    from ae_pipeline.registry.history import Change, history

    _, workspace, configs, _ = _load()
    entries = history(workspace.paths(_chosen(dataset, configs).dataset))
    for entry in entries:
        word = "beside" if entry.change == Change.REJECTED else "in place of"
        previous = "" if entry.previous is None else f" {word} version {entry.previous}"
        print(f"{entry.at}  version {entry.version} {entry.change}{previous}, by {entry.who}: {entry.why}")
    if not entries:
        print(f"No version of {dataset!r} has served so far; `ae-pipeline run {dataset}` trains one.")
    return 0


def _make_page(dataset: str, day: str) -> int:
    from ae_pipeline.lifecycle.train import load_version_of_table
    from ae_pipeline.reports.build import day_page

    _, workspace, configs, _ = _load()
    config = _chosen(dataset, configs)
    paths = workspace.paths(dataset)
    with workspace.locked(dataset, print):
        version, bundle = load_version_of_table(Dataset(config, paths), workspace.tracker())
        print(day_page(day, Dataset(config, paths), bundle, version.version))
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return f"user {os.getuid()}"


def _land_demo(config: "PipelineConfig", workspace: "Workspace") -> None:
    from ae_pipeline.cli.demo import DEMOS
    from ae_pipeline.ingestion.landing import landing_folder

    land = DEMOS.get(config.dataset)
    folder = landing_folder(Dataset(config, workspace.paths(config.dataset)))
    if land and not (folder.is_dir() and any(folder.iterdir())):
        print(f"{time.strftime('%H:%M:%S')}  {'landing':<16} {land(folder):,} files landed in {folder}", flush=True)


def _execute(
    definitions: "dg.Definitions",
    instance: "dg.DagsterInstance",
    config: "PipelineConfig",
    job: str,
    days: tuple[str, str] | None,
    run_config: "dict[str, Any] | None" = None,
    tags: "dict[str, str] | None" = None,
) -> None:
    from ae_pipeline.orchestration.automation import job_name
    from ae_pipeline.orchestration.console import LOGGERS
    from ae_pipeline.orchestration.stages import WHO
    from ae_pipeline.orchestration.upkeep import range_tags

    name = job_name(config, job)
    span = "" if days is None or days[0] == ALL_ROWS else days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"
    _heading(f"{name} {span}".strip())
    tags = {WHO: f"{_user()}, by the command line", **(tags or {})}
    if span and days:
        tags |= range_tags(*days)
    result = definitions.resolve_job_def(name).execute_in_process(
        run_config=run_config or LOGGERS, instance=instance, tags=tags, raise_on_error=False
    )
    if not result.success:
        failed = next(event.step_failure_data for event in result.all_events if event.is_step_failure)
        told = failed.user_failure_data.description if failed.user_failure_data else None
        reason = (told or failed.error_display_string).strip()
        _alert(definitions, config, result.dagster_run, reason)
        raise PipelineError(f"{name} failed: {reason}\n(run {result.run_id}; `make ui` shows it)")


def _alert(definitions: "dg.Definitions", config: "PipelineConfig", run: "dg.DagsterRun", reason: str) -> None:
    """Tells of a failed run as the sensor does, which sees runs of the daemon alone."""
    from ae_pipeline.orchestration.alerts import failure_alert, raise_alert_unlocked

    workspace: Workspace = (definitions.resources or {})["workspace"]
    paths = workspace.paths(config.dataset)
    if alert := failure_alert(run, reason, paths):
        raise_alert_unlocked(alert, Dataset(config, paths), lambda message: print(message, file=sys.stderr))


def _heading(message: str) -> None:
    print(f"\n{message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
