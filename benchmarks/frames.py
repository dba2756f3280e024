"""Arrays in memory to feature frames, and from these by the package's own public way to a bundle."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import cut_window
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.fit import fit_bundle

IMAGE = "image"


def image_frame(images: npt.NDArray[Any], group: Sequence[str] | None = None) -> pl.DataFrame:
    """Lays images out as features.

    Args:
        images: uint8 or float32, (n, height, width).
        group: For each image what keeps it together with others in one part of a training, as column `file`.
    """
    stored = np.ascontiguousarray(images.astype(images.dtype.newbyteorder("<")))
    binary = pl.Series(IMAGE, [image.tobytes() for image in stored], dtype=pl.Binary)
    names = [f"r{index}" for index in range(len(images))]
    return pl.DataFrame({"row_id": names, "file": names if group is None else list(group), IMAGE: binary})


def images_of(frame: pl.DataFrame, dtype: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Reads the images of a frame, (n, *shape)."""
    return np.frombuffer(b"".join(frame[IMAGE].to_list()), np.dtype(dtype)).reshape(-1, *shape)


def image_config(
    seed: int, model: Mapping[str, Any], training: Mapping[str, Any], alerts: Mapping[str, Any]
) -> PipelineConfig:
    """Configures a dataset of images, which are cut into the parts of a training by column `file`."""
    return PipelineConfig.model_validate(
        {
            "dataset": "images",
            "identity": ("file",),
            "images": {"column": IMAGE},
            "model": dict(model),
            "training": {"device": "cpu", "split_by": ("file",), "seed": seed, **training},
            "alerts": {"budget": 0.05, **alerts},
        }
    )


def fit_images(
    images: npt.NDArray[Any],
    seed: int,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    group: Sequence[str] | None = None,
    alerts: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """Fits a bundle on images by sections of the configuration.

    Args:
        images: uint8 or float32, (n, height, width).
        seed: Of the training.
        model: Section of the network.
        training: Section of the training.
        group: See `image_frame`.
        alerts: Section of what scores rest on.
    """
    height, width = images.shape[1:]
    shape = ImageShape.model_validate({"height": height, "width": width, "channels": 1, "dtype": str(images.dtype)})
    column = FeatureColumn(IMAGE, ColumnType.IMAGE, shape)
    return fit_frame(image_config(seed, model, training, alerts or {}), image_frame(images, group), [column])


def fit_frame(config: PipelineConfig, frame: pl.DataFrame, columns: Sequence[FeatureColumn]) -> ModelBundle:
    """Fits a bundle on a frame in memory, as a dataset without event time.

    Args:
        config: The pipeline's.
        frame: `row_id`, the features, and what a training is cut by.
        columns: Features that the model may look at.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = DatasetPaths(Path(folder), config.dataset)
        rows = frame.with_columns(pl.lit(None, pl.Datetime("us", "UTC")).alias("event_time"))
        content = {ALL_ROWS: write_parquet(paths.features(ALL_ROWS), rows.to_arrow())}
        return fit_bundle(config, columns, cut_window(content, config), paths)[0]
