"""The engines side by side: start-up, overhead of an item, stages of a dataset, and whether all files are the same.

- start: time to the first result, with the start of the workers or of Ray.
- empty item: time of an item without work, in a map over many.
- overhead: of items that work for about a second each, on all cores. The workers measure the work themselves, so that a
  busy machine does not count: 1 − work / (time of the map × workers).
- stages: CSV files with one day each are ingested, and become raw rows, features and a published table.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from ae_pipeline.common.cores import cores
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.engine.mapping import VARIABLE, Engine, engine_map
from ae_pipeline.features.build import feature_columns
from ae_pipeline.features.split import cut_window
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.latents.publish import publish
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.generated import FIRST, day_of, day_rows
from benchmarks.report import Row, format_table, write_report

COLUMNS = 16
_EMPTY_ITEMS = 500
_WORK_SECONDS = 1.0
_ROUNDS = 6
"""Items with work for each core."""


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


class Project:
    """A dataset of CSV files with one day each, and a bundle that is fitted on it."""

    def __init__(self, root: Path, days: int, rows: int) -> None:
        self.days = [day_of(index) for index in range(days)]
        self._root, self._rows = root, rows
        self._config = PipelineConfig.model_validate(
            {
                "dataset": "engines",
                "identity": ["key"],
                "event_time": "at",
                "exclude": ["key", "at"],
                "start": FIRST.isoformat(),
                "end": self.days[-1],
                "training": {"validation_days": 2, "calibration_days": 2, "epochs": 1},
                "gate": {"days": 0},
            }
        )
        self._landed = root / "landed"
        self._landed.mkdir()
        for index, day in enumerate(self.days):
            path = self._landed / f"{day}.csv"
            frame = day_rows(index, COLUMNS, rows).rename({"row_id": "key", "event_time": "at"})
            frame.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).write_csv(path)
            os.utime(path, (index, index))

    def stages(self, engine: Engine, bundle: Path) -> tuple[dict[str, float], str]:
        """Run all stages in a new folder; return the time of each, and a hash of all files."""
        root = self._root / engine
        dataset = Dataset(self._config, DatasetPaths(root, "engines"))
        shutil.copytree(self._landed, dataset.paths.landing)
        figures = {
            "ingestion and raw rows, s": _timed(
                lambda: build_raw_days(dataset, self.days, "benchmark", read_landed=True)
            ),
            "features, s": _timed(lambda: build_feature_days(dataset, self.days)),
        }
        if not bundle.exists():
            self._fit(dataset).save(bundle)
        model = ModelBundle.load(bundle)
        folder = None if engine is Engine.THREADS else bundle
        figures["publication, s"] = _timed(lambda: publish(self.days, dataset, model, 1, {}, bundle_folder=folder))
        digest = hashlib.sha256()
        for path in sorted(root.rglob("*.parquet")):
            if "_delta_log" not in path.parts:
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
        return figures, digest.hexdigest()

    def _fit(self, dataset: Dataset) -> ModelBundle:
        facts = {day: read_facts(dataset.paths.features(day)) for day in self.days}
        content = {day: fact["content_hash"] for day, fact in facts.items()}
        columns = feature_columns(dataset.config, load_contract(dataset.paths.contract))
        return fit_bundle(dataset, columns, cut_window(content, dataset.config))[0]


def _timed(stage: Callable[[], object]) -> float:
    began = time.perf_counter()
    stage()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a day")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    engines = [engine for engine in Engine if engine is not Engine.RAY or find_spec("ray")]
    rows: list[Row] = []
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder), options.days, options.rows)
        for engine in engines:
            os.environ[VARIABLE] = engine
            figures = measure_map()
            stages, digest = project.stages(engine, Path(folder) / "bundle")
            digests.add(digest)
            rows += [
                {"engine": engine, "figure": name, "value": round(value, 4)}
                for name, value in (figures | stages).items()
            ]
    names = list(dict.fromkeys(str(row["figure"]) for row in rows))
    values = {(row["engine"], row["figure"]): f"{row['value']:.3f}" for row in rows}
    print(format_table(["figure", *engines], [[name, *(values[engine, name] for engine in engines)] for name in names]))
    print("\nAll engines wrote the same files." if len(digests) == 1 else "\nThe engines wrote different files.")
    rows.append({"engine": "all", "figure": "different results", "value": len(digests)})
    if options.out:
        write_report(options.out, "engines", rows, ["loky", *(["ray"] if find_spec("ray") else [])])


if __name__ == "__main__":
    main()
