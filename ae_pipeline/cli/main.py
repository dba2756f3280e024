"""The command line `ae-pipeline`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ae_pipeline.cli.mark import MARK_HELP, add_options
from ae_pipeline.cli.project import Project, print_error
from ae_pipeline.common.deprecation import show_deprecations
from ae_pipeline.common.errors import ConfigError, PipelineError
from ae_pipeline.common.signals import SignalWatch, end_process, signals_raised
from ae_pipeline.storage.environment import environment_error
from ae_pipeline.storage.project import own_project

if TYPE_CHECKING:
    from ae_pipeline.reports.heat_pictures import MapFormat


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    show_deprecations()
    with signals_raised(), SignalWatch(_print_stopped) as watch:
        try:
            _set_environment(needs_project=options.command not in _WITHOUT_PROJECT)
            return _execute(options)
        except KeyboardInterrupt as error:
            signum = getattr(error, "signum", signal.SIGINT)
        except Exception as error:  # noqa: BLE001
            if watch.received is None:
                return _report(error)
            signum = watch.received  # what the interrupt has become on its way
        _print_stopped(signum)
        if watch.received is not None:
            end_process(signum)  # threads and the teardown of native libraries take seconds
        return 128 + signum


def _report(error: Exception) -> int:
    """Print an error that a user can fix, or raise it; return the exit status."""
    known = error if isinstance(error, PipelineError) else environment_error(error)
    if known is None:
        raise error
    print_error(known)
    return 1


def _print_stopped(signum: int) -> None:
    line = f"\nStopped by {signal.Signals(signum).name}. Nothing is half done; the same command goes on from here.\n"
    os.write(2, line.encode())  # the interrupted code may hold the lock of a stream


def _execute(options: argparse.Namespace) -> int:
    match options.command:
        case "run":
            from ae_pipeline.cli.run import run

            return run(options.dataset, accepts_removal=options.accept_removal)
        case "score":
            from ae_pipeline.cli.score import score

            return score(options.dataset, options.file, options.version, options.out)
        case "rollback":
            from ae_pipeline.cli.versions import roll_back

            return roll_back(options.dataset, options.version, options.why, options.even_if_rejected)
        case "history":
            from ae_pipeline.cli.versions import show_history

            return show_history(options.dataset)
        case "compare":
            from ae_pipeline.cli.versions import compare

            return compare(options.dataset, options.new, options.old)
        case "page":
            return _make_page(options.dataset, options.day, options.maps, options.out)
        case "forget":
            from ae_pipeline.cli.forget import forget

            return forget(options.dataset, confirmed=options.yes, landing_too=options.landing_too)
        case "unblock":
            from ae_pipeline.cli.unblock import unblock

            return unblock(options.dataset, force=options.force)
        case "withdraw":
            from ae_pipeline.cli.withdraw import withdraw

            return withdraw(options.dataset, options.days, options.why, undo=options.undo, confirmed=options.yes)
        case "mark":
            from ae_pipeline.cli.mark import MarkOptions, mark

            given = vars(options)
            return mark(options.dataset, MarkOptions(**{name: given[name] for name in MarkOptions.__annotations__}))
        case "doctor":
            from ae_pipeline.cli.doctor import doctor

            return doctor(options.dataset, repair=options.repair, as_json=options.json)
    return _execute_for_project(options)


def _execute_for_project(options: argparse.Namespace) -> int:
    """Execute a command that is about no single dataset that exists."""
    match options.command:
        case "list":
            from ae_pipeline.cli.datasets import list_datasets

            return list_datasets()
        case "init":
            from ae_pipeline.cli.init import init

            return init(options.folder, options.example)
        case "new":
            from ae_pipeline.cli.new import new

            return new(options.name, options.files, yes=options.yes)
        case "ready":
            from ae_pipeline.cli.ready import ready

            return ready(options.host, options.port, options.socket)
    return _serve(options.port, options.mlflow_port, options.data_port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ae-pipeline", description="Bring datasets up to date, look at them, and serve the web UIs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ingest new files, train if enough is new, publish, and report")
    run.add_argument("dataset", help="a dataset of the defs folder, such as flights")
    run.add_argument(
        "--accept-removal", action="store_true", help="allow that more rows go than max_removed_share of the YAML"
    )
    scored = commands.add_parser("score", help="score the rows of a file, which need not have landed")
    scored.add_argument("dataset", help="a dataset of the defs folder")
    scored.add_argument("file", type=Path, help="file with rows as they land, in a format that the dataset reads")
    scored.add_argument("--version", type=int, help="version of the model; by default the one that serves")
    scored.add_argument("--out", type=Path, help="file for all scores: .csv, .jsonl or .parquet")
    commands.add_parser(
        "list", help="show all datasets: version that serves, newest day, rows; and errors in YAML files"
    )
    back = commands.add_parser("rollback", help="let another version of the model serve, with its table and reports")
    back.add_argument("dataset", help="a dataset of the defs folder")
    back.add_argument("version", type=int, nargs="?", help="version that shall serve; without one, list the versions")
    back.add_argument("--why", default="", help="reason, kept in the history; required to roll back")
    back.add_argument("--even-if-rejected", action="store_true", help="allow a version that the gate rejected")
    history = commands.add_parser("history", help="show which versions of the model served, since when, and why")
    history.add_argument("dataset", help="a dataset of the defs folder")
    compared = commands.add_parser(
        "compare", help="show what one version flags on the newest days and another does not"
    )
    compared.add_argument("dataset", help="a dataset of the defs folder")
    compared.add_argument("new", type=int, help="version that is considered, such as the challenger")
    compared.add_argument("old", type=int, nargs="?", help="version to compare it with; by default the one that serves")
    page = commands.add_parser("page", help="make the page of one day, or export heat maps, and print the paths")
    page.add_argument("dataset", help="a dataset of the defs folder")
    page.add_argument("day", nargs="?", help="ISO date, such as 2013-02-08; optional with --maps")
    page.add_argument("--maps", choices=("png", "npy"), help="write the heat maps of the flagged images instead")
    page.add_argument("--out", type=Path, help="folder of the heat maps; by default `maps` beside the report")
    forget = commands.add_parser("forget", help="list what is stored of a dataset, and remove it after a confirmation")
    forget.add_argument("dataset", help="a dataset, also one without a YAML")
    forget.add_argument("--yes", action="store_true", help="remove without a question")
    forget.add_argument("--landing-too", action="store_true", help="remove the landed files too")
    withdrawn = commands.add_parser("withdraw", help="take the rows of wrong days out of all tables, or list such days")
    withdrawn.add_argument("dataset", help="a dataset of the defs folder")
    withdrawn.add_argument("days", nargs="*", metavar="DAY", help="ISO date; without one, list the withdrawn days")
    withdrawn.add_argument("--why", default="", help="reason, kept in the log of withdrawals")
    withdrawn.add_argument("--undo", action="store_true", help="bring withdrawn days back")
    withdrawn.add_argument("--yes", action="store_true", help="withdraw without a question")
    add_options(commands.add_parser("mark", help=MARK_HELP))
    doctor = commands.add_parser("doctor", help="check the whole state of a dataset, and repair it")
    doctor.add_argument("dataset", nargs="?", help="a dataset of the defs folder; all by default")
    doctor.add_argument("--repair", action="store_true", help="repair; what cannot be derived is moved aside")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    unblock = commands.add_parser("unblock", help="list what holds a dataset, and end runs whose process is dead")
    unblock.add_argument("dataset", help="a dataset, also one without a YAML")
    unblock.add_argument("--force", action="store_true", help="cancel living runs too, and end their processes")
    _add_project_commands(commands)
    return parser


def _add_project_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    init = commands.add_parser("init", help="create a project: a folder with datasets, data and settings of its own")
    init.add_argument("folder", type=Path, help="folder of the project, new or with other files")
    init.add_argument(
        "--example", action="append", default=[], metavar="NAME", help="add an example: flights, textures or shuttle"
    )
    new = commands.add_parser("new", help="look at files, and propose the YAML of a new dataset")
    new.add_argument("name", help="name of the dataset: lower-case letters, digits and _")
    new.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files with rows, or one folder with them")
    new.add_argument("--yes", action="store_true", help="write the YAML and copy the files without a question")
    ready = commands.add_parser("ready", help="tell whether a code server has loaded the definitions, for a probe")
    ready.add_argument("--host", default="127.0.0.1", help="host of the code server")
    ready.add_argument("--port", type=int, default=4000, help="port of the code server")
    ready.add_argument("--socket", help="Unix socket of the code server, instead of host and port")
    ui = commands.add_parser("ui", help="serve Dagster's web UI with its daemon, MLflow's UI and reports on 127.0.0.1")
    ui.add_argument("--port", type=int, default=3000, help="port of Dagster's web UI")
    ui.add_argument("--mlflow-port", type=int, default=5000, help="port of MLflow's UI")
    ui.add_argument("--data-port", type=int, default=3001, help="port of the data folder, which has the reports")


_WITHOUT_PROJECT = {"init", "ready"}
"""Commands that work outside of a project."""


def _set_environment(*, needs_project: bool) -> None:
    if needs_project:
        root = own_project().root
        if not os.environ.get("DAGSTER_HOME"):
            from ae_pipeline.cli.init import make_dagster_home

            os.environ["DAGSTER_HOME"] = str(make_dagster_home(root / ".dagster"))
    # Spinning OpenMP threads slow a busy machine down twentyfold. torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # a pool of workers that nothing here uses


def _serve(dagster: int, mlflow: int, data: int) -> int:
    from ae_pipeline.cli.servers import Ports, serve

    project = Project.load()
    project.print_broken()
    return serve(Ports(dagster, mlflow, data), project.workspace, project.datasets)


def _make_page(name: str, day: str | None, maps: "MapFormat | None", out: Path | None) -> int:
    from ae_pipeline.lifecycle.publish import load_table_model
    from ae_pipeline.orchestration.console import print_messages
    from ae_pipeline.reports.day_pages import day_page
    from ae_pipeline.reports.heat_pictures import export_maps

    project = Project.load()
    dataset = project.dataset(name)
    print_messages()  # that it waits for a run, if one holds the lock
    with project.workspace.locked(name):
        version, bundle = load_table_model(dataset, project.tracker)
        if maps:
            folder = out or dataset.paths.reports / "maps"
            path = None
            for path in export_maps(dataset, bundle, version.version, folder, maps, day):
                print(path)
            if path is None:
                print(f"no image {f'of {day} ' if day else ''}is flagged, so no heat map is written", file=sys.stderr)
        elif day is None:
            raise ConfigError("name a day, such as 2013-02-08, or --maps png")
        else:
            print(day_page(day, dataset, bundle, version.version))
    return 0


if __name__ == "__main__":
    sys.exit(main())
