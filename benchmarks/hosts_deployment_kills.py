"""Runs and holders of the lock that are killed in a deployment, for `benchmarks.hosts_deployment`."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from ae_pipeline.orchestration.processes import start_ticks
from ae_pipeline.orchestration.tags import named_days
from benchmarks.campaign_deployment import descendants
from benchmarks.hosts import HOLDER
from benchmarks.hosts_control import DATASET, Control, as_figures
from benchmarks.hosts_stack import Stack, wait_until
from benchmarks.hosts_store import dataset_of, ingest_days
from benchmarks.report import Row

_CHANGED = 3
"""Files that change before a round, each of another month if there are enough."""

_ATTEMPTS = 3
"""Trainings that are launched until one is killed before its end."""

_ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@dataclass(frozen=True)
class _Wait:
    """Seconds from a kill until the next run of the dataset starts, and until one starts that does the same work."""

    next_run: float
    same_work: float


class Kills:
    """Kill holders of the lock and runs of a deployment, and compare its data with those of a folder.

    Args:
        stack: The deployment, with all days published.
        control: A look at it.
        folder: Data folder for the comparison.
        attributes: Attributes of the dataset.
        landed: Landed files.
    """

    def __init__(
        self, stack: Stack, control: Control, folder: Path, attributes: dict[str, Any], landed: Sequence[Path]
    ) -> None:
        self._stack, self._control, self._landed = stack, control, list(landed)
        self._local = dataset_of(attributes, str(folder))
        self._local.paths.landing.mkdir(parents=True)
        self._copy(self._landed)
        self._rng = random.Random(0)
        self._waits: dict[str, list[_Wait]] = defaultdict(list)
        self._ended, self._counts = Counter[str](), Counter[str]()
        self._seconds = {job: self._longest(job) for job in ("ingest", "train", "publish")}

    def run(self, rounds: int) -> list[Row]:
        """Kill a holder and a run of each job in every round, and return the rows of the report."""
        for number in range(rounds):
            self._of_holder(number)
            self._of_run("ingest")
            self._of_run("publish")
            self._check()
            killed = len(self._waits["train"])
            for _ in range(_ATTEMPTS):
                if len(self._waits["train"]) == killed:
                    since = time.time()
                    self._control.launch("train")
                    self._of_run("train", since)
                    self._check()
        kinds, name = ("holder", "ingest", "publish", "train"), f"kills, {self._stack.launcher}"
        waits = [wait for kind in kinds for wait in self._waits[kind]]
        self._control.settle()
        return [
            *(self._row(f"{name}, {kind}", self._waits[kind], self._ended[kind]) for kind in kinds),
            {**self._row(name, waits, self._ended.total()), **as_figures(self._counts)},
        ]

    @staticmethod
    def _row(trial: str, waits: Sequence[_Wait], ended: int) -> Row:
        row: dict[str, str | int | float] = {
            "trial": trial,
            "killed_at_work": len(waits),
            "ended_before_the_kill": ended,
        }
        for name in ("next_run", "same_work"):
            seconds = sorted(getattr(wait, name) for wait in waits)
            row[f"{name}_median_s"] = round(seconds[len(seconds) // 2], 1) if seconds else 0.0
            row[f"{name}_slowest_s"] = round(max(seconds, default=0.0), 1)
        return row

    def _longest(self, job: str) -> float:
        """Return how long the longest run of a job took, from its launch on."""
        return max(self._control.seconds_of(each.dagster_run.run_id) for each in self._control.runs(job))

    def _copy(self, files: Sequence[Path]) -> None:
        for path in files:
            (self._local.paths.landing / path.name).write_bytes(path.read_bytes())

    def _change(self, number: int) -> list[Path]:
        """Change values of some files of each month, and return the files."""
        by_month = defaultdict[str, list[Path]](list)
        for path in self._landed:
            by_month[path.stem[:-3]].append(path)
        months = self._rng.sample(sorted(by_month), min(_CHANGED, len(by_month)))
        files = [self._rng.choice(by_month[month]) for month in months]
        for path in files:
            rows = pl.read_csv(path, infer_schema=False)
            rows.with_columns(air_time=pl.lit(str(100 + number))).write_csv(path)
        return files

    def _of_holder(self, number: int) -> None:
        """Let files land while another host holds the lock, and kill it."""
        command = [sys.executable, "-c", HOLDER, str(self._stack.root / "holder"), DATASET]
        with subprocess.Popen(command, env=self._stack.variables, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            files = self._change(number)
            self._control.land(files)
            self._copy(files)
            time.sleep(self._rng.uniform(0, 10))
            holder.kill()
            killed_at = time.time()
        self._wait_for_start("holder", killed_at, lambda _: True)

    def _of_run(self, job: str, since: float | None = None) -> None:
        """Kill a run of a job at a random time, and wait for the next one that does its work."""
        began = since or time.time()
        killed = self._control.wait_for(job, began - 1 if since else self._round_began(job)).dagster_run
        process: list[int] = []

        def is_launched() -> bool:
            process[:] = [pid for pid in [self._control.process_of(killed.run_id)] if pid]
            return bool(process)

        wait_until(is_launched, 300, f"run {killed.run_id} was not launched")
        time.sleep(self._rng.uniform(0, 0.8 * self._seconds[job]))
        run = self._control.instance.get_run_by_id(killed.run_id)
        assert run is not None
        if run.status in _ENDED or start_ticks(process[0]) is None:
            self._ended[job] += 1
            return
        for pid in [process[0], *descendants(process[0])]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed_at = time.time()
        days = named_days(killed.tags)
        self._wait_for_start(
            job, killed_at, lambda run: run.job_name == killed.job_name and named_days(run.tags) == days
        )

    def _round_began(self, job: str) -> float:
        """Return the time after the last run of a job that has ended."""
        ended = [each.create_timestamp.timestamp() for each in self._control.runs(job) if each.end_time]
        return max(ended, default=0.0)

    def _wait_for_start(self, kind: str, killed_at: float, does_it: Callable[[dg.DagsterRun], bool]) -> None:
        """Measure when the next run starts, and when one starts that does some work."""
        starts: dict[bool, list[float]] = {}

        def has_started() -> bool:
            begun = [each for each in self._control.runs() if each.start_time and each.start_time > killed_at]
            for same in (False, True):
                times = [each.start_time or 0.0 for each in begun if not same or does_it(each.dagster_run)]
                starts[same] = times
            return bool(starts[True])

        wait_until(has_started, 900, f"nothing has started after the kill of {kind}")
        wait = _Wait(min(starts[False]) - killed_at, min(starts[True]) - killed_at)
        self._waits[kind].append(wait)
        print(kind, wait, flush=True)

    def _check(self) -> None:
        """Wait until all work is done, and compare the data."""
        self._control.settle()
        ingest_days(self._local)
        self._counts.update(self._control.compare(self._local.paths, with_table=False))
