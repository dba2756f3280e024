"""Charts as Vega-Lite specifications, which scripts within the page render.

Each channel is an object: Altair looks for the class of a string among all its classes, which takes milliseconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.text import plural, printable
from ae_pipeline.config.display import PLAIN, ColumnNames, noun_of_rows
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.reports.latent_map import latents_in, project, shown_rows

if TYPE_CHECKING:
    import altair as alt

Array = npt.NDArray[np.float64]

_BINS = 50
_MAX_DRIFT_DAYS, _MAX_DRIFT_COLUMNS = 60, 15
_STRONG, _SOFT, _GREY = "#c2352b", "#3b73b9", "#8b8b8b"
_RISING = ["#7da7d9", "#e0a030", "#d0312d"]
"""Colors with enough contrast on a white and on a black background."""


@dataclass(frozen=True)
class Chart:
    """A chart and its description.

    Attributes:
        name: Identifier within the page.
        title: Title above the chart.
        message: Description, also for screen readers.
        spec: Vega-Lite specification, JSON.
    """

    name: str
    title: str
    message: str
    spec: str


def score_chart(of_day: Array, calibration: Array, threshold: float, day: str, nouns: str = "rows") -> Chart:
    """Return histograms of the scores of a day and of the calibration rows, with the threshold.

    Args:
        of_day: Scores of the day, nats.
        calibration: Scores of the calibration rows, nats.
        threshold: Score above which rows are flagged, nats.
        day: Name of the day.
        nouns: What rows are called.
    """
    import altair as alt

    data = ChartData()

    highest = float(max(calibration.max(initial=0.0), of_day.max(initial=0.0), threshold * 1.1))
    edges = np.linspace(0.0, highest, _BINS + 1)
    bars = []
    for part, scores in ((_CALIBRATED, calibration), (day, of_day)):
        shares = np.histogram(np.clip(scores, 0.0, highest), edges)[0] / max(len(scores), 1)
        bars += [
            {"from": float(low), "to": float(high), "share": float(share), "of": part}
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
            if share
        ]
    base = (
        alt.Chart(data(bars))
        .mark_bar(opacity=0.6)
        .encode(
            x=alt.X("from:Q", title="score, nats", bin="binned"),
            x2=alt.X2("to:Q"),
            y=alt.Y(
                "share:Q",
                title=f"share of {nouns}",
                stack=None,
                axis=alt.Axis(values=[0, 1e-4, 1e-3, 1e-2, 1e-1], labelExpr="format(datum.value, '~p')"),
                scale=alt.Scale(type="symlog", constant=1e-4),
            ),
            color=alt.Color(
                "of:N",
                title=None,
                scale=alt.Scale(domain=[_CALIBRATED, day], range=[_GREY, _SOFT]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[alt.Tooltip("of:N"), alt.Tooltip("from:Q", format=".2f"), alt.Tooltip("share:Q", format=".3%")],
        )
    )
    rule = alt.Chart(data([{"at": threshold}])).mark_rule(color=_STRONG, strokeDash=[4, 3]).encode(x=alt.X("at:Q"))
    above = int((of_day > threshold).sum())
    message = (
        f"Scores of the {len(of_day):,} {nouns} of {day} and of {len(calibration):,} calibration {nouns}. The dashed "
        f"line is the threshold, {threshold:.2f} nats. {nouns.capitalize()} of {day} above it are flagged: {above:,}."
    )
    return as_chart("scores", "Scores", message, base + rule, data)


def calibration_chart(p_values: Array, message: str, nouns: str = "rows") -> Chart:
    """Return the share of rows that each alert budget would flag; calibrated p-values lie on the diagonal.

    Args:
        p_values: p-values of n rows.
        message: Description of these rows.
        nouns: What rows are called.
    """
    import altair as alt

    data = ChartData()

    rows = np.sort(p_values)
    smallest = 1 / max(len(rows), 10)
    budgets = np.geomspace(smallest, 0.5, 40)
    shares = np.searchsorted(rows, budgets, side="right") / max(len(rows), 1)
    points = [{"budget": float(b), "share": float(s)} for b, s in zip(budgets, shares, strict=True) if s > 0]
    scale = alt.Scale(type="log", domain=[float(smallest), 0.5], clamp=True)
    line = (
        alt.Chart(data(points))
        .mark_line(color=_SOFT, point={"size": 18, "color": _SOFT})
        .encode(
            x=alt.X("budget:Q", title="alert budget", scale=scale, axis=alt.Axis(format="~%", tickCount=5)),
            y=alt.Y("share:Q", title=f"share of {nouns} flagged", scale=scale, axis=alt.Axis(format="~%", tickCount=5)),
            tooltip=[alt.Tooltip("budget:Q", format=".3%"), alt.Tooltip("share:Q", format=".3%")],
        )
    )
    ends = [{"budget": float(smallest), "share": float(smallest)}, {"budget": 0.5, "share": 0.5}]
    ideal = (
        alt.Chart(data(ends)).mark_line(color=_GREY, strokeDash=[4, 3]).encode(x=alt.X("budget:Q"), y=alt.Y("share:Q"))
    )
    return as_chart(
        "calibration",
        "Calibration",
        f"{message} On the dashed line, each budget flags exactly its share of {nouns}.",
        ideal + line,
        data,
    )


def loss_chart(epochs: Sequence[Epoch], best_epoch: int, unit: str) -> Chart:
    """Return the training and validation loss by epoch, and the epoch whose weights were kept.

    Args:
        epochs: Losses of each epoch.
        best_epoch: Epoch whose weights were kept.
        unit: Unit of the loss.
    """
    import altair as alt

    data = ChartData()

    points = [
        {"epoch": epoch.number, "loss": loss, "of": part}
        for epoch in epochs
        for loss, part in ((epoch.train_loss, "training"), (epoch.validation_loss, "validation"))
    ]
    lines = (
        alt.Chart(data(points))
        .mark_line(point={"size": 25})
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("loss:Q", title=f"loss, {unit}", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "of:N",
                title=None,
                scale=alt.Scale(domain=["training", "validation"], range=[_GREY, _SOFT]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[alt.Tooltip("of:N"), alt.Tooltip("epoch:Q"), alt.Tooltip("loss:Q", format=".4g")],
        )
    )
    kept = alt.Chart(data([{"epoch": best_epoch}])).mark_rule(color=_GREY, strokeDash=[4, 3]).encode(x=alt.X("epoch:Q"))
    message = f"Loss by epoch. The dashed line is epoch {best_epoch} of {len(epochs)}, whose weights were kept."
    return as_chart("loss", "Training", message, lines + kept, data)


def latent_chart(
    rows: pl.DataFrame, reference: pl.DataFrame, bundle: ModelBundle, day: str, reference_name: str = "the calibration"
) -> Chart:
    """Return a map of the rows of a day and of normal rows in the latent space.

    Args:
        rows: Rows of the published table.
        reference: Normal rows.
        bundle: Model that scored the rows.
        day: Name of the day.
        reference_name: Name of the part that the normal rows come from.
    """
    import altair as alt

    data, noun = ChartData(), noun_of_rows(bundle.config)

    def points(some: pl.DataFrame) -> list[dict[str, Any]]:
        coordinates, known = project(latents_in(some), bundle), some.select("row_id", "score", "is_anomaly")
        return [
            {
                "x": round(float(x), 3),
                "y": round(float(y), 3),
                "row": row_id,
                "score": round(score, 2),
                "flagged": flagged,
            }
            for (x, y), (row_id, score, flagged) in zip(coordinates, known.iter_rows(), strict=True)
        ]

    of_day, normal, nouns = shown_rows(rows), shown_rows(reference), plural(noun)
    x = alt.X("x:Q", title="first direction, standard deviations")
    y = alt.Y("y:Q", title="second direction")
    above = (
        alt.Chart(data(points(of_day)))
        .mark_point(filled=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color("score:Q", title="score, nats", scale=alt.Scale(range=_RISING, interpolate="rgb")),
            size=alt.condition("datum.flagged", alt.value(90), alt.value(22)),
            shape=alt.condition("datum.flagged", alt.value("triangle-up"), alt.value("circle")),
            tooltip=[alt.Tooltip("row:N", title=noun), alt.Tooltip("score:Q"), alt.Tooltip("flagged:N")],
        )
    )
    message = (
        f"{of_day.height:,} {nouns} of {day}, colored by score, and {normal.height:,} normal {nouns} of "
        f"{reference_name} in gray. Triangles are flagged {nouns}. The axes are the two directions of largest variance "
        "in the training data. They are the same for every day."
    )
    if not normal.height:  # Vega-Lite cannot scale an axis without values
        return as_chart("latents", "Latent space", message, above, data)
    below = alt.Chart(data(points(normal))).mark_circle(size=14, color=_GREY, opacity=0.35).encode(x=x, y=y)
    return as_chart("latents", "Latent space", message, below + above, data)


def drift_chart(effects: pl.DataFrame, config: DriftConfig, names: ColumnNames = PLAIN) -> Chart | None:
    """Return how far the columns of each day are from the training window; None if nothing was measured.

    Args:
        effects: Rows of `drift.parquet`.
        config: Drift thresholds.
        names: How the chart names columns.
    """
    import altair as alt

    data = ChartData()
    columns = effects.filter(pl.col("part") == "column")
    if not columns.height:
        return None
    days = columns["day"].unique().sort().tail(_MAX_DRIFT_DAYS)
    recent = with_excess(columns.filter(pl.col("day").is_in(days.implode())), config)
    farthest = recent.group_by("name").agg(pl.col("excess").max()).sort("excess", "name", descending=[True, False])
    shown = farthest["name"].head(_MAX_DRIFT_COLUMNS)
    values = [
        {
            "day": row["day"],
            "date": row["day"],  # as text: Vega would convert a time to the time zone of the reader
            "column": names.title(row["name"]),
            "times": round(row["excess"], 3),
            "words": row["words"] or "no drift",
        }
        for row in recent.filter(pl.col("name").is_in(shown.implode())).iter_rows(named=True)
    ]
    scale = alt.Scale(domain=[0, 1, 2], range=["#88888822", "#f0a04b", "#b3261e"], clamp=True)
    capped = alt.Legend(values=[0, 1, 2], labelExpr="datum.value == 2 ? '2 or more' : datum.label")
    dates = alt.Axis(format="%-d %b", labelOverlap=True)
    chart = (
        alt.Chart(data(values))
        .mark_rect()
        .encode(
            x=alt.X("day:T", timeUnit="utcyearmonthdate", title=None, axis=dates),
            y=alt.Y("column:N", title=None, sort=[names.title(name) for name in shown]),
            color=alt.Color("times:Q", title="× threshold", scale=scale, legend=capped),
            tooltip=[
                alt.Tooltip("date:N", title="day"),
                alt.Tooltip("column:N"),
                alt.Tooltip("times:Q", title="× threshold"),
                alt.Tooltip("words:N", title="drift"),
            ],
        )
    )
    message = (
        f"Distance of each column from the training window, on each day up to {days[-1]}, as a multiple of its drift "
        "threshold. With several thresholds, the highest multiple counts. From 1 on, the column has drifted."
    )
    return as_chart("drift", "Column drift", message, chart, data)


def with_excess(drift: pl.DataFrame, config: DriftConfig) -> pl.DataFrame:
    """Return effects with `excess`: the largest of them as a multiple of its threshold.

    Args:
        drift: Rows of `drift.parquet` about columns.
        config: Drift thresholds.
    """
    return drift.with_columns(
        excess=pl.max_horizontal(
            pl.col("psi") / config.psi,
            pl.col("wasserstein").fill_null(0.0) / config.wasserstein,
            pl.col("new_categories").fill_null(0.0) / config.new_categories,
            pl.col("missing").abs() / config.missing,
        )
    )


_CALIBRATED = "calibration"


class ChartData:
    """Values of a chart, added to its specification at the end: Altair would validate each value, which is slow."""

    def __init__(self) -> None:
        self.sets: dict[str, list[Mapping[str, Any]]] = {}

    def __call__(self, values: Sequence[Mapping[str, Any]]) -> "alt.NamedData":
        """Keep values, and return the name that a chart refers to them by."""
        import altair as alt

        name = f"values_{len(self.sets)}"  # Vega-Lite uses the names data_0, data_1, …
        self.sets[name] = list(values)
        return alt.NamedData(name=name)


def as_chart(name: str, title: str, message: str, chart: "alt.TopLevelMixin", data: ChartData) -> Chart:
    """Return a chart of Altair, whose values `data` keeps, as wide as its container; other arguments as of `Chart`."""
    spec = chart.properties(width="container", height=215).to_dict()
    axis = {"domainColor": "#8888", "tickColor": "#8888", "gridColor": "#8883"}
    spec["config"] = {
        "view": {"stroke": None},
        "axis": axis,
        "background": "transparent",
        "font": "system-ui, sans-serif",
    }
    spec["datasets"] = data.sets
    return Chart(name, title, message, json.dumps(_printable(spec), separators=(",", ":")))


def _printable(value: Any) -> Any:
    """Return a specification whose texts can be drawn: a picture is XML, which has no control characters."""
    match value:
        case str():
            return printable(value)
        case dict():
            return {key: _printable(entry) for key, entry in value.items()}
        case list():
            return [_printable(entry) for entry in value]
        case _:
            return value
