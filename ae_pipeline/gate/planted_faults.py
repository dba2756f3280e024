"""Plant faults into normal rows, to measure which share of them a model finds."""

import numpy as np
import polars as pl

from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.image_encoder import ImageEncoder, pixels
from ae_pipeline.encoding.table_encoder import TableEncoder

FAULTS = 500
"""Default number of rows that get a fault."""

_OUTLIER_DISTANCE = 3.0
"""Distance of an impossible number from the middle 98 % of its column, in widths of that range."""

_SPOT_FRACTION = 4
"""Ratio of the side of an image to the side of a spot."""


def plant_faults(rows: pl.DataFrame, encoder: Encoder, seed: int = 0, count: int = FAULTS) -> pl.DataFrame:
    """Return copies of rows with one fault each. The same rows, encoder and seed give the same faults.

    In one column of a table row, the value is replaced by a different value from another row. In number columns, half
    of the replacements are numbers far outside the range of the column. An image gets a square spot of black or white,
    whichever differs more. Only columns that the encoder uses get faults. Labels are not used.

    Args:
        rows: Features of normal rows.
        encoder: Encoder of a model.
        seed: Seed for the choice of rows, columns and values.
        count: Upper limit on the number of faults.

    Returns:
        Up to `count` rows; none if no column has two different values.
    """
    rng = np.random.default_rng(seed)
    chosen = rows[np.sort(rng.choice(rows.height, min(count, rows.height), replace=False))]
    if isinstance(encoder, ImageEncoder):
        return _with_spots(chosen, encoder, rng)
    return _with_replaced_values(chosen, rows, encoder, rng)


def _with_replaced_values(
    chosen: pl.DataFrame, rows: pl.DataFrame, encoder: TableEncoder, rng: np.random.Generator
) -> pl.DataFrame:
    names = [
        column.name
        for column in encoder.columns
        if not rows[column.name].dtype.is_temporal() and rows[column.name].drop_nulls().n_unique() > 1
    ]
    if not names or chosen.is_empty():
        return chosen.clear()
    columns, is_outlier = rng.integers(0, len(names), chosen.height), rng.random(chosen.height) < 0.5
    faulty = []
    for index, name in enumerate(names):
        selected = chosen.filter(pl.Series(columns == index))
        values = rows[name]
        replacements = values.drop_nulls().sample(selected.height, with_replacement=True, seed=int(rng.integers(2**31)))
        if values.dtype.is_float() or values.dtype.is_integer():
            replacements = _with_outliers(replacements, values, is_outlier[columns == index])
        is_same = selected[name].eq_missing(replacements)
        replaced = selected.with_columns(replacements.alias(name))
        faulty.append(replaced.filter(~is_same & replacements.is_not_null()))
    return pl.concat(faulty)


def _with_outliers(replacements: pl.Series, values: pl.Series, is_outlier: np.ndarray) -> pl.Series:
    """Return replacements of which some are numbers far above the range of the column."""
    numbers = values.cast(pl.Float64).clip(-1e100, 1e100)  # so that the outliers are finite
    low, high = (float(numbers.quantile(share) or 0.0) for share in (0.01, 0.99))
    outlier = high + _OUTLIER_DISTANCE * ((high - low) or abs(high) or 1.0)
    outliers = pl.Series(values.name, [outlier] * len(replacements))
    mixed = outliers.zip_with(pl.Series(is_outlier), replacements.cast(pl.Float64))
    return (mixed.round() if values.dtype.is_integer() else mixed).cast(values.dtype, strict=False)


def _with_spots(chosen: pl.DataFrame, encoder: ImageEncoder, rng: np.random.Generator) -> pl.DataFrame:
    images = pixels(chosen[encoder.name], encoder.image).copy()
    height, width = max(1, encoder.image.height // _SPOT_FRACTION), max(1, encoder.image.width // _SPOT_FRACTION)
    tops = rng.integers(0, encoder.image.height - height + 1, len(images))
    lefts = rng.integers(0, encoder.image.width - width + 1, len(images))
    middle = (encoder.low + encoder.high) / 2
    for image, top, left in zip(images, tops, lefts, strict=True):
        spot = image[top : top + height, left : left + width]
        spot[...] = encoder.low if spot.mean() > middle else encoder.high
    stored = pl.Series(encoder.name, [image.tobytes() for image in images], dtype=pl.Binary)
    return chosen.with_columns(stored)
