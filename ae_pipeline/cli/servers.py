"""Local servers: Dagster's web UI with its daemon, MLflow's UI, and the data folder, all on 127.0.0.1.

A guard stands before each of the three. Dagster's code server listens on a socket in a private folder, which no browser
reaches.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ae_pipeline.cli.guard import TOKEN_VARIABLE, access, token_of_environment
from ae_pipeline.common.errors import ConfigError, PipelineError
from ae_pipeline.common.signals import raise_stopped
from ae_pipeline.orchestration.tags import LOCATION
from ae_pipeline.storage.environment import project_folders
from ae_pipeline.storage.location import DATA_VARIABLE, SCRATCH_VARIABLE, data_location
from ae_pipeline.storage.project import DEFS_VARIABLE, ProjectFolder, find_project
from ae_pipeline.storage.temporary import server_folder

if TYPE_CHECKING:
    from ae_pipeline.orchestration.resources import Workspace
    from ae_pipeline.registry.store import Tracker
    from ae_pipeline.storage.dataset import Dataset

_STOP_SECONDS = 1.0
"""Time that the servers and their runs have to stop. Then they are killed, and the next start ends their runs."""

_CODE_SERVER_SECONDS = 180
"""Time that the code server may take to load the definitions."""


@dataclass(frozen=True)
class Ports:
    """Ports of the servers on 127.0.0.1.

    Attributes:
        dagster: Port of Dagster's web UI.
        mlflow: Port of MLflow's UI.
        data: Port of the data folder. Browsers do not follow links from a served page to a local file.
    """

    dagster: int
    mlflow: int
    data: int


_OPTIONS = {"dagster": "--port", "mlflow": "--mlflow-port", "data": "--data-port"}


def serve(ports: Ports, workspace: "Workspace", datasets: "Mapping[str, Dataset]") -> int:
    """Start all servers, print their addresses, and stop them together; return the exit status.

    Args:
        ports: Ports of the servers.
        workspace: Workspace that they show.
        datasets: Datasets of the project, by name.

    Raises:
        ConfigError: A port is in use.
    """
    tracker = workspace.tracker()
    _check_ports(ports, skip={"mlflow"} if tracker.is_remote else set())
    # Both servers open the store when they start. One process alone must create a new store.
    uri = tracker.open()
    defaults = {field.name: f"http://127.0.0.1:{getattr(ports, field.name)}" for field in fields(ports)}
    if tracker.is_remote:
        defaults["mlflow"] = tracker.web_url or defaults["mlflow"]
    addresses = {name: os.environ.setdefault(f"AE_PIPELINE_{name.upper()}_URL", defaults[name]) for name in defaults}
    token = os.environ[TOKEN_VARIABLE] = token_of_environment()
    for line in address_lines(addresses, workspace, list(datasets), token, workspace.mlflow_runs):
        print(line, flush=True)
    project = find_project()
    environment = _environment(project)
    if not tracker.is_remote:  # not an argument, because every user can read those, and it may contain a password
        environment["MLFLOW_BACKEND_STORE_URI"] = uri
    signal.signal(signal.SIGHUP, raise_stopped)  # of a closed terminal, which reaches no server
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> None:
        # In a group of its own, so that Ctrl-C reaches it once, and that its runs end together with it.
        command = [sys.executable, "-m", "ae_pipeline.cli.server_process", str(os.getpid()), *map(str, arguments)]
        processes.append(subprocess.Popen(command, cwd=project.root, env=environment, process_group=0))

    try:
        with (
            serve_folder(workspace.local_data, ports.data, token, addresses["data"], datasets, tracker),
            server_folder() as folder,  # only this user can enter it
        ):
            code, file = Path(folder) / "code.sock", Path(folder) / "workspace.yaml"
            file.write_text(yaml.safe_dump({"load_from": [{"grpc_server": _location(code)}]}), encoding="utf-8")
            try:
                if not tracker.is_remote:
                    start("ae_pipeline.cli.web", "mlflow", ports.mlflow)
                start("dagster", "code-server", "start", "--socket", code, *_CODE_OPTIONS)
                _wait_for_code(code, processes)
                start("ae_pipeline.cli.web", "dagster", ports.dagster, file)
                start("dagster._daemon", "run", "--workspace", file, "--log-level", "warning")
                while all(process.poll() is None for process in processes):
                    time.sleep(0.5)
            finally:
                _stop(processes)  # before their folder is deleted
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return next((process.returncode for process in processes if process.returncode), 0)


_CODE_OPTIONS = ("--module-name", "ae_pipeline.definitions", "--location-name", LOCATION, "--log-level", "warning")


def _location(code: Path) -> dict[str, str]:
    return {"socket": str(code), "location_name": LOCATION}


def _wait_for_code(code: Path, processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Wait until the code server has loaded the definitions."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    end = time.monotonic() + _CODE_SERVER_SECONDS
    with grpc.insecure_channel(f"unix:{code}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while all(process.poll() is None for process in processes):
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(service="DagsterApi"), timeout=5)
            except grpc.RpcError:  # it does not listen yet
                answer = None
            if answer is not None and answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            if time.monotonic() > end:
                raise PipelineError(
                    f"Dagster's code server has not loaded the definitions in {_CODE_SERVER_SECONDS} s; see its "
                    "messages above, or try `dg check defs`"
                )
            time.sleep(0.2)


def _check_ports(ports: Ports, skip: Collection[str]) -> None:
    for name in (field.name for field in fields(ports) if field.name not in skip):
        port = getattr(ports, name)
        if not _is_free(port):
            raise ConfigError(
                f"port {port} of 127.0.0.1 is in use; stop the server there, or choose another port with "
                f"{_OPTIONS[name]}"
            )


def _environment(project: ProjectFolder) -> dict[str, str]:
    # Like `dg dev`: it says so to the servers, and a file .env beside the project sets variables of the code location.
    env_files = json.dumps({LOCATION: str(project.root)})
    dev = {"DAGSTER_IS_DEV_CLI": "1", "DAGSTER_PROJECT_ENV_FILE_PATHS": env_files}
    # Absolute, because the servers work in the folder of the project.
    folders = {name: str(folder.resolve()) for name, folder in project_folders().items()}
    if "://" in (location := data_location()):
        folders[DATA_VARIABLE] = location
    if scratch := os.environ.get(SCRATCH_VARIABLE):
        folders[SCRATCH_VARIABLE] = str(Path(scratch).resolve())
    return {**os.environ, **dev, **folders, DEFS_VARIABLE: str(project.defs)}


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask all servers and the runs that they have started to stop, and kill what is left after a second."""
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(end - time.monotonic(), 0.01))
    for process in processes:
        _signal_group(process, signal.SIGKILL)
    for process in processes:
        process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", signum: int) -> None:
    """Send a signal to a server and to every process that it has started."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of which only zombies are left
        os.killpg(process.pid, signum)


@contextmanager
def serve_folder(
    folder: Path,
    port: int,
    token: str,
    address: str | None = None,
    datasets: "Mapping[str, Dataset] | None" = None,
    tracker: "Tracker | None" = None,
) -> Iterator[None]:
    """Serve the reports of a data folder in a thread.

    Args:
        folder: Data folder.
        port: Port of the server.
        token: Token that each request needs.
        address: Address that users open, if it differs from the port's.
        datasets: Datasets of the project, by name.
        tracker: The model store; without it, some pages do not exist.
    """
    from ae_pipeline.cli.data_files import data_app
    from ae_pipeline.cli.web import server

    app = data_app(folder, datasets or {}, tracker)
    guarded = server(app, port, access(token, port, address or f"http://127.0.0.1:{port}"))
    thread = threading.Thread(target=guarded.run, daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not guarded.started:
            time.sleep(0.01)
        yield
    finally:
        guarded.should_exit = True
        thread.join(timeout=0.2)  # a daemon thread: open connections of browsers do not delay the end


def address_lines(
    addresses: Mapping[str, str],
    workspace: "Workspace",
    datasets: Sequence[str],
    token: str,
    runs_of: Callable[[str], str] = lambda _: "",
) -> list[str]:
    """Return lines with the addresses of the servers and of the reports.

    Args:
        addresses: Address of each server, by the names of `Ports`.
        workspace: Workspace that the servers show.
        datasets: Datasets whose reports are listed.
        token: Token that opens them. A tracking server elsewhere does not get it.
        runs_of: Function from a dataset to the part of MLflow's address that opens its trainings.
    """
    pages = {name: page for name in datasets if (page := workspace.paths(name).reports / "report.html").exists()}
    group = next(iter(pages), None)
    graph = f"/locations/ae_pipeline/asset-groups/{group}/lineage" if group else "/"
    key = f"?token={token}"
    opened = f"{'' if workspace.tracker().is_remote else key}{runs_of(group) if group else ''}"
    mlflow = f"{addresses['mlflow'].rstrip('/')}{f'/{opened}' if opened else ''}"
    served = workspace.model_copy(update={"data_url": addresses["data"]})
    home = f"Home     {addresses['data'].rstrip('/')}/{key}"
    lines = [f"Dagster  {addresses['dagster'].rstrip('/')}{graph}{key}", f"MLflow   {mlflow}"]
    lines += [f"Report   {served.file_url(page)}{key}" for page in pages.values()]
    if not pages:
        lines.append("There are no reports yet: `ae-pipeline run DATASET`, or materialize its assets in Dagster.")
    return [
        home,
        *lines,
        "The token in these addresses opens the servers for you only. Press Ctrl-C to stop all servers.",
    ]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Like the servers: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
