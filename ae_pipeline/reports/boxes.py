"""Boxes around the hottest regions of flagged images."""

from collections.abc import Iterator

import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.heat_maps import Box, hot_regions
from ae_pipeline.detector.image_verdicts import has_patches, patch_position

BOXES = pl.List(pl.Struct({**dict.fromkeys(("top", "left", "bottom", "right"), pl.Int64()), "heat": pl.Float64()}))
"""Type of a column of boxes."""


def hot_boxes(bundle: ModelBundle, rows: pl.DataFrame) -> Iterator[list[Box]]:
    """Yield the boxes of each row, in pixels of its image; none for tables, and for models without a threshold.

    Args:
        bundle: Model that scored the rows.
        rows: Features with `row_id`.
    """
    threshold, config = bundle.pixel_threshold, bundle.config
    if threshold is None:
        yield from ([] for _ in range(rows.height))
        return
    for part in bundle.network.small_batches(rows):
        positions = part.select(*patch_position(config.identity)).rows() if has_patches(config) else None
        maps = bundle.network.residual_maps(part)
        for index, heat in enumerate(maps):
            top, left = positions[index] if positions else (0, 0)
            boxes = hot_regions(heat, threshold)
            yield [Box(top + y0, left + x0, top + y1, left + x1, value) for y0, x0, y1, x1, value in boxes]
