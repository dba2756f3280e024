"""Charts of the pages to explore: a column by day, and the scores by day."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.reports.charts import Chart, ChartData, as_chart, with_excess
from ae_pipeline.reports.column_values import ColumnDays
from ae_pipeline.storage.paths import ALL_ROWS

if TYPE_CHECKING:
    import altair as alt

_STRONG, _SOFT, _GREY = "#c2352b", "#3b73b9", "#8b8b8b"
_QUANTILES = {"highest": 1.0, "99 %": 0.99, "90 %": 0.9, "median": 0.5}
"""Quantiles of the scores of a day, by name."""

_NO_WINDOW = "The days of the training window are not among those shown, so nothing is compared with it."

_LABELS = {
    ColumnType.CLOCK_HHMM: "format(floor(datum.value / 60), '02') + ':' + format(floor(datum.value % 60), '02')",
    ColumnType.TIMESTAMP: "utcFormat(datum.value * 86400000, '%Y-%m-%d')",
    ColumnType.DATE: "utcFormat(datum.value * 86400000, '%Y-%m-%d')",
}
"""How the axis of a column writes its numbers: minutes since midnight, and days since 1970."""


@dataclass(frozen=True)
class VersionMark:
    """A version of the model in a chart by day.

    Attributes:
        day: Last day of its training window, ISO date.
        version: Its number.
    """

    day: str
    version: int


def score_quantiles(scores: pl.DataFrame) -> pl.DataFrame:
    """Return quantiles of the scores of each day: `day`, `quantile` and `score`.

    Args:
        scores: Scores of rows, `day` and `score`.
    """
    measures = [pl.col("score").quantile(share, "linear").alias(name) for name, share in _QUANTILES.items()]
    by_day = scores.group_by("day").agg(measures).sort("day")
    return by_day.unpivot(index="day", variable_name="quantile", value_name="score")


def score_days_chart(quantiles: pl.DataFrame, threshold: float, marks: Sequence[VersionMark]) -> Chart:
    """Return quantiles of the scores by day, with the threshold and the ends of the training windows.

    Args:
        quantiles: Quantiles of the scores of the days, as `score_quantiles` returns them.
        threshold: Score above which rows are flagged, nats.
        marks: Versions of the model.
    """
    import altair as alt

    data, names = ChartData(), list(_QUANTILES)
    values = [_dated(row) for row in quantiles.iter_rows(named=True)]
    colors = alt.Scale(domain=names, range=[_STRONG, "#a15c00", _SOFT, _GREY])
    lines = (
        alt.Chart(data(values))
        .mark_line(strokeWidth=1.3)
        .encode(
            x=_day_axis(),
            y=alt.Y("score:Q", title="score, nats"),
            color=alt.Color("quantile:N", title=None, scale=colors, legend=alt.Legend(orient="top")),
            tooltip=["date:N", "quantile:N", alt.Tooltip("score:Q", format=".2f")],
        )
    )
    rule = alt.Chart(data([{"at": threshold}])).mark_rule(color=_STRONG, strokeDash=[4, 3]).encode(y="at:Q")
    first, last = quantiles["day"].min(), quantiles["day"].max()
    shown = [mark for mark in marks if str(first) <= mark.day <= str(last)]
    message = f"Quantiles of the scores of each day. The dashed line is the threshold, {threshold:.2f} nats."
    if not shown:
        return as_chart("score_days", "Scores by day", message, lines + rule, data)
    named = data([{"day": mark.day, "version": f"v{mark.version}"} for mark in shown])
    versions = alt.Chart(named).mark_rule(color=_GREY).encode(x=_day_axis())
    texts = (
        alt.Chart(named)
        .mark_text(align="left", dx=3, dy=8, baseline="top")
        .encode(x=_day_axis(), y=alt.value(0), text="version:N")
    )
    message += " A vertical line is the last day that a version of the model was trained and calibrated on."
    return as_chart("score_days", "Scores by day", message, lines + rule + versions + texts, data)


def column_charts(
    column: ColumnDays, kind: ColumnType, drift: pl.DataFrame, config: DriftConfig, nouns: str = "rows"
) -> list[Chart]:
    """Return the charts of a column: its distribution, its median, its missing values and its drift.

    Args:
        column: Values of the column; at least one row.
        kind: Type of the column.
        drift: Rows of `drift.parquet` about this column.
        config: Drift thresholds.
        nouns: What rows are called.
    """
    bins, by_day = column.bins(), column.by_day()
    charts = []
    is_daily = len(column.days) > 1
    if bins.height:
        charts.append(_distribution(column, bins, kind, nouns))
        charts += [_heat_map(column, bins, kind)] if is_daily else []
    if is_daily and not column.is_category:
        charts.append(_median(column, by_day, kind))
    if is_daily:
        charts.append(_missing(column, by_day, nouns))
        charts += [_drift(drift, config)] if drift.height else []
    return charts


def _distribution(column: ColumnDays, bins: pl.DataFrame, kind: ColumnType, nouns: str) -> Chart:
    import altair as alt

    data, newest, window = ChartData(), column.days[-1], column.window_name
    shown = f"all {nouns}" if newest == ALL_ROWS else newest
    names = {"window": window, newest: shown} if window else {newest: shown}
    rows = [
        {**row, "of": names[row["day"]]} for row in bins.filter(pl.col("day").is_in(list(names))).iter_rows(named=True)
    ]
    color = alt.Color(
        "of:N",
        title=None,
        scale=alt.Scale(domain=list(names.values()), range=[_GREY, _SOFT] if window else [_SOFT]),
        legend=alt.Legend(orient="top"),
    )
    share = alt.Axis(format="~%")
    tooltip = ["of:N", alt.Tooltip("share:Q", format=".2%")]
    base = alt.Chart(data(rows)).mark_bar(opacity=0.6)
    if column.is_category:
        chart = base.encode(
            y=alt.Y("bin:N", title=None, sort="-x"),
            x=alt.X("share:Q", title="share of the values", stack=None, axis=share),
            color=color,
            tooltip=["bin:N", *tooltip],
        )
    else:
        chart = base.encode(
            x=alt.X("from:Q", title=column.name, bin="binned", axis=_value_axis(kind), scale=alt.Scale(zero=False)),
            x2="to:Q",
            y=alt.Y("share:Q", title="share of the values", stack=None, axis=share),
            color=color,
            tooltip=tooltip,
        )
    message = f"Values of {shown} and of the {window}." if window else f"Values of {shown}."
    if not window and newest != ALL_ROWS:
        message += f" {_NO_WINDOW}"
    if not column.is_category:
        message += " The outermost bars take in everything beyond them."
    return as_chart("distribution", "Distribution", message, chart, data)


def _heat_map(column: ColumnDays, bins: pl.DataFrame, kind: ColumnType) -> Chart:
    import altair as alt

    data = ChartData()
    rows = [_dated({**row, "share": round(row["share"], 4)}) for row in _of_days(bins).iter_rows(named=True)]
    share = alt.Color(
        "share:Q",
        title="share",
        scale=alt.Scale(range=["#88888822", _SOFT]),
        legend=alt.Legend(format="~%"),
    )
    y: Any = alt.Y("bin:N", title=None)
    extra: dict[str, Any] = {}
    if not column.is_category:
        y, extra = alt.Y("from:Q", title=column.name, axis=_value_axis(kind), scale=alt.Scale(zero=False)), {"y2": "to"}
    tooltip = ["date:N", "bin:N" if column.is_category else alt.Tooltip("from:Q", format=".4~g")]
    chart = (
        alt.Chart(data(rows))
        .mark_rect()
        .encode(x=_day_axis(), y=y, color=share, tooltip=[*tooltip, alt.Tooltip("share:Q", format=".2%")], **extra)
    )
    message = "Share of the values of each day. A shift, a new value or a gap shows as a break in the pattern."
    return as_chart("by_day", "Distribution by day", message, chart, data)


def _of_days(bins: pl.DataFrame) -> pl.DataFrame:
    return bins.filter(pl.col("day") != "window").drop("count")


def _median(column: ColumnDays, by_day: pl.DataFrame, kind: ColumnType) -> Chart:
    import altair as alt

    data = ChartData()
    rows = [_dated(row) for row in by_day.drop("rows", "missing").drop_nulls().iter_rows(named=True)]
    base = alt.Chart(data(rows))
    scale, axis = alt.Scale(zero=False), _value_axis(kind)
    tooltip = ["date:N", *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("low", "median", "high"))]
    band = base.mark_area(opacity=0.25, color=_SOFT).encode(
        x=_day_axis(), y=alt.Y("low:Q", title=column.name, scale=scale, axis=axis), y2="high:Q", tooltip=tooltip
    )
    line = base.mark_line(color=_SOFT).encode(x=_day_axis(), y=alt.Y("median:Q", scale=scale), tooltip=tooltip)
    usual = column.in_window["value"].median()
    message = "Median of each day, and the band from the 10th to the 90th percentile."
    if usual is None:
        message += "" if column.in_window.height else f" {_NO_WINDOW}"
        return as_chart("median", "Median", message, band + line, data)
    rule = alt.Chart(data([{"at": usual}])).mark_rule(color=_GREY, strokeDash=[4, 3]).encode(y="at:Q")
    return as_chart(
        "median",
        "Median",
        f"{message} The dashed line is the median of the {column.window_name}.",
        band + line + rule,
        data,
    )


_LEAST_MISSING = 0.01
"""Share of missing values that the axis reaches at least."""


def _missing(column: ColumnDays, by_day: pl.DataFrame, nouns: str) -> Chart:
    import altair as alt

    data = ChartData()
    rows = [_dated(row) for row in by_day.select("day", "missing", "rows").iter_rows(named=True)]
    usual = column.in_window["value"].null_count() / column.in_window.height if column.in_window.height else 0.0
    top = max(_LEAST_MISSING, usual, *(row["missing"] or 0.0 for row in rows))
    bars = (
        alt.Chart(data(rows))
        .mark_rule(color=_SOFT, strokeWidth=2)
        .encode(
            x=_day_axis(),
            # Without missing values, the axis still starts at zero.
            y=alt.Y("missing:Q", title="share missing", axis=alt.Axis(format="~%"), scale=alt.Scale(domain=[0, top])),
            y2=alt.Y2Datum(0),
            tooltip=["date:N", alt.Tooltip("missing:Q", format=".2%"), alt.Tooltip("rows:Q", title=nouns)],
        )
    )
    message = "Share of missing values."
    if not column.in_window.height:
        return as_chart("missing", "Missing values", f"{message} {_NO_WINDOW}", bars, data)
    rule = alt.Chart(data([{"at": usual}])).mark_rule(color=_GREY, strokeDash=[4, 3]).encode(y="at:Q")
    message += f" The dashed line is that of the {column.window_name}, {usual:.2%}."
    return as_chart("missing", "Missing values", message, bars + rule, data)


def _drift(drift: pl.DataFrame, config: DriftConfig) -> Chart:
    import altair as alt

    data = ChartData()
    rows = [
        _dated({"day": row["day"], "times": round(row["excess"], 3), "drift": row["words"] or "no drift"})
        for row in with_excess(drift, config).iter_rows(named=True)
    ]
    bars = (
        alt.Chart(data(rows))
        .mark_rule(strokeWidth=2)
        .encode(
            x=_day_axis(),
            y=alt.Y("times:Q", title="× threshold"),
            y2=alt.Y2Datum(0),
            color=alt.condition("datum.times >= 1", alt.value(_STRONG), alt.value(_SOFT)),
            tooltip=["date:N", "times:Q", "drift:N"],
        )
    )
    rule = alt.Chart(data([{"at": 1}])).mark_rule(color=_STRONG, strokeDash=[4, 3]).encode(y="at:Q")
    message = "Distance from the training window, as a multiple of the drift threshold. From 1 on, it has drifted."
    return as_chart("drift", "Drift", message, bars + rule, data)


def _dated(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its day also as text: Vega converts a time to the time zone of the reader."""
    return {**row, "date": row["day"]}


def _day_axis() -> "alt.X":
    import altair as alt

    axis = alt.Axis(format="%-d %b", labelOverlap=True)
    return alt.X("day:T", timeUnit="utcyearmonthdate", title=None, axis=axis)


def _value_axis(kind: ColumnType) -> "alt.Axis":
    import altair as alt

    return alt.Axis(labelExpr=_LABELS[kind], labelOverlap=True) if kind in _LABELS else alt.Axis(labelOverlap=True)
