"""Charts as pictures, for screens that show no scripts: Dagster's and MLflow's."""

import io
import json
from typing import Any

from PIL import Image

from ae_pipeline.reports.charts import Chart

_WIDTH, _HEIGHT = 440, 240
"""Of the plot without its axes, pixels."""

_SHADES = 64
"""Colours that a picture keeps: an event of Dagster holds it, and there is one a day."""


def render_png(chart: Chart) -> Image.Image:
    """Draws a chart on white."""
    import vl_convert

    spec: dict[str, Any] = json.loads(chart.spec)
    spec |= {"width": _WIDTH, "height": _HEIGHT, "title": chart.title, "padding": 8}
    spec["config"] = {**spec["config"], "background": "white", "font": "sans-serif"}
    picture = vl_convert.vegalite_to_png(spec)
    return Image.open(io.BytesIO(picture)).convert("RGB").quantize(_SHADES, dither=Image.Dither.NONE)
