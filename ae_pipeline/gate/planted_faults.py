"""Plants faults into rows that are held to be normal, to see whether a model finds them."""

import numpy as np
import polars as pl

from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.image_encoder import ImageEncoder, pixels
from ae_pipeline.encoding.table_encoder import TableEncoder

FAULTS = 500
"""Rows that are given a fault."""

_FAR = 3.0
"""How far beyond the middle 98 % of a column an impossible number lies, in widths of it."""

_SPOT = 4
"""A spot's side as a part of the image's."""


def plant_faults(rows: pl.DataFrame, encoder: Encoder, seed: int = 0, count: int = FAULTS) -> pl.DataFrame:
    """Gives copies of rows with one fault each; the same rows, encoder and seed give the same.

    A row of a table gets, in one column, a value that another row has there and that differs, or, one time in two where
    the column is a number, one far beyond all. An image gets a square spot of the end of the scale that it is farther
    from. Which columns there are to choose from is the encoder's affair; no label is looked at.

    Args:
        rows: Features, normal ones.
        encoder: Of a model; its columns are what faults are planted into.
        seed: Which rows, columns and values.
        count: How many rows to make at most.

    Returns:
        Up to `count` rows; none where no column has two values.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(rows.height, min(count, rows.height), replace=False))
    picked = rows[chosen]
    if isinstance(encoder, ImageEncoder):
        return _spotted(picked, encoder, rng)
    return _swapped(picked, rows, encoder, rng)


def _swapped(picked: pl.DataFrame, rows: pl.DataFrame, encoder: TableEncoder, rng: np.random.Generator) -> pl.DataFrame:
    names = [
        column.name
        for column in encoder.columns
        if not rows[column.name].dtype.is_temporal() and rows[column.name].drop_nulls().n_unique() > 1
    ]
    if not names or picked.is_empty():
        return picked.clear()
    columns, far = rng.integers(0, len(names), picked.height), rng.random(picked.height) < 0.5
    faulty = []
    for index, name in enumerate(names):
        own = picked.filter(pl.Series(columns == index))
        values = rows[name]
        others = values.drop_nulls().sample(own.height, with_replacement=True, seed=int(rng.integers(2**31)))
        if values.dtype.is_float() or values.dtype.is_integer():
            numbers = values.cast(pl.Float64)
            low, high = (float(numbers.quantile(share) or 0.0) for share in (0.01, 0.99))
            beyond = pl.Series(name, [high + _FAR * ((high - low) or abs(high) or 1.0)] * own.height)
            here = pl.Series(far[columns == index])
            others = beyond.zip_with(here, others.cast(pl.Float64))
            others = (others.round() if values.dtype.is_integer() else others).cast(values.dtype, strict=False)
        same = own[name].eq_missing(others)
        faulty.append(own.with_columns(others.alias(name)).filter(~same & others.is_not_null()))
    return pl.concat(faulty)


def _spotted(picked: pl.DataFrame, encoder: ImageEncoder, rng: np.random.Generator) -> pl.DataFrame:
    images = pixels(picked[encoder.name], encoder.image).copy()
    height, width = max(1, encoder.image.height // _SPOT), max(1, encoder.image.width // _SPOT)
    tops = rng.integers(0, encoder.image.height - height + 1, len(images))
    lefts = rng.integers(0, encoder.image.width - width + 1, len(images))
    middle = (encoder.low + encoder.high) / 2
    for image, top, left in zip(images, tops, lefts, strict=True):
        spot = image[top : top + height, left : left + width]
        spot[...] = encoder.low if spot.mean() > middle else encoder.high
    stored = pl.Series(encoder.name, [image.tobytes() for image in images], dtype=pl.Binary)
    return picked.with_columns(stored)
