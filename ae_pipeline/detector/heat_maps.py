"""Heat maps of whole images: the residual maps of patches, stitched at full size."""

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.parallel import parallel_map
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.image_verdicts import IMAGE_ID, has_patches, image_id, patch_position
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.models.image_loss import ImageLoss

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
    loss = cast("ImageLoss", network.double_loss)

    def residuals(part: pl.DataFrame) -> HeatMap:
        x = network.encode_batch(part)
        maps: HeatMap = loss.patch_scores(network.forward(x).output, x, to_the_edge=True).cpu().numpy()
        return maps

    maps = parallel_map(residuals, network.small_batches(rows))
    if not has_patches(config):
        whole: HeatMap = next(iter(maps))[0]
        return whole
    positions = rows.select(*patch_position(config.identity)).to_numpy()
    high, wide = cast("tuple[int, int]", network.encoder.shape[1:])
    total: HeatMap = np.zeros(tuple(np.add(positions.max(axis=0), (high, wide))))
    weights = np.zeros_like(total)
    weight = np.minimum.outer(_distance_to_edge(high), _distance_to_edge(wide))
    index = 0
    for part in maps:
        for patch in part:
            top, left = positions[index]
            total[top : top + high, left : left + wide] += weight * patch
            weights[top : top + high, left : left + wide] += weight
            index += 1
    return total / np.maximum(weights, 1e-12)


def _distance_to_edge(size: int) -> HeatMap:
    """Return the distance of each pixel of a side to the nearer end, at least 1."""
    return np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).astype(np.float64)


def each_image(batches: Iterable[pl.DataFrame], config: PipelineConfig) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield identity and rows of each image. The rows of an image must follow each other.

    Args:
        batches: Rows with `row_id`, in the order of the features.
        config: Configuration of the dataset.
    """
    of_image = image_id(config.identity) if has_patches(config) else pl.col("row_id").alias(IMAGE_ID)
    pending: list[tuple[str, pl.DataFrame]] = []
    for batch in batches:
        for (name,), rows in batch.group_by(of_image, maintain_order=True):
            if pending and pending[0][0] != name:
                yield pending[0][0], pl.concat([part for _, part in pending])
                pending = []
            pending.append((str(name), rows))
    if pending:
        yield pending[0][0], pl.concat([part for _, part in pending])
