"""The servers of a deployment on several hosts, on this machine, for `benchmarks.hosts_deployment`.

PostgreSQL has Dagster's storage, the locks and the database of MLflow's server. An object store has the data, the
models and the logs of runs. Dagster's code server and daemon are processes of their own.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from ae_pipeline.storage.location import DATA_VARIABLE, SCRATCH_VARIABLE
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE
from ae_pipeline.storage.project import DEFS_VARIABLE
from benchmarks.stores import free_port, postgres_server, s3_environment, s3_request, s3_server

_REPOSITORY = Path(__file__).parent.parent
_BUCKETS = ("data", "models", "logs")
_DATABASES = ("dagster", "mlflow", "locks")
_LAUNCHERS = {
    "hosts": {"module": "benchmarks.hosts_launcher", "class": "HostLauncher"},
    "processes": {"module": "dagster.core.launcher", "class": "DefaultRunLauncher"},
}


@dataclass(frozen=True)
class Stack:
    """A running deployment.

    Attributes:
        root: Folder of the deployment.
        variables: Environment of its processes.
        workspace: File that names the code server.
        launcher: How runs are launched: `hosts` or `processes`.
    """

    root: Path
    variables: Mapping[str, str]
    workspace: Path
    launcher: str

    @property
    def hosts(self) -> Path:
        """Folder with a folder for each host."""
        return self.root / "hosts"

    def dagster(self, *arguments: str) -> None:
        """Run a command of Dagster, as the guide for deployments shows."""
        command = [program("dagster"), *arguments, "--workspace", str(self.workspace)]
        done = subprocess.run(command, env=self.variables, cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def program(name: str) -> str:
    """Return the path of a program of this environment."""
    return str(Path(sys.executable).parent / name)


def write_datasets(folder: Path, attributes: Mapping[str, Any]) -> Path:
    """Write a folder with one dataset, as `AE_PIPELINE_DEFS` names it, and return it."""
    file = folder / "defs" / str(attributes["dataset"]) / "defs.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"type": "ae_pipeline.orchestration.component.AutoencoderPipeline", "attributes": dict(attributes)}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "defs"


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without settings of the package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AE_PIPELINE_", "RAY_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_WAIT_POLICY": "PASSIVE", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**kept, **quiet, "PATH": path, "PYTHONPATH": str(_REPOSITORY)}


def copy_instance(home: Path, **changes: Any) -> None:
    """Write the `dagster.yaml` of a project, with changes."""
    settings = yaml.safe_load((_REPOSITORY / ".dagster" / "dagster.yaml").read_text(encoding="utf-8"))
    home.mkdir(parents=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")


def _write_instance(home: Path, hosts: Path, launcher: str) -> None:
    """Write the `dagster.yaml` of the guide for deployments: that of a project, with storage, logs and launcher."""
    logs = {"bucket": "logs", "endpoint_url": {"env": "AWS_ENDPOINT_URL"}}
    config = {"config": {"hosts": str(hosts)}} if launcher == "hosts" else {}
    copy_instance(
        home,
        storage={"postgres": {"postgres_url": {"env": "DAGSTER_PG_URL"}}},
        compute_logs={"module": "dagster_aws.s3.compute_log_manager", "class": "S3ComputeLogManager", "config": logs},
        run_launcher={**_LAUNCHERS[launcher], **config},
    )


@contextmanager
def _shared_servers(root: Path) -> Iterator[dict[str, str]]:
    """Run PostgreSQL, the object store and MLflow's server, and yield the variables with which hosts use them."""
    with ExitStack() as stack:
        port, url = stack.enter_context(s3_server()), stack.enter_context(postgres_server())
        for bucket in _BUCKETS:
            assert s3_request(port, "PUT", f"/{bucket}") == 200
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in _DATABASES:
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        urls = {name: url.set(database=name).render_as_string(hide_password=False) for name in _DATABASES}
        mlflow = free_port()
        variables = {
            **clean_environment(),
            **s3_environment(port),
            "DAGSTER_PG_URL": urls["dagster"],
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
            LOCKS_VARIABLE: urls["locks"].replace("+psycopg2", ""),
        }
        options = ["--backend-store-uri", urls["mlflow"], "--artifacts-destination", "s3://models"]
        address = ["--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1"]
        server = {
            "MLFLOW_S3_ENDPOINT_URL": variables["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [program("mlflow"), "server", *options, *address]
        stack.enter_context(running(command, {**variables, **server}, root / "mlflow.log"))
        wait_until(lambda: _answers(f"http://127.0.0.1:{mlflow}/health"), 180, "MLflow's server did not start")
        yield variables


@contextmanager
def running_stack(
    root: Path,
    attributes: Mapping[str, Any],
    launcher: str,
    engine: Callable[[Mapping[str, str]], AbstractContextManager[Mapping[str, str]]] = lambda _: nullcontext({}),
) -> Iterator[Stack]:
    """Run all servers of a deployment, with the sensors of its dataset on.

    Args:
        root: Folder of the deployment.
        attributes: Attributes of the dataset.
        launcher: How runs are launched: each on a host of its own, or as processes of the code server.
        engine: Servers of an engine, started with the environment of the others. They yield variables of all processes.
    """
    home, hosts, port = root / "home", root / "hosts", free_port()
    _write_instance(home, hosts, launcher)
    with ExitStack() as stack:
        shared = stack.enter_context(_shared_servers(root))
        variables = {
            **shared,
            **stack.enter_context(engine(shared)),
            "DAGSTER_HOME": str(home),
            DEFS_VARIABLE: str(write_datasets(root, attributes)),
            DATA_VARIABLE: "s3://data/shop",
            SCRATCH_VARIABLE: str(hosts / "servers" / "data"),
            "AE_PIPELINE_MLRUNS": str(hosts / "servers" / "models"),
        }
        workspace = root / "workspace.yaml"
        server = {"host": "127.0.0.1", "port": port, "location_name": "ae_pipeline"}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}), encoding="utf-8")
        address = ["--host", "127.0.0.1", "--port", str(port)]
        code = ["code-server", "start", "--module-name", "ae_pipeline.definitions", "--location-name", "ae_pipeline"]
        stack.enter_context(running([program("dagster"), *code, *address], variables, root / "code_server.log"))
        ready = [program("ae-pipeline"), "ready", "--port", str(port)]
        wait_until(lambda: not _status_of(ready, variables), 180, "the code server is not ready")
        stack.callback(_end_hosts, hosts)
        daemon = [program("dagster-daemon"), "run", "--workspace", str(workspace)]
        stack.enter_context(running(daemon, variables, root / "daemon.log"))
        started = Stack(root, variables, workspace, launcher)
        for name in ("landing", "rebuild"):
            started.dagster("sensor", "start", f"{attributes['dataset']}_{name}")
        yield started


def _end_hosts(hosts: Path) -> None:
    """End the hosts that still work; each is a session of its own."""
    for file in hosts.glob("*/pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(file.read_text(encoding="ascii")), signal.SIGKILL)


def _status_of(command: Sequence[str], variables: Mapping[str, str]) -> int:
    return subprocess.run(command, env=variables, capture_output=True, check=False).returncode


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_until(is_done: Callable[[], bool], seconds: float, message: str) -> None:
    """Wait until something is done.

    Raises:
        TimeoutError: It was not done in time.
    """
    end = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > end:
            raise TimeoutError(f"{message} within {seconds:.0f} seconds")
        time.sleep(0.25)


@contextmanager
def running(command: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a server with its children, and end all of them."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=variables, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
