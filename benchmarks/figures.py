"""A figure of a benchmark of speed, and how many of them become a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report import format_table


@dataclass(frozen=True)
class Measured:
    """One figure.

    Attributes:
        table: Which it belongs in.
        method: Whose it is.
        metric: In what it is measured.
        value: The median.
        rows: Of the data.
        columns: Of the data.
    """

    table: str
    method: str
    metric: str
    value: float
    rows: int
    columns: int


def as_table(found: Sequence[Measured]) -> str:
    """Lays out the figures of one table: a line for each method, a column for each metric."""
    metrics = list(dict.fromkeys(each.metric for each in found))
    by_method: dict[str, dict[str, float]] = {}
    for each in found:
        by_method.setdefault(each.method, {})[each.metric] = each.value
    lines = [[method, *(_spoken(has.get(metric)) for metric in metrics)] for method, has in by_method.items()]
    return format_table(("method", *metrics), lines)


def _spoken(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
