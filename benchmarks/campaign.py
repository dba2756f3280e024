"""Kill, stop, terminate and reboot a running deployment, and count what was lost, doubled, promoted or left behind.

Each case is one function over a deployment of a small sample of the flights. The servers of `ae-pipeline ui` and the
commands are real processes. `benchmarks.campaign_faults` adds cases of disks, folders and databases.
"""

import argparse
import contextlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.latents.read import published_day, published_days
from ae_pipeline.orchestration.dead_runs import is_locked
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.campaign_runs import Api
from benchmarks.report import Row, format_table, write_report
from benchmarks.servers import Servers, running_servers

DATASET = "flights"

FIGURES = ("lost", "doubled", "changed", "promoted", "blocked", "tracebacks", "leftovers", "late")
"""What each case counts; all must be 0."""

STEPS = (
    ("ingest", "features"),
    ("train", "autoencoder"),
    ("train", "champion"),
    ("publish", "latent_features"),
    ("publish", "anomaly_report"),
)
"""Jobs, and the steps in which they are terminated."""


@dataclass
class Outcome:
    """What a case found.

    Attributes:
        counts: Count of each figure; figures that are missing are 0.
        note: What happened, in a few words.
        seconds: Time until the process, the run or the dataset was free.
    """

    counts: dict[str, int] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0


@dataclass
class Deployment:
    """A folder with data, models and Dagster's instance of the sample.

    Attributes:
        root: Folder.
        rows: Rows that have landed, by day.
    """

    root: Path
    rows: dict[str, int]

    @classmethod
    def create(cls, root: Path, days: int, rows: int) -> "Deployment":
        """Land the first rows of the first days of the year."""
        landing = root / "data" / "landing" / DATASET
        land_flights(landing)
        landed = {}
        for index, path in enumerate(sorted(landing.iterdir())):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: rows + 1]
            if index >= days:
                path.unlink()
                continue
            path.write_text("".join(lines), encoding="utf-8")
            landed[path.stem.removeprefix(f"{DATASET}_")] = len(lines) - 1
        (root / "home").mkdir()
        shutil.copy(Path(__file__).parent.parent / ".dagster" / "dagster.yaml", root / "home")
        os.environ["DAGSTER_HOME"] = str(root / "home")
        return cls(root, landed)

    @property
    def paths(self) -> DatasetPaths:
        """Paths of the dataset."""
        return DatasetPaths(self.root / "data", DATASET)

    @property
    def tracker(self) -> Tracker:
        """The model store, with a fresh client."""
        return Tracker(self.root / "mlruns")

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `ae-pipeline` with this deployment."""
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.root / "home"),
            "AE_PIPELINE_DATA": str(self.root / "data"),
            "AE_PIPELINE_MLRUNS": str(self.root / "mlruns"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-m", "ae_pipeline.cli", *arguments]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        )

    def finish(self) -> str:
        """Run the dataset to its end, and return what was printed.

        Raises:
            RuntimeError: The run failed.
        """
        process = self.start("run", DATASET)
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the run after the case failed:\n{output}")
        return output

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple[Servers, Api]]:
        """Run the servers over this deployment."""
        with running_servers(self.root, "home") as servers:
            yield servers, Api(servers)

    def compare(self) -> dict[str, int]:
        """Return lost, doubled and changed rows of the published table, against the landed files."""
        frames = [published_day(day, self.paths, ["row_id"]) for day in published_days(self.paths).values()]
        table = pl.concat(frames)
        doubled = table.height - table["row_id"].n_unique()
        raw = pl.concat(pl.read_parquet(path) for path in sorted(self.paths.raw("_").parent.glob("[!.]*.parquet")))
        lost = sum(self.rows.values()) - table["row_id"].n_unique()
        return {"lost": lost, "doubled": doubled, "changed": abs(raw.height - sum(self.rows.values()))}

    def leftovers(self) -> int:
        """Return the number of temporary files, held locks and processes of this deployment that are left."""
        stray = sum(path.name.endswith(".tmp") for path in (self.root / "data").rglob("*"))
        return stray + is_locked(self.paths) + len(descendants(os.getpid()))

    def champion_run(self) -> str:
        """Return the Dagster run that trained the version that serves; empty if none serves."""
        tracker = self.tracker
        champion = tracker.version(DATASET, CHAMPION)
        return tracker.run_tags(champion.run_id).get("dagster_run_id", "") if champion else ""


Case = Callable[[Deployment], Outcome]


def descendants(pid: int) -> list[int]:
    """Return the living processes that a process has started, directly or not."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    pids: list[int] = []
    queue = [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        pids += children
        queue += children
    return pids


def stop_case(marker: str, signum: signal.Signals, delay: float) -> Case:
    """Return a case that sends a signal to `ae-pipeline run` some time after a line of its output."""

    def case(deployment: Deployment) -> Outcome:
        process = deployment.start("run", DATASET)
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if marker in line:
                break
        time.sleep(delay)
        began = time.monotonic()
        process.send_signal(signum)
        process.wait()
        seconds = time.monotonic() - began
        printed += process.stdout.read()
        ended = process.returncode == 0  # before the signal
        expected = -signum if signum == signal.SIGKILL else 128 + signum
        counts = {"tracebacks": printed.count("Traceback") + printed.count("Stack Trace")}
        if not ended:
            counts["late"] = int(process.returncode != expected) + int(seconds > 2 and signum != signal.SIGKILL)
        return Outcome(counts, f"status {process.returncode}", seconds)

    return case


def terminate_case(job: str, step: str, *, forced: bool, backfill: bool = False) -> Case:
    """Return a case that terminates a run in a step through GraphQL."""

    def case(deployment: Deployment) -> Outcome:
        previous = deployment.champion_run()
        with deployment.serving() as (_, api):
            days = sorted(deployment.rows)
            launched = api.backfill(["latent_features"], days) if backfill else api.launch(job, days)
            run_id = api.run_of_backfill(launched) if backfill else launched
            api.wait_for_step(run_id, f"{DATASET}__{step}")
            began = time.monotonic()
            api.terminate(run_id, forced=forced)
            status = api.wait_for_end(run_id, 60)
            seconds = time.monotonic() - began
            end = time.monotonic() + 5
            while is_locked(deployment.paths) and time.monotonic() < end:
                time.sleep(0.1)
            counts = {"blocked": int(is_locked(deployment.paths) or status == "CANCELING")}
        serving = deployment.champion_run()
        counts["promoted"] = int(status == "CANCELED" and serving == run_id and previous != run_id)
        return Outcome(counts, status.lower(), seconds)

    return case


def reboot_case(origin: str) -> Case:
    """Return a case that kills every process during a run of some origin, and starts the servers again."""

    def case(deployment: Deployment) -> Outcome:
        days = sorted(deployment.rows)
        with deployment.serving() as (_, api):
            if origin == "command line":
                command = deployment.start("run", DATASET)
                run_id = api.wait_for_run()
            else:
                starts = {
                    "job": lambda: api.launch(f"{DATASET}_train", days),
                    "Materialize": lambda: api.materialize(["autoencoder"]),
                    "backfill": lambda: api.run_of_backfill(api.backfill(["latent_features"], days)),
                }
                run_id = starts[origin]()
                api.wait_for_status(run_id, "STARTED", 90)
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if origin == "command line":
                command.wait()
        began = time.monotonic()
        with deployment.serving() as (_, api):
            status = api.wait_for_end(run_id, 90)
            seconds = time.monotonic() - began
            freed = api.wait_for_status(api.materialize(["champion"]), "STARTED", 60)
        return Outcome({"blocked": int(status not in {"FAILURE", "CANCELED"} or not freed)}, status.lower(), seconds)

    return case


def cases(kills: int, seed: int) -> list[tuple[str, Case]]:
    """Return the cases by name. `campaign_faults` adds its own."""
    rng = random.Random(seed)
    markers = (
        "Bringing",
        f"{DATASET}_intake",
        f"{DATASET}_ingest",
        f"{DATASET}_train",
        "epoch 1",
        f"{DATASET}_publish",
    )
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    table: list[tuple[str, Case]] = []
    for index in range(kills):
        marker, signum = markers[index % len(markers)], signals[(index // len(markers)) % len(signals)]
        table.append((f"{signum.name} after {marker}", stop_case(marker, signum, rng.uniform(0, 2))))
    for forced in (False, True):
        kind = "forced" if forced else "safe"
        table += [
            (f"{kind} termination in {step}", terminate_case(f"{DATASET}_{job}", step, forced=forced))
            for job, step in STEPS
        ]
        backfill = terminate_case("", "latent_features", forced=forced, backfill=True)
        table.append((f"{kind} termination of a backfill", backfill))
    origins = ("job", "Materialize", "backfill", "command line")
    table += [(f"reboot during a run: {origin}", reboot_case(origin)) for origin in origins]
    with contextlib.suppress(ModuleNotFoundError):
        table += importlib.import_module("benchmarks.campaign_faults").CASES
    return table


def run_case(name: str, case: Case, deployment: Deployment) -> dict[str, Any]:
    """Run a case, then the rest of its work, and return what was found as a row."""
    outcome = case(deployment)
    outcome.counts["tracebacks"] = outcome.counts.get("tracebacks", 0) + deployment.finish().count("Traceback")
    counts = {**dict.fromkeys(FIGURES, 0), **outcome.counts, **deployment.compare()}
    counts["leftovers"] += deployment.leftovers()
    return {"case": name, "note": outcome.note, "seconds": round(outcome.seconds, 1), **counts}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print and write its table; return 1 if a figure is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the table")
    parser.add_argument("--kills", type=int, default=60, help="number of kills; 60 by default")
    parser.add_argument("--only", default="", help="run the cases whose name matches this regular expression")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    chosen = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        deployment = Deployment.create(Path(folder), days=73, rows=31)
        for name, case in cases(chosen.kills, chosen.seed):
            if re.search(chosen.only, name):
                if not name.startswith("SIG"):
                    deployment.finish()
                elif published_days(deployment.paths):  # a fresh start, so that there is work in every stage
                    shutil.rmtree(folder)
                    deployment = Deployment.create(Path(folder), days=73, rows=31)
                rows.append(run_case(name, case, deployment))
                print(rows[-1], flush=True)
    header = ("case", "note", "seconds", *FIGURES)
    print("\n" + format_table(header, [[str(row[column]) for column in header] for row in rows]))
    if chosen.out:
        write_report(chosen.out, "campaign", rows, ("dagster", "mlflow", "deltalake"))
    return int(any(row[figure] for row in rows for figure in FIGURES))


if __name__ == "__main__":
    sys.exit(main())
