"""The benchmark of a deployment on several hosts: which node of Ray is killed when, and the sum of all kills."""

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ae_pipeline.orchestration.tags import REQUEST_TAG, named_days
from benchmarks.campaign_deployment import descendants
from benchmarks.hosts_control import Control
from benchmarks.hosts_deployment import all_kills
from benchmarks.hosts_ray import RayCluster
from benchmarks.hosts_stack import Stack, wait_until


@pytest.mark.parametrize(("title", "works"), [("ray::_call", True), ("ray::IDLE", False)])
def test_a_node_works_while_a_worker_of_it_has_the_title_of_a_task(tmp_path: Path, title: str, *, works: bool) -> None:
    cluster = RayCluster(tmp_path, {})
    script = f"bash -c 'exec -a {title} sleep 60' & wait"
    node = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    cluster._nodes.append(node)
    wait_until(lambda: bool(_titles(node.pid) & {title}), 10, "the worker has not started")
    assert cluster.is_working() is works
    workers = descendants(node.pid)
    cluster.kill_node()
    assert workers
    end = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in workers if title in _title(pid)]


def test_a_launched_publication_is_no_attempt_of_the_sensor() -> None:
    commands = list[tuple[str, ...]]()
    control = Control.__new__(Control)
    control._stack = cast("Stack", SimpleNamespace(dagster=lambda *command: commands.append(command)))
    control.launch("publish", ["2013-01-01", "2013-03-01"])
    control.launch("train")
    tags = json.loads(commands[0][-1])
    assert named_days(tags) == ["2013-01-01", "2013-03-01"]
    assert REQUEST_TAG not in tags  # which doubles the delay of the next one
    assert commands[0][:-2] == ("job", "launch", "--location", "ae_pipeline", "--job", "flights_publish")
    assert commands[1][-1] == "flights_train"


def _title(pid: int) -> str:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes().partition(b"\0")[0].decode() if path.exists() else ""


def _titles(pid: int) -> set[str]:
    return {_title(each) for each in descendants(pid)}


def test_the_sum_counts_each_kill_once_and_has_the_slowest_time() -> None:
    counts = {"rows_lost": 1, "rows_doubled": 0, "rows_that_should_not_be_there": 0}
    counts |= {"other_model": 0, "manifest_differs": 2, "contract_differs": 0, "files_that_differ": 0}
    rows: list[dict[str, str | int | float]] = [
        {"trial": "ranges, hosts", "failed_runs": 7, "rows_lost": 9},
        {"trial": "kills, hosts, train", "killed_at_work": 3, "ended_before_the_kill": 1},
        {"trial": "kills, hosts", "killed_at_work": 12, "ended_before_the_kill": 1, **counts},
        {"trial": "kills, ray", "killed_at_work": 6, "ended_before_the_kill": 0, **counts},
    ]
    for row, seconds in zip(rows[2:], (30.5, 41.0), strict=True):
        row |= {"next_run_slowest_s": seconds, "same_work_slowest_s": 2 * seconds}
    total = all_kills(rows)
    assert (total["killed_at_work"], total["ended_before_the_kill"]) == (18, 1)
    assert (total["rows_lost"], total["manifest_differs"]) == (2, 4)
    assert (total["next_run_slowest_s"], total["same_work_slowest_s"]) == (41.0, 82.0)
