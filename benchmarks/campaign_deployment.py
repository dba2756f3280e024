"""A deployment of a small sample of the flights, which cases of `benchmarks.campaign` break and repair."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import polars as pl

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.latents.read import published_day, published_days
from ae_pipeline.orchestration.dead_runs import active_records, is_locked
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.campaign_runs import Api
from benchmarks.servers import Servers, running_servers

DATASET = "flights"

LANDED, TRAINED, COMPLETE = "landed", "trained", "complete"
"""States in which a case can begin: nothing is read, a model serves and nothing is published, all work is done."""

_COMPARED = ["carrier", "flight", "origin", "year", "month", "day", "tailnum", "distance", "air_time"]
"""Columns of a landed row that are compared with its raw row."""

TRACEBACKS = ("Traceback", "Stack Trace")
"""Words at the start of a traceback of Python and of Dagster."""

_LONGEST_SECONDS = 900.0
"""Time after which a command counts as hanging."""


@dataclass
class Outcome:
    """What a case found.

    Attributes:
        counts: Count of each figure; figures that are missing are 0.
        note: What happened, in a few words.
        seconds: Time until the process, the run or the dataset was free.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0


def allowed(seconds: float) -> float:
    """Return the time that something may take that takes some seconds at most on an idle machine."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


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


def _command_of(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return str(pid)
    return f"{pid} ({command.replace(bytes(1), b' ').decode(errors='replace').strip()[:200]})"


def first_traceback(printed: str) -> str:
    """Return the last lines of the first traceback in an output, in one line for a note; empty if there is none."""
    start = min((at for word in TRACEBACKS if (at := printed.find(word)) >= 0), default=-1)
    return "" if start < 0 else f"; {' | '.join(printed[start:].splitlines()[:60])[:4000]}"


def kill_descendants() -> None:
    """Kill all processes that this process has started, directly or not, as a reboot does."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Deployment:
    """A folder with data, models and Dagster's instance of the sample. Sets `DAGSTER_HOME` of this process.

    Args:
        root: Folder of the deployment. Copies of each state are made beside it.
        days: Number of days that have landed.
        rows: Number of rows of each day.
    """

    def __init__(self, root: Path, days: int, rows: int) -> None:
        self.root, self.days, self.rows = root, days, rows
        os.environ["DAGSTER_HOME"] = str(root / "home")

    def begin(self, state: str) -> None:
        """Bring the deployment into one of the states."""
        copy = self.root.with_name(f"{self.root.name}.{state}")
        if not copy.exists():
            self._make(state)
            self.root.rename(copy)
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(copy, self.root, symlinks=True)

    def _make(self, state: str) -> None:
        if state == LANDED:
            self._land()
        elif state == TRAINED:
            self.begin(LANDED)
            process, _ = self.start_until("run", [f"{DATASET}_publish"])
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=_LONGEST_SECONDS)
        else:
            self.begin(TRAINED)
            self.finish()

    def _land(self) -> None:
        land_flights(self.landing)
        for index, path in enumerate(sorted(self.landing.iterdir())):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: self.rows + 1]
            if index < self.days:
                path.write_text("".join(lines), encoding="utf-8")
            else:
                path.unlink()
        (self.root / "home").mkdir()
        shutil.copy(Path(__file__).parent.parent / ".dagster" / "dagster.yaml", self.root / "home")

    def land_change(self) -> None:
        """Change a number in landed files with more rows than `min_new_rows`, so that each stage has work."""
        for path in sorted(self.landing.iterdir())[-14:]:
            rows = pl.read_csv(path, infer_schema=False)
            rows.with_columns((pl.col("distance").cast(int) + 1).cast(str)).write_csv(path)
            future = time.time() + 1
            os.utime(path, (future, future))

    @property
    def landing(self) -> Path:
        """Folder of the landed files, one for each day."""
        return self.root / "data" / "landing" / DATASET

    @property
    def named_days(self) -> list[str]:
        """Days that have landed."""
        return sorted(path.stem.removeprefix(f"{DATASET}_") for path in self.landing.iterdir())

    @property
    def paths(self) -> DatasetPaths:
        """Paths of the dataset."""
        return DatasetPaths(self.root / "data", DATASET)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `ae-pipeline` with this deployment."""
        environment = {
            **os.environ,
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

    def start_until(self, command: str, markers: Sequence[str]) -> tuple["subprocess.Popen[str]", str]:
        """Start a command over the dataset, and return it with its output as soon as a line has one of some texts."""
        process = self.start(command, DATASET)
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if any(marker in line for marker in markers):
                break
        return process, printed

    def finish(self) -> str:
        """Run the dataset to its end, and return what was printed.

        Raises:
            RuntimeError: The run failed.
        """
        process = self.start("run", DATASET)
        printed, _ = process.communicate(timeout=_LONGEST_SECONDS)
        if process.returncode:
            raise RuntimeError(f"the run after the case failed:\n{printed}")
        return printed

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple[Servers, Api]]:
        """Run the servers over this deployment."""
        with running_servers(self.root, "home") as servers:
            yield servers, Api(servers)

    def compare(self) -> dict[str, int]:
        """Return lost, doubled and changed rows of the published table and of `raw_data`, against the landed files."""
        published = pl.concat(published_day(day, self.paths, ["row_id"]) for day in published_days(self.paths).values())
        landed = pl.concat(pl.read_csv(path, infer_schema=False) for path in self.landing.iterdir())
        landed = landed.select(pl.col(_COMPARED).replace("NA", None))
        raw = pl.concat(pl.read_parquet(path) for path in self.paths.raw("_").parent.glob("[!.]*.parquet"))
        raw = raw.select(pl.col(name).cast(str) for name in _COMPARED)
        distinct = published["row_id"].n_unique()
        return {
            "lost": landed.height - distinct,
            "doubled": published.height - distinct + max(raw.height - landed.height, 0),
            "changed": landed.join(raw, on=_COMPARED, how="anti", nulls_equal=True).height,
        }

    def leftovers(self) -> list[str]:
        """Return the temporary files, held locks and processes of this deployment that are left."""
        stray = [str(path.relative_to(self.root)) for path in (self.root / "data").rglob("*.tmp")]
        locks = ["the lock"] if is_locked(self.paths) else []
        return [*stray, *locks, *(f"process {_command_of(pid)}" for pid in descendants(os.getpid()))]

    def active_runs(self) -> list[str]:
        """Return the runs of the dataset that count as active."""
        with dg.DagsterInstance.get() as instance:
            return [record.dagster_run.run_id for record in active_records(DATASET, instance)]

    def champion_run(self) -> str:
        """Return the Dagster run that trained the version that serves; empty if none serves."""
        tracker = Tracker(self.root / "mlruns")
        champion = tracker.version(DATASET, CHAMPION)
        return tracker.facts_of_runs(DATASET)[champion.run_id][0].get("dagster_run_id", "") if champion else ""


@dataclass(frozen=True)
class Case:
    """One fault of a deployment.

    Attributes:
        name: What happens.
        state: State in which it begins.
        run: Function that makes the fault, and returns what was found.
    """

    name: str
    state: str
    run: Callable[[Deployment], Outcome]
