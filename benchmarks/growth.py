"""How memory and time of each stage grow with the rows: daily files of 100,000, and a memory budget of 64 MiB.

Each stage runs through Dagster, in a process of its own, over all days at once; of that process the most memory that it
held is told, and how long the run took. The exponent is the slope of log time over log rows, by least squares: 1 where
time goes with the rows.
"""

import math
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import generated
from benchmarks.deployment import STAGES, Measure, run_stage
from benchmarks.figures import Measured

BUDGET = "64MiB"
ATTRIBUTES: dict[str, Any] = {
    "dataset": generated.DATASET,
    "identity": ["id"],
    "event_time": "at",
    "start": generated.FIRST.isoformat(),
    "end": generated.day_of(365),
    "exclude": ["at"],
    "training": {"validation_days": 1, "calibration_days": 1, "epochs": 3, "memory_budget": BUDGET},
    "gate": {"days": 0},
}


def land(root: Path, days: int, columns: int) -> list[str]:
    """Lands files of generated rows, one a day, and names the days."""
    folder = root / "data" / "landing" / generated.DATASET
    folder.mkdir(parents=True)
    for place in range(days):
        rows = generated.day_rows(place, columns).rename({"row_id": "id", "event_time": "at"})
        rows.write_parquet(folder / f"{generated.day_of(place)}.parquet")
    return [generated.day_of(place) for place in range(days)]


def measure_growth(rows: Sequence[int], rounds: int, columns: int) -> list[Measured]:
    """Measures all stages at several numbers of rows."""
    found: dict[tuple[str, int], list[Measure]] = {}
    for count in rows:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                days = land(root, count // generated.DAY_ROWS, columns)
                for stage in STAGES:
                    measure = run_stage(root, ATTRIBUTES, stage, days)
                    found.setdefault((stage, count), []).append(measure)
                    print(f"{count:>12,} rows  {stage:<16} {measure.seconds:7.1f} s  {measure.mebibytes:7,.0f} MiB")
                shutil.rmtree(root / "data" / "landing")
    return _tables(found, rows, columns)


def _tables(found: dict[tuple[str, int], list[Measure]], rows: Sequence[int], columns: int) -> list[Measured]:
    told = []
    for name, attribute in (("memory", "mebibytes"), ("seconds", "seconds")):
        table = f"growth of {name} by stage: {columns} columns, memory_budget {BUDGET}"
        for stage in STAGES:
            medians = {n: statistics.median(getattr(one, attribute) for one in found[stage, n]) for n in rows}
            for count, value in medians.items():
                metric = f"{'MiB' if name == 'memory' else 's'} at {count / 1e6:g}M"
                told.append(Measured(table, stage, metric, value, count, columns))
            if name == "memory":
                told.append(
                    Measured(
                        table,
                        stage,
                        f"last / {_second(rows) / 1e6:g}M",
                        medians[rows[-1]] / medians[_second(rows)],
                        rows[-1],
                        columns,
                    )
                )
            else:
                told.append(Measured(table, stage, "exponent", exponent(medians), rows[-1], columns))
    return told


def _second(rows: Sequence[int]) -> int:
    return rows[min(1, len(rows) - 1)]


def exponent(seconds: dict[int, float]) -> float:
    """Gives the slope of log time over log rows."""
    if len(seconds) < 2:
        return float("nan")
    return statistics.linear_regression(
        *zip(*((math.log(n), math.log(s)) for n, s in seconds.items()), strict=True)
    ).slope
