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

A method fails on a set when it raises or when its scores are not finite. It then counts with the figures of random
ranking (AUROC 0.5, average precision equal to the share of anomalies), and its row holds the reason as `error`. The
tables mark failed methods and list them below. A seed whose rows are all of one class is reported and skipped for all
methods.

Times are wall-clock, on one torch thread. The times of a peer include standardization. The times of ae_pipeline include
all of its preprocessing.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.pca import PCA
from pyod.models.vae import VAE
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from ae_pipeline.common.errors import PipelineError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.detector import Detector
from ae_pipeline.training.fit import fit_detector
from benchmarks.report import Row, format_table, write_report

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Scorer = Callable[[FloatArray], FloatArray]
"""Function from rows, (n, columns), to scores, (n,); a higher score is more anomalous."""

MOST_ROWS = 10_000
HELD_OUT = 0.1
"""Share of the training rows that ae_pipeline uses for early stopping. A pipeline would use later days."""
PROTOCOLS = ("one-class", "contaminated")
OURS = "ae_pipeline"
FAILURES = (ArithmeticError, LookupError, PipelineError, RuntimeError, TypeError, ValueError)
"""Exceptions that count as a failure of the method. Any other exception is a bug and ends the benchmark."""


class Fitted(NamedTuple):
    """A fitted method.

    Attributes:
        score: Scorer of any rows.
        train_scores: Scores of the training rows, if the fit produces them, else None.
    """

    score: Scorer
    train_scores: FloatArray | None


class Table(NamedTuple):
    """A set as read from its file.

    Attributes:
        name: Name of the file without its suffix.
        values: Array X, (n, columns).
        is_anomaly: Mask of the anomalies, (n,).
    """

    name: str
    values: FloatArray
    is_anomaly: BoolArray


class Task(NamedTuple):
    """A set under a protocol.

    Attributes:
        train: Rows to learn from, (n, columns).
        test: Rows to score, (m, columns); the same object as `train` if the rows are the same.
        truth: Mask of the anomalies among the test rows, (m,).
    """

    train: FloatArray
    test: FloatArray
    truth: BoolArray


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


def fit_ours(train: FloatArray, seed: int) -> Scorer:
    """Fit a detector with the defaults of the package on raw numbers, (n, columns), and return its scorer."""
    detector = fit_detector_on(train, seed)
    return lambda values: detector.latents_and_scores(frame_of(values))[1]


def fit_detector_on(train: FloatArray, seed: int) -> Detector:
    """Fit a detector like `fit_ours` and return it. `frame_of` converts rows for it."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "detection",
            "identity": ("row_id",),
            "training": {"device": "cpu", "seed": seed, "batch_size": 512},
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
}
"""Detectors of PyOD with their defaults, with a seed if they accept one."""

METHODS: Mapping[str, Callable[[FloatArray, int], Fitted]] = {
    OURS: lambda train, seed: Fitted(fit_ours(train, seed), None),
    **{name: partial(fit_peer, make) for name, make in PEERS.items()},
}
"""Functions that fit a method, given training rows and a seed."""


def find_sets(folder: Path) -> list[Path]:
    """Return the files of the sets in a folder, sorted by name."""
    return sorted(folder.glob("*.npz"))


def read_set(path: Path) -> Table:
    """Return the set of a file.

    Raises:
        ValueError: The file does not contain a set.
    """
    with np.load(path) as content:
        if missing := sorted({"X", "y"} - set(content.files)):
            raise ValueError(f"{path} has no array {missing[0]!r}; save a set as X, rows × features, and y, 0 or 1")
        values, labels = content["X"].astype(np.float64), content["y"]
    if values.ndim != 2 or labels.shape != values.shape[:1] or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"{path} has X of shape {values.shape} and y of shape {labels.shape}; save X as rows × features and y "
            "as one label, 0 or 1, for each row"
        )
    return Table(path.stem, values, labels == 1)


def cap_rows(table: Table, seed: int) -> Table:
    """Return `MOST_ROWS` random rows of a larger set; return a smaller set unchanged."""
    count = len(table.values)
    if count <= MOST_ROWS:
        return table
    chosen = np.random.RandomState(seed).permutation(count)[:MOST_ROWS]
    return Table(table.name, table.values[chosen], table.is_anomaly[chosen])


def halve_normal(is_anomaly: BoolArray, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the indices of the normal rows in random order: the training half and the other half."""
    normal = np.random.RandomState(seed).permutation(np.flatnonzero(~is_anomaly))
    half = len(normal) // 2
    return normal[:half], normal[half:]


def make_task(table: Table, protocol: str, seed: int) -> Task:
    """Split a capped set according to a protocol."""
    values, is_anomaly = table.values, table.is_anomaly
    if protocol == "contaminated":
        return Task(values, values, is_anomaly)
    train, rest = halve_normal(is_anomaly, seed)
    test = np.concatenate([rest, np.flatnonzero(is_anomaly)])
    return Task(values[train], values[test], is_anomaly[test])


def try_method(table: Table, protocol: str, method: str, seed: int) -> Trial:
    """Fit and evaluate a method on a capped set. A failed method gets the figures of random ranking."""
    task = make_task(table, protocol, seed)
    score = np.zeros(len(task.test))
    error = None
    started = fitted = time.perf_counter()
    try:
        model = METHODS[method](task.train, seed)
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


def run(folder: Path, methods: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Evaluate methods on all sets of a folder with all seeds, print the tables and write the JSON.

    The JSON is rewritten after each set, so that an interrupted run keeps its results.
    """
    trials: list[Trial] = []
    for path in find_sets(folder):
        trials += try_set(path, methods, seeds)
        write_report(out, "detection", [trial.row() for trial in trials], ("pyod", "scikit-learn"))
    print(f"\n{describe(trials)}")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated methods (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := sorted(set(methods) - METHODS.keys()):
        parser.error(f"--methods contains {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} contains no .npz file; name a folder of sets")
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    run(arguments.data, methods, [int(seed) for seed in arguments.seeds.split(",")], arguments.out)


if __name__ == "__main__":
    main()
