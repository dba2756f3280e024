"""Development protocol of the score: labelled sets, and their clean rows with planted anomalies.

Settings that are chosen by the mean over a few labelled sets fit these sets. So this protocol adds sets that are made
of the clean rows of each set and of planted anomalies of the four kinds of ADBench (Han et al. 2022):

- local: rows of a Gaussian mixture of the clean rows whose covariances are five times as large.
- clustered: rows of the same mixture whose means are five times as far from the mean of the clean rows.
- global: uniform rows in the range of each column, extended by a tenth.
- dependency: each value comes from another clean row, so that the columns no longer depend on each other.

Planted anomalies make up 1, 5, 10, 20 or 30 % of a set. Under the protocol `contaminated` a method learns from all of
these rows, and under `one-class` from half of the clean ones.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.mixture import GaussianMixture

from benchmarks.detection import PROTOCOLS, FloatArray, Table, Task, cap_rows, make_task

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


class Case(NamedTuple):
    """A task of the protocol.

    Attributes:
        name: Name of the labelled set.
        kind: Kind of the planted anomalies, or `real` for the anomalies of the set.
        share: Share of the planted anomalies; 0 for the anomalies of the set.
        protocol: One of `PROTOCOLS`.
        seed: Seed of rows, split and planting.
        task: Rows to learn from and to score.
    """

    name: str
    kind: str
    share: float
    protocol: str
    seed: int
    task: Task


def plant(table: Table, kind: str, share: float, seed: int) -> Table:
    """Return clean rows of a set with planted anomalies, in random order.

    Args:
        table: Labelled set; its own anomalies are left out.
        kind: One of `KINDS`.
        share: Share of the planted rows among all returned rows.
        seed: Seed of the choice of clean rows and of the planting.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(kind), round(1000 * share)])
    clean = rng.permutation(table.values[~table.is_anomaly])[:PLANTED_ROWS]
    count = max(5, round(share / (1 - share) * len(clean)))
    rows = np.concatenate([clean, KINDS[kind](clean, count, rng)])
    order = rng.permutation(len(rows))
    return Table(table.name, rows[order], order >= len(clean))


def cases(whole: Table, seed: int) -> Iterator[Case]:
    """Yield the cases of a set: both protocols with its own anomalies, and with those of each kind and share."""
    table = cap_rows(whole, seed)
    for protocol in PROTOCOLS:
        if table.is_anomaly.any():
            yield Case(table.name, "real", 0.0, protocol, seed, make_task(table, protocol, seed))
        for kind in KINDS:
            for share in SHARES:
                yield Case(
                    table.name, kind, share, protocol, seed, make_task(plant(table, kind, share, seed), protocol, seed)
                )


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
    rows: npt.NDArray[np.float64] = (means * model.means_[chosen] + noise) * scale + center
    return rows
