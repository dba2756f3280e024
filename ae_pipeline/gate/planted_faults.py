"""Plant faults into normal rows, to measure which share of them a model finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.image_encoder import ImageEncoder, pixels
from ae_pipeline.encoding.table_encoder import TableEncoder

FAULTS, FAULTS_OF_KIND = 500, 300
"""Default number of rows that get a fault, in all and of each kind."""

_MAX_USUAL_MISSING = 0.01
"""Share of missing values up to which a missing value in a column is a fault."""

_OUTLIER_DISTANCE = 3.0
"""Distance of an impossible number from the middle 98 % of its column, in widths of that range."""

_SPOT_FRACTION = 4
"""Ratio of the side of an image to the side of a spot."""


@dataclass(frozen=True)
class Faults:
    """Copies of rows with a fault each.

    Attributes:
        rows: The rows with their faults; each keeps the `row_id` of its row.
        columns: Column of each fault, shape (n,); None if a fault is not of one column of a table.
    """

    rows: pl.DataFrame
    columns: npt.NDArray[np.str_] | None = None


def plant_faults(rows: pl.DataFrame, encoders: Sequence[Encoder], seed: int = 0, count: int = FAULTS) -> pl.DataFrame:
    """Return copies of rows with one fault each. The same rows, encoders and seed give the same faults.

    In one column of a table row, the value is replaced by a different value from another row. In number columns, half
    of the replacements are numbers far outside the range of the column. An image gets a square spot of black or white,
    whichever differs more. Only columns that one of the encoders uses get faults, so that a model gains from a column
    that only it sees. Labels are not used.

    Args:
        rows: Features of normal rows.
        encoders: Encoders of the compared models.
        seed: Seed for the choice of rows, columns and values.
        count: Upper limit on the number of faults.

    Returns:
        Up to `count` rows; none if no column has two different values.
    """
    rng = np.random.default_rng(seed)
    chosen = _choose(rows, count, rng)
    if isinstance(encoders[0], ImageEncoder):
        return _with_spots(chosen, encoders[0], rng)
    return _with_replaced_values(chosen, rows, _fault_columns(rows, encoders), rng, outliers=0.5).rows


def plant_kinds(
    rows: pl.DataFrame, encoders: Sequence[Encoder], seed: int = 1, count: int = FAULTS_OF_KIND
) -> dict[str, Faults]:
    """Return copies of rows with one fault each, by kind of fault.

    The kinds of tables are `outlier` (a number far outside the range of its column), `other value` (a value of another
    row), `mixed row` (half of the columns are those of another row) and `lost value` (no value in a column that lacks
    few). Images have `spot`.

    Args:
        rows: Features of normal rows.
        encoders: Encoders of the compared models.
        seed: Seed for the choice of rows, columns and values.
        count: Upper limit on the number of faults of a kind.

    Returns:
        The faults of each kind; a kind that cannot be planted is absent.
    """
    rng = np.random.default_rng(seed)
    chosen = _choose(rows, count, rng)
    if isinstance(encoders[0], ImageEncoder):
        return {"spot": Faults(_with_spots(chosen, encoders[0], rng))}
    names = _fault_columns(rows, encoders)
    numbers = [name for name in names if rows[name].dtype.is_numeric()]
    faults = {
        "outlier": _with_replaced_values(chosen, rows, numbers, rng, outliers=1.0),
        "other value": _with_replaced_values(chosen, rows, names, rng, outliers=0.0),
        "mixed row": Faults(_with_mixed_rows(chosen, rows, names, rng)),
        "lost value": _with_lost_values(chosen, rows, names, rng),
    }
    return {kind: faulty for kind, faulty in faults.items() if faulty.rows.height}


def _choose(rows: pl.DataFrame, count: int, rng: np.random.Generator) -> pl.DataFrame:
    return rows[np.sort(rng.choice(rows.height, min(count, rows.height), replace=False))]


def _fault_columns(rows: pl.DataFrame, encoders: Sequence[Encoder]) -> list[str]:
    """Return the columns of tables that can get a wrong value, in the order of the encoders."""
    columns = [column.name for encoder in encoders if isinstance(encoder, TableEncoder) for column in encoder.columns]
    return [
        name
        for name in dict.fromkeys(columns)
        if name in rows.columns and not rows[name].dtype.is_temporal() and rows[name].drop_nulls().n_unique() > 1
    ]


def _with_mixed_rows(
    chosen: pl.DataFrame, rows: pl.DataFrame, names: Sequence[str], rng: np.random.Generator
) -> pl.DataFrame:
    """Return rows in which a random half of the columns has the values of another row."""
    others = rows[rng.integers(0, rows.height, chosen.height)]
    mixed, is_changed = chosen, np.zeros(chosen.height, np.bool_)
    for name in names:
        is_other = rng.random(chosen.height) < 0.5
        is_changed |= is_other & chosen[name].ne_missing(others[name]).to_numpy()
        mixed = mixed.with_columns(others[name].zip_with(pl.Series(is_other), chosen[name]).alias(name))
    return mixed.filter(pl.Series(is_changed))


def _with_lost_values(
    chosen: pl.DataFrame, rows: pl.DataFrame, names: Sequence[str], rng: np.random.Generator
) -> Faults:
    """Return rows without a value in one column, of the columns that rarely lack one."""
    full = [name for name in names if rows[name].null_count() <= _MAX_USUAL_MISSING * rows.height]
    if not full or chosen.is_empty():
        return Faults(chosen.clear())
    columns = rng.integers(0, len(full), chosen.height)
    lost = [
        chosen.filter(pl.Series(columns == index))
        .filter(pl.col(name).is_not_null())
        .with_columns(pl.lit(None, rows.schema[name]).alias(name))
        for index, name in enumerate(full)
    ]
    return _by_column(lost, full)


def _by_column(faulty: Sequence[pl.DataFrame], names: Sequence[str]) -> Faults:
    return Faults(pl.concat(faulty), np.repeat(names, [rows.height for rows in faulty]))


def _with_replaced_values(
    chosen: pl.DataFrame, rows: pl.DataFrame, names: Sequence[str], rng: np.random.Generator, *, outliers: float
) -> Faults:
    if not names or chosen.is_empty():
        return Faults(chosen.clear())
    columns, is_outlier = rng.integers(0, len(names), chosen.height), rng.random(chosen.height) < outliers
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
    return _by_column(faulty, names)


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
