"""Local servers: Dagster's web UI with its daemon, MLflow's UI, and the data folder, all on 127.0.0.1."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ae_pipeline.common.errors import ConfigError

if TYPE_CHECKING:
    from ae_pipeline.orchestration.resources import Workspace

ROOT = Path(__file__).resolve().parents[2]


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


def serve(ports: Ports, workspace: "Workspace", datasets: Sequence[str]) -> int:
    """Start all servers, print their addresses, and stop them together; return the exit status.

    Args:
        ports: Ports of the servers.
        workspace: Workspace that they show.
        datasets: Datasets whose reports are listed.

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
    for line in address_lines(addresses, workspace, datasets):
        print(line, flush=True)
    environment = _environment()
    if not tracker.is_remote:  # not an argument, because every user can read those, and it may contain a password
        environment["MLFLOW_BACKEND_STORE_URI"] = uri
    commands = _commands(ports)[: 1 if tracker.is_remote else 2]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with serve_folder(Path(workspace.data_folder), ports.data):
            processes.extend(subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands)
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
    finally:
        _stop(processes)
    return next((process.returncode for process in processes if process.returncode), 0)


def _check_ports(ports: Ports, skip: Collection[str]) -> None:
    for name in (field.name for field in fields(ports) if field.name not in skip):
        port = getattr(ports, name)
        if not _is_free(port):
            raise ConfigError(
                f"port {port} of 127.0.0.1 is in use; stop the server there, or choose another port with "
                f"{_OPTIONS[name]}"
            )


def _commands(ports: Ports) -> list[list[str]]:
    binaries = Path(sys.executable).parent
    quiet = ["--uvicorn-opts", "--log-level=warning"]  # otherwise one line for each request of a page
    # Without its own check of the YAML, which would stop all datasets. Dagster's UI shows the errors.
    dagster = [binaries / "dg", "dev", "--host", "127.0.0.1", "--port", ports.dagster, "--no-check-yaml"]
    mlflow = [binaries / "mlflow", "server", "--host", "127.0.0.1", "--port", ports.mlflow, *quiet]
    return [[str(word) for word in command] for command in (dagster, mlflow)]


def _environment() -> dict[str, str]:
    # `dg` warns if the virtual environment is not activated, and MLflow's server about a library of its own.
    warnings = f"{os.environ.get('PYTHONWARNINGS', '')},ignore:starlette.middleware.wsgi".lstrip(",")
    return {**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONWARNINGS": warnings}


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def serve_folder(folder: Path, port: int) -> Iterator[None]:
    """Serve a folder in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", port), partial(FileHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def address_lines(addresses: Mapping[str, str], workspace: "Workspace", datasets: Sequence[str]) -> list[str]:
    """Return lines with the addresses of the servers and of the reports.

    Args:
        addresses: Address of each server, by the names of `Ports`.
        workspace: Workspace that the servers show.
        datasets: Datasets whose reports are listed.
    """
    pages = {name: page for name in datasets if (page := workspace.paths(name).reports / "report.html").exists()}
    group = next(iter(pages), None)
    graph = f"/locations/ae_pipeline/asset-groups/{group}/lineage" if group else ""
    lines = [f"Dagster  {addresses['dagster']}{graph}", f"MLflow   {addresses['mlflow']}"]
    served = workspace.model_copy(update={"data_url": addresses["data"]})
    lines += [f"Report   {served.file_url(page)}" for page in pages.values()]
    if not pages:
        lines.append("There are no reports yet: `make run`, or materialize the assets of a dataset in Dagster.")
    return [*lines, "Press Ctrl-C to stop all servers."]


class FileHandler(SimpleHTTPRequestHandler):
    """Serves files to browsers on this machine, under the names of this machine only.

    A sandbox lets a page run its own scripts and read no other file, because a landed file may be a page.
    """

    def send_head(self) -> Any:
        """Refuse requests under another host name: they come from pages of other sites."""
        if self.headers.get("Host", "").partition(":")[0] not in {"127.0.0.1", "localhost"}:
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Send the headers that isolate each page."""
        self.send_header("Content-Security-Policy", "sandbox allow-scripts allow-downloads allow-popups")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Like the servers: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
