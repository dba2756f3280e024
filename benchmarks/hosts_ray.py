"""A Ray cluster of two nodes on this machine, of which one is killed, for `benchmarks.hosts_deployment`.

Ray listens on the address of the machine, also with `--node-ip-address=127.0.0.1`. The benchmark therefore runs in a
network of its own that has only the loopback device, if this user may have one.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ae_pipeline.engine.mapping import VARIABLE
from ae_pipeline.orchestration.tags import named_days
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.campaign_deployment import descendants
from benchmarks.hosts_control import Control, as_figures
from benchmarks.hosts_stack import program, wait_until
from benchmarks.report import Row
from benchmarks.stores import free_port

_HOST = "127.0.0.1"

_TASK = b"ray::_call"
"""Title of a worker process that works on an item of the engine."""

_LONGEST_WAIT = 0.5
"""Longest time from when the second node works until it is killed, in seconds. A part takes some seconds."""


def has_own_network() -> bool:
    """Return whether this process sees the loopback device only, so that nothing outside can reach its servers."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def enter_own_network() -> None:
    """Start this program again in a network of its own, if this user may have one."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    command = [unshare or "", "--net", ip or "", "link", "set", "lo", "up"]
    if (
        has_own_network()
        or not (unshare and ip)
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        return
    sys.stdout.flush()
    program_of_python = [sys.executable, *sys.orig_argv[1:]]
    os.execv(unshare, [unshare, "--net", "sh", "-c", f'"{ip}" link set lo up && exec "$@"', "sh", *program_of_python])


class RayCluster:
    """A head and a second node, as `ray start` starts them. Each has one core, and asks for a token.

    Args:
        folder: Folder for their logs.
        variables: Environment of the nodes. Workers write to the object store, so that each node needs its variables.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder, self._port = folder, free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._variables = {**variables, **self._login}

    @classmethod
    @contextmanager
    def running(
        cls, folder: Path, variables: Mapping[str, str], into: "list[RayCluster]"
    ) -> Iterator[Mapping[str, str]]:
        """Run both nodes, and yield the variables with which runs use them.

        Args:
            folder: Folder for the logs.
            variables: Environment of the nodes.
            into: List that gets the cluster.
        """
        cluster = cls(folder, variables)
        folder.mkdir(parents=True)
        into.append(cluster)
        try:
            cluster._start("--head", f"--port={cluster._port}", "--include-dashboard=false")
            cluster._wait_for(1)
            cluster.add_node()
            yield {VARIABLE: "ray", "RAY_ADDRESS": f"{_HOST}:{cluster._port}", **cluster._login}
        finally:
            while cluster._nodes:
                cluster.kill_node()

    def add_node(self) -> None:
        """Start the second node."""
        self._start(f"--address={_HOST}:{self._port}")
        self._wait_for(2)

    def kill_node(self) -> None:
        """Kill all processes of the newest node, as when its machine is lost."""
        node = self._nodes.pop()
        for pid in [node.pid, *descendants(node.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def is_working(self) -> bool:
        """Return whether a worker of the newest node works on an item now."""
        titles = []
        for pid in descendants(self._nodes[-1].pid):
            with suppress(OSError):
                titles.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        return any(title.startswith(_TASK) for title in titles)

    def _start(self, *options: str) -> None:
        command = [program("ray"), "start", *options, f"--node-ip-address={_HOST}", "--num-cpus=1", "--block"]
        memory = ["--object-store-memory=200000000", "--disable-usage-stats"]
        with (self._folder / f"node_{time.time_ns()}.log").open("wb") as log:
            self._nodes.append(
                subprocess.Popen(
                    [*command, *memory], env=self._variables, stdout=log, stderr=log, start_new_session=True
                )
            )

    def _wait_for(self, nodes: int) -> None:
        code = (
            "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=50);"
            "sys.exit(sum(node['Alive'] for node in ray.nodes()) != int(sys.argv[2]))"
        )
        command = [sys.executable, "-c", code, f"{_HOST}:{self._port}", str(nodes)]

        def are_there() -> bool:
            return not subprocess.run(command, env=self._variables, capture_output=True, check=False).returncode

        wait_until(are_there, 240, "the Ray cluster has not started")


def kill_nodes(
    control: Control, cluster: RayCluster, landed: Sequence[Path], expected: DatasetPaths, kills: int
) -> list[Row]:
    """Kill the second node while it scores, and compare the result with that of the embedded setup.

    Args:
        control: The deployment, whose runs use the cluster.
        cluster: The cluster.
        landed: Landed files.
        expected: What the embedded setup has made of them.
        kills: Number of kills.
    """
    rng, ended = random.Random(0), 0
    finished, next_runs = list[float](), list[float]()
    control.land(landed)
    control.settle()
    since = time.time()
    control.launch("train")
    while len(finished) < kills and ended < kills:
        run = control.wait_for("publish", since).dagster_run
        run_id = run.run_id

        def is_scoring(run_id: str = run_id) -> bool:
            record = control.record(run_id)
            return bool(record.end_time) or (control.has_begun(run_id, "latent_features") and cluster.is_working())

        wait_until(is_scoring, 600, f"run {run_id} does not score")
        time.sleep(rng.uniform(0, _LONGEST_WAIT))
        if control.record(run_id).end_time or not cluster.is_working():
            ended += 1
        else:
            cluster.kill_node()
            killed_at = time.time()
            control.land(landed[:1])  # the same content again, for which the sensor requests a run
            next_runs.append(min(control.wait_for_start(killed_at)) - killed_at)
            finished.append((control.record(run_id).end_time or time.time()) - killed_at)
            print("node of Ray", next_runs[-1], finished[-1], flush=True)
            cluster.add_node()
        control.settle()
        if len(finished) < kills:
            since = time.time()
            control.remove_table()
            # The sensor takes the same work as an attempt that has failed, and doubles its delay each time: 8 minutes
            # before the fifth kill. So the person who has removed the table publishes it again.
            control.launch("publish", named_days(run.tags))
    counts = control.compare(expected, with_table=True)
    return [
        {
            "trial": "kills, ray",
            "days": len(landed),
            "own_network": int(has_own_network()),
            "killed_at_work": len(finished),
            "ended_before_the_kill": ended,
            "failed_runs": control.failed(),
            "retried_runs": control.retried(),
            "next_run_median_s": round(sorted(next_runs)[len(next_runs) // 2], 1) if next_runs else 0.0,
            "next_run_slowest_s": round(max(next_runs, default=0.0), 1),
            "run_ended_median_s": round(sorted(finished)[len(finished) // 2], 1) if finished else 0.0,
            "run_ended_slowest_s": round(max(finished, default=0.0), 1),
            **as_figures(counts),
        }
    ]
