"""Alert budgets: compare the number of flagged, unseen normal rows with conformal theory.

The sets are those of `benchmarks.detection` with 2,000 normal rows or more after the cut to 10,000. A model learns from
half of the normal rows in random order. The first half of the other rows calibrates, the second half is the test. A
case is a set, a seed and a budget b. Budgets that the n calibration rows cannot resolve, (n + 1) b < 1, are left out.

A row of score s has the p-value (1 + #{calibration scores ≥ s}) / (n + 1). It is flagged when the p-value is at most b.
This holds when s exceeds the l-th highest calibration score, with l = ⌊(n + 1) b⌋. For exchangeable scores without
ties, all orders of the n calibration and m test scores are equally likely. Let k be the number of flagged test rows.
Then P(k) = C(k + l − 1, k) C(m − k + n − l, m − k) / C(m + n, m). This negative hypergeometric law is
BetaBinomial(m, l, n + 1 − l). Independent scores lead to the same law: the share of all rows above the l-th highest of
n is Beta(l, n + 1 − l) (Vovk 2012, "Conditional validity of inductive conformal predictors"; Angelopoulos & Bates 2023,
"Conformal prediction: a gentle introduction", §3.2), and the count among m rows is binomial. Marques F. 2023,
arXiv:2303.02770, derives the law for batches of exchangeable rows. The mean share of flagged rows is l / (n + 1), at
most b.

A case is within when k lies from the 0.5th to the 99.5th percentile of that law, both included. Counts are discrete, so
the interval covers more than 99 %. The table shows the coverage of the measured cases. For small l the lower end is 0,
and no count is below it. Ties can only reduce k: a row that ties with the l-th highest calibration score is not
flagged. `tied` counts these rows. The table separates the cases that are below only because of ties.

Cases are not independent. The budgets of a seed share their scores, and the seeds of a set share its rows.
`benchmarks.calibration_months` measures the budget over time.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import betabinom

from ae_pipeline.scoring.calibration import Calibration, calibrate
from benchmarks.command_line import read_seeds
from benchmarks.detection import fit_ours
from benchmarks.labelled_sets import FloatArray, Table, cap_rows, find_sets, halve_normal, read_set
from benchmarks.report import Row, format_table, write_report

BUDGETS = (0.05, 0.01, 0.001)
FEWEST_NORMAL = 2_000
INTERVAL = 0.99
GOAL = 0.98
"""Target share of cases within the interval."""


class Law(NamedTuple):
    """Law of the number of flagged test rows, for exchangeable scores without ties.

    Attributes:
        low: Lower end of the central interval.
        high: Upper end of the central interval.
        coverage: Probability of the interval, both ends included.
        mean: Mean share of flagged rows.
    """

    low: int
    high: int
    coverage: float
    mean: float


@dataclass(frozen=True)
class Case:
    """Result of one calibration on the test rows of one set.

    Attributes:
        name: Name of the set.
        seed: Seed of rows, split and model.
        budget: Share of normal rows that may be flagged.
        calibration_rows: Number of calibration rows, n.
        test_rows: Number of test rows, m.
        flagged: Number of flagged test rows, k.
        tied: Number of test rows whose score equals the l-th highest calibration score.
        law: Law of k.
    """

    name: str
    seed: int
    budget: float
    calibration_rows: int
    test_rows: int
    flagged: int
    tied: int
    law: Law

    @property
    def is_within(self) -> bool:
        """Return whether the count lies in the interval."""
        return self.law.low <= self.flagged <= self.law.high

    @property
    def is_above(self) -> bool:
        """Return whether the count lies above the interval."""
        return self.flagged > self.law.high

    @property
    def is_below(self) -> bool:
        """Return whether the count lies below the interval."""
        return self.flagged < self.law.low

    @property
    def is_below_by_ties(self) -> bool:
        """Return whether the count lies below the interval only because of ties."""
        return self.is_below and self.flagged + self.tied >= self.law.low

    def row(self) -> Row:
        """Return the row of the JSON."""
        return {
            "set": self.name,
            "seed": self.seed,
            "budget": self.budget,
            "calibration_rows": self.calibration_rows,
            "test_rows": self.test_rows,
            "flagged": self.flagged,
            "low": self.law.low,
            "high": self.law.high,
            "within": self.is_within,
            "tied": self.tied,
        }


def rank_limit(calibration: Calibration) -> int:
    """Return l = ⌊(n + 1) b⌋, counted with the same rounding as the p-values."""
    n = len(calibration.scores)
    return int(calibration.flags(np.arange(1, n + 2) / (n + 1)).sum())


def law_of_flags(test_rows: int, calibration_rows: int, limit: int) -> Law:
    """Return the law of the number of flagged rows; the module docstring derives it.

    Args:
        test_rows: Number of test rows, m.
        calibration_rows: Number of calibration rows, n.
        limit: Rank l of the calibration score that a flagged row must exceed, from 1 to n.
    """
    law = betabinom(test_rows, limit, calibration_rows + 1 - limit)
    low, high = (int(law.ppf(level)) for level in ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2))
    return Law(low, high, float(law.cdf(high) - law.cdf(low - 1)), limit / (calibration_rows + 1))


def evaluate(name: str, seed: int, held_out: FloatArray, test: FloatArray) -> Iterator[Case]:
    """Calibrate for each budget that the held-out scores can resolve, and yield the flagged counts as cases."""
    n = len(held_out)
    for budget in BUDGETS:
        if round((n + 1) * budget, 6) < 1:
            continue
        calibration = calibrate(held_out, budget, None)
        flagged = int(calibration.flags(calibration.p_values(test)).sum())
        tied = int((test == calibration.threshold).sum())
        law = law_of_flags(len(test), n, rank_limit(calibration))
        yield Case(name, seed, budget, n, len(test), flagged, tied, law)


def split_normal(table: Table, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Split the normal rows of a capped set into training, calibration and test rows."""
    train, rest = halve_normal(table.is_anomaly, seed)
    half = len(rest) // 2
    return table.values[train], table.values[rest[:half]], table.values[rest[half:]]


def try_set(whole: Table, seeds: Sequence[int]) -> list[Case]:
    """Fit a set once per seed, evaluate all budgets and print a line. A set with too few normal rows has no case."""
    started, cases, few = time.perf_counter(), list[Case](), 0
    for seed in seeds:
        table = cap_rows(whole, seed)
        if (normal := int((~table.is_anomaly).sum())) < FEWEST_NORMAL:
            few = normal
            continue
        train, held_out, test = split_normal(table, seed)
        scores = fit_ours(train, seed)(np.concatenate([held_out, test]))
        cases += evaluate(table.name, seed, scores[: len(held_out)], scores[len(held_out) :])
    if cases:
        outcome = f"{sum(case.is_within for case in cases)} of {len(cases)} cases within"
    else:
        outcome = f"skipped, {few:,} normal rows are fewer than {FEWEST_NORMAL:,}"
    print(f"{whole.name}, {time.perf_counter() - started:.0f} s: {outcome}", flush=True)
    return cases


def describe(cases: Sequence[Case]) -> str:
    """Return tables of the share of cases within and of the flagged share, by budget and by set."""
    budgets = [budget for budget in BUDGETS if any(case.budget == budget for case in cases)]
    by_budget = [[case for case in cases if case.budget == budget] for budget in budgets]
    labels = [f"{budget:.1%}" for budget in budgets]
    shares = [[_flagged(some), f"{statistics.mean(case.law.mean for case in some):.3%}"] for some in by_budget]
    lines = [
        [label, *_coverage(some), *share]
        for label, some, share in zip([*labels, "all"], [*by_budget, cases], [*shares, ["", ""]], strict=True)
    ]
    counted = ["within", "within, theory", "above", "below", "below because of ties", "flagged", "flagged, theory"]
    header = ["budget", "cases", *counted]
    by_set = []
    for name in dict.fromkeys(case.name for case in cases):
        of_set = [case for case in cases if case.name == name]
        each = [[case for case in of_set if case.budget == budget] for budget in budgets]
        within = [_percent([case.is_within for case in some]) for some in (of_set, *each)]
        by_set.append([name, str(len(of_set)), *within, *map(_flagged, each)])
    columns = ["set", "cases", "within", *(f"at {text}" for text in labels), *(f"flagged at {text}" for text in labels)]
    overall = f"{_percent([case.is_within for case in cases])} of {len(cases)} cases are within (goal: {GOAL:.0%})"
    return "\n\n".join((format_table(header, lines), format_table(columns, by_set), overall))


def _coverage(cases: Sequence[Case]) -> list[str]:
    return [
        str(len(cases)),
        _percent([case.is_within for case in cases]),
        f"{statistics.mean(case.law.coverage for case in cases):.1%}",
        _percent([case.is_above for case in cases]),
        _percent([case.is_below for case in cases]),
        _percent([case.is_below_by_ties for case in cases]),
    ]


def _percent(holds: Sequence[bool]) -> str:
    return f"{statistics.mean(holds):.1%}" if holds else "none"


def _flagged(cases: Sequence[Case]) -> str:
    return f"{statistics.mean(case.flagged / case.test_rows for case in cases):.3%}" if cases else "none"


def run(folder: Path, seeds: Sequence[int], out: Path) -> None:
    """Evaluate all sets of a folder with all seeds; print tables and write the JSON.

    The JSON is rewritten after each set, so that an interrupted run keeps its results.
    """
    cases: list[Case] = []
    for path in find_sets(folder):
        cases += try_set(read_set(path), seeds)
        write_report(out, "calibration", [case.row() for case in cases], ("scipy",))
    if cases:
        print(f"\n{describe(cases)}\n", flush=True)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0..19", help="numbers and ranges, such as 0..4,7 (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} contains no .npz file; name a folder of sets")
    torch.set_num_threads(1)  # two threads are slower for networks of this size
    run(arguments.data, read_seeds(arguments.seeds), arguments.out)


if __name__ == "__main__":
    main()
