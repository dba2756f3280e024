"""The gate: which challenger may serve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.preprocessing.table_encoder import Matrix
from ae_pipeline.scoring.calibration import departure
from ae_pipeline.training import TrainingResult

MOST_DEPARTURE = 0.1
"""Gap between the scores of new days and those of the calibration that counts as drift, beyond what chance makes."""

MIN_SPREAD = 1e-3
"""Spread of a latent column, relative to the widest, below which it counts as collapsed."""


@dataclass(frozen=True)
class Verdict:
    """One rule of the gate and how a challenger fared.

    Attributes:
        rule: Its name.
        passed: Whether it is kept.
        figure: What was measured.
        threshold: What it was held against.
        words: The same as a sentence.
    """

    rule: str
    passed: bool
    figure: float
    threshold: float
    words: str


def finite_weights(bundle: ModelBundle) -> Verdict:
    """Every weight of the network is a finite number."""
    wrong = sum(int((~torch.isfinite(value)).sum()) for value in bundle.model.state_dict().values())
    return Verdict("finite_weights", wrong == 0, wrong, 0, f"{wrong:,} weights are not finite; none may be")


def loss_fell(result: TrainingResult) -> Verdict:
    """The validation loss is lower than before the first step."""
    return Verdict(
        "loss_fell",
        result.best_loss < result.first_loss,
        result.best_loss,
        result.first_loss,
        f"validation loss {result.best_loss:.4g} at epoch {result.best_epoch}, {result.first_loss:.4g} before it",
    )


def latents_not_collapsed(latents: Matrix) -> Verdict:
    """At least half of the latent columns vary from row to row.

    Args:
        latents: Of some rows, (n, latent_dim).
    """
    spread = latents.std(axis=0) if len(latents) else np.zeros(latents.shape[1])
    alive = float((spread > MIN_SPREAD * max(float(spread.max(initial=0.0)), 1e-12)).mean())
    return Verdict(
        "latents_not_collapsed",
        alive >= 0.5,
        alive,
        0.5,
        f"{alive:.0%} of {latents.shape[1]} latent columns vary; half must",
    )


def calibration_holds(scores: npt.NDArray[np.float64], calibrated: npt.NDArray[np.float64]) -> Verdict:
    """Rows after the calibration days score like those of these days, which the alert budget rests on.

    It looks at all scores alike. Of the highest alone, which make alerts, the report's check `alert_budget` tells.

    Args:
        scores: Of rows of days after the window of the model, (n,).
        calibrated: Of the rows of the calibration days.
    """
    if not len(scores):
        return Verdict("calibration_holds", True, 0.0, MOST_DEPARTURE, "0 rows lie after the calibration days")
    gap = departure(scores, calibrated)
    # Of rows like those of the calibration the gap exceeds this root once in a hundred times (Smirnov 1939).
    most = MOST_DEPARTURE + 1.63 * math.sqrt(1 / len(scores) + 1 / len(calibrated))
    words = f"{len(scores):,} rows after the calibration days: their shares up to any score differ by up to {gap:.3f}"
    verdict = "train anew to calibrate on newer days" if gap > most else "they are alike"
    return Verdict("calibration_holds", gap <= most, gap, most, f"{words}; {verdict}")


def is_promoted(verdicts: Sequence[Verdict]) -> bool:
    """A challenger serves when it keeps every rule."""
    return all(verdict.passed for verdict in verdicts)
