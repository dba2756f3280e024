"""Render charts as PNG for Dagster and MLflow, which do not run the scripts of a page."""

import io
import json
from typing import Any

from PIL import Image

from ae_pipeline.reports.charts import Chart

_WIDTH, _HEIGHT = 440, 240
"""Size of the plot without its axes, pixels."""

_COLORS = 64
"""Number of colors of an image. Dagster stores the images of every day in its event log, so they are small."""


def render_png(chart: Chart) -> Image.Image:
    """Return a chart as an image with a white background."""
    import vl_convert

    spec: dict[str, Any] = json.loads(chart.spec)
    spec |= {"width": _WIDTH, "height": _HEIGHT, "title": chart.title, "padding": 8}
    spec["config"] = {**spec["config"], "background": "white", "font": "sans-serif"}
    png = vl_convert.vegalite_to_png(spec)
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
