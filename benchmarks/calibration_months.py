"""Alert budgets over time: the share of flagged flights in later months.

For each month from July to December 2013, the shipped configuration is fitted on the window of the days before it. The
table compares the share of flagged rows with the shipped budget. A month is not exchangeable with the calibration days
before it, so theory makes no statement here. The table also shows the result of the check `calibration_holds` at the
end of the month. The check covers as many of the last days as there are calibration days.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ae_pipeline.features.build import feature_columns, features_content
from ae_pipeline.features.split import cut_window
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import calibration_holds
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import fit_bundle
from benchmarks.planted_faults import Prepared, prepare
from benchmarks.report import Row, format_table, write_report

MONTHS = tuple(f"2013-{month:02}" for month in range(7, 13))


class Month(NamedTuple):
    """Number of flagged flights in a month, under the model of the days before it.

    Attributes:
        month: Month, such as 2013-07.
        days: Number of days of the window for training, validation and calibration.
        budget: Shipped alert budget.
        rows: Number of flights of the month.
        flagged: Number of flagged flights.
        drift: Result of `calibration_holds` on the last days of the month.
    """

    month: str
    days: tuple[int, int, int]
    budget: float
    rows: int
    flagged: int
    drift: GateResult

    def row(self) -> Row:
        """Return the row of the JSON."""
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


def try_month(prepared: Prepared, month: str) -> Month:
    """Fit the shipped configuration on the days before a month and count the flagged rows of the month."""
    config, paths = prepared.config, prepared.paths
    content = {
        day: content_hash for day, (content_hash, rows) in features_content(Dataset(config, paths)).items() if rows
    }
    window = cut_window({day: text for day, text in content.items() if day < month}, config)
    bundle, _ = fit_bundle(Dataset(config, paths), feature_columns(config, prepared.contract), window)
    days = [bundle.score(pl.read_parquet(paths.features(day))) for day in content if day.startswith(month)]
    rows, flagged = sum(len(day.score) for day in days), sum(int(day.is_anomaly.sum()) for day in days)
    newest = np.concatenate([day.score for day in days[-len(window.calibration) :]])
    drift = calibration_holds(newest, bundle.calibration.scores)
    lengths = (len(window.train), len(window.validation), len(window.calibration))
    return Month(month, lengths, bundle.calibration.budget, rows, flagged, drift)


def try_months(root: Path, months: Sequence[str]) -> list[Month]:
    """Measure months of the flights one after the other, and print a line for each."""
    prepared, results = prepare(root), list[Month]()
    for month in months:
        started = time.perf_counter()
        results.append(try_month(prepared, month))
        took = time.perf_counter() - started
        print(f"flights of {month}, {took:.0f} s: {results[-1].flagged:,} of {results[-1].rows:,} flagged", flush=True)
    return results


def describe_months(months: Sequence[Month]) -> str:
    """Return a table of the share of flagged flights by month."""
    lines = [
        [
            *(month, *map(str, days), f"{rows:,}", f"{flagged:,}", f"{flagged / rows:.3%}", f"{budget:.3%}"),
            *(f"{drift.figure:.3f}", f"{drift.threshold:.3f}", "holds" if drift.passed else "warns"),
        ]
        for month, days, budget, rows, flagged, drift in months
    ]
    check = ["KS distance", "allowed", "calibration_holds"]
    header = ["flights", "days to train", "validate", "calibrate", "rows", "flagged", "share", "budget", *check]
    return format_table(header, lines)


def run(months: Sequence[str], out: Path) -> None:
    """Measure months of the flights, print a table and write the JSON."""
    with tempfile.TemporaryDirectory() as root:
        results = try_months(Path(root), months)
    print(f"\n{describe_months(results)}")
    write_report(out, "calibration_months", [month.row() for month in results])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_months", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    run(MONTHS, parser.parse_args().out)


if __name__ == "__main__":
    main()
