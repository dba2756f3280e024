"""Development protocol of the score: labelled sets, and their clean rows with planted anomalies.

Settings that are chosen by the mean over a few labelled sets fit these sets. So this protocol adds sets that are made
of the clean rows of each set and of planted anomalies of the four kinds of ADBench (Han et al. 2022):

- local: rows of a Gaussian mixture of the clean rows whose covariances are five times as large.
- clustered: rows of the same mixture whose means are five times as far from the mean of the clean rows.
- global: uniform rows in the range of each column, extended by a tenth.
- dependency: each value comes from another clean row, so that the columns no longer depend on each other.

Planted anomalies make up 1, 5, 10, 20 or 30 % of a set. `--one-share` plants one of these shares for each set and
kind, in turn, and takes a fifth of the time. Under the protocol `contaminated` a method learns from all of
these rows, and under `one-class` from half of the clean ones.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from benchmarks import detection
from benchmarks.detection import Fit, Fitted, fit_ours, try_method
from benchmarks.labelled_sets import MOST_ROWS, PROTOCOLS, FloatArray, Table, cap_rows, find_sets, read_set
from benchmarks.report import Row, format_table, write_report

METHODS: Mapping[str, Fit] = {
    **detection.METHODS,
    "none": lambda train, seed: Fitted(fit_ours(train, seed, "none"), None),
    "some": lambda train, seed: Fitted(fit_ours(train, seed, "some"), None),
}
"""Methods of `benchmarks.detection`, and ae_pipeline with the other values of `training.contamination`."""

CHEAP = (detection.OURS, "none", "some", "KNN", "LOF", "IForest", "PCA", "ECOD", "COPOD")
REAL = "real"
"""Kind of the anomalies that a set has itself."""

SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)
"""Shares of planted anomalies among all rows of a set."""

PLANTED_ROWS = 2000
"""Maximum of the clean rows of a planted set. Many small sets tell more than a few large ones."""

_FACTOR, _MARGIN, _COMPONENTS = 5.0, 0.1, 5
_REGULARIZATION = 1e-3


def plant_local(clean: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return rows of a mixture of the clean rows, (n, columns), with larger covariances, (count, columns)."""
    return _sample_mixture(clean, count, rng, means=1.0, covariances=_FACTOR)


def plant_clustered(clean: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return rows of a mixture of the clean rows, (n, columns), with distant means, (count, columns)."""
    return _sample_mixture(clean, count, rng, means=_FACTOR, covariances=1.0)


def plant_global(clean: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return uniform rows in the extended range of the clean rows, (n, columns), of shape (count, columns)."""
    low, high = clean.min(axis=0), clean.max(axis=0)
    margin = _MARGIN * (high - low)
    rows: FloatArray = rng.uniform(low - margin, high + margin, (count, clean.shape[1]))
    return rows


def plant_dependency(clean: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Return rows whose values come from independent clean rows, (n, columns), of shape (count, columns)."""
    chosen = rng.integers(len(clean), size=(count, clean.shape[1]))
    rows: FloatArray = np.take_along_axis(clean, chosen, axis=0)
    return rows


KINDS: Mapping[str, Callable[[FloatArray, int, np.random.Generator], FloatArray]] = {
    "local": plant_local,
    "clustered": plant_clustered,
    "global": plant_global,
    "dependency": plant_dependency,
}
"""Functions that plant anomalies, by kind."""


class Size(NamedTuple):
    """How much of a set a run uses.

    Attributes:
        rows: Maximum of the rows of a set with its own anomalies.
        planted_rows: Maximum of the clean rows of a set with planted anomalies.
        one_share: Plant one of `SHARES` for each set and kind. Another seed plants another share.
    """

    rows: int = MOST_ROWS
    planted_rows: int = PLANTED_ROWS
    one_share: bool = False


def plant(table: Table, kind: str, share: float, seed: int, most: int = PLANTED_ROWS) -> Table:
    """Return clean rows of a set with planted anomalies, in random order.

    Args:
        table: Labelled set; its own anomalies are left out.
        kind: One of `KINDS`.
        share: Share of the planted rows among all returned rows.
        seed: Seed of the choice of clean rows and of the planting.
        most: Maximum of the clean rows.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(kind), round(1000 * share)])
    clean = rng.permutation(table.values[~table.is_anomaly])[:most]
    count = max(5, round(share / (1 - share) * len(clean)))
    rows = np.concatenate([clean, KINDS[kind](clean, count, rng)])
    order = rng.permutation(len(rows))
    return Table(table.name, rows[order], order >= len(clean))


def cases(whole: Table, seed: int, size: Size, number: int = 0) -> Iterator[tuple[str, float, Table]]:
    """Yield kind, share and rows of each case of a set: its own anomalies, then those of each kind and share.

    Args:
        whole: Labelled set.
        seed: Seed of the rows and of the planting.
        size: How much of the set is used.
        number: Number of the set, which chooses the share if only one is planted.
    """
    table = cap_rows(whole, seed, size.rows)
    if table.is_anomaly.any() and not table.is_anomaly.all():
        yield REAL, float(table.is_anomaly.mean()), table
    for index, kind in enumerate(KINDS):
        shares = (SHARES[(number + seed + index) % len(SHARES)],) if size.one_share else SHARES
        yield from ((kind, share, plant(table, kind, share, seed, size.planted_rows)) for share in shares)


def run(
    folder: Path, methods: Sequence[str], seeds: Sequence[int], out: Path, protocols: Sequence[str], size: Size
) -> None:
    """Evaluate methods on all cases of the sets of a folder, print the table and write the JSON after each set."""
    rows: list[Row] = []
    for number, path in enumerate(find_sets(folder)):
        whole = read_set(path)
        for seed in seeds:
            for kind, share, table in cases(whole, seed, size, number):
                for protocol in protocols:
                    trials = [try_method(table, protocol, method, seed, METHODS) for method in methods]
                    rows += [{**trial.row(), "kind": kind, "share": share} for trial in trials]
        write_report(out, "protocol", rows, ("pyod", "scikit-learn"))
        print(f"{path.stem} done", flush=True)
    print(f"\n{describe(rows)}")


def describe(rows: Sequence[Row]) -> str:
    """Return a table of each method, protocol and kind: AUROC, average precision, and regret.

    The regret of a method in a case is how far it is behind the best method in it, mean of AUROC and average precision.
    The last column is the mean regret in the worst quarter of the cases.
    """
    best: dict[tuple[object, ...], tuple[float, float]] = {}
    for row in rows:
        highest = best.get(_case(row), (0.0, 0.0))
        best[_case(row)] = (max(highest[0], float(row["auroc"])), max(highest[1], float(row["ap"])))
    groups: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for row in rows:
        auroc, ap = float(row["auroc"]), float(row["ap"])
        regret = (best[_case(row)][0] - auroc + best[_case(row)][1] - ap) / 2
        key = (str(row["protocol"]), str(row["kind"]), str(row["method"]))
        groups.setdefault(key, []).append((auroc, ap, regret))
    lines = []
    for key, figures in groups.items():
        worst = sorted((regret for *_, regret in figures), reverse=True)[: max(1, len(figures) // 4)]
        means = [*map(statistics.mean, zip(*figures, strict=True)), statistics.mean(worst)]
        lines.append([*key, *(f"{mean:.4f}" for mean in means)])
    return format_table(["protocol", "kind", "method", "AUROC", "AP", "regret", "worst quarter"], lines)


def _case(row: Row) -> tuple[object, ...]:
    return tuple(row[key] for key in ("set", "protocol", "kind", "share", "seed"))


def _sample_mixture(
    clean: FloatArray, count: int, rng: np.random.Generator, means: float, covariances: float
) -> FloatArray:
    center, scale = clean.mean(axis=0), clean.std(axis=0)
    scale[scale == 0] = 1.0
    components = max(1, min(_COMPONENTS, len(clean) // (4 * clean.shape[1])))
    model = GaussianMixture(
        components, reg_covar=_REGULARIZATION, max_iter=50, tol=1e-2, random_state=int(rng.integers(2**31))
    ).fit((clean - center) / scale)
    chosen = rng.choice(components, size=count, p=model.weights_)
    roots = np.linalg.cholesky(covariances * model.covariances_)
    noise = np.einsum("nij,nj->ni", roots[chosen], rng.standard_normal((count, clean.shape[1])))
    rows: FloatArray = (means * model.means_[chosen] + noise) * scale + center
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0", help="comma-separated numbers (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(CHEAP), help="comma-separated methods (default: %(default)s)")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=MOST_ROWS, help="maximum of rows of a set (default: %(default)s)")
    parser.add_argument(
        "--planted-rows",
        type=int,
        default=PLANTED_ROWS,
        help="maximum of clean rows (default: %(default)s)",
    )
    parser.add_argument("--one-share", action="store_true", help="plant one share for each set and kind")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := sorted(set(methods) - METHODS.keys()):
        parser.error(f"--methods contains {unknown[0]!r}; choose from {', '.join(METHODS)}")
    protocols = arguments.protocols.split(",")
    if unknown := sorted(set(protocols) - set(PROTOCOLS)):
        parser.error(f"--protocols contains {unknown[0]!r}; choose from {', '.join(PROTOCOLS)}")
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} contains no .npz file; name a folder of sets")
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    size = Size(arguments.rows, arguments.planted_rows, arguments.one_share)
    run(arguments.data, methods, seeds, arguments.out, protocols, size)


if __name__ == "__main__":
    main()
