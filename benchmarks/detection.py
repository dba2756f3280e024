"""Anomalies in tables: ae_pipeline beside PyOD's detectors on any folder of ADBench-like `.npz` files.

A file holds `X`, rows × features, and `y`, 0 for normal rows and 1 for anomalies (Han et al. 2022, "ADBench"). A set of
more than 10,000 rows is cut to 10,000 random ones. Two protocols:

- one-class: learn from half of the normal rows; score the other half and every anomaly.
- contaminated: learn from all rows, anomalies among them and labels unseen; score the same rows.

Every method has one configuration for all sets and both protocols. Peers have PyOD's defaults and see numbers
standardised on the training rows; ae_pipeline sees them raw, since its own preprocessing is part of it.

Of the rows that it was fitted on, a peer's score is what it says of them itself (`decision_scores_`), and so a part of
its fitting. To ask KNN or LOF about them as if they were new makes each its own nearest neighbour, which over many sets
does them harm; to the others it is the same, but for the random draws in the scores of VAE.

A method that fails on a set, by an exception or by scores that are not finite, is counted with the figures of chance
(AUROC 0.5, average precision the share of anomalies), and its row bears the reason as `error`. The tables mark it and
it is listed below them. A seed whose random rows hold no anomaly can judge nobody: it is told and left out for all.

Times are wall-clock, of one torch thread. Those of a peer include standardising, of ae_pipeline all of its own.
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
"""Gives a score for each row, (n, columns) → (n,); the higher, the stranger."""

MOST_ROWS = 10_000
HELD_OUT = 0.1
"""Share of the training rows that ae_pipeline stops by, where a pipeline would take later days."""
PROTOCOLS = ("one-class", "contaminated")
OURS = "ae_pipeline"
FAILURES = (ArithmeticError, LookupError, PipelineError, RuntimeError, TypeError, ValueError)
"""What a method may raise on data that it cannot take; anything else is a fault of the benchmark and ends it."""


class Fitted(NamedTuple):
    """What a method has learnt.

    Attributes:
        score: Of any rows.
        own: Scores of the training rows, where the method has them from fitting; else None.
    """

    score: Scorer
    own: FloatArray | None


class Table(NamedTuple):
    """A set as it is read.

    Attributes:
        name: Of its file.
        values: X, (n, columns).
        is_anomaly: Which rows are anomalies, (n,).
    """

    name: str
    values: FloatArray
    is_anomaly: BoolArray


class Task(NamedTuple):
    """A set under a protocol.

    Attributes:
        train: Rows to learn from, (n, columns).
        test: Rows to score, (m, columns); the same object as `train` where they are the same rows.
        truth: Which rows of the test are anomalies, (m,).
    """

    train: FloatArray
    test: FloatArray
    truth: BoolArray


@dataclass(frozen=True)
class Trial:
    """What one method made of one set under one protocol with one seed.

    Attributes:
        name: Of the set.
        protocol: One of `PROTOCOLS`.
        method: One of `METHODS`.
        seed: Of the rows, of the split and of the method.
        auroc: Area under the ROC curve.
        ap: Average precision.
        fit_seconds: Wall-clock; of a method that raised, all that it took.
        score_seconds: Wall-clock.
        rows: Training rows.
        columns: Of the set.
        error: Why the figures are those of chance; None where they are measured.
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
        """Gives the row of the JSON, with an error only where there is one."""
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
    """Fits a detector with the defaults of the package on numbers as they are, (n, columns)."""
    detector = fit_detector_on(train, seed)
    return lambda values: detector.latents_and_scores(frame_of(values))[1]


def fit_detector_on(train: FloatArray, seed: int) -> Detector:
    """Fits the same, and gives it whole; `frame_of` makes the rows that it reads."""
    config = PipelineConfig.model_validate(
        {"dataset": "detection", "identity": ("row_id",), "training": {"device": "cpu", "seed": seed}}
    )
    rows = frame_of(train)
    columns = [FeatureColumn(name, ColumnType.NUMBER) for name in rows.columns]
    held_out = np.random.default_rng(seed).permutation(len(train)) < max(1, round(HELD_OUT * len(train)))
    return fit_detector(config, columns, rows.filter(~held_out), rows.filter(held_out))[0]


def frame_of(values: FloatArray) -> pl.DataFrame:
    """Lays numbers out as features, (n, columns)."""
    return pl.DataFrame({f"x{index:03}": values[:, index] for index in range(values.shape[1])})


def fit_peer(make: Callable[[int], Any], train: FloatArray, seed: int) -> Fitted:
    """Fits a detector of PyOD on standardised numbers; a constant column becomes zero."""
    scaler = StandardScaler().fit(train)
    detector = make(seed)
    detector.fit(scaler.transform(train))
    own = np.asarray(detector.decision_scores_, dtype=np.float64)
    return Fitted(lambda values: np.asarray(detector.decision_function(scaler.transform(values)), np.float64), own)


PEERS: Mapping[str, Callable[[int], Any]] = {
    "KNN": lambda _: KNN(),
    "LOF": lambda _: LOF(),
    "IForest": lambda seed: IForest(random_state=seed),
    "AutoEncoder": lambda seed: AutoEncoder(random_state=seed, verbose=0),
    "VAE": lambda seed: VAE(random_state=seed, verbose=0),
    "PCA": lambda seed: PCA(random_state=seed),
    "ECOD": lambda _: ECOD(),
}
"""Detectors of PyOD with their defaults, built with a seed where they take one."""

METHODS: Mapping[str, Callable[[FloatArray, int], Fitted]] = {
    OURS: lambda train, seed: Fitted(fit_ours(train, seed), None),
    **{name: partial(fit_peer, make) for name, make in PEERS.items()},
}
"""What learns from training rows with a seed."""


def find_sets(folder: Path) -> list[Path]:
    """Lists the files of a folder's sets in order of name."""
    return sorted(folder.glob("*.npz"))


def read_set(path: Path) -> Table:
    """Reads a set.

    Raises:
        ValueError: The file does not hold a set.
    """
    with np.load(path) as content:
        if missing := sorted({"X", "y"} - set(content.files)):
            raise ValueError(f"{path} has no array {missing[0]!r}; a set has X, rows × features, and y, 0 or 1")
        values, labels = content["X"].astype(np.float64), content["y"]
    if values.ndim != 2 or labels.shape != values.shape[:1] or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"{path} has X of shape {values.shape} and y of shape {labels.shape}; give X as rows × features and for "
            "each row a y of 0 or 1"
        )
    return Table(path.stem, values, labels == 1)


def cap_rows(table: Table, seed: int) -> Table:
    """Cuts a set of more than `MOST_ROWS` to so many random ones; a smaller set stays as it is."""
    count = len(table.values)
    if count <= MOST_ROWS:
        return table
    chosen = np.random.RandomState(seed).permutation(count)[:MOST_ROWS]
    return Table(table.name, table.values[chosen], table.is_anomaly[chosen])


def halve_normal(is_anomaly: BoolArray, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Gives the places of the normal rows in random order: the half to learn from, and the other."""
    normal = np.random.RandomState(seed).permutation(np.flatnonzero(~is_anomaly))
    half = len(normal) // 2
    return normal[:half], normal[half:]


def make_task(table: Table, protocol: str, seed: int) -> Task:
    """Splits a set that has been cut to size as a protocol says."""
    values, is_anomaly = table.values, table.is_anomaly
    if protocol == "contaminated":
        return Task(values, values, is_anomaly)
    train, rest = halve_normal(is_anomaly, seed)
    test = np.concatenate([rest, np.flatnonzero(is_anomaly)])
    return Task(values[train], values[test], is_anomaly[test])


def try_method(table: Table, protocol: str, method: str, seed: int) -> Trial:
    """Fits and judges a method on a set that has been cut to size; one that fails has the figures of chance."""
    task = make_task(table, protocol, seed)
    score = np.zeros(len(task.test))
    error = None
    started = fitted = time.perf_counter()
    try:
        learnt = METHODS[method](task.train, seed)
        fitted = time.perf_counter()
        own = learnt.own if task.test is task.train else None
        score = learnt.score(task.test) if own is None else own
    except FAILURES as failure:
        fitted = time.perf_counter()
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    ended = time.perf_counter()
    if odd := int((~np.isfinite(score)).sum()):
        error = f"{odd:,} of {len(score):,} scores are not finite"
    auroc, ap = 0.5, float(task.truth.mean())
    if error is None:
        auroc, ap = float(roc_auc_score(task.truth, score)), float(average_precision_score(task.truth, score))
    rows, columns = task.train.shape
    return Trial(table.name, protocol, method, seed, auroc, ap, fitted - started, ended - fitted, rows, columns, error)


def try_set(path: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Trial]:
    """Tries methods on a set under both protocols, and prints a line of what came out."""
    whole, trials, started = read_set(path), list[Trial](), time.perf_counter()
    for seed in seeds:
        table = cap_rows(whole, seed)
        if not table.is_anomaly.any() or table.is_anomaly.all():
            print(f"{table.name}, seed {seed}: left out, its rows are all of one kind", flush=True)
            continue
        trials += [try_method(table, protocol, method, seed) for protocol in PROTOCOLS for method in methods]
    said = []
    for protocol in PROTOCOLS:
        found = [(method, _of(trials, protocol=protocol, method=method)) for method in methods]
        said.append(f"{protocol} " + ", ".join(f"{method} {_cell(runs)}" for method, runs in found))
    print(f"{whole.name}, {time.perf_counter() - started:.0f} s: {'; '.join(said)}", flush=True)
    return trials


def describe(trials: Sequence[Trial]) -> str:
    """Lays out, for each protocol, the means over sets and seeds and the AUROC of each set; and what failed."""
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


def _of(trials: Sequence[Trial], **asked: str) -> list[Trial]:
    return [trial for trial in trials if all(getattr(trial, key) == value for key, value in asked.items())]


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
    told = [
        f"- {method} on {name}, {protocol}, seed {', '.join(map(str, failed))}: {error}"
        for (method, name, protocol, error), failed in seeds.items()
    ]
    return ["\n".join(["\\* failed, and counted with AUROC 0.5 and the average precision of chance:", *told])]


def run(folder: Path, methods: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Tries methods on all sets of a folder with all seeds, prints the tables and writes the JSON.

    The JSON is written anew as each set finishes, so that a run which is stopped leaves what it has.
    """
    trials: list[Trial] = []
    for path in find_sets(folder):
        trials += try_set(path, methods, seeds)
        write_report(out, "detection", [trial.row() for trial in trials], ("pyod", "scikit-learn"))
    print(f"\n{describe(trials)}")


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0,1,2", help="numbers, parted by commas (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of these (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := sorted(set(methods) - METHODS.keys()):
        parser.error(f"--methods names {unknown[0]!r}, which is none of {', '.join(METHODS)}")
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} holds no .npz file; name a folder of sets")
    torch.set_num_threads(1)  # of networks this small, two threads wait for one another
    run(arguments.data, methods, [int(seed) for seed in arguments.seeds.split(",")], arguments.out)


if __name__ == "__main__":
    main()
