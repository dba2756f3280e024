"""The local servers of `ae-pipeline ui` in a process of their own, as users start them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Servers:
    """Running servers.

    Attributes:
        printed: Printed addresses, by the first word of their lines.
        token: Token in the printed addresses.
        ports: Ports of Dagster, MLflow and the data folder.
    """

    printed: Mapping[str, str]
    token: str
    ports: Mapping[str, int]

    def origin(self, name: str) -> str:
        """Return the origin of a server."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def ask(self, url: str, body: Any = None) -> Any:
        """Send a request as a program does, with the token in a header, and return the JSON of the answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as response:
            return json.loads(response.read())

    def graphql(self, query: str) -> Any:
        """Return the data of a GraphQL query."""
        return self.ask(f"{self.origin('dagster')}/graphql", {"query": query})["data"]


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nothing listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def running_servers(root: Path, folder: str = "dagster_home") -> Iterator[Servers]:
    """Run `ae-pipeline ui` with data, models and Dagster's instance below a folder."""
    home = root / folder
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent.parent / ".dagster" / "dagster.yaml", home)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AE_PIPELINE_")},
        "DAGSTER_HOME": str(home),
        "AE_PIPELINE_DATA": str(root / "data"),
        "AE_PIPELINE_MLRUNS": str(root / "mlruns"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }
    names = ("dagster", "mlflow", "data")
    ports = dict(zip(names, free_ports(3), strict=True))
    options = ["--port", ports["dagster"], "--mlflow-port", ports["mlflow"], "--data-port", ports["data"]]
    command = [sys.executable, "-m", "ae_pipeline.cli", "ui", *map(str, options)]
    log = (root / "servers.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        printed: dict[str, str] = {}
        for line in process.stdout:
            name, _, rest = line.partition(" ")
            printed.setdefault(name, rest.strip())
            if "Ctrl-C" in line:
                break
        token = re.findall(r"[?]token=(\S+)", printed["Dagster"])[0]
        servers = Servers(printed, token, ports)
        _wait(servers, process)
        yield servers
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=150)
        log.close()


def _wait(servers: Servers, process: "subprocess.Popen[str]") -> None:
    for _ in range(240):
        assert process.poll() is None
        try:
            servers.graphql("{ version }")
            servers.ask(f"{servers.origin('mlflow')}/ajax-api/2.0/mlflow/experiments/get?experiment_id=0")
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
        else:
            return
    raise TimeoutError("the servers did not answer")
