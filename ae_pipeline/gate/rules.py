"""The gate: which challenger may serve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.service import GateConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.table_encoder import Matrix
from ae_pipeline.gate.evaluation import COMMON, Errors, GateMetrics, column_scales, show
from ae_pipeline.gate.planted_faults import plant_faults
from ae_pipeline.scoring.calibration import ks_critical_value, ks_distance
from ae_pipeline.training.loop import TrainingResult

MAX_KS_DISTANCE = 0.1
"""Gap between the scores of new days and those of the calibration that counts as drift, beyond what chance makes."""

MIN_RELATIVE_STD = 1e-3
"""Spread of a latent column, relative to the widest, below which it counts as collapsed."""

_NEGLIGIBLE = 0.01
"""An error is told from none from this share of a column's spread on, and of categories from this share of rows on."""


@dataclass(frozen=True)
class GateResult:
    """One rule of the gate and how a challenger fared.

    Attributes:
        rule: Its name.
        passed: Whether it is kept.
        figure: What was measured.
        threshold: What it was held against.
        message: The same as a sentence.
    """

    rule: str
    passed: bool
    figure: float
    threshold: float
    message: str


def compare(
    challenger: ModelBundle, champion: ModelBundle | None, rows: pl.DataFrame, why_not: str, config: GateConfig
) -> tuple[GateResult, ...]:
    """Lets a challenger face the version that serves on rows that neither was fitted on.

    Args:
        challenger: The model that would serve.
        champion: The one that does, None where none can be compared with.
        rows: Of `gate_rows`.
        why_not: Why none can, for a person.
        config: The thresholds.

    Returns:
        Verdicts of reconstruction, calibration and planted faults. Where nothing can be compared they pass, and say so.
    """
    rules = ("reconstruction_no_worse", "calibration_no_worse", "planted_faults_found")
    limits = (1 + config.max_error_increase, config.max_ks_distance, 0.0)
    if rows.is_empty():
        why_not = "no row lies after the days that both were fitted on"
    elif champion is not None:
        try:
            champion.encoder.encode(rows.head(1))  # a column that it needs may be gone
            faulty = plant_faults(rows, champion.encoder)
            shown = show(challenger, rows, faulty), show(champion, rows, faulty)
        except BundleError as error:
            why_not = str(error)
        else:
            return (
                reconstruction_no_worse(
                    shown[0].errors, shown[1].errors, column_scales(rows, champion), config.max_error_increase
                ),
                calibration_no_worse(*shown, config.max_ks_distance),
                planted_faults_found(*shown, config.max_recall_drop),
            )
    return tuple(
        GateResult(rule, True, float("nan"), limit, f"not compared: {why_not}")
        for rule, limit in zip(rules, limits, strict=True)
    )


def reconstruction_no_worse(
    challenger: Errors, champion: Errors, std: dict[str, float], max_error_increase: float
) -> GateResult:
    """The challenger reconstructs the columns that both see about as well as the version that serves, or better.

    Each column's error is divided by the other's, which takes the unit away; the geometric mean of these quotients
    weighs a column that is twice as good as much as one that is twice as bad.

    Args:
        challenger: Its errors.
        champion: Errors of the version that serves.
        std: Of columns of numbers, by which negligible errors are told.
        max_error_increase: Share by which the mean may exceed 1.
    """
    rule, most = "reconstruction_no_worse", 1 + max_error_increase
    shared = sorted(challenger.keys() & champion.keys())
    if not shared:
        return GateResult(rule, True, float("nan"), most, "not compared: the two models see no column in common")
    floors = {name: _NEGLIGIBLE * std.get(name, 1.0) + 1e-300 for name in shared}
    quotients = {name: (challenger[name] + floors[name]) / (champion[name] + floors[name]) for name in shared}
    figure = math.exp(sum(map(math.log, quotients.values())) / len(quotients))
    worst = max(quotients, key=lambda name: quotients[name])
    message = (
        f"over {len(shared)} columns its error is {figure:.3f} times that of the version that serves, at most "
        f"{most:g} allowed; the worst is {worst} with {challenger[worst]:.4g} where the other has {champion[worst]:.4g}"
    )
    return GateResult(rule, figure <= most, figure, most, message)


def calibration_no_worse(challenger: GateMetrics, champion: GateMetrics, max_ks_distance: float) -> GateResult:
    """The challenger's scores of the gate's rows lie as near to its calibration as the threshold or the other's do.

    Args:
        challenger: What it shows.
        champion: What the version that serves shows, which the same days may have taken from its calibration too.
        max_ks_distance: Gap that is allowed whatever the other shows.
    """
    most = max(max_ks_distance, champion.ks_distance) + challenger.ks_critical_value
    message = (
        f"shares of rows up to any score differ from those of its calibration by up to {challenger.ks_distance:.3f}, "
        f"at most {most:.3f} allowed; those of the version that serves by {champion.ks_distance:.3f}"
    )
    return GateResult("calibration_no_worse", challenger.ks_distance <= most, challenger.ks_distance, most, message)


def planted_faults_found(challenger: GateMetrics, champion: GateMetrics, max_recall_drop: float) -> GateResult:
    """The challenger finds about as many planted faults as the version that serves, or more.

    Args:
        challenger: What it shows.
        champion: What the version that serves shows of the same faults.
        max_recall_drop: By how much its share may be smaller.
    """
    rule = "planted_faults_found"
    if not challenger.faults:
        return GateResult(rule, True, float("nan"), 0.0, "not compared: no column has two values to plant a fault with")
    least = max(champion.found - max_recall_drop, 0.0)
    message = (
        f"{challenger.found:.1%} of {challenger.faults} planted faults score higher than {COMMON:.0%} of the rows, at "
        f"least {least:.1%} must; the version that serves finds {champion.found:.1%}"
    )
    return GateResult(rule, challenger.found >= least, challenger.found, least, message)


def finite_weights(bundle: ModelBundle) -> GateResult:
    """Every weight of the network is a finite number."""
    wrong = sum(int((~torch.isfinite(value)).sum()) for value in bundle.model.state_dict().values())
    return GateResult("finite_weights", wrong == 0, wrong, 0, f"{wrong:,} weights are not finite; none may be")


def loss_fell(result: TrainingResult) -> GateResult:
    """The validation loss is lower than before the first step."""
    return GateResult(
        "loss_fell",
        result.best_loss < result.first_loss,
        result.best_loss,
        result.first_loss,
        f"validation loss {result.best_loss:.4g} at epoch {result.best_epoch}, {result.first_loss:.4g} before it",
    )


def latents_not_collapsed(latents: Matrix, least: float = 0.5) -> GateResult:
    """All latents are finite, and enough of their columns vary from row to row.

    Args:
        latents: Of some rows, (n, latent_dim).
        least: Share of the columns that must.
    """
    if wrong := int((~np.isfinite(latents)).sum()):
        message = f"{wrong:,} latents are not finite; none may be"
        return GateResult("latents_not_collapsed", False, 0.0, least, message)
    std = latents.std(axis=0) if len(latents) else np.zeros(latents.shape[1])
    alive = float((std > MIN_RELATIVE_STD * max(float(std.max(initial=0.0)), 1e-12)).mean())
    message = (
        f"{alive:.0%} of {latents.shape[1]} latent columns vary; {'half' if least == 0.5 else f'{least:.0%}'} must"
    )
    return GateResult("latents_not_collapsed", alive >= least, alive, least, message)


def calibration_holds(scores: npt.NDArray[np.float64], calibrated: npt.NDArray[np.float64]) -> GateResult:
    """Rows after the calibration days score like those of these days, which the alert budget rests on.

    It looks at all scores alike. Of the highest alone, which make alerts, the report's check `alert_budget` tells.

    Args:
        scores: Of rows of days after the window of the model, (n,).
        calibrated: Of the rows of the calibration days.
    """
    if not len(scores):
        return GateResult("calibration_holds", True, 0.0, MAX_KS_DISTANCE, "0 rows lie after the calibration days")
    gap = ks_distance(scores, calibrated)
    most = MAX_KS_DISTANCE + ks_critical_value(len(scores), len(calibrated))
    message = f"{len(scores):,} rows after the calibration days: their shares up to any score differ by up to {gap:.3f}"
    result = "train anew to calibrate on newer days" if gap > most else "they are alike"
    return GateResult("calibration_holds", gap <= most, gap, most, f"{message}; {result}")


def is_promoted(results: Sequence[GateResult]) -> bool:
    """A challenger serves when it keeps every rule."""
    return all(result.passed for result in results)
