"""The engines side by side: start-up, overhead of an item, stages of a dataset, and whether all files are the same.

- start: time to the first result, with the start of the workers or of Ray.
- empty item: time of an item without work, in a map over many.
- overhead: of items that work for about a second each, on all cores. The workers measure the work themselves, so that a
  busy machine does not count: 1 − work / (time of the map × workers).
- stages: CSV files with one day each are ingested, and become raw rows, features and a published table.
- layer: raw rows and features are built in one process, with `engine_map` and without it, by turns.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ae_pipeline.common.cores import cores
from ae_pipeline.engine.mapping import VARIABLE, Engine, engine_map
from ae_pipeline.latents.publish import publish
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days
from benchmarks.engines_layer import measure_layer
from benchmarks.engines_project import Project, digest_of
from benchmarks.report import Row, format_table, write_report

_EMPTY_ITEMS = 500
_WORK_SECONDS = 1.0
_ROUNDS = 6
"""Items with work for each core."""
_LAYER = "threads, layer"
"""Where the figures of the trial `layer` stand in the column `engine`."""


def empty(item: int) -> int:
    """Do nothing."""
    return item


def work(rounds: int) -> float:
    """Hash for a while, without the global interpreter lock; return the time that it took."""
    began = time.perf_counter()
    block = bytes(1 << 20)
    digest = hashlib.sha256()
    for _ in range(rounds):
        digest.update(block)
    return time.perf_counter() - began


def measure_map() -> dict[str, float]:
    """Measure start-up and overhead of the selected engine, in seconds and shares."""
    began = time.perf_counter()
    list(engine_map(empty, range(cores()), threads=cores()))
    start = time.perf_counter() - began
    began = time.perf_counter()
    list(engine_map(empty, range(_EMPTY_ITEMS), threads=cores()))
    each = (time.perf_counter() - began) / _EMPTY_ITEMS
    rounds = max(1, round(100 * _WORK_SECONDS / work(100)))
    began = time.perf_counter()
    worked = list(engine_map(work, [rounds] * (_ROUNDS * cores()), threads=cores()))
    overhead = 1 - sum(worked) / ((time.perf_counter() - began) * cores())
    return {"start, s": start, "empty item, ms": 1e3 * each, "overhead": overhead}


def measure_stages(project: Project, engine: Engine, bundle: Path) -> tuple[dict[str, float], str]:
    """Run all stages in a new folder; return the time of each, and a hash of all files."""
    dataset = project.landed_in(engine)
    figures = {
        "ingestion and raw rows, s": _timed(
            lambda: build_raw_days(dataset, project.days, "benchmark", read_landed=True)
        ),
        "features, s": _timed(lambda: build_feature_days(dataset, project.days)),
    }
    model = project.model(bundle, dataset)
    folder = None if engine is Engine.THREADS else bundle
    figures["publication, s"] = _timed(lambda: publish(project.days, dataset, model, 1, {}, bundle_folder=folder))
    files = [path for path in dataset.paths.root.rglob("*.parquet") if "_delta_log" not in path.parts]
    return figures, digest_of(dataset.paths.root, files)


def _timed(stage: Callable[[], object]) -> float:
    began = time.perf_counter()
    stage()
    return time.perf_counter() - began


def compare(project: Project, bundle: Path) -> list[Row]:
    """Measure each engine that is installed."""
    engines = [engine for engine in Engine if engine is not Engine.RAY or find_spec("ray")]
    rows: list[Row] = []
    digests = set()
    for engine in engines:
        os.environ[VARIABLE] = engine
        figures = measure_map()
        stages, digest = measure_stages(project, engine, bundle)
        digests.add(digest)
        rows += _rows(engine, figures | stages)
    return [*rows, {"engine": "all", "figure": "different results", "value": len(digests)}]


def _rows(engine: str, figures: Mapping[str, float]) -> list[Row]:
    return [{"engine": engine, "figure": name, "value": round(value, 4)} for name, value in figures.items()]


def describe(rows: Sequence[Row]) -> str:
    """Return a table with a line for each figure and a column for each engine."""
    engines = list(dict.fromkeys(str(row["engine"]) for row in rows))
    values = {(row["engine"], row["figure"]): f"{row['value']:.3f}" for row in rows}
    names = list(dict.fromkeys(str(row["figure"]) for row in rows))
    return format_table(
        ["figure", *engines], [[name, *(values.get((engine, name), "") for engine in engines)] for name in names]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a day")
    parser.add_argument("--rounds", type=int, default=9, help="of the trial `layer`")
    trials = ("engines", "layer")
    parser.add_argument("--trials", nargs="+", default=trials, choices=trials, help="others keep their rows")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows: list[Row] = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        project, bundle = Project(Path(folder), options.days, options.rows), Path(folder) / "bundle"
        measures: dict[str, Callable[[], list[Row]]] = {
            "engines": lambda: compare(project, bundle),
            "layer": lambda: _rows(_LAYER, measure_layer(project, options.rounds)),
        }
        for trial in options.trials:
            measured = measures[trial]()
            print(describe(measured), flush=True)
            new = {row["engine"] for row in measured}
            rows = [*(row for row in rows if row["engine"] not in new), *measured]
            if options.out:
                write_report(options.out, "engines", rows, ["loky", *(["ray"] if find_spec("ray") else [])])


if __name__ == "__main__":
    main()
