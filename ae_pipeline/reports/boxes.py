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

    def boxes_of(part: pl.DataFrame) -> list[list[Box]]:
        positions = part.select(*patch_position(config.identity)).rows() if has_patches(config) else None
        boxes = []
        for index, heat in enumerate(bundle.network.residual_maps(part)):
            top, left = positions[index] if positions else (0, 0)
            regions = hot_regions(heat, threshold)
            boxes.append([Box(top + y0, left + x0, top + y1, left + x1, value) for y0, x0, y1, x1, value in regions])
        return boxes

    for boxes in bundle.network.map_small(boxes_of, rows, "regions searched"):
        yield from boxes
