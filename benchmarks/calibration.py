"""Alert budgets kept: how many normal rows that nobody has seen are flagged, beside what conformal theory allows.

The sets are those of `benchmarks.detection` that have 2,000 normal rows or more after the cut to 10,000. A model learns
from half of the normal rows in random order; of the other half, the first half calibrates and the second is the test.
A case is a set, a seed and a budget b. Budgets that the n calibration rows cannot resolve, (n + 1) b < 1, are left out.

What theory allows: a row of score s is flagged when its p-value (1 + #{calibration scores ≥ s}) / (n + 1) is at most b,
so when fewer than l = ⌊(n + 1) b⌋ calibration scores are as high, so when s exceeds the l-th highest of them. For
exchangeable scores without ties all orders of the n calibration and m test scores are equally likely, and k, the number
of flagged test rows, is how many stand above the l-th calibration score: P(k) = C(k + l − 1, k) C(m − k + n − l, m − k)
/ C(m + n, m), the negative hypergeometric law, which is BetaBinomial(m, l, n + 1 − l). Independent scores give the
same: the share of all rows above the l-th highest of n is Beta(l, n + 1 − l) (Vovk 2012, "Conditional validity of
inductive conformal predictors"; Angelopoulos & Bates 2023, "Conformal prediction: a gentle introduction", §3.2), and
of m rows a binomial number. Marques F. 2023, arXiv:2303.02770, derives it for batches of exchangeable rows. The mean
share of flagged rows is l / (n + 1), at most b.

A case is within when k lies from the 0.5th to the 99.5th percentile of that law, both included. Counts are discrete, so
the interval holds rather more than 99 %; the table says how much for the cases at hand. Where l is small its lower end
is 0 and no count is below it. Ties can only make k smaller: a row that ties with the l-th highest calibration score is
not flagged. `tied` counts these rows, and cases are told apart that lie below and that ties alone may have put there.

Cases are not independent: budgets of a seed share their scores, and seeds of a set its rows.

`--flights` adds what time makes of the promise: for each month from July to December 2013 the shipped configuration is
fitted on the window of the days before it, and the share of the month's rows that it flags stands beside the shipped
budget. A month is not exchangeable with the calibration days before it, so theory promises nothing here. Beside it
stands what the check `calibration_holds` says at the end of the month, of as many of its last days as were calibrated
on.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from scipy.stats import betabinom  # type: ignore[import-untyped]

from ae_pipeline.features.build import feature_columns, features_content
from ae_pipeline.features.split import cut_window
from ae_pipeline.gate.rules import GateResult, calibration_holds
from ae_pipeline.scoring.calibration import Calibration, calibrate
from ae_pipeline.training.fit import fit_bundle
from benchmarks.detection import FloatArray, Table, cap_rows, find_sets, fit_ours, halve_normal, read_set
from benchmarks.planted_faults import Prepared, prepare
from benchmarks.report import Row, format_table, write_report

BUDGETS = (0.05, 0.01, 0.001)
FEWEST_NORMAL = 2_000
INTERVAL = 0.99
GOAL = 0.98
"""Share of cases that are to be within."""

MONTHS = tuple(f"2013-{month:02}" for month in range(7, 13))


class Law(NamedTuple):
    """Of the number of flagged test rows, for exchangeable scores without ties.

    Attributes:
        low: Lower end of the central interval.
        high: Upper end of it.
        coverage: Probability of the interval, both ends included.
        mean: Of the share of flagged rows.
    """

    low: int
    high: int
    coverage: float
    mean: float


@dataclass(frozen=True)
class Case:
    """What one calibration made of the test rows of one set.

    Attributes:
        name: Of the set.
        seed: Of rows, split and model.
        budget: Share of normal rows that may be flagged.
        calibration_rows: n.
        test_rows: m.
        flagged: k.
        tied: Test rows that score just as high as the calibration row that a flagged one must exceed.
        law: Of k.
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
        """Whether theory allows it."""
        return self.law.low <= self.flagged <= self.law.high

    @property
    def is_above(self) -> bool:
        """Whether more were flagged than theory allows."""
        return self.flagged > self.law.high

    @property
    def is_below(self) -> bool:
        """Whether fewer were flagged than theory allows."""
        return self.flagged < self.law.low

    @property
    def is_below_by_ties(self) -> bool:
        """Whether fewer were flagged, and would not be had the ties fallen otherwise."""
        return self.is_below and self.flagged + self.tied >= self.law.low

    def row(self) -> Row:
        """Gives the row of the JSON."""
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


class Month(NamedTuple):
    """How many flights of a month the model of the days before it flags.

    Attributes:
        month: As 2013-07.
        days: Of the window: to train on, to validate and to calibrate.
        budget: As shipped.
        rows: Of the month.
        flagged: Of these.
        drift: Whether its last days score like those of the calibration.
    """

    month: str
    days: tuple[int, int, int]
    budget: float
    rows: int
    flagged: int
    drift: GateResult

    def row(self) -> Row:
        """Gives the row of the JSON."""
        return {
            "set": "flights",
            "month": self.month,
            "budget": self.budget,
            "rows": self.rows,
            "flagged": self.flagged,
            "share": round(self.flagged / self.rows, 6),
            "gap": round(self.drift.figure, 6),
            "gap_allowed": round(self.drift.threshold, 6),
            "calibration_holds": self.drift.passed,
        }


def count_places(calibration: Calibration) -> int:
    """Counts the p-values within the budget, l: ⌊(n + 1) b⌋ as the very division that makes them rounds it."""
    n = len(calibration.scores)
    return int(calibration.flags(np.arange(1, n + 2) / (n + 1)).sum())


def law_of_flags(test_rows: int, calibration_rows: int, places: int) -> Law:
    """Gives the law of the number of flagged rows; see the module.

    Args:
        test_rows: m.
        calibration_rows: n.
        places: l, from 1 to n.
    """
    law = betabinom(test_rows, places, calibration_rows + 1 - places)
    low, high = (int(law.ppf(level)) for level in ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2))
    return Law(low, high, float(law.cdf(high) - law.cdf(low - 1)), places / (calibration_rows + 1))


def compare(name: str, seed: int, held_out: FloatArray, test: FloatArray) -> Iterator[Case]:
    """Calibrates for each budget that the held-out scores can resolve, and counts flagged test scores."""
    n = len(held_out)
    for budget in BUDGETS:
        if round((n + 1) * budget, 6) < 1:
            continue
        calibration = calibrate(held_out, budget, None)
        flagged = int(calibration.flags(calibration.p_values(test)).sum())
        tied = int((test == calibration.threshold).sum())
        law = law_of_flags(len(test), n, count_places(calibration))
        yield Case(name, seed, budget, n, len(test), flagged, tied, law)


def split_normal(table: Table, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Splits the normal rows of a set that has been cut to size: to train on, to calibrate on, and to test."""
    train, rest = halve_normal(table.is_anomaly, seed)
    half = len(rest) // 2
    return table.values[train], table.values[rest[:half]], table.values[rest[half:]]


def try_set(whole: Table, seeds: Sequence[int]) -> list[Case]:
    """Fits a set once for each seed and judges all budgets, and prints a line; a set of too few rows has no case."""
    started, cases, few = time.perf_counter(), list[Case](), 0
    for seed in seeds:
        table = cap_rows(whole, seed)
        if (normal := int((~table.is_anomaly).sum())) < FEWEST_NORMAL:
            few = normal
            continue
        train, held_out, test = split_normal(table, seed)
        scores = fit_ours(train, seed)(np.concatenate([held_out, test]))
        cases += compare(table.name, seed, scores[: len(held_out)], scores[len(held_out) :])
    if cases:
        said = f"{sum(case.is_within for case in cases)} of {len(cases)} cases within"
    else:
        said = f"left out, {few:,} normal rows are fewer than {FEWEST_NORMAL:,}"
    print(f"{whole.name}, {time.perf_counter() - started:.0f} s: {said}", flush=True)
    return cases


def try_month(prepared: Prepared, month: str) -> Month:
    """Fits the shipped configuration on the days before a month and counts what it flags in the month."""
    config, paths = prepared.config, prepared.paths
    content = {day: content_hash for day, (content_hash, rows) in features_content(config, paths).items() if rows}
    window = cut_window({day: text for day, text in content.items() if day < month}, config)
    bundle, _ = fit_bundle(config, feature_columns(config, prepared.contract), window, paths)
    days = [bundle.score(pl.read_parquet(paths.features(day))) for day in content if day.startswith(month)]
    rows, flagged = sum(len(day.score) for day in days), sum(int(day.is_anomaly.sum()) for day in days)
    newest = np.concatenate([day.score for day in days[-len(window.calibration) :]])
    drift = calibration_holds(newest, bundle.calibration.scores)
    lengths = (len(window.train), len(window.validation), len(window.calibration))
    return Month(month, lengths, config.alerts.budget, rows, flagged, drift)


def try_months(root: Path, months: Sequence[str]) -> list[Month]:
    """Tries months of the flights one after the other, and prints a line for each."""
    prepared, found = prepare(root), list[Month]()
    for month in months:
        started = time.perf_counter()
        found.append(try_month(prepared, month))
        took = time.perf_counter() - started
        print(f"flights of {month}, {took:.0f} s: {found[-1].flagged:,} of {found[-1].rows:,} flagged", flush=True)
    return found


def describe(cases: Sequence[Case]) -> str:
    """Lays out the share of cases within, by budget and by set, with the shares of rows that were flagged."""
    budgets = [budget for budget in BUDGETS if any(case.budget == budget for case in cases)]
    by_budget = [[case for case in cases if case.budget == budget] for budget in budgets]
    labels = [f"{budget:.1%}" for budget in budgets]
    shares = [[_flagged(some), f"{statistics.mean(case.law.mean for case in some):.3%}"] for some in by_budget]
    lines = [
        [label, *_verdict(some), *share]
        for label, some, share in zip([*labels, "all"], [*by_budget, cases], [*shares, ["", ""]], strict=True)
    ]
    header = ["budget", "cases", "within", "by theory", "above", "below", "of these by ties", "flagged", "by theory"]
    by_set = []
    for name in dict.fromkeys(case.name for case in cases):
        own = [case for case in cases if case.name == name]
        each = [[case for case in own if case.budget == budget] for budget in budgets]
        within = [_percent([case.is_within for case in some]) for some in (own, *each)]
        by_set.append([name, str(len(own)), *within, *map(_flagged, each)])
    columns = ["set", "cases", "within", *(f"at {text}" for text in labels), *(f"flagged at {text}" for text in labels)]
    overall = f"{_percent([case.is_within for case in cases])} of {len(cases)} cases are within (goal: {GOAL:.0%})"
    return "\n\n".join((format_table(header, lines), format_table(columns, by_set), overall))


def describe_months(found: Sequence[Month]) -> str:
    """Lays out the share of flagged flights by month."""
    lines = [
        [
            *(month, *map(str, days), f"{rows:,}", f"{flagged:,}", f"{flagged / rows:.3%}", f"{budget:.3%}"),
            *(f"{drift.figure:.3f}", f"{drift.threshold:.3f}", "holds" if drift.passed else "warns"),
        ]
        for month, days, budget, rows, flagged, drift in found
    ]
    check = ["gap", "allowed", "calibration_holds"]
    header = ["flights", "days to train", "validate", "calibrate", "rows", "flagged", "share", "budget", *check]
    return format_table(header, lines)


def _verdict(cases: Sequence[Case]) -> list[str]:
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


def read_seeds(text: str) -> list[int]:
    """Reads numbers and ranges of them, both ends included, parted by commas: `0..4,7`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        seeds += range(int(first), int(last) + 1) if dots else [int(first)]
    return seeds


def run(folder: Path, seeds: Sequence[int], months: Sequence[str], out: Path) -> None:
    """Judges all sets of a folder with all seeds, then months of the flights; prints tables and writes the JSON.

    The JSON is written anew as each set finishes, so that a run which is stopped leaves what it has.
    """
    cases: list[Case] = []
    for path in find_sets(folder):
        cases += try_set(read_set(path), seeds)
        write_report(out, "calibration", [case.row() for case in cases], ("scipy",))
    if cases:
        print(f"\n{describe(cases)}\n", flush=True)
    if months:
        with tempfile.TemporaryDirectory() as root:
            found = try_months(Path(root), months)
        print(f"\n{describe_months(found)}")
        rows = [case.row() for case in cases] + [month.row() for month in found]
        write_report(out, "calibration", rows, ("scipy",))


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of .npz files")
    parser.add_argument("--seeds", default="0..19", help="numbers and ranges, as 0..4,7 (default: %(default)s)")
    parser.add_argument("--flights", action="store_true", help="the flights too, month by month")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    if not find_sets(arguments.data):
        parser.error(f"{arguments.data} holds no .npz file; name a folder of sets")
    torch.set_num_threads(1)  # of networks this small, two threads wait for one another
    run(arguments.data, read_seeds(arguments.seeds), MONTHS if arguments.flights else (), arguments.out)


if __name__ == "__main__":
    main()
