"""Anomaly detection in tables: ae_pipeline and PyOD's detectors on any folder of ADBench-like `.npz` files.

A file holds `X`, rows × features, and `y`, 0 for normal rows and 1 for anomalies (Han et al. 2022, "ADBench"). A set of
more than 10,000 rows is cut to 10,000 random rows. There are two protocols:

- one-class: learn from half of the normal rows; score the other half and every anomaly.
- contaminated: learn from all rows, including anomalies, without labels; score the same rows.

Every method has one configuration for all sets and both protocols. Peers use PyOD's defaults on numbers standardized on
the training rows. ae_pipeline receives raw numbers, because its preprocessing is part of the method.

For the rows that a peer was fitted on, its score is its `decision_scores_`, which its fit produces. Scoring these rows
as new rows would make each row its own nearest neighbor in KNN and LOF and lower their results on many sets. For the
other peers the scores are the same, except for random samples in the scores of VAE.

A method fails on a set when it raises, when its scores are not finite, or when fit and scoring have not ended after two
minutes of the processor. It then counts with the figures of random
ranking (AUROC 0.5, average precision equal to the share of anomalies), and its row holds the reason as `error`. The
tables mark failed methods and list them below. A seed whose rows are all of one class is reported and skipped for all
methods.

Times are wall-clock, on one torch thread. The times of a peer include standardization. The times of ae_pipeline include
all of its preprocessing.
"""

import argparse
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.copod import COPOD
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.mcd import MCD
from pyod.models.pca import PCA
from pyod.models.vae import VAE
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.detector import Detector
from ae_pipeline.training.fit import fit_detector
from benchmarks.labelled_sets import PROTOCOLS, FloatArray, Table, cap_rows, find_sets, make_task, read_set
from benchmarks.report import Row, format_table, write_report

Scorer = Callable[[FloatArray], FloatArray]
"""Function from rows, (n, columns), to scores, (n,); a higher score is more anomalous."""

HELD_OUT = 0.1
"""Share of the training rows that ae_pipeline uses for early stopping. A pipeline would use later days."""
OURS = "ae_pipeline"
LIMIT_SECONDS = 120.0
"""Time of the processor that fit and scoring of a method may take on a set."""
FAILURES = (ArithmeticError, LookupError, PipelineError, RuntimeError, TimeoutError, TypeError, ValueError)
"""Exceptions that count as a failure of the method. Any other exception is a bug and ends the benchmark."""


class Fitted(NamedTuple):
    """A fitted method.

    Attributes:
        score: Scorer of any rows.
        train_scores: Scores of the training rows, if the fit produces them, else None.
    """

    score: Scorer
    train_scores: FloatArray | None


@dataclass(frozen=True)
class Trial:
    """Result of one method on one set, under one protocol, with one seed.

    Attributes:
        name: Name of the set.
        protocol: One of `PROTOCOLS`.
        method: One of `METHODS`.
        seed: Seed of the rows, of the split and of the method.
        auroc: Area under the ROC curve.
        ap: Average precision.
        fit_seconds: Wall-clock time of the fit; for a method that raised, its total time.
        score_seconds: Wall-clock time of the scoring.
        rows: Number of training rows.
        columns: Number of columns of the set.
        error: Reason of the failure, or None. The figures of a failed method are those of random ranking.
    """

    name: str
    protocol: str
    method: str
    seed: int
    auroc: float
    ap: float
    fit_seconds: float
    score_seconds: float
    rows: int
    columns: int
    error: str | None = None

    def row(self) -> Row:
        """Return the row of the JSON; `error` is present only after a failure."""
        row: dict[str, str | int | float] = {
            "set": self.name,
            "protocol": self.protocol,
            "method": self.method,
            "seed": self.seed,
            "auroc": round(self.auroc, 6),
            "ap": round(self.ap, 6),
            "fit_seconds": round(self.fit_seconds, 3),
            "score_seconds": round(self.score_seconds, 3),
            "rows": self.rows,
            "columns": self.columns,
        }
        return row if self.error is None else row | {"error": self.error}


def fit_ours(train: FloatArray, seed: int, contamination: str = "unknown") -> Scorer:
    """Fit a detector with the defaults of the package on raw numbers, (n, columns), and return its scorer."""
    detector = fit_detector_on(train, seed, contamination)
    return lambda values: detector.latents_and_scores(frame_of(values))[1]


def fit_detector_on(train: FloatArray, seed: int, contamination: str = "unknown") -> Detector:
    """Fit a detector like `fit_ours` and return it. `frame_of` converts rows for it."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "detection",
            "identity": ("row_id",),
            "training": {"device": "cpu", "seed": seed, "batch_size": 512, "contamination": contamination},
        }
    )
    rows = frame_of(train)
    columns = [FeatureColumn(name, ColumnType.NUMBER) for name in rows.columns]
    held_out = np.random.default_rng(seed).permutation(len(train)) < max(1, round(HELD_OUT * len(train)))
    return fit_detector(config, columns, rows.filter(~held_out), rows.filter(held_out))[0]


def frame_of(values: FloatArray) -> pl.DataFrame:
    """Return numbers, (n, columns), as a frame of features."""
    return pl.DataFrame({f"x{index:03}": values[:, index] for index in range(values.shape[1])})


def fit_peer(make: Callable[[int], Any], train: FloatArray, seed: int) -> Fitted:
    """Fit a detector of PyOD on standardized numbers. A constant column becomes zero."""
    scaler = StandardScaler().fit(train)
    detector = make(seed)
    detector.fit(scaler.transform(train))
    seen = np.asarray(detector.decision_scores_, dtype=np.float64)
    return Fitted(lambda values: np.asarray(detector.decision_function(scaler.transform(values)), np.float64), seen)


PEERS: Mapping[str, Callable[[int], Any]] = {
    "KNN": lambda _: KNN(),
    "LOF": lambda _: LOF(),
    "IForest": lambda seed: IForest(random_state=seed),
    "AutoEncoder": lambda seed: AutoEncoder(random_state=seed, verbose=0),
    "VAE": lambda seed: VAE(random_state=seed, verbose=0),
    "PCA": lambda seed: PCA(random_state=seed),
    "ECOD": lambda _: ECOD(),
    "COPOD": lambda _: COPOD(),
    "MCD": lambda seed: MCD(random_state=seed),
}
"""Detectors of PyOD with their defaults, with a seed if they accept one."""

Fit = Callable[[FloatArray, int], Fitted]
"""Function that fits a method, given training rows, (n, columns), and a seed."""

METHODS: Mapping[str, Fit] = {
    OURS: lambda train, seed: Fitted(fit_ours(train, seed), None),
    **{name: partial(fit_peer, make) for name, make in PEERS.items()},
}
"""All methods of the benchmark."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once this process has used the processor for some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s of the processor")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def try_method(table: Table, protocol: str, method: str, seed: int, methods: Mapping[str, Fit] | None = None) -> Trial:
    """Fit and evaluate one of `methods`, by default of `METHODS`, on a capped set.

    A failed method gets the figures of random ranking.
    """
    task = make_task(table, protocol, seed)
    score = np.zeros(len(task.test))
    error = None
    started = fitted = time.perf_counter()
    try:
        with limited(LIMIT_SECONDS):
            model = (methods or METHODS)[method](task.train, seed)
            fitted = time.perf_counter()
            known = model.train_scores if task.test is task.train else None
            score = model.score(task.test) if known is None else known
    except FAILURES as failure:
        fitted = time.perf_counter()
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    ended = time.perf_counter()
    if not_finite := int((~np.isfinite(score)).sum()):
        error = f"{not_finite:,} of {len(score):,} scores are not finite"
    auroc, ap = 0.5, float(task.truth.mean())
    if error is None:
        auroc, ap = float(roc_auc_score(task.truth, score)), float(average_precision_score(task.truth, score))
    rows, columns = task.train.shape
    return Trial(table.name, protocol, method, seed, auroc, ap, fitted - started, ended - fitted, rows, columns, error)


def try_set(path: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Trial]:
    """Evaluate methods on a set under both protocols, and print a line with the results."""
    whole, trials, started = read_set(path), list[Trial](), time.perf_counter()
    for seed in seeds:
        table = cap_rows(whole, seed)
        if not table.is_anomaly.any() or table.is_anomaly.all():
            print(f"{table.name}, seed {seed}: skipped, all of its rows are of one class", flush=True)
            continue
        trials += [try_method(table, protocol, method, seed) for protocol in PROTOCOLS for method in methods]
    parts = []
    for protocol in PROTOCOLS:
        by_method = [(method, _of(trials, protocol=protocol, method=method)) for method in methods]
        parts.append(f"{protocol} " + ", ".join(f"{method} {_cell(runs)}" for method, runs in by_method))
    print(f"{whole.name}, {time.perf_counter() - started:.0f} s: {'; '.join(parts)}", flush=True)
    return trials


def describe(trials: Sequence[Trial]) -> str:
    """Return tables of the means and of the AUROC by set for each protocol, and the list of failures."""
    names, methods = (list(dict.fromkeys(getattr(trial, key) for trial in trials)) for key in ("name", "method"))
    overall, each = [], []
    for protocol in PROTOCOLS:
        lines = []
        for method in methods:
            runs = _of(trials, protocol=protocol, method=method)
            lines.append(
                [
                    method,
                    f"{statistics.mean(run.auroc for run in runs):.4f}",
                    f"{statistics.mean(run.ap for run in runs):.4f}",
                    f"{sum(run.fit_seconds for run in runs):.1f}",
                    f"{sum(run.score_seconds for run in runs):.1f}",
                    f"{sum(run.error is not None for run in runs)} of {len(runs)}",
                ]
            )
        overall.append(format_table([protocol, "AUROC", "AP", "fit, s", "score, s", "failed"], lines))
        by_set = [[_of(trials, name=name, protocol=protocol, method=method) for method in methods] for name in names]
        cells = [[name, *map(_cell, runs)] for name, runs in zip(names, by_set, strict=True)]
        each.append(format_table([f"{protocol} AUROC", *methods], cells))
    return "\n\n".join([*overall, *each, *_failures(trials)])


def _of(trials: Sequence[Trial], **filters: str) -> list[Trial]:
    return [trial for trial in trials if all(getattr(trial, key) == value for key, value in filters.items())]


def _cell(runs: Sequence[Trial]) -> str:
    if not runs:
        return "none"
    return f"{statistics.mean(run.auroc for run in runs):.3f}{'*' if any(run.error for run in runs) else ''}"


def _failures(trials: Sequence[Trial]) -> list[str]:
    seeds: dict[tuple[str, str, str, str], list[int]] = {}
    for trial in trials:
        if trial.error is not None:
            seeds.setdefault((trial.method, trial.name, trial.protocol, trial.error), []).append(trial.seed)
    if not seeds:
        return []
    lines = [
        f"- {method} on {name}, {protocol}, seed {', '.join(map(str, failed))}: {error}"
        for (method, name, protocol, error), failed in seeds.items()
    ]
    return ["\n".join(["\\* failed, and counted with AUROC 0.5 and the average precision of random ranking:", *lines])]


def run(folder: Path, methods: Sequence[str], seeds: Sequence[int], out: Path, resume: bool = False) -> None:
    """Evaluate methods on all sets of a folder with all seeds, print the tables and write the JSON.

    The JSON is rewritten after each set, so that an interrupted run keeps its results.

    Args:
        folder: Folder with the files of the sets.
        methods: Methods to evaluate.
        seeds: Seeds to evaluate with.
        out: JSON file to write.
        resume: Keep the results in `out`, and evaluate only what they lack.
    """
    trials = read_trials(out) if resume and out.exists() else []
    for path in find_sets(folder):
        known = {(trial.method, trial.seed) for trial in trials if trial.name == path.stem}
        for seed in seeds:
            if missing := [method for method in methods if (method, seed) not in known]:
                trials += try_set(path, missing, [seed])
        write_report(out, "detection", [trial.row() for trial in trials], ("pyod", "scikit-learn"))
    print(f"\n{describe(trials)}")


def read_trials(out: Path) -> list[Trial]:
    """Return the trials in a results file."""
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return [Trial(**{"name" if key == "set" else key: value for key, value in row.items()}) for row in rows]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated methods (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--resume", action="store_true", help="keep the results in --out, and measure what is missing")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := sorted(set(methods) - METHODS.keys()):
        parser.error(f"--methods contains {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} contains no .npz file; name a folder of sets")
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    run(arguments.data, methods, [int(seed) for seed in arguments.seeds.split(",")], arguments.out, arguments.resume)


if __name__ == "__main__":
    main()
