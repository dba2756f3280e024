"""Recall of planted faults: ae_pipeline and three PyOD detectors on the same encoded matrix.

December 2013 is held out. Every method learns from the same training days before it. Ten rows of each of the twelve
kinds of `benchmarks.faults` are planted into the raw rows of December. A method finds a fault if it ranks the row in
the top 1 % of the month. No method knows the planted rows.

Peers run with their defaults, with two exceptions at this size. KNN is fitted on 20,000 random training rows, because
it compares every row with every fitted row. AutoEncoder uses batches of 1,024 rows instead of 32. ae_pipeline also uses
the validation and calibration days that its fit reserves, which lie before December too. Times are wall-clock. The
times of ae_pipeline include reading and encoding. A peer receives a finished matrix.
"""

import datetime as dt
import json
import statistics
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
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.command_line import data_folder, parser_with_data
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
        name: Name in the table.
        settings: Differences from its defaults.
        make: Function that builds the detector with a seed.
        fitted_rows: Number of random training rows for its fit; None for all rows.
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
    """Flights as prepared by the stages of the pipeline.

    Attributes:
        config: Shipped configuration.
        contract: Types of the raw columns.
        paths: Paths of the dataset.
        window: Window of the days before December.
        raw: Raw rows of the held-out days.
        routes: Routes that a carrier flew in the year.
    """

    config: PipelineConfig
    contract: SchemaContract
    paths: DatasetPaths
    window: Window
    raw: pl.DataFrame
    routes: Routes


@dataclass(frozen=True)
class Trial:
    """Result of one method on the held-out month with the faults of one seed.

    Attributes:
        method: Name of the method.
        settings: Differences from its defaults.
        seed: Seed of the faults and of the method.
        hits: Number of planted rows in the top 1 %, by kind.
        fit_seconds: Wall-clock time of the fit.
        score_seconds: Wall-clock time of the scoring.
    """

    method: str
    settings: str
    seed: int
    hits: dict[str, int]
    fit_seconds: float
    score_seconds: float

    def rows(self) -> list[Row]:
        """Return a row for the overall result and a row for each kind."""
        counts = {"all": (sum(self.hits.values()), PER_KIND * len(FAULTS))}
        counts |= {kind: (hits, PER_KIND) for kind, hits in self.hits.items()}
        return [
            {
                "method": self.method,
                "settings": self.settings,
                "seed": self.seed,
                "kind": kind,
                "planted": planted,
                "recall_top_1pct": hits / planted,
                "fit_seconds": round(self.fit_seconds, 3),
                "score_seconds": round(self.score_seconds, 3),
            }
            for kind, (hits, planted) in counts.items()
        ]


def prepare(root: Path) -> Prepared:
    """Land flights and build raw data and features with the shipped configuration.

    Args:
        root: Data folder. Files that are up to date are not rebuilt.
    """
    shipped = files("ae_pipeline").joinpath("defs/flights/defs.yaml").read_text(encoding="utf-8")
    config = PipelineConfig.model_validate(yaml.safe_load(shipped)["attributes"])
    paths = DatasetPaths(root, config.dataset)
    if not paths.landing.exists():
        land_flights(paths.landing)
    intake = ingest(Dataset(config, paths), dt.date.today())
    for day in intake.ledger.days:
        build_raw_day(day, intake, paths)
    built = [build_features_day(day, Dataset(config, paths), intake.contract) for day in intake.ledger.days]
    window = cut_window({day.day: day.content_hash for day in built if day.rows and day.day < HELD_OUT_FROM}, config)
    raw = pl.concat([pl.read_parquet(paths.raw(day)) for day in intake.ledger.days])
    routes = set(raw.select("carrier", "origin", "dest").unique().iter_rows())
    midnight = dt.datetime.fromisoformat(HELD_OUT_FROM).replace(tzinfo=config.zone)
    held_out = raw.filter(pl.col("event_time") >= midnight.astimezone(dt.UTC))
    return Prepared(config, intake.contract, paths, window, held_out, routes)


def run_seed(prepared: Prepared, seed: int, peers: Sequence[Peer] = PEERS) -> list[Trial]:
    """Fit ae_pipeline and some peers, and count the planted rows that each method finds."""
    training = prepared.config.training.model_copy(update={"seed": seed})
    config = prepared.config.model_copy(update={"training": training})
    raw, kinds = plant(prepared.raw, prepared.routes, seed, PER_KIND)
    features = build_features(raw, config, prepared.contract)

    started = time.perf_counter()
    bundle, _ = fit_bundle(Dataset(config, prepared.paths), feature_columns(config, prepared.contract), prepared.window)
    fitted = time.perf_counter()
    score = bundle.score(features).score
    scored = time.perf_counter()
    trials = [Trial(OURS, "as shipped", seed, count_hits(score, kinds), fitted - started, scored - fitted)]

    train_rows = bundle.encoder.encode(prepared.window.rows("train", prepared.paths))
    matrix = bundle.encoder.encode(features)
    for peer in peers:
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
        hits = count_hits(score, kinds)
        trials.append(Trial(peer.name, peer.settings, seed, hits, fitted - started, scored - fitted))
    return trials


def count_hits(score: npt.NDArray[np.float64], kinds: pl.Series) -> dict[str, int]:
    """Return the number of planted rows in the top 1 %, by kind. Among equal scores the earlier row ranks first."""
    top_rows = int(TOP_SHARE * len(score))
    top = np.argsort(-score, kind="stable")[:top_rows]
    counts = dict(kinds[top].drop_nulls().value_counts().iter_rows())
    return {kind: int(counts.get(kind, 0)) for kind in FAULTS}


def describe(trials: Sequence[Trial]) -> str:
    """Return the means over seeds: one table over all kinds, one by kind."""
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    overall, planted = [], PER_KIND * len(FAULTS)
    for method, runs in by_method.items():
        recall = [sum(run.hits.values()) / planted for run in runs]
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
        [kind, *(f"{statistics.mean(run.hits[kind] for run in runs) / PER_KIND:.0%}" for runs in by_method.values())]
        for kind in FAULTS
    ]
    return "\n\n".join(
        (
            format_table(["method", "settings", "recall", "range over seeds", "fit, s", "score, s"], overall),
            format_table(["recall by kind", *by_method], kinds),
        )
    )


def run(root: Path, seeds: Sequence[int], out: Path, *, with_peers: bool = True) -> None:
    """Run all seeds on a data folder, print the tables and write the JSON.

    Args:
        root: Data folder.
        seeds: Seeds of faults and methods.
        out: JSON file to write.
        with_peers: Whether the peers run too. Otherwise the JSON keeps their rows of an earlier run.
    """
    peers = PEERS if with_peers else ()
    kept = [] if with_peers else [row for row in json.loads(out.read_text())["rows"] if row["method"] != OURS]
    prepared = prepare(root)
    window = prepared.window
    print(
        f"flights: {len(window.train)} training days, {len(window.validation)} validation days, "
        f"{len(window.calibration)} calibration days; {prepared.raw.height:,} held-out rows, "
        f"{PER_KIND * len(FAULTS)} of them faulty; the top 1 % are {int(TOP_SHARE * prepared.raw.height)} rows",
        flush=True,
    )
    trials: list[Trial] = []
    for seed in seeds:
        trials += run_seed(prepared, seed, peers)
        latest = trials[-1 - len(peers) :]
        print(f"seed {seed}: " + ", ".join(f"{t.method} {sum(t.hits.values())}" for t in latest), flush=True)
    print(f"\n{describe(trials)}")
    rows = [row for trial in trials for row in trial.rows()]
    write_report(out, "planted_faults", [*rows, *kept], ("pyod", "scikit-learn"))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = parser_with_data("planted_faults", __doc__, "0..4")
    parser.add_argument("--no-peers", action="store_true", help="keep the rows of the peers in --out")
    arguments = parser.parse_args()
    with data_folder(arguments.data) as folder:
        run(folder, arguments.seeds, arguments.out, with_peers=not arguments.no_peers)


if __name__ == "__main__":
    main()
