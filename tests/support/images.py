"""Small synthetic images."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.columns import ImageShape


def waves(n: int, seed: int, shape: ImageShape) -> npt.NDArray[np.uint8]:
    """Return normal images, shape (n, height, width, channels): sums of six low-frequency waves and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, shape.height), np.linspace(0, 1, shape.width), indexing="ij")
    phases = [np.pi * position for position in (y, x, x + y)]
    basis = np.stack([wave(phase) for phase in phases for wave in (np.sin, np.cos)])  # (6, height, width)
    weights = rng.uniform(-1, 1, (n, 1, 6)) * np.linspace(1, 0.5, shape.channels)[:, None]
    images = 127.5 + 35 * np.einsum("nck,khw->nhwc", weights, basis)
    noisy: npt.NDArray[np.float64] = images + rng.normal(0, 2, images.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def image_frame(images: npt.NDArray[Any]) -> pl.DataFrame:
    """Return a frame with a column of binary images."""
    return pl.DataFrame({"image": pl.Series([image.tobytes() for image in images], dtype=pl.Binary)})
