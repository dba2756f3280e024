"""The screens: Dagster's web UI with its daemon, MLflow's, and the data folder, all on 127.0.0.1."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
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
    """Where each screen listens on 127.0.0.1.

    Attributes:
        dagster: Dagster's web UI.
        mlflow: MLflow's.
        data: The data folder, for browsers do not follow links from a page of a server to a file.
    """

    dagster: int
    mlflow: int
    data: int


_OPTIONS = {"dagster": "--port", "mlflow": "--mlflow-port", "data": "--data-port"}


def serve(ports: Ports, workspace: "Workspace", datasets: Sequence[str]) -> int:
    """Starts all screens, says where they are, and ends them together.

    Args:
        ports: Where they listen.
        workspace: What they show.
        datasets: Whose reports are named.

    Raises:
        ConfigError: A port is taken.
    """
    tracker = workspace.tracker()
    for name in (field.name for field in fields(ports)):
        taken = getattr(ports, name)
        if not _is_free(taken) and not (name == "mlflow" and tracker.is_remote):
            raise ConfigError(
                f"port {taken} of 127.0.0.1 is taken; end what listens there, or choose another: {_OPTIONS[name]}"
            )
    # Both servers open the store as they start; a fresh one must be made by one process alone.
    uri = tracker.open()
    own = {field.name: f"http://127.0.0.1:{getattr(ports, field.name)}" for field in fields(ports)}
    if tracker.is_remote:
        own["mlflow"] = tracker.web_url or own["mlflow"]
    addresses = {name: os.environ.setdefault(f"AE_PIPELINE_{name.upper()}_URL", own[name]) for name in own}
    binaries = Path(sys.executable).parent
    dagster = [binaries / "dg", "dev", "--host", "127.0.0.1", "--port", ports.dagster]
    quiet = ["--uvicorn-opts", "--log-level=warning"]  # a line for each picture and script that a page asks for
    mlflow = [binaries / "mlflow", "server", "--host", "127.0.0.1", "--port", ports.mlflow, *quiet]
    for line in places(addresses, workspace, datasets):
        print(line, flush=True)
    # `dg` warns where the environment that it runs in was not activated.
    # MLflow's own servers warn of a library of theirs.
    warnings = f"{os.environ.get('PYTHONWARNINGS', '')},ignore:starlette.middleware.wsgi".lstrip(",")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PYTHONWARNINGS": warnings}
    if not tracker.is_remote:  # not as an argument, which everybody on this machine may read: it may bear a password
        environment["MLFLOW_BACKEND_STORE_URI"] = uri
    commands = [dagster] if tracker.is_remote else [dagster, mlflow]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running: list[subprocess.Popen[bytes]] = []
    try:
        with serving(Path(workspace.data_folder), ports.data):
            running.extend(
                subprocess.Popen([str(w) for w in message], cwd=ROOT, env=environment) for message in commands
            )
            while all(process.poll() is None for process in running):
                time.sleep(0.5)
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
    return next((process.returncode for process in running if process.returncode), 0)


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Serves a folder on a thread of its own."""
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Files, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def places(addresses: Mapping[str, str], workspace: "Workspace", datasets: Sequence[str]) -> list[str]:
    """Says where to look: at what was made, where anything was.

    Args:
        addresses: Of the screens, by the names of `Ports`.
        workspace: What they show.
        datasets: Whose reports are named.
    """
    pages = {name: page for name in datasets if (page := workspace.paths(name).reports / "report.html").exists()}
    group = next(iter(pages), None)
    graph = f"/locations/ae_pipeline/asset-groups/{group}/lineage" if group else ""
    lines = [f"Dagster  {addresses['dagster']}{graph}", f"MLflow   {addresses['mlflow']}"]
    here = workspace.model_copy(update={"data_url": addresses["data"]})
    lines += [f"Report   {here.page_of_file(page)}" for page in pages.values()]
    if not pages:
        lines.append("Nothing was made so far: `make run`, or materialize the assets of a dataset in Dagster.")
    return [*lines, "Ctrl-C ends what was started."]


class Files(SimpleHTTPRequestHandler):
    """Gives files to browsers of this machine, and to no page of elsewhere that has its name lead here.

    A page runs its own scripts and reads no other file: who lands files may land a page.
    """

    def send_head(self) -> Any:
        """Refuses whoever calls this machine by another name."""
        if self.headers.get("Host", "").partition(":")[0] not in {"127.0.0.1", "localhost"}:
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Locks each page in by itself."""
        self.send_header("Content-Security-Policy", "sandbox allow-scripts allow-downloads allow-popups")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port whose last connections are still being closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
