"""Recall of planted faults: ae_pipeline against three PyOD detectors on the same encoded matrix.

December 2013 is held out. Every method learns from the same training days before it; ten rows of each of the twelve
kinds of `benchmarks.faults` are planted into December's raw rows, and a method finds a fault when it ranks it in the
top 1 % of the month. Nobody sees which rows are planted before the ranks are in.

Peers run with their defaults except where those cannot be run at this size: KNN is fitted on 20,000 random training
rows, since it compares every row with every fitted one, and AutoEncoder takes batches of 1,024 rows instead of 32.
What ae_pipeline uses beyond the peers' training rows are the validation and calibration days that its own fit sets
aside, also before December. Times are wall-clock: fitting and scoring of ae_pipeline include reading and encoding, a
peer is handed its matrix.
"""

import argparse
import datetime as dt
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.iforest import IForest
from pyod.models.knn import KNN

from ae_pipeline.cli.demo import land_flights
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.build import build_features, build_features_day, feature_columns
from ae_pipeline.features.split import Window, cut_window
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.faults import FAULTS, Routes, plant
from benchmarks.report import Row, format_table, write_report

HELD_OUT_FROM = "2013-12-01"
TOP_SHARE = 0.01
PER_KIND = 10
OURS = "ae_pipeline"


@dataclass(frozen=True)
class Peer:
    """A detector of another library.

    Attributes:
        name: In the table.
        settings: What differs from its defaults.
        make: Builds it with a seed.
        fitted_rows: Training rows it is fitted on, drawn at random; None for all.
    """

    name: str
    settings: str
    make: Callable[[int], Any]
    fitted_rows: int | None = None


PEERS = (
    Peer("PyOD IForest", "defaults", lambda seed: IForest(random_state=seed)),
    Peer("PyOD KNN", "20,000 training rows", lambda _: KNN(), 20_000),
    Peer(
        "PyOD AutoEncoder",
        "batch size 1,024",
        lambda seed: AutoEncoder(batch_size=1024, random_state=seed, verbose=0),
    ),
)


@dataclass(frozen=True)
class Prepared:
    """Flights as the pipeline's own stages leave them.

    Attributes:
        config: As shipped.
        contract: Types of the raw columns.
        paths: Where the rows are.
        window: Cut from the days before December.
        raw: Rows of the held-out days.
        routes: Every route that a carrier flew in the year.
    """

    config: PipelineConfig
    contract: SchemaContract
    paths: DatasetPaths
    window: Window
    raw: pl.DataFrame
    routes: Routes


@dataclass(frozen=True)
class Trial:
    """What one method made of the held-out month with one seed's faults.

    Attributes:
        method: Its name.
        settings: What differs from its defaults.
        seed: Of the faults and of the method.
        found: Planted rows in the top 1 %, by kind.
        fit_seconds: Wall-clock.
        score_seconds: Wall-clock.
    """

    method: str
    settings: str
    seed: int
    found: dict[str, int]
    fit_seconds: float
    score_seconds: float

    def rows(self) -> list[Row]:
        """Gives the overall result and one for each kind."""
        counts = {"all": (sum(self.found.values()), PER_KIND * len(FAULTS))}
        counts |= {kind: (found, PER_KIND) for kind, found in self.found.items()}
        return [
            {
                "method": self.method,
                "settings": self.settings,
                "seed": self.seed,
                "kind": kind,
                "planted": planted,
                "recall_top_1pct": found / planted,
                "fit_seconds": round(self.fit_seconds, 3),
                "score_seconds": round(self.score_seconds, 3),
            }
            for kind, (found, planted) in counts.items()
        ]


def prepare(root: Path) -> Prepared:
    """Lands flights and runs raw data and features, with the shipped configuration.

    Args:
        root: Data folder; what is up to date there is not built again.
    """
    shipped = files("ae_pipeline").joinpath("defs/flights/defs.yaml").read_text(encoding="utf-8")
    config = PipelineConfig.model_validate(yaml.safe_load(shipped)["attributes"])
    paths = DatasetPaths(root, config.dataset)
    if not paths.landing.exists():
        land_flights(paths.landing)
    intake = ingest(config, paths, dt.date.today(), lambda *_: None)
    for day in intake.ledger.days:
        build_raw_day(day, intake, paths)
    built = [build_features_day(day, config, intake.contract, paths) for day in intake.ledger.days]
    window = cut_window({day.day: day.content_hash for day in built if day.rows and day.day < HELD_OUT_FROM}, config)
    raw = pl.concat([pl.read_parquet(paths.raw(day)) for day in intake.ledger.days])
    routes = set(raw.select("carrier", "origin", "dest").unique().iter_rows())
    held_out = raw.filter(pl.col("event_time") >= dt.datetime.fromisoformat(f"{HELD_OUT_FROM}T00:00:00Z"))
    return Prepared(config, intake.contract, paths, window, held_out, routes)


def run_seed(prepared: Prepared, seed: int) -> list[Trial]:
    """Fits every method and counts what each finds of one planting."""
    training = prepared.config.training.model_copy(update={"seed": seed})
    config = prepared.config.model_copy(update={"training": training})
    raw, kinds = plant(prepared.raw, prepared.routes, seed, PER_KIND)
    features = build_features(raw, config, prepared.contract)

    started = time.perf_counter()
    bundle, _ = fit_bundle(config, feature_columns(config, prepared.contract), prepared.window, prepared.paths)
    fitted = time.perf_counter()
    score = bundle.score(features).score
    scored = time.perf_counter()
    trials = [Trial(OURS, "as shipped", seed, count_found(score, kinds), fitted - started, scored - fitted)]

    train_rows = bundle.encoder.encode(prepared.window.rows("train", prepared.paths))
    matrix = bundle.encoder.encode(features)
    for peer in PEERS:
        rows = train_rows
        if peer.fitted_rows is not None:
            chosen = np.random.default_rng(seed).choice(len(rows), min(peer.fitted_rows, len(rows)), replace=False)
            rows = rows[chosen]
        detector = peer.make(seed)
        started = time.perf_counter()
        detector.fit(rows)
        fitted = time.perf_counter()
        score = np.asarray(detector.decision_function(matrix), dtype=np.float64)
        scored = time.perf_counter()
        found = count_found(score, kinds)
        trials.append(Trial(peer.name, peer.settings, seed, found, fitted - started, scored - fitted))
    return trials


def count_found(score: npt.NDArray[np.float64], kinds: pl.Series) -> dict[str, int]:
    """Counts planted rows among the highest 1 % of scores, by kind; of equal scores the earlier row ranks first."""
    places = int(TOP_SHARE * len(score))
    top = np.argsort(-score, kind="stable")[:places]
    counts = dict(kinds[top].drop_nulls().value_counts().iter_rows())
    return {kind: int(counts.get(kind, 0)) for kind in FAULTS}


def describe(trials: Sequence[Trial]) -> str:
    """Lays out the means over seeds: one table over all kinds, one by kind."""
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    overall, planted = [], PER_KIND * len(FAULTS)
    for method, runs in by_method.items():
        recall = [sum(run.found.values()) / planted for run in runs]
        overall.append(
            [
                method,
                runs[0].settings,
                f"{statistics.mean(recall):.1%}",
                f"{min(recall):.1%} to {max(recall):.1%}",
                f"{statistics.mean(run.fit_seconds for run in runs):.1f}",
                f"{statistics.mean(run.score_seconds for run in runs):.1f}",
            ]
        )
    kinds = [
        [kind, *(f"{statistics.mean(run.found[kind] for run in runs) / PER_KIND:.0%}" for runs in by_method.values())]
        for kind in FAULTS
    ]
    return "\n\n".join(
        (
            format_table(["method", "settings", "recall", "over seeds", "fit, s", "score, s"], overall),
            format_table(["recall by kind", *by_method], kinds),
        )
    )


def run(root: Path, seeds: Sequence[int], out: Path) -> None:
    """Runs all seeds on a data folder, prints the tables and writes the JSON."""
    prepared = prepare(root)
    window = prepared.window
    print(
        f"flights: {len(window.train)} days to train on, {len(window.validation)} to validate, "
        f"{len(window.calibration)} to calibrate; {prepared.raw.height:,} rows held out, of which "
        f"{PER_KIND * len(FAULTS)} are made faulty and {int(TOP_SHARE * prepared.raw.height)} are the top 1 %",
        flush=True,
    )
    trials: list[Trial] = []
    for seed in seeds:
        trials += run_seed(prepared, seed)
        latest = trials[-1 - len(PEERS) :]
        print(f"seed {seed}: " + ", ".join(f"{t.method} {sum(t.found.values())}" for t in latest), flush=True)
    print(f"\n{describe(trials)}")
    write_report(out, "planted_faults", [row for trial in trials for row in trial.rows()], ("pyod", "scikit-learn"))


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted_faults", description=__doc__)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="numbers, parted by commas (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="data folder to keep and use again (default: a temporary one)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.data:
        run(arguments.data, seeds, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), seeds, arguments.out)


if __name__ == "__main__":
    main()
