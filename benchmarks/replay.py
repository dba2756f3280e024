"""Replay the year 2013 in minutes under the real daemon, with retrainings and failures, and check the final state.

The daemon and the guarded web server run as processes, with the sensors and the schedule of the flights switched on.
Files land as an airport would deliver them, but much faster. The program causes these failures: corrupted copies of a
hundred days land and are corrected later, a training process is killed with SIGKILL, and a person rolls the model back
through Dagster's GraphQL API. At the end the program compares the actual state with the expected state: landed files,
tables, MLflow and Dagster.
"""

import argparse
import contextlib
import csv
import http.server
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from filelock import FileLock

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.cli.guard import TOKEN_VARIABLE
from ae_pipeline.latents.read import published_day, published_days
from ae_pipeline.registry.history import history
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.paths import DatasetPaths
from benchmarks.report import Row, format_table, write_report

DATASET = "flights"
CHANGES: dict[str, Any] = {
    "training": {"window_days": 150, "validation_days": 10, "calibration_days": 21, "epochs": 3},
    "gate": {"days": 5},
    "retrain": {"cron": "* * * * *", "min_new_rows": 30_000},
    "alerts": {"budget": 0.001, "evidence": ["columns", "latent", "row"], "webhook": "REPLAY_WEBHOOK"},
}
"""Changes to the shipped YAML: a shorter window, a tick every minute, and a webhook."""

_DEFINITIONS = """
import dagster as dg, json, os
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.component import AutoencoderPipeline
from ae_pipeline.orchestration.console import line_logger
from ae_pipeline.orchestration.resources import RunLock, Workspace

config = PipelineConfig.model_validate(json.loads(os.environ["REPLAY_CONFIG"]))
workspace = Workspace(data_folder=os.environ["AE_PIPELINE_DATA"], mlflow_folder=os.environ["AE_PIPELINE_MLRUNS"])
defs = dg.Definitions.merge(
    AutoencoderPipeline(config).build_defs(None),
    dg.Definitions(
        resources={"workspace": workspace, "run_lock": RunLock(workspace=workspace)},
        executor=dg.in_process_executor,
        loggers={"console": line_logger},
    ),
)
"""

_SHUFFLED = ("dep_time", "sched_dep_time", "arr_time", "sched_arr_time", "dep_delay", "arr_delay", "air_time", "dest")
"""Columns that the corrupted copies shuffle, each in its own order."""


def main() -> int:
    """Run the replay, print its ledger and write it; return 1 if a line differs from its expected value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the ledger")
    parser.add_argument("--keep", type=Path, help="work in this folder, and keep it")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        replay = stack.enter_context(replaying(root.resolve(), CHANGES))
        began = time.monotonic()
        replay.play()
        lines = replay.ledger()
        took = time.monotonic() - began
    lines.append(Line("wall-clock seconds", f"{took:.0f}", "< 600", took < 600))
    rows = [(line.what, line.actual, line.expected, "yes" if line.holds else "NO") for line in lines]
    print("\n" + format_table(("ledger", "actual", "expected", "holds"), rows))
    facts: list[Row] = [
        {"what": line.what, "found": line.actual, "expected": line.expected, "holds": line.holds} for line in lines
    ]
    write_report(chosen.out, "replay", facts, ("dagster", "mlflow", "deltalake"))
    return 0 if all(line.holds for line in lines) else 1


@dataclass(frozen=True)
class Line:
    """One line of the ledger.

    Attributes:
        what: Checked quantity.
        actual: Actual value.
        expected: Expected value.
        holds: Whether the actual value is acceptable.
    """

    what: str
    actual: str
    expected: str
    holds: bool


@contextlib.contextmanager
def replaying(root: Path, changes: Mapping[str, Any]) -> Iterator["Replay"]:
    """Start the daemon and the guarded web server on the flights, and stop them at the end.

    Args:
        root: Folder of the deployment.
        changes: Sections that replace those of the shipped YAML.
    """
    for name in ("home", "source", "data/landing/flights", "mlruns"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent.parent / ".dagster" / "dagster.yaml", root / "home")
    land_flights(root / "source" / "flights")
    (root / "replay_definitions.py").write_text(_DEFINITIONS, encoding="utf-8")
    shipped = yaml.safe_load(files("ae_pipeline").joinpath("defs/flights/defs.yaml").read_text(encoding="utf-8"))
    config = {**shipped["attributes"], **changes}
    port, token = _free_port(), secrets.token_urlsafe(32)
    source = {"python_file": {"relative_path": "replay_definitions.py", "location_name": "replay_definitions.py"}}
    (root / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [source]}), encoding="utf-8")
    with _webhook() as (address, posted):
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(root / "home"),
            "AE_PIPELINE_DATA": str(root / "data"),
            "AE_PIPELINE_MLRUNS": str(root / "mlruns"),
            "REPLAY_CONFIG": json.dumps(config, default=str),
            "REPLAY_WEBHOOK": address,
            "OMP_WAIT_POLICY": "PASSIVE",
            "AE_PIPELINE_DAGSTER_URL": f"http://127.0.0.1:{port}",
            TOKEN_VARIABLE: token,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
        }
        os.environ["DAGSTER_HOME"] = environment["DAGSTER_HOME"]
        web = ["ae_pipeline.cli.web", "dagster", str(port), "workspace.yaml"]
        daemon = ["dagster._daemon", "run", "--workspace", "workspace.yaml"]
        with (root / "dagster.log").open("w") as log:
            processes = [
                subprocess.Popen(
                    [sys.executable, "-m", *command], cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
                for command in (web, daemon)
            ]
            try:
                yield Replay(root, Api(port, token), posted, processes)
            finally:
                for process in processes:
                    process.send_signal(signal.SIGINT)
                for process in processes:
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        process.kill()


@dataclass
class Replay:
    """A running deployment and the actions of the replay."""

    root: Path
    api: "Api"
    posted: list[dict[str, Any]]
    processes: list[subprocess.Popen[bytes]]
    landed: set[str] = field(default_factory=set)
    killed: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def paths(self) -> DatasetPaths:
        """Paths of the dataset."""
        return DatasetPaths(self.root / "data", DATASET)

    @property
    def tracker(self) -> Tracker:
        """Tracker with a fresh client, because another process changes the store."""
        return Tracker(self.root / "mlruns")

    @property
    def source(self) -> list[Path]:
        """All files of the year, in order."""
        return sorted((self.root / "source" / "flights").iterdir())

    def say(self, message: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.monotonic() - self.began:6.1f} s  {message}", flush=True)

    def wait(self, what: str, until: Callable[[], Any], seconds: float = 240) -> Any:
        """Wait until a condition is true, and return its value.

        Args:
            what: Description of the condition, for the messages.
            until: Condition, evaluated every half second.
            seconds: Time limit.

        Raises:
            RuntimeError: A process of Dagster has ended.
            TimeoutError: The condition was not true in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"Dagster has ended; see {self.root / 'dagster.log'}")
            if value := until():
                self.say(what)
                return value
            time.sleep(0.5)
        raise TimeoutError(f"{what}: not reached within {seconds:.0f} s; see {self.root}")

    def land(self, until: int) -> None:
        """Land the first days of the year in order, up to a number of days."""
        for path in self.source[:until]:
            if path.name not in self.landed:
                shutil.copyfile(path, self.paths.landing / f".{path.name}")
                (self.paths.landing / f".{path.name}").rename(self.paths.landing / path.name)
                self.landed.add(path.name)
                time.sleep(0.02)
        self.say(f"{until} days have landed")

    def corrupt(self, first: int, last: int) -> None:
        """Land days again with shuffled columns."""
        for path in self.source[first:last]:
            rows = pl.read_csv(path, infer_schema=False)
            mixed = [rows[name].shuffle(seed=seed) for seed, name in enumerate(_SHUFFLED)]
            rows.with_columns(mixed).write_csv(self.paths.landing / path.name)
        self.say(f"corrupted copies of {last - first} days have landed")

    def restore(self, first: int, last: int) -> None:
        """Land the original files of days again."""
        for path in self.source[first:last]:
            shutil.copyfile(path, self.paths.landing / path.name)
        self.say(f"the original files of {last - first} days have landed again")

    def champion(self) -> int:
        """Return the serving version, or 0."""
        version = self.tracker.version(DATASET, CHAMPION)
        return version.version if version else 0

    def is_published(self, days: int, *versions: int) -> bool:
        """Return whether the table has at least so many days, all under one of these versions."""
        published = published_days(self.paths)
        spaces = {day.path.split("_")[0] for day in published.values()}
        return len(published) >= days and len(spaces) == 1 and spaces <= {f"v{version}" for version in versions}

    def features(self) -> int:
        """Return the number of days with features."""
        return len(list(self.paths.features("_").parent.glob("[!.]*.parquet")))

    def is_quiet(self) -> bool:
        """Return whether no run is queued or in progress."""
        return not self.api.runs(["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"])

    def play(self) -> None:
        """Play the year: land days, cause failures, and wait for each reaction."""
        self.wait("Dagster answers", self.api.is_up, 90)
        for name in ("landing", "rebuild", "failure"):
            self.api.start_sensor(f"{DATASET}_{name}")
        self.land(60)
        self.wait("60 days have features", lambda: self.features() == 60 and self.is_quiet())
        self.api.start_schedule(f"{DATASET}_retrain")
        self.wait("version 1 serves", lambda: self.champion() == 1)

        # The previous days are still being published.
        self.land(100)
        self.wait("60 days or more are published under it", lambda: self.is_published(60, 1, 2))
        self.wait("version 2 serves", lambda: self.champion() == 2)

        self.land(140)
        self.wait("100 days or more are published under it", lambda: self.is_published(100, 2, 3))
        self.kill_training()
        self.wait("version 3 serves", lambda: self.champion() == 3)
        self.wait("140 days are published under it", lambda: self.is_published(140, 3))

        self.corrupt(20, 125)
        self.wait("a challenger was rejected", lambda: any(e.change == "rejected" for e in history(self.paths)))
        if self.champion() != 3:
            raise RuntimeError("a poisoned challenger serves")
        # No training may start while a person selects the version for the rollback.
        self.api.stop_schedule(f"{DATASET}_retrain")
        self.restore(20, 125)
        self.land(160)
        self.wait("160 days have features", lambda: self.features() == 160)
        self.api.launch(
            f"{DATASET}_rollback",
            {"ops": {f"{DATASET}__champion": {"config": {"version": 2, "why": "a drill", "who": "the replay"}}}},
        )
        self.wait("version 2 serves again", lambda: self.champion() == 2)
        self.land(len(self.source))
        self.wait("all days have features", lambda: self.features() == len(self.source))
        self.wait("all days are published under version 2", lambda: self.is_published(len(self.source), 2))
        self.wait("no work is pending", lambda: self.is_quiet() and self.api.says(f"{DATASET}_rebuild", "every day is"))

    def kill_training(self) -> None:
        """Kill the process of the next training during the training."""

        def training() -> tuple[str, int] | None:
            for run in self.api.runs(["STARTED"]):
                if run["jobName"] == f"{DATASET}_train":
                    pid = self.api.process_of(run["runId"])
                    tracker = self.tracker
                    live = tracker.client.search_runs([tracker.experiment(DATASET)], "attributes.status = 'RUNNING'")
                    if pid and live:
                        return run["runId"], pid
            return None

        run_id, pid = self.wait("a training is in progress", training)
        os.kill(pid, signal.SIGKILL)
        self.killed = run_id
        self.say(f"killed its process, {pid}")

    def ledger(self) -> list[Line]:
        """Return the lines that compare the actual with the expected state."""
        lines: list[Line] = []

        def line(what: str, actual: object, expected: object, holds: bool | None = None) -> None:
            lines.append(Line(what, str(actual), str(expected), actual == expected if holds is None else holds))

        days = published_days(self.paths)
        line("days landed", len(self.landed), len(self.source))
        line("days published", len(days), len(self.source))
        rows = {day: published_day(entry, self.paths, ["row_id", "latent_space"]) for day, entry in days.items()}
        spaces = {space for frame in rows.values() for space in frame["latent_space"].unique()}
        champion = self.tracker.version(DATASET, CHAMPION)
        assert champion is not None
        line("latent spaces among all rows", len(spaces), 1)
        line("model version of that space", next(iter(spaces)).split("_")[0], f"v{champion.version}")
        wanted = Counter({path.stem.removeprefix("flights_"): _rows_of(path) for path in self.source})
        mismatches = sum(rows[day].height != count for day, count in wanted.items() if day in rows) + len(
            wanted.keys() ^ rows.keys()
        )
        line("rows published", sum(frame.height for frame in rows.values()), sum(wanted.values()))
        line("days whose row count is not that of their file", mismatches, 0)
        line("row ids that stand twice", sum(f.height - f["row_id"].n_unique() for f in rows.values()), 0)

        changes = [(entry.version, entry.change.value) for entry in history(self.paths)]
        line("history", ", ".join(f"{v} {c}" for v, c in changes), EXPECTED_HISTORY)
        tracker = self.tracker
        statuses = Counter(run.info.status for run in tracker.client.search_runs([tracker.experiment(DATASET)]))
        trained = [run for run in self.api.runs(["SUCCESS"]) if run["jobName"] == f"{DATASET}_train"]
        line("successful trainings", len(trained), 4)
        line("MLflow runs finished", statuses.pop("FINISHED", 0), len(trained))
        line("MLflow runs failed or killed", statuses.pop("FAILED", 0) + statuses.pop("KILLED", 0), 1)
        line("MLflow runs in another state", sum(statuses.values()), 0)
        line("versions registered", len(self.tracker.versions(DATASET)), len(trained))

        failed = [run["runId"] for run in self.api.runs(["FAILURE", "CANCELED"])]
        line("Dagster runs that failed", failed == [self.killed] and 1, 1)
        line("Dagster runs not ended", len(self.api.runs(["QUEUED", "NOT_STARTED", "STARTING", "STARTED"])), 0)
        skips = Counter(_kind(reason) for reason in self.api.skips(f"{DATASET}_retrain"))
        for kind in ("nothing new", "fewer than min_new_rows", "a training is running"):
            line(
                f"ticks that skipped: {kind}",
                skips[kind],
                "≥ 1" if kind == "nothing new" else "any",
                skips[kind] > 0 or kind != "nothing new",
            )
        stray = [path for path in (self.root / "data").rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
        line("temporary files", len(stray), 0)
        held = 0
        for lock in (self.root / "data" / "locks").glob("*.lock"):
            try:
                FileLock(lock).acquire(timeout=0).lock.release()
            except TimeoutError:
                held += 1
        line("locks held", held, 0)
        events = Counter(alert["event"] for alert in self.posted)
        line("alerts posted: rejected challenger", events["challenger_rejected"], 1)
        line("alerts posted: failed run", events["run_failed"], 1)
        return lines


EXPECTED_HISTORY = "1 promoted, 2 promoted, 3 promoted, 4 rejected, 2 rolled back"


class Api:
    """Client of Dagster's GraphQL API, which the UI uses too."""

    def __init__(self, port: int, token: str) -> None:
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        self.address = f"http://127.0.0.1:{port}/graphql"
        self._repository: dict[str, str] = {}

    def ask(self, query: str, **variables: Any) -> Any:
        """Send a query and return its data."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self.address, body, self._headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.load(answer)
        if "errors" in content:
            raise RuntimeError(content["errors"])
        return content["data"]

    def is_up(self) -> bool:
        """Return whether the code location is loaded."""
        try:
            data = self.ask("{repositoriesOrError{... on RepositoryConnection{nodes{name location{name}}}}}")
        except OSError:
            return False
        for node in data["repositoriesOrError"].get("nodes", []):
            self._repository = {"repositoryName": node["name"], "repositoryLocationName": node["location"]["name"]}
        return bool(self._repository)

    def start_sensor(self, name: str) -> None:
        """Switch a sensor on."""
        query = "mutation($s:SensorSelector!){startSensor(sensorSelector:$s){__typename ... on PythonError{message}}}"
        _expect(self.ask(query, s={**self._repository, "sensorName": name}), "Sensor")

    def start_schedule(self, name: str) -> None:
        """Switch a schedule on."""
        query = (
            "mutation($s:ScheduleSelector!){startSchedule(scheduleSelector:$s){__typename ... on PythonError{message}}}"
        )
        _expect(self.ask(query, s={**self._repository, "scheduleName": name}), "ScheduleStateResult")

    def stop_schedule(self, name: str) -> None:
        """Switch a schedule off."""
        state = self._state(name, 1)
        query = "mutation($i:String!){stopRunningSchedule(id:$i){__typename ... on PythonError{message}}}"
        _expect(self.ask(query, i=state["id"]), "ScheduleStateResult")

    def launch(self, job: str, config: dict[str, Any]) -> None:
        """Start a run of a job."""
        query = (
            "mutation($p:ExecutionParams!){launchRun(executionParams:$p){__typename ... on PythonError{message} "
            "... on RunConfigValidationInvalid{errors{message}}}}"
        )
        params = {"selector": {**self._repository, "jobName": job}, "runConfigData": config, "mode": "default"}
        _expect(self.ask(query, p=params), "LaunchRunSuccess")

    def runs(self, statuses: Sequence[str]) -> list[dict[str, Any]]:
        """Return the runs with some statuses."""
        query = (
            "query($f:RunsFilter!){runsOrError(filter:$f,limit:500){... on Runs{results"
            "{runId jobName status creationTime startTime endTime}}}}"
        )
        runs: list[dict[str, Any]] = self.ask(query, f={"statuses": list(statuses)})["runsOrError"]["results"]
        return runs

    def process_of(self, run_id: str) -> int | None:
        """Return the process id of a run from its engine events, or None."""
        query = (
            "query($r:ID!){logsForRun(runId:$r,limit:100){... on EventConnection{events{... on EngineEvent{message}}}}}"
        )
        for event in self.ask(query, r=run_id)["logsForRun"]["events"]:
            if "process (pid: " in (event.get("message") or ""):
                return int(event["message"].split("(pid: ")[1].split(")")[0])
        return None

    def says(self, sensor: str, prefix: str) -> bool:
        """Return whether the newest tick of a sensor skipped with a reason that starts with a prefix."""
        return any(reason.startswith(prefix) for reason in self._reasons(sensor, 1))

    def skips(self, name: str) -> list[str]:
        """Return the reasons of the ticks that skipped."""
        return self._reasons(name, 200)

    def _reasons(self, name: str, limit: int) -> list[str]:
        return [tick["skipReason"] for tick in self._state(name, limit)["ticks"] if tick["skipReason"]]

    def _state(self, name: str, limit: int) -> dict[str, Any]:
        query = (
            "query($s:InstigationSelector!,$n:Int!){instigationStateOrError(instigationSelector:$s)"
            "{... on InstigationState{id ticks(limit:$n){status skipReason}}}}"
        )
        state: dict[str, Any] = self.ask(query, s={**self._repository, "name": name}, n=limit)[
            "instigationStateOrError"
        ]
        return state


def _expect(data: dict[str, Any], kind: str) -> None:
    (answer,) = data.values()
    if answer["__typename"] != kind:
        raise RuntimeError(f"expected {kind} from Dagster, got {answer}")


def _kind(reason: str) -> str:
    return next(
        (kind for kind in ("nothing new", "fewer than min_new_rows", "a training is running") if kind in reason), reason
    )


def _rows_of(path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    posted: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Suppress the request log."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/alerts", posted
    finally:
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
