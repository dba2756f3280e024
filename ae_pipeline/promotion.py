"""The gate: which challenger may serve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.preprocessing.table_encoder import Matrix
from ae_pipeline.training import TrainingResult

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


def is_promoted(verdicts: Sequence[Verdict]) -> bool:
    """A challenger serves when it keeps every rule."""
    return all(verdict.passed for verdict in verdicts)
