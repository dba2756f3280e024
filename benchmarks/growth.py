"""Growth of memory and time of each stage with the number of rows, and the cost of wide rows.

Each stage runs through Dagster, in a separate process, over all days at once. The benchmark reports the peak memory of
that process and the duration of the run. The exponent is the least-squares slope of log time over log rows. It is 1 if
time is proportional to the rows.

Wide rows have 2,000 columns of numbers, or a column of 1,000 categories. Two numbers of rows, 30,000 and 100,000, show
that memory does not grow with the rows.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import generated
from benchmarks.deployment import STAGES, Measure, run_stage
from benchmarks.figures import Measured

BUDGET = "64MiB"
WIDE_BUDGET = "512MiB"
CATEGORIES = 1000

DayRows = Callable[[int], pl.DataFrame]
"""Function from the index of a day to its rows."""


@dataclass(frozen=True)
class Data:
    """Landed data and their settings.

    Attributes:
        day: Function that returns the rows of a day, with `row_id` and `event_time`.
        day_rows: Number of rows of each day.
        columns: Number of columns that a model may use.
        budget: Memory budget for the rows of a training.
    """

    day: DayRows
    day_rows: int
    columns: int
    budget: str

    @property
    def attributes(self) -> dict[str, Any]:
        """Settings of the dataset: the defaults, with short validation and calibration parts."""
        return {
            "dataset": generated.DATASET,
            "identity": ["id"],
            "event_time": "at",
            "start": generated.FIRST.isoformat(),
            "end": generated.day_of(365),
            "exclude": ["at"],
            "training": {"validation_days": 1, "calibration_days": 1, "epochs": 3, "memory_budget": self.budget},
            "gate": {"days": 0},
        }

    def land(self, root: Path, days: int) -> list[str]:
        """Land one Parquet file per day and return the days."""
        folder = root / "data" / "landing" / generated.DATASET
        folder.mkdir(parents=True)
        for index in range(days):
            rows = self.day(index).rename({"row_id": "id", "event_time": "at"})
            rows.write_parquet(folder / f"{generated.day_of(index)}.parquet")
        return [generated.day_of(index) for index in range(days)]


def narrow(columns: int) -> Data:
    """Return data of numbers, in daily files of 100,000 rows."""
    return Data(lambda index: generated.day_rows(index, columns), generated.DAY_ROWS, columns, BUDGET)


def wide(columns: int) -> Data:
    """Return data of numbers, in daily files of 10,000 rows."""
    return Data(lambda index: generated.day_rows(index, columns, 10_000), 10_000, columns, WIDE_BUDGET)


def many_categories(columns: int) -> Data:
    """Return data of numbers and 1,000 categories that depend on one number, in daily files of 10,000 rows."""

    def day(index: int) -> pl.DataFrame:
        rows = generated.day_rows(index, columns - 1, 10_000)
        rank = (np.argsort(np.argsort(rows["c000"].to_numpy())) * CATEGORIES // rows.height).tolist()
        return rows.with_columns(kind=pl.Series([f"kind {number:03d}" for number in rank]))

    return Data(day, 10_000, columns, WIDE_BUDGET)


def measure_growth(rows: Sequence[int], rounds: int, columns: int) -> list[Measured]:
    """Measure all stages at several numbers of rows."""
    data = narrow(columns)
    measures = _measure(data, rows, rounds)
    memory = f"growth of memory by stage: {columns} columns, memory_budget {BUDGET}, MiB"
    seconds = f"growth of time by stage: {columns} columns, memory_budget {BUDGET}, seconds"
    figures = []
    baseline = rows[min(1, len(rows) - 1)]
    for stage in STAGES:
        held = {count: statistics.median(one.mebibytes for one in measures[stage, count]) for count in rows}
        taken = {count: statistics.median(one.seconds for one in measures[stage, count]) for count in rows}
        figures += [Measured(memory, stage, f"{_millions(n)}", value, n, columns) for n, value in held.items()]
        ratio, name = held[rows[-1]] / held[baseline], f"{_millions(rows[-1])} / {_millions(baseline)}"
        figures.append(Measured(memory, stage, name, ratio, rows[-1], columns))
        figures += [Measured(seconds, stage, f"{_millions(n)}", value, n, columns) for n, value in taken.items()]
        figures.append(Measured(seconds, stage, "exponent", exponent(taken), rows[-1], columns))
    return figures


def measure_wide() -> list[Measured]:
    """Measure all stages on wide rows, once each."""
    figures = []
    for description, data in (
        ("2,000 columns of numbers", wide(2000)),
        (f"8 columns of numbers and one of {CATEGORIES:,} categories", many_categories(9)),
    ):
        rows = (30_000, 100_000)
        measures = _measure(data, rows, 1)
        table = f"wide rows: {description}, memory_budget {WIDE_BUDGET}"
        for stage in STAGES:
            for count in rows:
                (one,) = measures[stage, count]
                name = f"{count // 1000}k"
                figures.append(Measured(table, stage, f"MiB at {name}", one.mebibytes, count, data.columns))
                figures.append(Measured(table, stage, f"s at {name}", one.seconds, count, data.columns))
    return figures


def _measure(data: Data, rows: Sequence[int], rounds: int) -> dict[tuple[str, int], list[Measure]]:
    measures: dict[tuple[str, int], list[Measure]] = {}
    for count in rows:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                days = data.land(Path(folder), count // data.day_rows)
                for stage in STAGES:
                    measure = run_stage(Path(folder), data.attributes, stage, days)
                    measures.setdefault((stage, count), []).append(measure)
                    cost = f"{measure.seconds:8.1f} s {measure.mebibytes:7,.0f} MiB"
                    print(f"{cost}  {stage} of {count:,} rows × {data.columns:,}", flush=True)
    return measures


def _millions(rows: int) -> str:
    return f"{rows / 1e6:g}M"


def exponent(seconds: dict[int, float]) -> float:
    """Return the slope of log time over log rows; NaN for fewer than two points."""
    if len(seconds) < 2:
        return float("nan")
    points = [(math.log(rows), math.log(taken)) for rows, taken in seconds.items()]
    return float(statistics.linear_regression(*zip(*points, strict=True)).slope)
