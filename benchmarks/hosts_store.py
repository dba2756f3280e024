"""Several hosts with one dataset in an object store: interrupted ingestions, and looks of a sensor.

The object store is moto's server with the API of S3, on this machine. A host is a process with an empty working copy.
In the first trial, flights land as objects, and one host after the other ingests a range of days, until it is killed at
a random time. The last host ends the work. The same days are ingested into a folder without interruption, and the files
of raw rows and features must have the same names and bytes. In the second trial, hosts without a common lock ingest the
same days at the same time. In the third trial, many small files land, and a sensor looks at them.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.common.errors import PipelineError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.landing import last_ingest
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days, read_landed_files
from ae_pipeline.lifecycle.landing_look import look_at_landing
from ae_pipeline.lifecycle.pending_days import days_to_ingest
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.location import DATA_VARIABLE, SCRATCH_VARIABLE, dataset_paths
from ae_pipeline.storage.object_store import ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import hold_dataset, refresh, save
from benchmarks.hosts_look import describe
from benchmarks.report import Row, write_report
from benchmarks.stores import s3_environment, s3_request, s3_server

BUCKET = "hosts"

_DAYS_AT_ONCE = 10
"""Days of one run of a host."""

_RACERS = 4

_SENSORS: dict[str, Any] = {
    "dataset": "sensors",
    "identity": ["sensor", "at"],
    "event_time": "at",
    "start": "2020-01-01",
    "end": "2023-12-31",
    "model": {"latent_dim": 2},
}


def dataset_of(attributes: dict[str, Any], data: str | None = None) -> Dataset:
    """Return a dataset of a configuration, with its paths below `data`, or below that of the environment."""
    config = PipelineConfig.model_validate(attributes)
    return Dataset(config, dataset_paths(config.dataset, data))


def flights_attributes() -> dict[str, Any]:
    """Return the configuration of the flights that the package brings."""
    content = yaml.safe_load((files("ae_pipeline") / "defs" / "flights" / "defs.yaml").read_text(encoding="utf-8"))
    attributes: dict[str, Any] = content["attributes"]
    return attributes


def ingest_days(dataset: Dataset, *, started: Callable[[], None] = lambda: None) -> None:
    """Read what has landed, and build raw rows and features of all pending days, a few in each run.

    Args:
        dataset: Dataset to ingest.
        started: Called when the first run holds the dataset.
    """
    with hold_dataset(dataset.paths):
        started()
        read_landed_files(dataset, "benchmark", "benchmark")
    while days := days_to_ingest(dataset)[:_DAYS_AT_ONCE]:
        with hold_dataset(dataset.paths):
            build_raw_days(dataset, days, "benchmark", read_landed=False)
            save(dataset.paths)
            build_feature_days(dataset, days)


def built(paths: DatasetPaths) -> dict[str, bytes]:
    """Return the files of raw rows and features by their path."""
    folders = (paths.raw("_").parent, paths.features("_").parent)
    return {
        f"{folder.parent.name}/{path.name}": path.read_bytes() for folder in folders for path in folder.glob("*.p*")
    }


def rows_of(paths: DatasetPaths) -> Counter[str]:
    """Return how often each identity occurs in the raw rows."""
    identities: Counter[str] = Counter()
    for path in paths.raw("_").parent.glob("*.parquet"):
        identities.update(pl.read_parquet(path, columns=["row_id"])["row_id"].to_list())
    return identities


def start_host(scratch: Path) -> "subprocess.Popen[str]":
    """Start a host with a working copy in a folder; it prints a line when it holds the dataset."""
    command = [sys.executable, "-m", "benchmarks.hosts_store", "--host"]
    environment = {**os.environ, SCRATCH_VARIABLE: str(scratch)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def try_kills(landed: Path, root: Path, kills: int) -> Row:
    """Kill hosts while they ingest flights, and compare the result with that of a folder.

    Args:
        landed: Folder with the landed files.
        root: Folder for working copies.
        kills: Number of kills.
    """
    local = dataset_of(flights_attributes(), str(root / "folder"))
    shutil.copytree(landed, local.paths.landing)
    began = time.perf_counter()
    ingest_days(local)
    folder_seconds = time.perf_counter() - began
    store, rng = ObjectStore(os.environ[DATA_VARIABLE]), random.Random(0)
    copy_all(lambda path: store.write(f"landing/flights/{path.name}", path), list(landed.iterdir()))
    done = 0
    while done < kills:
        with start_host(root / f"killed_{done}") as host:
            assert host.stdout is not None
            host.stdout.readline()
            time.sleep(rng.uniform(0, 3))
            is_over = host.poll() is not None
            host.send_signal(signal.SIGKILL)
        if is_over:  # there is nothing left to interrupt: another file lands again
            path = rng.choice(sorted(landed.iterdir()))
            store.write(f"landing/flights/{path.name}", path)
        done += 1
    began = time.perf_counter()
    with start_host(root / "last") as host:
        _, errors = host.communicate()
    seconds = time.perf_counter() - began
    assert host.returncode == 0, errors
    os.environ[SCRATCH_VARIABLE] = str(root / "reader")
    remote = dataset_of(flights_attributes())
    refresh(remote.paths)
    expected, rows = rows_of(local.paths), rows_of(remote.paths)
    return {
        "trial": "kills of a host that ingests flights",
        "days": len(list(landed.iterdir())),
        "kills": kills,
        "rows_lost": len(expected.keys() - rows.keys()),
        "rows_doubled": sum(count > 1 for count in rows.values()),
        "files_that_differ": len(set(built(local.paths).items()) ^ set(built(remote.paths).items())),
        "files": len(built(local.paths)),
        "last_host_s": round(seconds, 1),
        "folder_s": round(folder_seconds, 1),
    }


def try_races(landed: Path, root: Path) -> Row:
    """Let hosts without a common lock ingest the same new days at the same time, each again until it succeeds."""
    store = ObjectStore(os.environ[DATA_VARIABLE])
    for number, path in enumerate(sorted(landed.iterdir())[:_RACERS]):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        store.write(f"landing/flights/race_{number}.csv", "".join(lines[: len(lines) // 2]).encode())
    failed, waiting = 0, [root / f"racer_{number}" for number in range(_RACERS)]
    while waiting:
        hosts = [start_host(scratch) for scratch in waiting]
        results = [host.communicate()[1] for host in hosts]
        again = [scratch for host, scratch in zip(hosts, waiting, strict=True) if host.returncode]
        assert all("at the same time" in error for error, host in zip(results, hosts, strict=True) if host.returncode)
        failed, waiting = failed + len(again), again
    os.environ[SCRATCH_VARIABLE] = str(root / "reader")
    remote = dataset_of(flights_attributes())
    refresh(remote.paths)
    rows = rows_of(remote.paths)
    return {
        "trial": "hosts without a common lock",
        "hosts": _RACERS,
        "tried_again": failed,
        "files_in_ledger": len(Ledger.load(remote.paths.ledger).files),
        "pending_days": len(days_to_ingest(remote)),
        "rows_doubled": sum(count > 1 for count in rows.values()),
    }


def try_looks(root: Path, days: int) -> Row:
    """Measure the requests and the time of a sensor's look at a dataset with many days.

    Args:
        root: Folder for working copies.
        days: Number of days, each with a file.
    """
    os.environ[SCRATCH_VARIABLE] = str(root / "sensor")
    dataset, store = dataset_of(_SENSORS), ObjectStore(os.environ[DATA_VARIABLE])
    dates = pl.date_range(pl.date(2020, 1, 1), pl.date(2023, 12, 31), eager=True)[:days].to_list()

    def land(index: int) -> None:
        rows = "".join(f"{number},{dates[index]}T{number:02d}:00:00Z,{index + number}\n" for number in range(8))
        store.write(f"landing/sensors/{dates[index]}.csv", f"sensor,at,value\n{rows}".encode())

    copy_all(land, range(days))
    ingest_days(dataset)
    requests: Counter[str] = Counter()
    for name in ("read", "list", "download", "write", "replace", "remove"):
        setattr(ObjectStore, name, partial_method(name, getattr(ObjectStore, name), requests))

    def look() -> float:
        requests.clear()
        began = time.perf_counter()
        refresh(dataset.paths)
        plan = look_at_landing(dataset, dataset.config.today(), 0.0)
        assert not plan.work, plan
        return time.perf_counter() - began

    first = look()
    usual = sorted(look() for _ in range(5))
    counted = dict(requests)
    shutil.rmtree(dataset.paths.root)
    empty = look()
    result = last_ingest(dataset)
    assert result is not None
    assert not result.pending_days(dataset)
    return {
        "trial": "looks of a sensor",
        "days": days,
        "listings": counted.pop("list", 0),
        "other_requests": sum(counted.values()),
        "first_look_s": round(first, 2),
        "look_s": round(usual[len(usual) // 2], 2),
        "look_of_an_empty_host_s": round(empty, 2),
        "files_copied_to_an_empty_host": requests["download"],
    }


def partial_method(name: str, method: Callable[..., Any], requests: Counter[str]) -> Callable[..., Any]:
    """Return a method that counts its calls."""

    def counted(store: ObjectStore, *arguments: Any, **options: Any) -> Any:
        requests[name] += 1
        return method(store, *arguments, **options)

    return counted


def run_host() -> int:
    """Ingest all pending days of the flights as a host; print a line when the dataset is held."""
    try:
        ingest_days(dataset_of(flights_attributes()), started=partial(print, "held", flush=True))
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts_store", description=__doc__)
    parser.add_argument("--host", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--days", type=int, default=100, help="days of flights")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--looked-at", type=int, default=1000, help="days that a sensor looks at")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.host:
        return run_host()
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as name, s3_server() as port:
        root = Path(name)
        os.environ.update({**s3_environment(port), DATA_VARIABLE: f"s3://{BUCKET}/data"})
        assert s3_request(port, "PUT", f"/{BUCKET}") == 200
        land_flights(root / "all")
        landed = root / "landed"
        landed.mkdir()
        for path in sorted((root / "all").iterdir())[: options.days]:
            path.rename(landed / path.name)
        for trial in (
            partial(try_kills, landed, root, options.kills),
            partial(try_races, landed, root),
            partial(try_looks, root, options.looked_at),
        ):
            results.append(trial())
            print(describe(results[-1:]), flush=True)
            if options.out:
                write_report(options.out, "hosts_store", results, ("obstore", "moto"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
