"""The rules of the gate: conditions that a challenger must meet before it is promoted."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.common.errors import BundleError
from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.service import GateConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.gate.blindness import NO_ALERTS, RecentAlerts, compare_sight
from ae_pipeline.gate.evaluation import FAULT_QUANTILE, Errors, GateMetrics, column_scales, evaluate_model
from ae_pipeline.gate.planted_faults import plant_faults
from ae_pipeline.gate.results import GateResult, not_compared
from ae_pipeline.scoring.calibration import ks_critical_value, ks_distance
from ae_pipeline.training.loop import TrainingResult

MAX_KS_DISTANCE = 0.1
"""Kolmogorov-Smirnov distance from the calibration scores that counts as drift, beyond sampling noise."""

MIN_RELATIVE_STD = 1e-3
"""Standard deviation of a latent column, relative to the largest one, below which it counts as collapsed."""

_NEGLIGIBLE_ERROR = 0.01
"""Error that counts as negligible: a share of the standard deviation of a column, or of the rows for a category."""


def compare(
    challenger: ModelBundle,
    champion: ModelBundle | None,
    rows: pl.DataFrame,
    why_not: str,
    config: GateConfig,
    alerts: RecentAlerts = NO_ALERTS,
) -> tuple[GateResult, ...]:
    """Compare a challenger with the version that serves, on rows that neither was fitted on.

    Args:
        challenger: Model that would be promoted.
        champion: Model that serves; None if there is none to compare with.
        rows: Rows from `gate_rows`.
        why_not: Reason why there is no champion, for the messages.
        config: Thresholds of the rules.
        alerts: Recent alerts of the version that serves.

    Returns:
        Results for reconstruction, calibration, planted faults and blindness. If nothing can be compared, they pass and
        their messages give the reason.
    """
    if rows.is_empty():
        return _not_compared(f"no {noun_of_rows(challenger.config)} is later than the windows of both models", config)
    if champion is None:
        return _not_compared(why_not, config)
    try:
        champion.encoder.encode(rows.head(1))  # raises if a column of the champion no longer exists
        faulty = plant_faults(rows, (challenger.encoder, champion.encoder))
        metrics, champion_metrics = evaluate_model(challenger, rows, faulty), evaluate_model(champion, rows, faulty)
        sight = compare_sight(challenger, champion, rows, alerts, config)
    except BundleError as error:
        return _not_compared(str(error), config)
    scales = column_scales(rows, champion)
    return (
        reconstruction_no_worse(metrics.errors, champion_metrics.errors, scales, config.max_error_increase),
        calibration_no_worse(metrics, champion_metrics, config.max_ks_distance),
        planted_faults_found(metrics, champion_metrics, config.max_recall_drop),
        *sight,
    )


def _not_compared(reason: str, config: GateConfig) -> tuple[GateResult, ...]:
    thresholds = {
        "reconstruction_no_worse": 1 + config.max_error_increase,
        "calibration_no_worse": config.max_ks_distance,
        "planted_faults_found": 0.0,
        "faults_found_at_budget": 0.0,
        "each_kind_found_at_budget": config.max_recall_drop,
        "alerts_still_found": config.min_alert_agreement,
        "threshold_in_line": config.max_threshold_rise,
        "rankings_agree": config.min_rank_agreement,
    }
    return tuple(not_compared(rule, threshold, reason) for rule, threshold in thresholds.items())


def reconstruction_no_worse(
    challenger: Errors, champion: Errors, scales: Mapping[str, float], max_error_increase: float
) -> GateResult:
    """Check that the challenger reconstructs the shared columns about as well as the champion, or better.

    The measure is the geometric mean of the quotients of both errors over the columns. It does not depend on units, and
    a column that is twice as good offsets one that is twice as bad.

    Args:
        challenger: Reconstruction errors of the challenger.
        champion: Reconstruction errors of the champion.
        scales: Standard deviation of each number column, which sets its negligible error.
        max_error_increase: Share by which the geometric mean may exceed 1.
    """
    rule, limit = "reconstruction_no_worse", 1 + max_error_increase
    shared = sorted(challenger.keys() & champion.keys())
    if not shared:
        return not_compared(rule, limit, "the two models share no column")
    floors = {name: _NEGLIGIBLE_ERROR * scales.get(name, 1.0) + 1e-300 for name in shared}
    quotients = {name: (challenger[name] + floors[name]) / (champion[name] + floors[name]) for name in shared}
    mean_quotient = math.exp(sum(map(math.log, quotients.values())) / len(quotients))
    worst = max(quotients, key=lambda name: quotients[name])
    message = (
        f"over {len(shared)} columns, its reconstruction error is {mean_quotient:.3f} times that of the version that "
        f"serves; the limit is {limit:g}; the worst column is {worst} with {challenger[worst]:.4g} against "
        f"{champion[worst]:.4g}"
    )
    return GateResult(rule=rule, passed=mean_quotient <= limit, figure=mean_quotient, threshold=limit, message=message)


def calibration_no_worse(challenger: GateMetrics, champion: GateMetrics, max_ks_distance: float) -> GateResult:
    """Check that the scores of the challenger are near its calibration, or about as near as those of the champion.

    Args:
        challenger: Metrics of the challenger.
        champion: Metrics of the champion. The gate's days may have drifted from its calibration too.
        max_ks_distance: Kolmogorov-Smirnov distance that is always allowed.
    """
    limit = max(max_ks_distance, champion.ks_distance) + challenger.ks_critical_value
    message = (
        f"the distribution of its scores differs from its calibration by up to {challenger.ks_distance:.3f}; the limit "
        f"is {limit:.3f}; for the version that serves the difference is {champion.ks_distance:.3f}"
    )
    return GateResult(
        rule="calibration_no_worse",
        passed=challenger.ks_distance <= limit,
        figure=challenger.ks_distance,
        threshold=limit,
        message=message,
    )


def planted_faults_found(challenger: GateMetrics, champion: GateMetrics, max_recall_drop: float) -> GateResult:
    """Check that the challenger finds about as many planted faults as the champion, or more.

    Args:
        challenger: Metrics of the challenger.
        champion: Metrics of the champion for the same faults.
        max_recall_drop: Difference by which the share of found faults may be lower.
    """
    rule = "planted_faults_found"
    if not challenger.fault_count:
        return not_compared(rule, 0.0, "no fault can be planted because no column has two values")
    limit = max(champion.recall - max_recall_drop, 0.0)
    message = (
        f"{challenger.recall:.1%} of {challenger.fault_count} planted faults score higher than {FAULT_QUANTILE:.0%} of "
        f"the {plural(challenger.noun)}; at least {limit:.1%} must; the version that serves finds {champion.recall:.1%}"
    )
    return GateResult(
        rule=rule, passed=challenger.recall >= limit, figure=challenger.recall, threshold=limit, message=message
    )


def finite_weights(bundle: ModelBundle) -> GateResult:
    """Check that every weight of the network is a finite number."""
    count = sum(int((~torch.isfinite(value)).sum()) for value in bundle.model.state_dict().values())
    message = f"{count:,} weights are not finite; none may be"
    return GateResult(rule="finite_weights", passed=count == 0, figure=count, threshold=0, message=message)


def loss_fell(result: TrainingResult) -> GateResult:
    """Check that the validation loss is lower than before the first step."""
    return GateResult(
        rule="loss_fell",
        passed=result.best_loss < result.first_loss,
        figure=result.best_loss,
        threshold=result.first_loss,
        message=f"the validation loss is {result.best_loss:.4g} at epoch {result.best_epoch}; it was "
        f"{result.first_loss:.4g} before the first step",
    )


def latents_not_collapsed(latents: Matrix, min_share: float = 0.5) -> GateResult:
    """Check that all latents are finite and that enough latent columns vary between rows.

    Args:
        latents: Latents of some rows, (n, latent_dim).
        min_share: Share of the columns that must vary.
    """
    rule = "latents_not_collapsed"
    if count := int((~np.isfinite(latents)).sum()):
        message = f"{count:,} latents are not finite; none may be"
        return GateResult(rule=rule, passed=False, figure=0.0, threshold=min_share, message=message)
    std = latents.std(axis=0) if len(latents) else np.zeros(latents.shape[1])
    largest = max(float(std.max(initial=0.0)), 1e-12)
    share = float((std > MIN_RELATIVE_STD * largest).mean())
    message = f"{share:.0%} of {latents.shape[1]} latent columns vary; at least {min_share:.0%} must"
    return GateResult(rule=rule, passed=share >= min_share, figure=share, threshold=min_share, message=message)


def calibration_holds(
    scores: npt.NDArray[np.float64], calibrated: npt.NDArray[np.float64], noun: str = "row"
) -> GateResult:
    """Check that rows after the calibration days score like the calibration rows, which the alert budget relies on.

    All scores count alike. The report's check `alert_budget` looks at the highest scores, which raise alerts.

    Args:
        scores: Scores of rows after the window of the model, (n,).
        calibrated: Scores of the calibration rows.
        noun: What the message calls a row.
    """
    rule = "calibration_holds"
    if not len(scores):
        message = f"0 {plural(noun)} lie after the calibration days"
        return GateResult(rule=rule, passed=True, figure=0.0, threshold=MAX_KS_DISTANCE, message=message)
    distance = ks_distance(scores, calibrated)
    limit = MAX_KS_DISTANCE + ks_critical_value(len(scores), len(calibrated))
    passed = distance <= limit
    conclusion = "the calibration holds" if passed else "train a new model to calibrate on newer days"
    message = (
        f"{pluralize(len(scores), noun)} after the calibration days: the distribution of their scores differs from the "
        f"calibration by up to {distance:.3f}; the limit is {limit:.3f}; {conclusion}"
    )
    return GateResult(rule=rule, passed=passed, figure=distance, threshold=limit, message=message)


def is_promoted(results: Sequence[GateResult]) -> bool:
    """Return whether a challenger meets every rule."""
    return all(result.passed for result in results)
