"""Charts of the page: Vega-Lite specifications, drawn by scripts that the page carries along."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.reports.latent_map import latents_in, places, shown_rows
from ae_pipeline.storage.files import write_text

if TYPE_CHECKING:
    import altair as alt

Array = npt.NDArray[np.float64]

_BINS = 50
_DRIFT_DAYS, _DRIFT_COLUMNS = 60, 15
_STRONG, _SOFT, _GREY = "#c2352b", "#3b73b9", "#8b8b8b"
_RISING = ["#7da7d9", "#e0a030", "#d0312d"]
"""Colours that stand out from a white and from a black ground alike."""


@dataclass(frozen=True)
class Chart:
    """A chart and what it shows in words.

    Attributes:
        name: Identifies it on its page.
        title: Above it.
        message: What it shows, also for those who do not see it.
        spec: Vega-Lite, JSON.
    """

    name: str
    title: str
    message: str
    spec: str


def score_chart(of_day: Array, calibration: Array, threshold: float, day: str) -> Chart:
    """Shows how the scores of a day lie beside those of the calibration, and where rows are flagged from."""
    import altair as alt

    data = _Data()

    highest = float(max(calibration.max(initial=0.0), of_day.max(initial=0.0), threshold * 1.1))
    edges = np.linspace(0.0, highest, _BINS + 1)
    bars = []
    for whose, scores in ((_CALIBRATED, calibration), (day, of_day)):
        shares = np.histogram(np.clip(scores, 0.0, highest), edges)[0] / max(len(scores), 1)
        bars += [
            {"from": float(low), "to": float(high), "share": float(share), "rows": whose}
            for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True)
            if share
        ]
    base = (
        alt.Chart(data(bars))
        .mark_bar(opacity=0.6)
        .encode(
            x=alt.X("from:Q", title="score, nats", bin="binned"),
            x2="to:Q",
            y=alt.Y(
                "share:Q",
                title="share of rows",
                stack=None,
                axis=alt.Axis(values=[0, 1e-4, 1e-3, 1e-2, 1e-1], labelExpr="format(datum.value, '~p')"),
                scale=alt.Scale(type="symlog", constant=1e-4),
            ),
            color=alt.Color(
                "rows:N",
                title=None,
                scale=alt.Scale(domain=[_CALIBRATED, day], range=[_GREY, _SOFT]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[alt.Tooltip("rows:N"), alt.Tooltip("from:Q", format=".2f"), alt.Tooltip("share:Q", format=".3%")],
        )
    )
    rule = alt.Chart(data([{"at": threshold}])).mark_rule(color=_STRONG, strokeDash=[4, 3]).encode(x="at:Q")
    above = int((of_day > threshold).sum())
    message = (
        f"Scores of {len(of_day):,} rows of {day} beside {len(calibration):,} of the calibration. Rows beyond "
        f"{threshold:.2f} nats, the dashed line, are flagged: {above:,}."
    )
    return _chart("scores", "Scores", message, base + rule, data)


def calibration_chart(p_values: Array, message: str) -> Chart:
    """Shows which share of rows would be flagged at each budget: on the line where the budget means what it says."""
    import altair as alt

    data = _Data()

    rows = np.sort(p_values)
    least = 1 / max(len(rows), 10)
    budgets = np.geomspace(least, 0.5, 40)
    shares = np.searchsorted(rows, budgets, side="right") / max(len(rows), 1)
    points = [{"budget": float(b), "share": float(s)} for b, s in zip(budgets, shares, strict=True) if s > 0]
    scale = alt.Scale(type="log", domain=[float(least), 0.5], clamp=True)
    line = (
        alt.Chart(data(points))
        .mark_line(color=_SOFT, point={"size": 18, "color": _SOFT})
        .encode(
            x=alt.X("budget:Q", title="budget", scale=scale, axis=alt.Axis(format="~%", tickCount=5)),
            y=alt.Y(
                "share:Q", title="share of rows flagged at it", scale=scale, axis=alt.Axis(format="~%", tickCount=5)
            ),
            tooltip=[alt.Tooltip("budget:Q", format=".3%"), alt.Tooltip("share:Q", format=".3%")],
        )
    )
    ends = [{"budget": float(least), "share": float(least)}, {"budget": 0.5, "share": 0.5}]
    ideal = alt.Chart(data(ends)).mark_line(color=_GREY, strokeDash=[4, 3]).encode(x="budget:Q", y="share:Q")
    return _chart(
        "calibration", "Calibration", f"{message} On the dashed line a budget flags its share.", ideal + line, data
    )


def loss_chart(epochs: Sequence[Epoch], best_epoch: int, unit: str) -> Chart:
    """Shows training and validation loss by epoch, and the epoch that was kept."""
    import altair as alt

    data = _Data()

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
            tooltip=["of:N", "epoch:Q", alt.Tooltip("loss:Q", format=".4g")],
        )
    )
    kept = alt.Chart(data([{"epoch": best_epoch}])).mark_rule(color=_GREY, strokeDash=[4, 3]).encode(x="epoch:Q")
    message = f"Loss by epoch; weights of epoch {best_epoch} of {len(epochs)} were kept."
    return _chart("loss", "Training", message, lines + kept, data)


def latent_chart(
    rows: pl.DataFrame, reference: pl.DataFrame, bundle: ModelBundle, day: str, whose: str = "the calibration"
) -> Chart:
    """Shows a day's rows over ordinary ones in the two widest directions of the latent space."""
    import altair as alt

    data = _Data()

    def points(some: pl.DataFrame) -> list[dict[str, Any]]:
        at = places(latents_in(some), bundle)
        return [
            {
                "x": round(float(x), 3),
                "y": round(float(y), 3),
                "row": row_id,
                "score": round(score, 2),
                "flagged": flagged,
            }
            for (x, y), row_id, score, flagged in zip(
                at, some["row_id"], some["score"], some["is_anomaly"], strict=True
            )
        ]

    own, others = shown_rows(rows), shown_rows(reference)
    x, y = (alt.X("x:Q", title="widest direction, spreads"), alt.Y("y:Q", title="second one"))
    above = (
        alt.Chart(data(points(own)))
        .mark_point(filled=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color("score:Q", title="score, nats", scale=alt.Scale(range=_RISING, interpolate="rgb")),
            size=alt.condition("datum.flagged", alt.value(90), alt.value(22)),
            shape=alt.condition("datum.flagged", alt.value("triangle-up"), alt.value("circle")),
            tooltip=["row:N", "score:Q", "flagged:N"],
        )
    )
    message = (
        f"{own.height:,} rows of {day}, coloured by score, flagged ones as triangles, over {others.height:,} ordinary "
        f"rows of {whose} in grey. The axes are the model's and stay the same from day to day."
    )
    if not others.height:  # an axis of no value has no end
        return _chart("latents", "Latent space", message, above, data)
    below = alt.Chart(data(points(others))).mark_circle(size=14, color=_GREY, opacity=0.35).encode(x=x, y=y)
    return _chart("latents", "Latent space", message, below + above, data)


def drift_chart(effects: pl.DataFrame, config: DriftConfig) -> Chart | None:
    """Shows how far the columns of each day are from the training window, None where nothing was measured."""
    import altair as alt

    data = _Data()

    columns = effects.filter(pl.col("part") == "column")
    if not columns.height:
        return None
    days = columns["day"].unique().sort().tail(_DRIFT_DAYS)
    excess = pl.max_horizontal(
        pl.col("psi") / config.psi,
        pl.col("wasserstein").fill_null(0.0) / config.wasserstein,
        pl.col("new_categories").fill_null(0.0) / config.new_categories,
        pl.col("missing").abs() / config.missing,
    )
    told = columns.filter(pl.col("day").is_in(days.implode())).with_columns(excess=excess)
    farthest = told.group_by("name").agg(pl.col("excess").max()).sort("excess", "name", descending=[True, False])
    names = farthest["name"].head(_DRIFT_COLUMNS)
    values = [
        {
            "day": row["day"],
            "date": row["day"],  # as it stands: Vega would tell a time in the reader's time zone
            "column": row["name"],
            "times": round(row["excess"], 3),
            "words": row["words"] or "like the window",
        }
        for row in told.filter(pl.col("name").is_in(names.implode())).iter_rows(named=True)
    ]
    scale = alt.Scale(domain=[0, 1, 2], range=["#88888822", "#f0a04b", "#b3261e"], clamp=True)
    capped = alt.Legend(values=[0, 1, 2], labelExpr="datum.value == 2 ? '2 or more' : datum.label")
    chart = (
        alt.Chart(data(values))
        .mark_rect()
        .encode(
            x=alt.X(
                "day:T", timeUnit="utcyearmonthdate", title=None, axis=alt.Axis(format="%-d %b", labelOverlap=True)
            ),
            y=alt.Y("column:N", title=None, sort=names.to_list()),
            color=alt.Color("times:Q", title="× threshold", scale=scale, legend=capped),
            tooltip=[alt.Tooltip("date:N", title="day"), "column:N", "times:Q", "words:N"],
        )
    )
    message = (
        f"How far each column is from the days that the model learnt from, on each day up to {days[-1]}, in times of "
        "the threshold that it is farthest beyond or comes nearest to: from 1 on it counts as drifted."
    )
    return _chart("drift", "Drift of the columns", message, chart, data)


_CALIBRATED = "calibration"


class _Data:
    """The values of a chart, put into its specification at last: Altair would check each of them against its schema."""

    def __init__(self) -> None:
        self.sets: dict[str, list[Mapping[str, Any]]] = {}

    def __call__(self, values: Sequence[Mapping[str, Any]]) -> "alt.NamedData":
        import altair as alt

        name = f"values_{len(self.sets)}"  # Vega-Lite calls its own data_0 and so on
        self.sets[name] = list(values)
        return alt.NamedData(name=name)


def _chart(name: str, title: str, message: str, chart: "alt.TopLevelMixin", data: _Data) -> Chart:
    spec = chart.properties(width="container", height=260).to_dict()
    axis = {"domainColor": "#8888", "tickColor": "#8888", "gridColor": "#8883"}
    spec["config"] = {
        "view": {"stroke": None},
        "axis": axis,
        "background": "transparent",
        "font": "system-ui, sans-serif",
    }
    spec["datasets"] = data.sets
    return Chart(name, title, message, json.dumps(spec, separators=(",", ":")))


@functools.lru_cache(maxsize=1)
def scripts(folder: Path) -> str:
    """Gives Vega, Vega-Lite and Vega-Embed as one script that sets `window.vegaEmbed`.

    Args:
        folder: Where it stays, since putting it together takes a second or two.
    """
    kept = folder / f"vega-{version('vl-convert-python')}.js"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle
    text = str(bundle())
    write_text(kept, text)
    return text
