"""Small synthetic images."""

import numpy as np
import polars as pl

from ae_pipeline.config.columns import ImageShape


def waves(n: int, seed: int, shape: ImageShape) -> np.ndarray:
    """Normal images, (n, height, width, channels) uint8: sums of six low waves and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, shape.height), np.linspace(0, 1, shape.width), indexing="ij")
    turns = [np.pi * turn for turn in (y, x, x + y)]
    basis = np.stack([wave(turn) for turn in turns for wave in (np.sin, np.cos)])  # (6, height, width)
    weights = rng.uniform(-1, 1, (n, 1, 6)) * np.linspace(1, 0.5, shape.channels)[:, None]
    images = 127.5 + 35 * np.einsum("nck,khw->nhwc", weights, basis)
    return np.clip(np.rint(images + rng.normal(0, 2, images.shape)), 0, 255).astype(np.uint8)


def image_frame(images: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"image": pl.Series([image.tobytes() for image in images], dtype=pl.Binary)})
