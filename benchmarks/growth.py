"""How memory and time of each stage grow with the rows, and what wide rows take.

Each stage runs through Dagster, in a process of its own, over all days at once; of that process the most memory that it
held is told, and how long the run took. The exponent is the slope of log time over log rows, by least squares: 1 where
time goes with the rows.

Wide rows are 2,000 columns of numbers, and a column of 1,000 categories; beside 100,000 rows stand fewer, to show that
memory does not go with them.
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
"""Makes the rows of a day, by its place."""


@dataclass(frozen=True)
class Data:
    """What is landed and under which settings.

    Attributes:
        day: Makes a day's rows, with `row_id` and `event_time`.
        day_rows: How many each has.
        columns: How many of them a model may look at.
        budget: Memory for the rows of a training.
    """

    day: DayRows
    day_rows: int
    columns: int
    budget: str

    @property
    def attributes(self) -> dict[str, Any]:
        """The dataset's settings: as shipped, but for short parts of the window."""
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
        """Lands a Parquet file a day, and names the days."""
        folder = root / "data" / "landing" / generated.DATASET
        folder.mkdir(parents=True)
        for index in range(days):
            rows = self.day(index).rename({"row_id": "id", "event_time": "at"})
            rows.write_parquet(folder / f"{generated.day_of(index)}.parquet")
        return [generated.day_of(index) for index in range(days)]


def narrow(columns: int) -> Data:
    """Numbers, in daily files of 100,000 rows."""
    return Data(lambda index: generated.day_rows(index, columns), generated.DAY_ROWS, columns, BUDGET)


def wide(columns: int) -> Data:
    """Numbers, in daily files of 10,000 rows."""
    return Data(lambda index: generated.day_rows(index, columns, 10_000), 10_000, columns, WIDE_BUDGET)


def many_categories(columns: int) -> Data:
    """Numbers and a column of 1,000 categories that goes with one of them, in daily files of 10,000 rows."""

    def day(index: int) -> pl.DataFrame:
        rows = generated.day_rows(index, columns - 1, 10_000)
        rank = (np.argsort(np.argsort(rows["c000"].to_numpy())) * CATEGORIES // rows.height).tolist()
        return rows.with_columns(kind=pl.Series([f"kind {number:03d}" for number in rank]))

    return Data(day, 10_000, columns, WIDE_BUDGET)


def measure_growth(rows: Sequence[int], rounds: int, columns: int) -> list[Measured]:
    """Measures all stages at several numbers of rows."""
    data = narrow(columns)
    found = _measure(data, rows, rounds)
    memory = f"growth of memory by stage: {columns} columns, memory_budget {BUDGET}, MiB"
    seconds = f"growth of time by stage: {columns} columns, memory_budget {BUDGET}, seconds"
    told = []
    beside = rows[min(1, len(rows) - 1)]
    for stage in STAGES:
        held = {count: statistics.median(one.mebibytes for one in found[stage, count]) for count in rows}
        taken = {count: statistics.median(one.seconds for one in found[stage, count]) for count in rows}
        told += [Measured(memory, stage, f"{_millions(n)}", value, n, columns) for n, value in held.items()]
        ratio = held[rows[-1]] / held[beside]
        told.append(Measured(memory, stage, f"{_millions(rows[-1])} / {_millions(beside)}", ratio, rows[-1], columns))
        told += [Measured(seconds, stage, f"{_millions(n)}", value, n, columns) for n, value in taken.items()]
        told.append(Measured(seconds, stage, "exponent", exponent(taken), rows[-1], columns))
    return told


def measure_wide() -> list[Measured]:
    """Measures all stages on wide rows, once each."""
    told = []
    for message, data in (
        ("2,000 columns of numbers", wide(2000)),
        (f"8 columns of numbers and one of {CATEGORIES:,} categories", many_categories(9)),
    ):
        rows = (30_000, 100_000)
        found = _measure(data, rows, 1)
        table = f"wide rows: {message}, memory_budget {WIDE_BUDGET}"
        for stage in STAGES:
            for count in rows:
                (one,) = found[stage, count]
                name = f"{count // 1000}k"
                told.append(Measured(table, stage, f"MiB at {name}", one.mebibytes, count, data.columns))
                told.append(Measured(table, stage, f"s at {name}", one.seconds, count, data.columns))
    return told


def _measure(data: Data, rows: Sequence[int], rounds: int) -> dict[tuple[str, int], list[Measure]]:
    found: dict[tuple[str, int], list[Measure]] = {}
    for count in rows:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                days = data.land(Path(folder), count // data.day_rows)
                for stage in STAGES:
                    measure = run_stage(Path(folder), data.attributes, stage, days)
                    found.setdefault((stage, count), []).append(measure)
                    message = f"{measure.seconds:8.1f} s {measure.mebibytes:7,.0f} MiB"
                    print(f"{message}  {stage} of {count:,} rows × {data.columns:,}", flush=True)
    return found


def _millions(rows: int) -> str:
    return f"{rows / 1e6:g}M"


def exponent(seconds: dict[int, float]) -> float:
    """Gives the slope of log time over log rows."""
    if len(seconds) < 2:
        return float("nan")
    points = [(math.log(rows), math.log(taken)) for rows, taken in seconds.items()]
    return float(statistics.linear_regression(*zip(*points, strict=True)).slope)
