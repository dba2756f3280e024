"""A Ray cluster of two nodes on this machine, of which one is killed, for `benchmarks.hosts_deployment`."""

import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import dagster as dg

from ae_pipeline.engine.mapping import VARIABLE
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.campaign_deployment import descendants
from benchmarks.hosts_control import Control, as_figures
from benchmarks.hosts_stack import clean_environment, program, wait_until
from benchmarks.report import Row
from benchmarks.stores import free_port

_HOST = "127.0.0.1"

_LONGEST_WAIT = 6.0
"""Longest time from the start of a step until a node is killed."""


class RayCluster:
    """A head and a second node, as `ray start` starts them. Each has one core, and asks for a token.

    Args:
        folder: Folder for their logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._login = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    @property
    def variables(self) -> Mapping[str, str]:
        """Variables with which runs use the cluster."""
        return {VARIABLE: "ray", "RAY_ADDRESS": f"{_HOST}:{self._port}", **self._login}

    def __enter__(self) -> Self:
        """Start both nodes."""
        self._folder.mkdir(parents=True)
        self._start("--head", f"--port={self._port}", "--include-dashboard=false")
        self._wait_for(1)
        self.add_node()
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        while self._nodes:
            self.kill_node()

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

    def _start(self, *options: str) -> None:
        command = [program("ray"), "start", *options, f"--node-ip-address={_HOST}", "--num-cpus=1", "--block"]
        memory = ["--object-store-memory=200000000", "--disable-usage-stats"]
        with (self._folder / f"node_{time.time_ns()}.log").open("wb") as log:
            self._nodes.append(
                subprocess.Popen(
                    [*command, *memory],
                    env={**clean_environment(), **self._login},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _wait_for(self, nodes: int) -> None:
        def are_there() -> bool:
            code = (
                "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level=50);"
                "sys.exit(sum(node['Alive'] for node in ray.nodes()) != int(sys.argv[2]))"
            )
            command = [program("python"), "-c", code, f"{_HOST}:{self._port}", str(nodes)]
            return not subprocess.run(
                command, env={**clean_environment(), **self._login}, capture_output=True, check=False
            ).returncode

        wait_until(are_there, 180, "the Ray cluster has not started")


def try_nodes(
    control: Control, cluster: RayCluster, landed: Sequence[Path], expected: DatasetPaths, rounds: int
) -> list[Row]:
    """Kill a node while runs build days, and while runs score; compare the result with that of the embedded setup.

    Args:
        control: The deployment, whose runs use the cluster.
        cluster: The cluster.
        landed: Landed files.
        expected: What the embedded setup has made of them.
        rounds: Number of kills while runs score.
    """
    rng, killed = random.Random(0), 0

    def kill(job: str, step: str, since: float) -> None:
        nonlocal killed
        run = control.wait_for(job, since, status=[dg.DagsterRunStatus.STARTED]).dagster_run

        def has_begun() -> bool:
            steps = control.instance.get_run_step_stats(run.run_id)
            return any(each.step_key.endswith(step) and each.start_time for each in steps)

        wait_until(has_begun, 300, f"{step} has not begun")
        time.sleep(rng.uniform(0, _LONGEST_WAIT))
        current = control.instance.get_run_by_id(run.run_id)
        killed += current is not None and current.status == dg.DagsterRunStatus.STARTED
        cluster.kill_node()
        cluster.add_node()

    control.land(landed)
    kill("ingest", "raw_data", 0.0)
    control.settle()
    control.launch("train")
    kill("publish", "latent_features", 0.0)
    control.settle()
    for _ in range(rounds - 1):
        since = time.time()
        control.remove_table()
        kill("publish", "latent_features", since)
        control.settle()
    counts = control.compare(expected, with_table=True)
    return [
        {
            "trial": "kills, node of Ray",
            "killed": rounds + 1,
            "killed_at_work": killed,
            "failed_runs": control.failed(),
            **as_figures(counts),
        }
    ]
