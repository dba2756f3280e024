"""Which images a report shows: the strangest rows, and some ordinary ones beside them."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.reports.pictures import Drawing, Floats, Panel, Scale
from ae_pipeline.reports.ranking import features_of, scored_and_known
from ae_pipeline.storage.paths import DatasetPaths

STRANGEST, ORDINARY = 50, 6
"""Rows that are shown at most."""

_PAGE_BYTES = 400_000
"""Of all pictures together, so that a page with its charts stays below two megabytes whatever the images are."""

_LONGEST_SIDE = 128
"""Pixels of a picture; larger images are shrunk."""

_ELEMENTS_AT_ONCE = 1 << 22
_DAY = "_day"


@dataclass(frozen=True)
class Gallery:
    """The pictures of a report.

    Attributes:
        noun: What a row is: image or patch.
        scale: Of all pictures.
        strangest: By falling score; of what would not fit on a page the least strange are left out.
        ordinary: Neither flagged nor known anomalies, with the scores nearest to the median of the calibration rows.
    """

    noun: str
    scale: Scale
    strangest: tuple[Panel, ...]
    ordinary: tuple[Panel, ...]


def build_gallery(files: Mapping[str, PublishedDay], paths: DatasetPaths, bundle: ModelBundle) -> Gallery | None:
    """Draws the strangest rows and some ordinary ones; None where rows are no images.

    Features are read of the rows that are shown alone, and a few at a time go through the network.

    Args:
        files: The published days.
        paths: The dataset's.
        bundle: The model that the table was scored with.
    """
    images = bundle.config.images
    if images is None:
        return None
    ordinary, strangest = _choose(files, paths, float(np.median(bundle.calibration.scores)))
    drawn = dict(_draw(pl.concat([ordinary, strangest]), paths, bundle))
    highest = max((drawing.highest for drawing in drawn.values()), default=0.0)
    brightest = max((float(drawing.image.max()) for drawing in drawn.values()), default=0.0)
    scale, left = Scale.up_to(highest, brightest), _PAGE_BYTES
    shown: list[list[Panel]] = []
    for rows in (ordinary, strangest):
        shown.append([])
        for row in rows.drop(_DAY).iter_rows(named=True):
            if drawing := drawn.get(row["row_id"]):
                panel = Panel(**row, drawing=drawing, scale=scale)
                left -= sum(map(len, panel.addresses))
                if left < 0:
                    break
                shown[-1].append(panel)
    return Gallery("patch" if images.patch else "image", scale, tuple(shown[1]), tuple(shown[0]))


def _choose(files: Mapping[str, PublishedDay], paths: DatasetPaths, median: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Finds the ordinary and the strangest rows of all days, a day at a time, with the day of each in `_DAY`."""
    schema = {"row_id": pl.String, "score": pl.Float64, "is_anomaly": pl.Boolean, LABEL: pl.Boolean, _DAY: pl.String}
    ordinary, strangest = pl.DataFrame(schema=schema), pl.DataFrame(schema=schema)
    suspicious = pl.col("is_anomaly") | pl.col(LABEL).fill_null(value=False)
    for day in sorted(files):
        rows = scored_and_known(files[day], paths).with_columns(pl.lit(day).alias(_DAY))
        strangest = pl.concat([strangest, rows]).sort("score", "row_id", descending=[True, False]).head(STRANGEST)
        ordinary = pl.concat([ordinary, rows.filter(~suspicious)])
        ordinary = ordinary.sort((pl.col("score") - median).abs(), "row_id").head(ORDINARY)
    return ordinary, strangest


def _draw(rows: pl.DataFrame, paths: DatasetPaths, bundle: ModelBundle) -> Iterator[tuple[str, Drawing]]:
    window = cast("ImageLoss", bundle.loss).window
    count = max(1, _ELEMENTS_AT_ONCE // math.prod(bundle.encoder.shape))
    for (day,), of_day in rows.group_by(_DAY, maintain_order=True):
        for part in of_day.iter_slices(count):
            features = features_of(part["row_id"], str(day), paths)
            if pictures := bundle.pictures(features):
                drawn = zip(pictures.image, pictures.reconstruction, pictures.residual, strict=True)
                for row_id, parts in zip(features["row_id"], drawn, strict=True):
                    yield row_id, _drawing(*parts, window)


def _drawing(image: Floats, reconstruction: Floats, residual: Floats, window: tuple[int, int]) -> Drawing:
    (height, width), (high, wide) = residual.shape, window
    # Without the edge that is repeated to make the map as large as the image, each place is that of one window.
    windows = residual[(high - 1) // 2 : height - high // 2, (wide - 1) // 2 : width - wide // 2]
    top, left = divmod(int(windows.argmax()), windows.shape[1])
    return Drawing(
        _shrunk(image, np.mean),
        _shrunk(reconstruction, np.mean),
        _shrunk(residual, np.max),  # a mean would hide a small spot
        (left / width, top / height, wide / width, high / height),
        float(windows.max()),
    )


def _shrunk(picture: Floats, of_block: Callable[..., Floats]) -> Floats:
    """Makes one pixel of each square block, as large as it takes for the picture to be no longer than it may."""
    height, width, *channels = picture.shape
    side = math.ceil(max(height, width) / _LONGEST_SIDE)
    beyond = [(0, -height % side), (0, -width % side), *((0, 0) for _ in channels)]
    padded = np.pad(picture, beyond, mode="edge")
    blocks = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side, *channels)
    return of_block(blocks, axis=(1, 3))
