"""Evaluate a model on the gate's days, whose rows no part of it was fitted on."""

import math
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.image_encoder import ImageEncoder, pixels
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.split import GATE, PARTS, Window, sample_rows
from ae_pipeline.scoring.calibration import ks_critical_value, ks_distance
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

FAULT_QUANTILE = 0.99
"""A model finds a planted fault if the fault scores higher than this share of the gate's rows."""

_MAX_GATE_ROWS = 20_000
"""Upper limit on the gate's rows that are evaluated: enough to measure shares of 1 %."""

_TRIM_QUANTILE = 0.95
"""Share of the errors of a column that count for their mean; wild values are no fault of the model."""

Errors = dict[str, float]
"""Mean reconstruction error of each column, in its unit; for a category, the share of rows that are wrong."""


@dataclass(frozen=True, kw_only=True)
class GateMetrics:
    """Metrics of a model on the gate's rows.

    Attributes:
        errors: Reconstruction error of each column.
        ks_distance: Kolmogorov-Smirnov distance of the scores from the calibration scores.
        ks_critical_value: Distance that sampling noise alone exceeds with probability 1 %.
        recall: Share of the planted faults that the model finds; NaN if no fault could be planted.
        fault_count: Number of planted faults.
        noun: What messages call a row.
    """

    errors: Errors
    ks_distance: float
    ks_critical_value: float
    recall: float
    fault_count: int
    noun: str = "row"


def gate_rows(window: Window, champion: Window | None, paths: DatasetPaths) -> pl.DataFrame:
    """Return the rows that neither of two models was fitted on, at most 20,000, sampled by a hash of their identity.

    Args:
        window: Window of the challenger.
        champion: Window of the version that serves. Its days are left out.
        paths: Paths of the dataset.

    Returns:
        Features of the rows. The table is empty if the gate has no days, or the champion was fitted on all of them.
        Without event time, the rows that the champion was fitted on are left out, because another split may have
        assigned them to its training.
    """
    last_day = champion.days[-1] if champion else ""
    days = window.gate if window.gate == (ALL_ROWS,) else tuple(day for day in window.gate if day > last_day)
    if not days:
        return pl.DataFrame()
    try:
        rows = replace(window, gate=days).rows(GATE, paths, most=2 * _MAX_GATE_ROWS)
    except TrainingError:  # few rows without event time, or only known anomalies
        return pl.DataFrame()
    if champion and days == (ALL_ROWS,):
        rows = rows.filter(~pl.col("row_id").is_in(_fitted_row_ids(champion, paths).implode()))
    return sample_rows(rows, _MAX_GATE_ROWS, seed=1)


def _fitted_row_ids(window: Window, paths: DatasetPaths) -> pl.Series:
    """Return the ids of the present rows that a model without event time was fitted on."""
    row_ids = [pl.Series("row_id", [], pl.String)]
    for part in PARTS:
        try:
            row_ids.append(window.rows(part, paths, ["row_id"])["row_id"])
        except TrainingError:  # no present row belongs to this part
            continue
    return pl.concat(row_ids)


def evaluate_model(bundle: ModelBundle, rows: pl.DataFrame, faulty: pl.DataFrame) -> GateMetrics:
    """Return the metrics of a model on the gate's rows.

    Args:
        bundle: Model to evaluate.
        rows: Rows from `gate_rows`, at least one.
        faulty: Rows from `plant_faults`, the same for both models.

    Raises:
        BundleError: The rows lack a column that the model needs.
    """
    scores = bundle.latents_and_scores(rows)[1]
    recall = float("nan")
    if faulty.height:
        threshold = np.quantile(scores, FAULT_QUANTILE)
        recall = float((bundle.latents_and_scores(faulty)[1] > threshold).mean())
    calibration = bundle.calibration.scores
    return GateMetrics(
        errors=reconstruction_errors(bundle.network, rows),
        ks_distance=ks_distance(scores, calibration),
        ks_critical_value=ks_critical_value(len(scores), len(calibration)),
        recall=recall,
        fault_count=faulty.height,
        noun=noun_of_rows(bundle.config),
    )


def reconstruction_errors(network: FittedNetwork, rows: pl.DataFrame) -> Errors:
    """Return the mean reconstruction error of each column, in the units of the columns.

    The error of a number is its absolute distance, of a clock its distance in minutes the short way round; both are
    trimmed means without the highest 5 %. The error of a category is the share of rows whose most likely category is
    wrong. The error of an image is the mean absolute distance of its pixels. Missing values, and values that the model
    expects to be missing, do not count for numbers and clocks. Dates are not decoded and have no error.

    Args:
        network: Network of a model.
        rows: Features, at least one row.
    """
    expected = network.encoder.decode(network.reconstruct(rows), rows)
    if isinstance(network.encoder, ImageEncoder):
        return _image_error(network.encoder, rows, expected)
    return _column_errors(network.encoder, rows, expected)


def _image_error(encoder: ImageEncoder, rows: pl.DataFrame, expected: pl.DataFrame) -> Errors:
    actual, decoded = (pixels(frame[encoder.name], encoder.image).astype(np.float64) for frame in (rows, expected))
    return {encoder.name: float(np.abs(actual - decoded).mean())}


def _column_errors(encoder: TableEncoder, rows: pl.DataFrame, expected: pl.DataFrame) -> Errors:
    errors: Errors = {}
    for column in encoder.columns:
        actual, decoded = rows[column.name], expected[column.name]
        if actual.dtype.is_temporal():
            continue
        if column.is_category:
            errors[column.name] = float(actual.ne_missing(decoded).to_numpy().mean())
            continue
        distance = np.abs((actual.cast(pl.Float64) - decoded.cast(pl.Float64)).drop_nulls().drop_nans().to_numpy())
        if column.is_clock:
            distance = np.minimum(distance % 1440, 1440 - distance % 1440)
        kept = np.sort(distance)[: math.ceil(_TRIM_QUANTILE * len(distance))]
        if len(kept):
            errors[column.name] = float(kept.mean())
    return errors


def column_scales(rows: pl.DataFrame, champion: ModelBundle) -> dict[str, float]:
    """Return the standard deviation of each number column: over the window of a model, or over rows if it is larger.

    A column can stay constant over all days of the gate. Its errors can be negligible all the same.

    Args:
        rows: Rows from `gate_rows`.
        champion: Model whose reference distributions describe the window.
    """
    scales = {known.name: known.std for known in champion.reference if not known.is_category}
    for column in rows.select(pl.selectors.numeric()):
        std = column.cast(pl.Float64).clip(-1e100, 1e100).std()  # the square of a larger number is infinite
        if isinstance(std, float):
            scales[column.name] = max(std, scales.get(column.name, 0.0))
    return scales
