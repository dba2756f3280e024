"""Results of a benchmark with several seeds: single values, their means, and tables."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import Row, format_table


class Measure(NamedTuple):
    """One value.

    Attributes:
        task: Task, with its width or noise level.
        method: Measured method.
        metric: Name of the metric.
        value: Value of the metric.
        seed: Seed of the split, of the planting or noise, and of the method.
    """

    task: str
    method: str
    metric: str
    value: float
    seed: int


class Mean(NamedTuple):
    """Mean of one task, method and metric over the seeds.

    Attributes:
        value: Mean.
        deviation: Standard deviation between seeds, 0 for a single seed.
        seeds: Number of seeds.
    """

    value: float
    deviation: float
    seeds: int


def means(measures: Sequence[Measure]) -> dict[tuple[str, str, str], Mean]:
    """Return means over seeds by task, method and metric, in order of first appearance."""
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for task, method, metric, value, _ in measures:
        grouped.setdefault((task, method, metric), []).append(value)
    return {
        key: Mean(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
        for key, values in grouped.items()
    }


def to_rows(measures: Sequence[Measure]) -> list[Row]:
    """Return a row for each value, followed by a row for each mean, whose seed is `mean`."""
    rows: list[Row] = [{**measure._asdict(), "value": round(measure.value, 6)} for measure in measures]
    for (task, method, metric), (value, deviation, seeds) in means(measures).items():
        row: dict[str, str | int | float] = {"task": task, "method": method, "metric": metric}
        row |= {"value": round(value, 6), "seed": "mean", "deviation": round(deviation, 6), "seeds": seeds}
        rows.append(row)
    return rows


def to_tables(measures: Sequence[Measure]) -> str:
    """Return a table for each metric and group of tasks: a row for each method, a column for each task."""
    averaged = means(measures)
    tables = []
    # Tasks with the same metric and the same methods share a table.
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for task, metric in dict.fromkeys((task, metric) for task, _, metric in averaged):
        methods = tuple(method for its_task, method, its_metric in averaged if (its_task, its_metric) == (task, metric))
        groups.setdefault((metric, methods), []).append(task)
    for (metric, methods), tasks in groups.items():
        columns = [[_format(averaged[task, method, metric], metric) for task in tasks] for method in methods]
        lines = [[method, *cells] for method, cells in zip(methods, columns, strict=True)]
        tables.append(format_table([metric, *tasks], lines))
    return "\n\n".join(tables)


def _format(mean: Mean, metric: str) -> str:
    digits = 2 if metric.endswith("dB") else 4 if metric == "trustworthiness" else 3
    deviation = f" ± {mean.deviation:.{digits}f}" if mean.seeds > 1 else ""
    return f"{mean.value:.{digits}f}{deviation}"
