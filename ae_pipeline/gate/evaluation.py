"""What a model shows on the gate's days, whose rows no part of it has seen."""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Detector
from ae_pipeline.encoding.image_encoder import ImageEncoder, pixels
from ae_pipeline.features.split import GATE, PARTS, Window, sample_rows
from ae_pipeline.scoring.calibration import ks_critical_value, ks_distance
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

COMMON = 0.99
"""A planted fault is found when it scores higher than this share of the gate's rows."""

_GATE_ROWS = 20_000
"""Rows of the gate's days that are looked at, at most: many enough for shares of a hundredth."""

_TRIMMED = 0.95
"""Share of a column's errors that their mean is taken of, without the greatest: a wild value is no fault of a model."""

Errors = dict[str, float]
"""Reconstruction error of each column, in its unit; of a category the share of rows that are wrong."""


@dataclass(frozen=True)
class GateMetrics:
    """What a model shows on the gate's rows.

    Attributes:
        errors: Of its reconstructions.
        ks_distance: Of its scores from those of its calibration.
        ks_critical_value: What chance alone makes of a departure, once in a hundred times.
        found: Share of planted faults that it finds; NaN where none could be planted.
        faults: How many were planted.
    """

    errors: Errors
    ks_distance: float
    ks_critical_value: float
    found: float
    faults: int


def gate_rows(window: Window, champion: Window | None, paths: DatasetPaths) -> pl.DataFrame:
    """Reads the rows that neither of two models was fitted on, up to 20,000 of them, drawn by a hash of the identity.

    Args:
        window: Of the challenger.
        champion: Of the version that serves; its own gate's days may have come before.
        paths: The dataset's.

    Returns:
        The rows; none where all days of the gate lie within the other's window, or the gate has none. Without event
        time those that the other was fitted on are left out: other rows or settings may have cut it elsewhere.
    """
    last = champion.days[-1] if champion else ""
    days = window.gate if window.gate == (ALL_ROWS,) else tuple(day for day in window.gate if day > last)
    if not days:
        return pl.DataFrame()
    own = Window(window.train, (), (), "", window.split_by, window.only_normal, days)
    try:
        rows = own.rows(GATE, paths, most=2 * _GATE_ROWS)
    except TrainingError:  # of few rows without event time, or of days of nothing but anomalies, none may be left
        return pl.DataFrame()
    if champion and days == (ALL_ROWS,):
        rows = rows.filter(~pl.col("row_id").is_in(_seen(champion, paths).implode()))
    return sample_rows(rows, _GATE_ROWS, seed=1)


def _seen(window: Window, paths: DatasetPaths) -> pl.Series:
    """Lists the rows of now that a model without event time was fitted on, by its own cut."""
    found = [pl.Series("row_id", [], pl.String)]
    for part in PARTS:
        try:
            found.append(window.rows(part, paths, ["row_id"])["row_id"])
        except TrainingError:  # none is left of that part
            continue
    return pl.concat(found)


def show(bundle: ModelBundle, rows: pl.DataFrame, faulty: pl.DataFrame) -> GateMetrics:
    """Measures a model on the gate's rows.

    Args:
        bundle: The model.
        rows: Of `gate_rows`, n > 0.
        faulty: Of `plant_faults`; the same for both models.

    Raises:
        BundleError: The rows lack a column that the model needs.
    """
    scores = bundle.latents_and_scores(rows)[1]
    found = float("nan")
    if faulty.height:
        mark = np.quantile(scores, COMMON)
        found = float((bundle.latents_and_scores(faulty)[1] > mark).mean())
    calibrated = bundle.calibration.scores
    return GateMetrics(
        reconstruction_errors(bundle, rows),
        ks_distance(scores, calibrated),
        ks_critical_value(len(scores), len(calibrated)),
        found,
        faulty.height,
    )


def reconstruction_errors(detector: Detector, rows: pl.DataFrame) -> Errors:
    """Measures how far a model's reconstructions are off, column by column, in the columns' own units.

    Of a number or a clock (minutes, the short way round) the mean distance, without the greatest twentieth; of a
    category the share of rows where another one is likelier; of images the mean distance of pixels. A value that is
    missing, or of which the model says so, is no part of it.

    Args:
        detector: The model.
        rows: Features, n > 0.
    """
    expected = detector.encoder.decode(detector.reconstruct(rows), rows)
    if isinstance(detector.encoder, ImageEncoder):
        name, shape = detector.encoder.name, detector.encoder.image
        images, shown = (pixels(frame[name], shape).astype(np.float64) for frame in (rows, expected))
        return {name: float(np.abs(images - shown).mean())}
    errors: Errors = {}
    for column in detector.encoder.columns:
        actual, made = rows[column.name], expected[column.name]
        if actual.dtype.is_temporal():
            continue  # its parts are not decoded
        if column.is_category:
            errors[column.name] = float(actual.ne_missing(made).to_numpy().mean())
            continue
        gap = np.abs((actual.cast(pl.Float64) - made.cast(pl.Float64)).drop_nulls().drop_nans().to_numpy())
        if column.is_clock:
            gap = np.minimum(gap % 1440, 1440 - gap % 1440)
        kept = np.sort(gap)[: math.ceil(_TRIMMED * len(gap))]
        if len(kept):
            errors[column.name] = float(kept.mean())
    return errors


def column_scales(rows: pl.DataFrame, champion: ModelBundle) -> dict[str, float]:
    """Gives the spread of each column of numbers, in its unit: over a model's window, or these rows where it is wider.

    A column may stay the same over all days of the gate, and an error be negligible all the same.
    """
    found = {known.name: known.std for known in champion.reference if not known.is_category}
    for column in rows.select(pl.selectors.numeric()):
        std = column.cast(pl.Float64).std()
        if isinstance(std, float):
            found[column.name] = max(std, found.get(column.name, 0.0))
    return found
