"""Choose the images that a report shows: the most anomalous rows, and normal rows for comparison."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl

from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.reports.pictures import Drawing, Floats, Panel, Scale, as_address
from ae_pipeline.reports.ranking import features_of, scored_and_known
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

MAX_STRANGEST, MAX_NORMAL = 50, 6
"""Maximum number of anomalous and of normal rows."""

_PAGE_BYTES = 400_000
"""Total size of the pictures, so that a page with its charts stays below two megabytes."""

_MAX_SIDE = 128
"""Pixels of a picture in width or height; larger images are downsampled."""

_THUMBNAIL_SIDE = 80
"""Pixels of a thumbnail in width or height: twice its size on the page, for sharp screens."""

_BATCH_ELEMENTS = 1 << 22
"""Number of values of the images that go through the network together."""

_PROGRESS_SECONDS = 10.0
"""Time after which the log says how many pictures are drawn."""

_DAY = "_day"


@dataclass(frozen=True)
class Gallery:
    """Pictures of a report.

    Attributes:
        noun: `image` or `patch`, for the text of the page.
        scale: Scale of all pictures.
        strangest: Rows with the highest scores, highest first. Rows that do not fit on the page are omitted.
        normal: Rows that are neither flagged nor known anomalies, with scores nearest to the median of the
            calibration rows.
    """

    noun: str
    scale: Scale
    strangest: tuple[Panel, ...]
    normal: tuple[Panel, ...]


def build_gallery(files: Mapping[str, PublishedDay], paths: DatasetPaths, bundle: ModelBundle) -> Gallery | None:
    """Return pictures of the most anomalous rows and of some normal ones; None if rows are not images.

    Only the features of these rows are read, and they go through the network in batches.

    Args:
        files: Published days.
        paths: Paths of the dataset.
        bundle: Model that scored the published table.
    """
    if bundle.config.images is None:
        return None
    normal, strangest = _choose(files, paths, float(np.median(bundle.calibration.scores)))
    drawings = dict(_draw(pl.concat([normal, strangest]), paths, bundle))
    highest = max((drawing.highest for drawing in drawings.values()), default=0.0)
    brightest = max((float(drawing.image.max()) for drawing in drawings.values()), default=0.0)
    scale, remaining_bytes = Scale.up_to(highest, brightest), _PAGE_BYTES
    panels: list[list[Panel]] = []
    for rows in (normal, strangest):
        panels.append([])
        for row in rows.drop(_DAY).iter_rows(named=True):
            if drawing := drawings.get(row["row_id"]):
                panel = Panel(**row, drawing=drawing, scale=scale)
                remaining_bytes -= sum(map(len, panel.addresses))
                if remaining_bytes < 0:
                    break
                panels[-1].append(panel)
    return Gallery(noun_of_rows(bundle.config), scale, tuple(panels[1]), tuple(panels[0]))


def thumbnails(row_ids: Sequence[str], day: str, paths: DatasetPaths, bundle: ModelBundle) -> dict[str, str]:
    """Return small pictures of rows of a day as PNG in `data:` URLs, by row_id; none if rows are not images.

    Args:
        row_ids: Identities of the rows.
        day: ISO date, or `ALL_ROWS`.
        paths: Paths of the dataset.
        bundle: Model that scored the published table.
    """
    if bundle.config.images is None or not row_ids:
        return {}
    features = features_of(pl.Series(row_ids), day, paths)
    count, images = max(1, _BATCH_ELEMENTS // math.prod(bundle.encoder.shape)), []
    for part in features.iter_slices(count):
        images += [_downsampled(image, np.mean, _THUMBNAIL_SIDE) for image in bundle.network.images(part)]
    scale = Scale.up_to(0.0, max((float(image.max()) for image in images), default=0.0))
    addresses = (as_address(scale.shades(image)) for image in images)
    return dict(zip(features["row_id"], addresses, strict=True))


def _choose(files: Mapping[str, PublishedDay], paths: DatasetPaths, median: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the normal and the most anomalous rows of all days, with their day in the column `_DAY`."""
    schema = {"row_id": pl.String, "score": pl.Float64, "is_anomaly": pl.Boolean, LABEL: pl.Boolean, _DAY: pl.String}
    normal, strangest = pl.DataFrame(schema=schema), pl.DataFrame(schema=schema)
    suspicious = pl.col("is_anomaly") | pl.col(LABEL).fill_null(value=False)
    for day in sorted(files):
        rows = scored_and_known(files[day], paths).with_columns(pl.lit(day).alias(_DAY))
        strangest = pl.concat([strangest, rows]).sort("score", "row_id", descending=[True, False]).head(MAX_STRANGEST)
        normal = pl.concat([normal, rows.filter(~suspicious)])
        normal = normal.sort((pl.col("score") - median).abs(), "row_id").head(MAX_NORMAL)
    return normal, strangest


def _draw(rows: pl.DataFrame, paths: DatasetPaths, bundle: ModelBundle) -> Iterator[tuple[str, Drawing]]:
    window = cast("ImageLoss", bundle.loss).window
    count = max(1, _BATCH_ELEMENTS // math.prod(bundle.encoder.shape))
    done, progress = 0, ProgressLogger(logger, _PROGRESS_SECONDS)
    for (day,), of_day in rows.group_by(_DAY, maintain_order=True):
        for part in of_day.iter_slices(count):
            features = features_of(part["row_id"], str(day), paths)
            if pictures := bundle.pictures(features):
                arrays = zip(pictures.image, pictures.reconstruction, pictures.residual, pictures.hottest, strict=True)
                for row_id, parts in zip(features["row_id"], arrays, strict=True):
                    yield row_id, _drawing(*parts, window)
            done += part.height
            progress.update(done, rows.height, "pictures drawn")


def _drawing(
    image: Floats, reconstruction: Floats, residual: Floats, hottest: Sequence[int], window: tuple[int, int]
) -> Drawing:
    (height, width), (high, wide) = residual.shape, window
    top, left = map(int, hottest)
    return Drawing(
        image=_downsampled(image, np.mean),
        reconstruction=_downsampled(reconstruction, np.mean),
        residual=_downsampled(residual, np.max),  # a mean would hide a small spot
        spot=(left / width, top / height, wide / width, high / height),
        highest=float(residual.max()),
    )


def _downsampled(picture: Floats, of_block: Callable[..., Floats], max_side: int = _MAX_SIDE) -> Floats:
    """Return a picture with one pixel for each square block, so that no side exceeds `max_side`."""
    height, width, *channels = picture.shape
    side = math.ceil(max(height, width) / max_side)
    padding = [(0, -height % side), (0, -width % side), *((0, 0) for _ in channels)]
    padded = np.pad(picture, padding, mode="edge")
    blocks = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side, *channels)
    return of_block(blocks, axis=(1, 3))
