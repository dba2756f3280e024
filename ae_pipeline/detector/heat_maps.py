"""Heat maps of whole images: the residual maps of patches, stitched at full size."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.image_verdicts import has_patches, image_of_row, patch_position
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.image_encoder import ImageEncoder

HeatMap = npt.NDArray[np.float64]


def heat_map(network: FittedNetwork, rows: pl.DataFrame, config: PipelineConfig) -> HeatMap:
    """Return the residual around each pixel of one image, as a multiple of the usual residual, (height, width).

    Where patches overlap, the map is their weighted mean. The weight falls towards the edges of a patch, where the
    reconstruction knows least of its surroundings.

    Args:
        network: Network of the model.
        rows: All patches of the image, or its only row, with `row_id` and the image column.
        config: Configuration of the model.
    """
    maps = network.map_small(network.residual_maps, rows, "heat maps made")
    return _stitched((residual for part in maps for residual in part), rows, config)


def whole_image(network: FittedNetwork, rows: pl.DataFrame, config: PipelineConfig) -> HeatMap:
    """Return one image on the scale 0 to 1, (height, width, channels); see `heat_map`."""
    encoder = cast("ImageEncoder", network.encoder)
    patches = (patch for part in network.small_batches(rows) for patch in encoder.to_unit(encoder.encode(part)))
    return _stitched(patches, rows, config)


def _stitched(patches: Iterable[HeatMap], rows: pl.DataFrame, config: PipelineConfig) -> HeatMap:
    """Return the weighted mean of patches at their positions; the only patch of an image that is a row itself."""
    if not has_patches(config):
        return next(iter(patches))
    positions = rows.select(*patch_position(config.identity)).to_numpy()
    total = weights = weight = np.empty(0)
    for (top, left), patch in zip(positions, patches, strict=True):
        high, wide, *channels = patch.shape
        if not total.size:
            shape = (*np.add(positions.max(axis=0), (high, wide)), *channels)
            total, weights = np.zeros(shape), np.zeros(shape)
            weight = np.minimum.outer(_distance_to_edge(high), _distance_to_edge(wide))
            weight = weight.reshape(high, wide, *(1 for _ in channels))
        total[top : top + high, left : left + wide] += weight * patch
        weights[top : top + high, left : left + wide] += weight
    return total / np.maximum(weights, 1e-12)


def _distance_to_edge(size: int) -> HeatMap:
    """Return the distance of each pixel of a side to the nearer end, at least 1."""
    return np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).astype(np.float64)


class Box(NamedTuple):
    """A region of an image: its first row and column, the ones after its last, and its highest heat."""

    top: int
    left: int
    bottom: int
    right: int
    heat: float


def hot_regions(heat: HeatMap, threshold: float, most: int = 3) -> list[Box]:
    """Return the boxes around connected pixels above a threshold, those with the highest heat first.

    Args:
        heat: Heat map, (height, width).
        threshold: Heat above which a pixel is anomalous.
        most: Upper limit on the number of boxes.

    Examples:
        >>> hot_regions(np.array([[0.0, 9.0, 8.0], [0.0, 0.0, 0.0], [7.0, 0.0, 0.0]]), threshold=5.0)
        [Box(top=0, left=1, bottom=1, right=3, heat=9.0), Box(top=2, left=0, bottom=3, right=1, heat=7.0)]
    """
    from scipy.ndimage import find_objects, label

    regions, _ = label(heat > threshold, structure=np.ones((3, 3)))
    boxes = [
        Box(rows.start, columns.start, rows.stop, columns.stop, float(heat[rows, columns].max()))
        for rows, columns in find_objects(regions)
    ]
    return sorted(boxes, key=lambda box: (-box.heat, box))[:most]


def each_image(batches: Iterable[pl.DataFrame], config: PipelineConfig) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield identity and rows of each image. The rows of an image must follow each other.

    Args:
        batches: Rows with `row_id`, in the order of the features.
        config: Configuration of the dataset.
    """
    of_image = image_of_row(config)
    pending: list[tuple[str, pl.DataFrame]] = []
    for batch in batches:
        for (name,), rows in batch.group_by(of_image, maintain_order=True):
            if pending and pending[0][0] != name:
                yield pending[0][0], pl.concat([part for _, part in pending])
                pending = []
            pending.append((str(name), rows))
    if pending:
        yield pending[0][0], pl.concat([part for _, part in pending])
