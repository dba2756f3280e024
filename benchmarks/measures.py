"""What a benchmark of several seeds measured: single values, their means, and tables of these."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import Row, format_table


class Measure(NamedTuple):
    """One value.

    Attributes:
        task: What was to be done, with its width or noise level.
        method: By which method.
        metric: In what it is measured.
        value: How well it went.
        seed: Of the split, of planting or noise, and of the method.
    """

    task: str
    method: str
    metric: str
    value: float
    seed: int


class Mean(NamedTuple):
    """Of one task, method and metric over the seeds.

    Attributes:
        value: Mean.
        deviation: Standard deviation between seeds, 0 for a single one.
        seeds: How many.
    """

    value: float
    deviation: float
    seeds: int


def means(measures: Sequence[Measure]) -> dict[tuple[str, str, str], Mean]:
    """Averages over seeds, by task, method and metric in the order of their first appearance."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for task, method, metric, value, _ in measures:
        found.setdefault((task, method, metric), []).append(value)
    return {
        key: Mean(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
        for key, values in found.items()
    }


def to_rows(measures: Sequence[Measure]) -> list[Row]:
    """Gives a row for each value, and behind them one for each mean, whose seed is `mean`."""
    rows: list[Row] = [{**measure._asdict(), "value": round(measure.value, 6)} for measure in measures]
    for (task, method, metric), (value, deviation, seeds) in means(measures).items():
        row: dict[str, str | int | float] = {"task": task, "method": method, "metric": metric}
        row |= {"value": round(value, 6), "seed": "mean", "deviation": round(deviation, 6), "seeds": seeds}
        rows.append(row)
    return rows


def to_tables(measures: Sequence[Measure]) -> str:
    """Lays out a table for each metric: a row for each task, a column for each method that does any of them."""
    averaged = means(measures)
    tables = []
    # Tasks that the same methods do, measured in the same way, share a table.
    doers: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for task, metric in dict.fromkeys((task, metric) for task, _, metric in averaged):
        methods = tuple(method for there, method, by in averaged if (there, by) == (task, metric))
        doers.setdefault((metric, methods), []).append(task)
    for (metric, methods), tasks in doers.items():
        columns = [[_spoken(averaged[task, method, metric], metric) for task in tasks] for method in methods]
        lines = [[method, *cells] for method, cells in zip(methods, columns, strict=True)]
        tables.append(format_table([metric, *tasks], lines))
    return "\n\n".join(tables)


def _spoken(mean: Mean, metric: str) -> str:
    digits = 2 if metric.endswith("dB") else 4 if metric == "trustworthiness" else 3
    parallel_map = f" ± {mean.deviation:.{digits}f}" if mean.seeds > 1 else ""
    return f"{mean.value:.{digits}f}{parallel_map}"
