"""Runs of several hosts with one dataset in an object store: ranges side by side, and interrupted runs of each job.

The object store is moto's server with the API of S3, and PostgreSQL has the locks, on this machine. A host is a process
with an empty working copy, which executes one run of Dagster. It has imported its libraries before the clock starts.

In the first trial, 100 days of flights land as objects. The sensor requests a run for each month, and all of them work
at the same time. One run over all days does the same, once in an object store and once in a folder. The files of raw
rows and features must have the same names and bytes. In the other trials, a host is killed at a random time while it
builds ranges beside another host, trains, or publishes. The next run, on an empty host, must end the work.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.latents.read import model_version_of
from ae_pipeline.lifecycle.plan import Plan, plan_landing, plan_serving
from ae_pipeline.orchestration.console import LOGGERS
from ae_pipeline.orchestration.jobs import job_name
from ae_pipeline.orchestration.runs import request_runs
from ae_pipeline.registry.names import CHAMPION, GATE_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.location import DATA_VARIABLE, SCRATCH_VARIABLE
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE
from ae_pipeline.storage.object_store import ObjectStore
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import hold_dataset, refresh
from benchmarks.deployment import definitions_of
from benchmarks.hosts import describe, look
from benchmarks.hosts_store import BUCKET, built, dataset_of, flights_attributes, ingest_days, rows_of
from benchmarks.report import Row, write_report
from benchmarks.stores import postgres_server, s3_environment, s3_request, s3_server

_MODELS = "AE_PIPELINE_MLRUNS"

_SMALL_DAYS, _SMALL_ROWS, _CHANGED = 40, 150, 4
"""Days and rows of a day in the trials with kills, and days that land before a publication: one new, others again."""

_CHECKS = ("rows lost", "rows doubled", "rows that should not be there", "other model", "manifest differs")

_context = multiprocessing.get_context("forkserver")


def _host(job: str, tags: Mapping[str, str], attributes: dict[str, Any], variables: Mapping[str, str], go: Any) -> None:
    """Execute a run of a job, and exit with 1 if it fails."""
    os.environ.update(variables)
    warnings.simplefilter("ignore", dg.BetaWarning)
    config = PipelineConfig.model_validate(attributes)
    definition = definitions_of(config).resolve_job_def(job_name(config, job))
    with dg.DagsterInstance.ephemeral() as instance:
        go.set()
        result = definition.execute_in_process(LOGGERS, instance=instance, tags=dict(tags), raise_on_error=False)
    sys.exit(not result.success)


@dataclass(frozen=True)
class Site:
    """A dataset in an object store or in a folder, with its model store, and the hosts that work on it.

    Attributes:
        root: Folder for the model store and for working copies.
        attributes: Attributes of the dataset.
        data: Address or folder of the data.
    """

    root: Path
    attributes: dict[str, Any]
    data: str

    def variables(self, host: str) -> dict[str, str]:
        """Return the environment of a host."""
        folder = self.root / "hosts" / host
        folder.mkdir(parents=True, exist_ok=True)
        return {DATA_VARIABLE: self.data, SCRATCH_VARIABLE: str(folder), _MODELS: str(self.root / "mlruns")}

    def start(self, host: str, job: str, tags: Mapping[str, str]) -> Any:
        """Start a run on an empty host, and return its process when it is about to begin."""
        shutil.rmtree(self.root / "hosts" / host, ignore_errors=True)
        go = _context.Event()
        process = _context.Process(target=_host, args=(job, tags, self.attributes, self.variables(host), go))
        process.start()
        assert go.wait(300)
        return process

    def run(self, host: str, job: str, tags: Mapping[str, str] | None = None) -> float:
        """Execute a run on an empty host, and return its time in seconds."""
        process = self.start(host, job, tags or {})
        began = time.perf_counter()
        process.join()
        assert process.exitcode == 0, f"{job} failed"
        return time.perf_counter() - began

    def dataset(self) -> Dataset:
        """Return the dataset as this process sees it now."""
        os.environ.update(self.variables("control"))
        dataset = dataset_of(self.attributes)
        refresh(dataset.paths)
        return dataset

    @property
    def tracker(self) -> Tracker:
        """The model store."""
        return Tracker(self.root / "mlruns")

    def land(self, files: Sequence[Path]) -> None:
        """Let files land."""
        if "://" in self.data:
            store = ObjectStore(self.data)
            for path in files:
                store.write(f"landing/flights/{path.name}", path.read_bytes())
            return
        landing = DatasetPaths(Path(self.data), "flights").landing
        landing.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copy(path, landing)

    def requested(self, plan: Plan) -> list[dg.RunRequest]:
        """Return what a sensor requests for a plan."""
        with dg.DagsterInstance.ephemeral() as instance:
            answer = request_runs(plan, PipelineConfig.model_validate(self.attributes), instance)
        return answer if isinstance(answer, list) else []

    def ranges(self) -> list[dg.RunRequest]:
        """Return the runs over days that the sensor requests now."""
        dataset = self.dataset()
        return self.requested(plan_landing(dataset, dataset.config.today()))


def try_ranges(root: Path, files: Sequence[Path]) -> Row:
    """Build the days of flights in one run for each month at the same time, and in one run over all days.

    Args:
        root: Folder for working copies.
        files: Landed files.
    """
    whole = flights_attributes()
    cut = {**whole, "scale": {"days_per_run": 31, "runs_at_once": 64}}
    folder = Site(root / "folder", whole, str(root / "folder" / "data"))
    one = Site(root / "one", whole, f"s3://{BUCKET}/one")
    many = Site(root / "many", cut, f"s3://{BUCKET}/many")
    seconds = dict[str, float]()
    for name, site in (("folder", folder), ("one_run", one)):
        site.land(files)
        site.run("first", "intake")
        (request,) = site.ranges()
        seconds[name] = site.run("second", "ingest", request.tags)
    many.land(files)
    many.run("first", "intake")
    requests = many.ranges()
    hosts = [many.start(f"range_{number}", "ingest", request.tags) for number, request in enumerate(requests)]
    began = time.perf_counter()
    for host in hosts:
        host.join()
    seconds["at_once"] = time.perf_counter() - began
    expected, paths = folder.dataset().paths, many.dataset().paths
    identities, rows = rows_of(expected), rows_of(paths)
    return {
        "trial": "ranges side by side",
        "days": len(files),
        "hosts": len(hosts),
        "failed": sum(host.exitcode != 0 for host in hosts),
        "rows_lost": len(identities.keys() - rows.keys()),
        "rows_doubled": sum(count > 1 for count in rows.values()),
        "files": len(built(expected)),
        "files_that_differ": len(set(built(expected).items()) ^ set(built(paths).items())),
        "files_of_one_run_that_differ": len(set(built(expected).items()) ^ set(built(one.dataset().paths).items())),
        "requests_left": len(many.ranges()),
        **{f"{name}_s": round(value, 1) for name, value in seconds.items()},
    }


class Kills:
    """Trials that kill hosts of a small sample of the flights.

    Args:
        root: Folder for working copies.
        files: Landed files of the whole flights.
        kills: Number of kills in each trial.
    """

    def __init__(self, root: Path, files: Sequence[Path], kills: int) -> None:
        self._kills, self._rng = kills, random.Random(0)
        self._samples = root / "samples"
        self._samples.mkdir()
        for path in files[: _SMALL_DAYS + kills + 1]:
            self._write(path, _SMALL_ROWS)
        scale = {"days_per_run": 31, "runs_at_once": 2}
        attributes = {**flights_attributes(), "scale": scale, "training": {"epochs": 1}}
        self._site = Site(root / "kills", attributes, f"s3://{BUCKET}/kills")
        self._all = files
        self._site.land(sorted(self._samples.iterdir())[:_SMALL_DAYS])
        self._site.run("first", "intake")

    def _write(self, path: Path, rows: int) -> Path:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: rows + 1]
        (self._samples / path.name).write_text("".join(lines), encoding="utf-8")
        return self._samples / path.name

    def _kill(self, process: Any, longest: float) -> bool:
        """Kill a process at a random time, and return whether it was still at work."""
        process.join(self._rng.uniform(0, longest))
        was_alive = process.exitcode is None
        process.kill()
        process.join()
        return was_alive

    def of_ranges(self) -> Row:
        """Kill one of two hosts that build ranges at the same time."""
        site, counts, waits = self._site, Counter[str](), list[float]()
        longest = max(site.run("whole", "ingest", request.tags) for request in site.ranges())
        expected = built(site.dataset().paths)
        for _ in range(self._kills):
            dataset = site.dataset()
            with hold_dataset(dataset.paths):
                for name in expected:
                    stage, _, file = name.partition("/")
                    (dataset.paths.root / stage / dataset.name / file).unlink()
            requests = site.ranges()
            hosts = [site.start(str(number), "ingest", request.tags) for number, request in enumerate(requests)]
            counts["killed_at_work"] += self._kill(hosts[-1], longest)
            killed_at = time.perf_counter()
            hosts[0].join()
            counts["failed"] += hosts[0].exitcode != 0
            for request in site.ranges():
                site.run("next", "ingest", request.tags)
            waits.append(time.perf_counter() - killed_at)
            paths = site.dataset().paths
            counts["files_that_differ"] += len(set(expected.items()) ^ set(built(paths).items()))
            counts["rows_doubled"] += sum(count > 1 for count in rows_of(paths).values())
        return self._row("kills beside another range", counts, ("failed", "files_that_differ", "rows_doubled"), waits)

    def of_trainings(self) -> Row:
        """Kill a training, and train again."""
        site, counts, waits = self._site, Counter[str](), list[float]()
        longest = site.run("whole", "train")
        site.run("whole", "publish", self._publication().tags)
        for _ in range(self._kills):
            counts["killed_at_work"] += self._kill(site.start("killed", "train", {}), longest)
            killed_at = time.perf_counter()
            site.run("next", "train")
            waits.append(time.perf_counter() - killed_at)
            counts += self._look(site.dataset())
            counts["versions without a result"] += sum(
                GATE_TAG not in version.tags for version in site.tracker.versions("flights")
            )
        return self._row("kills of a training", counts, (*_CHECKS, "versions without a result"), waits)

    def of_publications(self) -> Row:
        """Let days land, kill their publication, and publish again."""
        site, counts, waits = self._site, Counter[str](), list[float]()
        longest = 0.0
        for number in range(self._kills + 1):
            landed = self._all[: _SMALL_DAYS + number + 1]
            site.land([self._write(path, _SMALL_ROWS - 1 - number) for path in landed[-_CHANGED:]])
            ingest_days(site.dataset())
            request = self._publication()
            if not longest:
                longest = site.run("whole", "publish", request.tags)
                continue
            counts["killed_at_work"] += self._kill(site.start("killed", "publish", request.tags), longest)
            killed_at = time.perf_counter()
            site.run("next", "publish", self._publication().tags)
            waits.append(time.perf_counter() - killed_at)
            dataset = site.dataset()
            counts += self._look(dataset)
            counts["days_left"] += bool(plan_serving(dataset, site.tracker).work)
        return self._row("kills of a publication", counts, (*_CHECKS, "contract differs", "days_left"), waits)

    def _publication(self) -> dg.RunRequest:
        dataset = self._site.dataset()
        (request,) = self._site.requested(plan_serving(dataset, self._site.tracker))
        return request

    def _look(self, dataset: Dataset) -> Counter[str]:
        """Return what is wrong with the published table."""
        version = model_version_of(dataset.paths)
        counts = look("flights", str(dataset.paths.tables), version, set(rows_of(dataset.paths)))
        assert self._site.tracker.version("flights", CHAMPION) is not None
        return counts

    def _row(self, trial: str, counts: Counter[str], names: Sequence[str], waits: Sequence[float]) -> Row:
        return {
            "trial": trial,
            "kills": len(waits),
            **{name.replace(" ", "_"): int(counts[name]) for name in ("killed_at_work", *names)},
            "next_run_median_s": round(sorted(waits)[len(waits) // 2], 1),
            "next_run_slowest_s": round(max(waits), 1),
        }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts_runs", description=__doc__)
    parser.add_argument("--days", type=int, default=100, help="days of flights")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    heavy = ["benchmarks.hosts_runs", "ae_pipeline.lifecycle.publish", "ae_pipeline.lifecycle.train", "mlflow"]
    _context.set_forkserver_preload([*heavy, "ae_pipeline.lifecycle.report"])
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as name, s3_server() as port, postgres_server() as url:
        root = Path(name)
        os.environ.update(s3_environment(port))
        os.environ.update({LOCKS_VARIABLE: url.render_as_string(hide_password=False)})
        assert s3_request(port, "PUT", f"/{BUCKET}") == 200
        land_flights(root / "landed")
        files = sorted((root / "landed").iterdir())
        kills = Kills(root, files, options.kills)
        trials: tuple[Callable[[], Row], ...] = (
            partial(try_ranges, root, files[: options.days]),
            kills.of_ranges,
            kills.of_trainings,
            kills.of_publications,
        )
        for trial in trials:
            results.append(trial())
            print(describe(results[-1:]), flush=True)
            if options.out:
                write_report(options.out, "hosts_runs", results, ("obstore", "moto", "psycopg2-binary"))


if __name__ == "__main__":
    main()
