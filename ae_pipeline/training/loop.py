"""Training: optimiser, schedule, early stopping, device; reports through one callback."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ae_pipeline.common.errors import ConfigError, TrainingError
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.models.base import AutoEncoder, rows_at_once
from ae_pipeline.models.corruption import Corruption
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.rows import InMemory, TrainingRows


@dataclass(frozen=True)
class Epoch:
    """Figures of one pass over the training rows.

    Attributes:
        number: Counted from 1.
        train_loss: Mean objective of a training row during the pass, on corrupted inputs where there is corruption.
        validation_loss: Mean over the validation rows after it, clean and with the full β.
        learning_rate: At its end.
    """

    number: int
    train_loss: float
    validation_loss: float
    learning_rate: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to; the model holds the weights of the best epoch.

    Attributes:
        epochs: In order.
        best_epoch: Number of the epoch with the lowest validation loss.
        first_loss: Validation loss before the first step, of weights as they were drawn.
        best_loss: The lowest validation loss.
        is_warm: Whether it began with the weights of an earlier model.
        is_anchored: Whether its latents were pulled to those of an earlier model.
        is_streamed: Whether it learnt from disk, since the rows went beyond the memory budget.
        validation_rows: How many rows it stopped on.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    first_loss: float
    best_loss: float
    is_warm: bool = False
    is_anchored: bool = False
    is_streamed: bool = False
    validation_rows: int = 0


@dataclass(frozen=True)
class LatentRegularizer:
    """Latents of the training rows that a network is to keep near, so that it goes on where an earlier one ends.

    Backward-compatible training (Shen et al. 2020) keeps what an old classifier makes of new features; this keeps the
    features.

    Attributes:
        latents: Of an earlier model, of the training rows or a sample of them, (n, latent_dim).
        weight: Of a squared distance in units of the axis' spread, in units of the loss.
    """

    latents: Tensor
    weight: float

    def penalty(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """Gives the mean penalty of the latents of some rows, which those of the earlier model are wanted for."""
        return self.weight * ((latents - wanted.to(latents)) / self._spread.to(latents)).square().sum(1).mean()

    @cached_property
    def _spread(self) -> Tensor:
        std = self.latents.std(0)
        return std.clamp(min=max(1e-6 * float(std.max()), 1e-12))


def choose_device(name: str) -> torch.device:
    """Gives the device for auto, cpu or cuda.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no CUDA device here; choose auto or cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def train(
    model: AutoEncoder,
    loss: ReconstructionLoss,
    train_rows: Tensor | TrainingRows,
    validation_rows: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
    report: Callable[[Epoch], None] = lambda _: None,
    corrupt: Corruption | None = None,
    anchor: LatentRegularizer | None = None,
) -> TrainingResult:
    """Fits a model in place on batches of rows, and restores the best epoch's weights.

    Args:
        model: On the device to use.
        loss: On the same device; its scales are learnt too, where it has any.
        train_rows: Encoded rows, (n, …), on the same device; what is not in memory gives the anchor's latents along.
        validation_rows: Encoded rows, (n, …), on the same device; they steer early stopping and nothing else.
        config: Optimiser, epochs, batch size, step sizes, and β of variational forms.
        generator: On the CPU; draws the order of rows and all noise.
        report: Called after each epoch.
        corrupt: Noise on the inputs, whose clean form is the target; the validation rows stay clean.
        anchor: Pulls the latents to those of an earlier model; neither of the losses of an epoch counts it.

    Raises:
        TrainingError: There are no rows, or the loss is not finite.
    """
    if isinstance(train_rows, Tensor):
        train_rows = InMemory(train_rows, anchor.latents if anchor else None)
    _check_rows(training=len(train_rows), validation=len(validation_rows))
    device = train_rows.device
    noise = torch.Generator(device).manual_seed(generator.initial_seed() + 1)
    parameters = [*model.parameters(), *loss.parameters()]
    full_batch = config.optimizer == "gd"
    steps_an_epoch = 1 if full_batch else math.ceil(len(train_rows) / config.batch_size)
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters())},
        {"params": list(loss.parameters()), "weight_decay": 0.0},
    ]
    optimizer = _optimizer(groups, config)
    scheduler = _scheduler(optimizer, config, config.epochs * steps_an_epoch)

    def step() -> None:
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        scheduler.step()

    first = best = evaluate(model, loss, validation_rows, config.beta)
    best_epoch, epochs, kept = 0, [], _state(model, loss)
    for number in range(1, config.epochs + 1):
        model.train()
        beta = config.beta * min(1.0, number / max(1, config.beta_warmup))
        total = torch.zeros((), device=device)
        optimizer.zero_grad(set_to_none=True)
        for batch, wanted in train_rows.shuffled(config.batch_size, generator):
            inputs = corrupt(batch, noise) if corrupt else batch
            value = loss.objective(model(inputs, noise), batch, beta).mean()
            pulled = value
            # Of the clean rows, and in variational forms of the means: what is published.
            if anchor is not None and wanted is not None:
                pulled = value + anchor.penalty(model.encode(batch), wanted)
            # Of gradient descent the parts of the one step add up to the gradient over all rows.
            (pulled * (len(batch) / len(train_rows)) if full_batch else pulled).backward()
            if not full_batch:
                step()
                optimizer.zero_grad(set_to_none=True)
            total += value.detach() * len(batch)
        if full_batch:
            step()
        validation_loss = evaluate(model, loss, validation_rows, config.beta)
        epoch = Epoch(number, float(total) / len(train_rows), validation_loss, float(scheduler.get_last_lr()[0]))
        if not math.isfinite(epoch.train_loss) or not math.isfinite(epoch.validation_loss):
            raise TrainingError(
                f"the loss of epoch {number} is not finite ({epoch.train_loss}, validation "
                f"{epoch.validation_loss}); lower learning_rate={config.learning_rate:g}, or set clip_norm"
            )
        epochs.append(epoch)
        report(epoch)
        if number < config.beta_warmup:  # until β has risen, the loss with the full one says little
            continue
        if epoch.validation_loss < best:
            best, best_epoch, kept = epoch.validation_loss, number, _state(model, loss)
        elif number - max(best_epoch, config.beta_warmup) >= config.patience:
            break
    model.load_state_dict(kept[0])
    loss.load_state_dict(kept[1])
    model.eval()
    return TrainingResult(tuple(epochs), best_epoch, first, best, validation_rows=len(validation_rows))


def _check_rows(**counts: int) -> None:
    for name, count in counts.items():
        if count == 0:
            raise TrainingError(
                f"there are no {name} rows; land more days, or make the {name} part of the window longer"
            )


@torch.no_grad()
def evaluate(
    model: AutoEncoder, loss: ReconstructionLoss, rows: Tensor, beta: float = 1.0, batch_size: int | None = None
) -> float:
    """Mean objective of rows; of variational forms at the mean of their latents, with the full β."""
    model.eval()
    batches = rows.split(batch_size or rows_at_once(rows.shape[1:]))
    total = sum(float(loss.objective(model(batch), batch, beta).sum(dtype=torch.float64)) for batch in batches)
    return total / len(rows)


def _optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "gd" | "sgd":
            return torch.optim.SGD(groups, rate, weight_decay=decay)
        case "momentum" | "nesterov":
            nesterov = config.optimizer == "nesterov" and config.momentum > 0
            return torch.optim.SGD(groups, rate, momentum=config.momentum, weight_decay=decay, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, rate, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)


def _scheduler(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "one_cycle":
        # One step more, since the last one asks for a rate to come; momentum stays as it is configured.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=steps + 1, cycle_momentum=False
        )
    rate = _warm_cosine(steps) if config.schedule == "cosine" else lambda _: 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """Rises over the first 5 % of the steps and falls to zero along a cosine (Loshchilov & Hutter 2017)."""
    warm = max(1, steps // 20)
    return lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _state(model: AutoEncoder, loss: ReconstructionLoss) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copy.deepcopy(model.state_dict()), copy.deepcopy(loss.state_dict())
