"""Load: many files, days, datasets and rows, each at several sizes up to the goal, with growth exponents.

Times are those of the clock, and those of the processor, which other work on the machine hardly changes. The table says
how busy the machine was: its load average for each core, at the start and at the end. The exponent is the
least-squares slope of log time over log size. It is 1 if time is proportional to the size, and 0 if
time does not depend on it. `--share` measures up to a part of the goals, where the full sizes would take too long.

- looks: a look of the sensor `landing`. The files have landed and are read, so that a look finds nothing to do. The
  first look of a day checks the digest of each staged copy. While a landed file is being written, only what changed is
  looked at. After an ingestion, which changes the ledger, and in a new process everything is looked at.
- small files: ingestion of CSV files with one row each.
- days: what a new day needs after many days of 20 rows. As in a deployment, one run of the sensor `landing` reads it,
  and one run of the sensor `rebuild` publishes it and reports on it, each in a separate process.
- datasets: the definitions of many `defs.yaml`, and one tick of all sensors.
- ticks: the database of ticks after hours without work, in which the sensors of ten datasets look.
- rows: one CSV; its ingestion, and the peak memory of that process.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import yaml

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.landing import ingest, last_ingest
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days
from ae_pipeline.lifecycle.landing_look import forget_looks, look_at_landing
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from benchmarks.deployment import STAGES, run_stage
from benchmarks.generated import FIRST, day_of
from benchmarks.growth import exponent
from benchmarks.load_ticks import measure_ticks
from benchmarks.report import Row, format_table, write_report

SETTLE_SECONDS = 3.0
MOST_LINKS = 50_000
"""Number of links to one file. The file system ext4 allows 65,000."""

ROW_LIMIT = 100_000_000
"""Limit of the rows of a file, above the default, so that the largest file is read."""

Figures = dict[str, float]
"""Figures of one size, by name: seconds, or MiB where the name says so."""


def _dataset(root: Path, name: str = "load", **settings: Any) -> Dataset:
    config = PipelineConfig.model_validate({"dataset": name, "identity": ["id"], **settings})
    return Dataset(config, DatasetPaths(root / "data", name))


def _timed(name: str, work: Callable[[], object]) -> Figures:
    """Return the time of some work, and the time that it used the processor, which other work does not change."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {name: time.perf_counter() - began, f"{name}, CPU": time.process_time() - cpu}


def _build(dataset: Dataset) -> None:
    """Read what has landed, and build raw rows and features."""
    build_raw_days(dataset, [ALL_ROWS], "load", read_landed=True)
    build_feature_days(dataset, [ALL_ROWS])


def measure_looks(root: Path, files: int) -> Figures:
    """Measure looks at a folder with many landed files. One is read; the others are links to it and to its copy."""
    dataset = _dataset(root)
    landing, old = dataset.paths.landing, time.time() - 3600
    landing.mkdir(parents=True)
    first = landing / "first.csv"
    first.write_text("id,x\n1,2\n", encoding="utf-8")
    os.utime(first, (old, old))
    _build(dataset)
    (entry,) = Ledger.load(dataset.paths.ledger).files.values()
    entries, copy = {"first.csv": entry}, dataset.paths.staged(str(entry.staged))
    original, first_copy = first, copy
    for index in range(files - 1):
        folder = landing / f"{index // 1000:04d}"
        if index % 1000 == 0:
            folder.mkdir()
        landed, staged = folder / f"{index:06d}.csv", dataset.paths.staged(f"copy{index:06d}")
        if index % MOST_LINKS == 0:
            shutil.copy2(original, first := landed)
            shutil.copy2(first_copy, copy := staged)
        else:
            os.link(first, landed)
            os.link(copy, staged)
        entries[f"{folder.name}/{index:06d}.csv"] = replace(entry, staged=f"copy{index:06d}")
    Ledger(entries).save(dataset.paths.ledger)
    raw = pq.read_table(dataset.paths.raw(ALL_ROWS))
    result = last_ingest(dataset)
    assert result is not None
    facts = {"superseded": str(files - 1), "repeated": "0", "input_hash": result.input_hash(ALL_ROWS)}
    write_parquet(dataset.paths.raw(ALL_ROWS), raw, facts)
    build_feature_days(dataset, [ALL_ROWS])
    time.sleep(SETTLE_SECONDS)

    def look() -> None:
        plan = look_at_landing(dataset, dt.date(2030, 1, 1), SETTLE_SECONDS)
        if plan.work:
            raise RuntimeError(f"the look found work, although all files are read: {plan.work}")

    figures = _timed("first look", look)
    repeated = [_timed("look", look) for _ in range(5)]
    figures |= {name: min(each[name] for each in repeated) for name in repeated[0]}
    (landing / "new.csv").write_text("id,x\n2,3\n", encoding="utf-8")
    figures |= _timed("look with a new file, still being written", look)
    (landing / "new.csv").unlink()
    os.utime(dataset.paths.ledger)
    figures |= _timed("look after an ingestion", look)
    forget_looks()
    return figures | _timed("first look of the next process", look)


def measure_small_files(root: Path, files: int) -> Figures:
    """Measure the ingestion of many files with one row each."""
    dataset = _dataset(root, event_time="at", start=FIRST.isoformat(), end=day_of(299))
    dataset.paths.landing.mkdir(parents=True)
    for index in range(files):
        line = f"{index},{day_of(index % 300)}T10:00:00Z,{index % 97}"
        (dataset.paths.landing / f"{index:06d}.csv").write_text(f"id,at,x\n{line}\n", encoding="utf-8")
    return _timed("ingestion", lambda: ingest(dataset, dataset.config.today()))


def measure_days(root: Path, days: int) -> Figures:
    """Measure the two runs of a new day after many days."""
    rng = np.random.default_rng(0)
    last = dt.date(2025, 12, 31)
    names = [(last - dt.timedelta(days=days - index)).isoformat() for index in range(days + 1)]
    attributes = {
        "dataset": "load",
        "identity": ["id"],
        "event_time": "at",
        "start": names[0],
        "end": names[-1],
        "exclude": ["id"],
        "training": {"validation_days": 2, "calibration_days": 5, "epochs": 1},
        "alerts": {"budget": 0.01, "evidence": ["columns", "latent", "row"]},
        "gate": {"days": 0},
    }
    landing = root / "data" / "landing" / "load"
    landing.mkdir(parents=True)

    def land(day: str) -> None:
        load = rng.lognormal(size=20).round(3)
        rows = {"id": [f"{day}-{row}" for row in range(20)], "at": [f"{day}T{row:02d}:00:00Z" for row in range(20)]}
        pl.DataFrame({**rows, "load": load, "power": 2 * load + rng.normal(0, 0.1, 20)}).write_csv(
            landing / f"{day}.csv"
        )

    for day in names[:-1]:
        land(day)
    for stage in STAGES:
        run_stage(root, attributes, stage, names[:-1])
    land(names[-1])
    figures = {"new day": 0.0, "new day, CPU": 0.0}
    for name, stages in {"read": "raw_data,features", "publish and report": "latent_features,anomaly_report"}.items():
        measure = run_stage(root, attributes, stages, names[-1:])
        figures |= {f"new day: {name}": measure.seconds, f"new day: {name}, CPU": measure.cpu}
        figures["new day"] += measure.seconds
        figures["new day, CPU"] += measure.cpu
    return figures


_TICK = """
import json, sys, time
import dagster as dg
from ae_pipeline.definitions import load_project
def seconds_of(work):
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - began, time.process_time() - cpu
loaded, *definitions = seconds_of(load_project)
repository, *more = seconds_of(lambda: loaded.definitions.get_repository_def())
workspace = loaded.definitions.resources["workspace"]
workspace.tracker().open()
def tick():
    for sensor in repository.sensor_defs:
        if not isinstance(sensor, dg.RunStatusSensorDefinition):
            sensor(dg.build_sensor_context(instance, resources={"workspace": workspace}))
with dg.DagsterInstance.get() as instance:
    first, second = (seconds_of(tick)[1:] for _ in range(2))
parts = {"definitions": [a + b for a, b in zip(definitions, more)], "first tick": first, "tick": second}
print(json.dumps({f"{name}{kind}": each for name, pair in parts.items() for kind, each in zip(("", ", CPU"), pair)}))
"""
"""Program that loads the definitions and evaluates all sensors twice."""


def measure_datasets(root: Path, datasets: int) -> Figures:
    """Measure the definitions of many datasets with a landed file each, and a tick of all their sensors.

    Raises:
        RuntimeError: The program failed.
    """
    source = Path(__file__).resolve().parents[1]
    ignored = shutil.ignore_patterns("defs", "__pycache__")
    shutil.copytree(source / "ae_pipeline", root / "ae_pipeline", ignore=ignored)
    shutil.copy(source / "pyproject.toml", root)
    (root / "home").mkdir()
    shutil.copy(source / ".dagster" / "dagster.yaml", root / "home")
    for index in range(datasets):
        dataset = _dataset(root, f"load_{index:03d}")
        dataset.paths.landing.mkdir(parents=True)
        (dataset.paths.landing / "a.csv").write_text("id,x\n1,2\n", encoding="utf-8")
        _build(dataset)
        folder = root / "ae_pipeline" / "defs" / dataset.name
        folder.mkdir(parents=True)
        attributes = {"dataset": dataset.name, "identity": ["id"], "retrain": {"drifting_days": 3}}
        component = {"type": "ae_pipeline.orchestration.component.AutoencoderPipeline", "attributes": attributes}
        (folder / "defs.yaml").write_text(yaml.safe_dump(component), encoding="utf-8")
    folders = {"DAGSTER_HOME": "home", "AE_PIPELINE_DATA": "data", "AE_PIPELINE_MLRUNS": "mlruns"}
    environment = {**os.environ, "PYTHONPATH": str(root), **{name: str(root / path) for name, path in folders.items()}}
    command = [sys.executable, "-c", _TICK]
    completed = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    if completed.returncode:
        raise RuntimeError(f"the sensors of {datasets} datasets failed:\n{completed.stdout}\n{completed.stderr}")
    figures: Figures = json.loads(completed.stdout.splitlines()[-1])
    return figures


def measure_rows(root: Path, rows: int) -> Figures:
    """Measure the ingestion of one CSV with many rows."""
    attributes = {"dataset": "load", "identity": ["id"], "source": {"limits": {"rows": ROW_LIMIT}}}
    landing = root / "data" / "landing" / "load"
    landing.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (landing / "big.csv").open("wb") as file:
        for first in range(0, rows, 1_000_000):
            count = min(1_000_000, rows - first)
            values = {f"c{index}": rng.normal(size=count).round(4) for index in range(4)}
            ids = np.arange(first, first + count)
            pl.DataFrame({"id": ids, **values}).write_csv(file, include_header=first == 0)
    measure = run_stage(root, attributes, "raw_data", [ALL_ROWS])
    return {"ingestion": measure.seconds, "ingestion, CPU": measure.cpu, "peak memory, MiB": measure.mebibytes}


MEASURES: dict[str, tuple[Callable[[Path, int], Figures], int, dict[str, float]]] = {
    "looks": (measure_looks, 200_000, {"look": 1.0}),
    "small files": (measure_small_files, 5_000, {"ingestion": 10.0}),
    "days": (measure_days, 3_000, {"new day": 20.0}),
    "datasets": (measure_datasets, 100, {"definitions": 2.0, "tick": 10.0}),
    "rows": (measure_rows, 20_000_000, {"peak memory, MiB": 2048.0}),
    "ticks": (measure_ticks, 4, {"database of ticks, MB": 14.0}),
}
"""Function, largest size, and the goal of each figure at that size, by the name of the measure."""


def measure(name: str, share: float) -> list[Row]:
    """Measure three sizes up to a share of the largest one, and return a row for each figure."""
    function, largest, goals = MEASURES[name]
    sizes = sorted({max(round(largest * share / part), 1) for part in (25, 5, 1)})
    busy = [os.getloadavg()[0] / (os.cpu_count() or 1)]
    by_figure: dict[str, dict[int, float]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for figure, value in function(Path(folder), size).items():
                by_figure.setdefault(figure, {})[size] = value
                print(f"{name}, {size:,}: {figure} {value:.3g}", flush=True)
    busy.append(os.getloadavg()[0] / (os.cpu_count() or 1))
    rows: list[Row] = [
        {"measure": name, "figure": "load average for each core, at the start and at the end", "value": round(each, 2)}
        for each in busy
    ]
    for figure, values in by_figure.items():
        goal = {"goal": goals[figure]} if figure in goals and share == 1 else {}
        rows += [{"measure": name, "figure": figure, "size": size, "value": round(values[size], 4)} for size in sizes]
        rows[-1] = {**rows[-1], "exponent": round(exponent(values), 2), **goal}
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write, after each measure")
    parser.add_argument("--only", choices=MEASURES, action="append", help="measure; repeat it for several")
    parser.add_argument("--resume", action="store_true", help="keep the other measures that the file has")
    parser.add_argument("--share", type=float, default=1.0, help="largest size as a share of the goal; 1 by default")
    chosen = parser.parse_args(arguments)
    if chosen.resume and not chosen.out:
        parser.error("--resume needs --out, the file to go on from")
    rows: list[Row] = []
    for name in chosen.only or MEASURES:
        measured = measure(name, chosen.share)
        if chosen.resume and chosen.out.exists():  # another process may have written it meanwhile
            rows = json.loads(chosen.out.read_text(encoding="utf-8"))["rows"]
        rows = [row for row in rows if row["measure"] != name] + measured
        if chosen.out:
            write_report(chosen.out, "load", rows, ("dagster", "mlflow", "pyarrow"))
    header = ("measure", "figure", "size", "value", "exponent", "goal")
    print("\n" + format_table(header, [[str(row.get(column, "")) for column in header] for row in rows]))
    return int(any("goal" in row and float(row["value"]) > float(row["goal"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
