"""Plots that travel with a training or stand in a report."""

from typing import TYPE_CHECKING

from ae_pipeline.training import TrainingResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(result: TrainingResult, unit: str) -> "Figure":
    """Plots training and validation loss by epoch, with the epoch whose weights were kept.

    Args:
        result: Of the training.
        unit: Of the loss, in words.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    numbers = [epoch.number for epoch in result.epochs]
    axes.plot(numbers, [epoch.train_loss for epoch in result.epochs], label="training (during the epoch, with its β)")
    axes.plot(numbers, [epoch.validation_loss for epoch in result.epochs], label="validation (after it)")
    axes.axvline(result.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {result.best_epoch}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"loss, {unit}")
    axes.legend()
    return figure
