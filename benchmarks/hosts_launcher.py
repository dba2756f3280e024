"""A run launcher that gives each run a host of its own, as those of containers do, for `benchmarks.hosts_deployment`.

A host is a process with an empty data folder, an empty folder for models, and a host name that no other run has. The
daemon starts it by Dagster's command for containers. It outlives the daemon.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from ae_pipeline.orchestration.processes import start_ticks
from ae_pipeline.storage.location import SCRATCH_VARIABLE

_NAMED = 'hostname "$0" && exec "$@"'
"""Script that names a host, and then becomes the process of its run."""


def can_name_hosts() -> bool:
    """Return whether a process of this user can have a host name of its own."""
    program = shutil.which("unshare")
    return program is not None and not subprocess.run([program, "--uts", "true"], check=False).returncode


def pid_of(hosts: Path, run_id: str) -> int | None:
    """Return the process of a run, or None if it was not launched."""
    try:
        return int((hosts / run_id / "pid").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


class HostLauncher(RunLauncher, ConfigurableClass):
    """Launch each run on a host of its own.

    Args:
        hosts: Folder with a folder for each host.
        inst_data: How Dagster has made this launcher.
    """

    def __init__(self, hosts: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._hosts, self._inst_data, self._names = Path(hosts), inst_data, can_name_hosts()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        super().__init__()  # type: ignore[no-untyped-call] # Dagster's has no types

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """How Dagster has made this launcher."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Any:
        """Return what `dagster.yaml` configures."""
        return {"hosts": str}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Return the launcher that `dagster.yaml` configures."""
        return cls(**config_value, inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start a host that executes a run."""
        run, origin = context.dagster_run, context.job_code_origin
        assert origin is not None
        folder = self._hosts / run.run_id
        (folder / "data").mkdir(parents=True)
        command = list(ExecuteRunArgs(origin, run.run_id, self._instance.get_ref(), True).get_command_args())
        if self._names:
            command = ["unshare", "--uts", "sh", "-c", _NAMED, f"host-{run.run_id[:8]}", *command]
        variables = {SCRATCH_VARIABLE: folder / "data", "AE_PIPELINE_MLRUNS": folder / "models"}
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self._processes[run.run_id] = process
        (folder / "pid").write_text(str(process.pid), encoding="ascii")
        self._instance.report_engine_event(f"Started host {folder.name}", run)

    def terminate(self, run_id: str) -> bool:
        """Ask the host of a run to end, and return whether it was alive."""
        run, pid = self._instance.get_run_by_id(run_id), pid_of(self._hosts, run_id)
        if run is None or pid is None or self._is_gone(run_id, pid):
            return False
        self._instance.report_run_canceling(run)
        os.kill(pid, signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Dagster's daemon looks at the hosts of active runs."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return whether the host of a run lives."""
        pid = pid_of(self._hosts, run.run_id)
        if pid is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND)
        if self._is_gone(run.run_id, pid):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"host {run.run_id} is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _is_gone(self, run_id: str, pid: int) -> bool:
        if process := self._processes.get(run_id):
            process.poll()
        return start_ticks(pid) is None
