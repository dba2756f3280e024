"""Figures of the speed benchmark and their tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import format_table


@dataclass(frozen=True)
class Measured:
    """One figure.

    Attributes:
        table: Title of the table that contains it.
        method: Measured method.
        metric: Name of the metric, or its unit.
        value: Median.
        rows: Number of rows of the data.
        columns: Number of columns of the data.
    """

    table: str
    method: str
    metric: str
    value: float
    rows: int
    columns: int


def as_table(figures: Sequence[Measured]) -> str:
    """Return the figures of one table in Markdown: one line per method, one column per metric."""
    metrics = list(dict.fromkeys(each.metric for each in figures))
    by_method: dict[str, dict[str, float]] = {}
    for each in figures:
        by_method.setdefault(each.method, {})[each.metric] = each.value
    lines = [[method, *(_format(has.get(metric)) for metric in metrics)] for method, has in by_method.items()]
    return format_table(("method", *metrics), lines)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
