"""The training loop: optimizer, learning rate schedule, early stopping and device."""

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
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.features.sizes import choose_batch_size
from ae_pipeline.models.base import AutoEncoder, rows_at_once
from ae_pipeline.models.corruption import Corruption
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.learning_rates import parameter_groups
from ae_pipeline.training.rows import InMemory, TrainingRows


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Losses of a training. The model holds the weights of the best epoch.

    Attributes:
        epochs: Losses of each epoch, in order.
        best_epoch: Number of the epoch with the lowest validation loss; 0 if no epoch improved on the initial weights.
        first_loss: Validation loss before the first step, with random weights.
        best_loss: Lowest validation loss.
        is_warm: Whether the training started with the weights of a previous model.
        is_anchored: Whether a regularizer kept the latents near those of a previous model.
        is_streamed: Whether the training rows were read from disk because they exceeded the memory budget.
        validation_rows: Number of rows that early stopping used.
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
    """A penalty on the distance between the latents of a network and those of a previous model.

    Backward-compatible training (Shen et al. 2020) keeps the output of an old classifier on new features. This keeps
    the features.

    Attributes:
        latents: Latents of the training rows, or of a sample of them, under the previous model, (n, latent_dim).
        weight: Penalty of a squared distance of one standard deviation, in units of the loss.
    """

    latents: Tensor
    weight: float

    def penalty(self, latents: Tensor, previous: Tensor) -> Tensor:
        """Return the mean penalty of n rows.

        Args:
            latents: Latents of the network, (n, latent_dim).
            previous: Latents of the same rows under the previous model, (n, latent_dim).
        """
        return self.weight * ((latents - previous.to(latents)) / self._std.to(latents)).square().sum(1).mean()

    @cached_property
    def _std(self) -> Tensor:
        std = self.latents.std(0)
        return std.clamp(min=max(1e-6 * float(std.max()), 1e-12))


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: `cuda` is configured, but no CUDA device is available.

    Examples:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device on this machine; choose auto or cpu")
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
    regularizer: LatentRegularizer | None = None,
) -> TrainingResult:
    """Train a model in place on mini-batches, and restore the weights of the best epoch.

    Args:
        model: Autoencoder, on the device to train on.
        loss: Loss on the same device. Its scales are trained too, if it has any.
        train_rows: Encoded rows, (n, …), on the same device. Rows from disk bring the latents of the previous model
            along for the regularizer.
        validation_rows: Encoded rows, (n, …), on the same device, for early stopping only.
        config: Optimizer, schedule, epochs, batch size, and β of variational models.
        generator: Generator on the CPU for the order of rows and for noise.
        report: Callback after each epoch.
        corrupt: Noise on the inputs. Targets and validation rows stay clean.
        regularizer: Penalty that keeps the latents near those of a previous model. The losses of an epoch leave it out.

    Raises:
        TrainingError: There are no rows, or the loss is not finite.
    """
    if isinstance(train_rows, Tensor):
        train_rows = InMemory(train_rows, regularizer.latents if regularizer else None)
    _check_rows(training=len(train_rows), validation=len(validation_rows))
    device = train_rows.device
    noise = torch.Generator(device).manual_seed(generator.initial_seed() + 1)
    parameters = [*model.parameters(), *loss.parameters()]
    full_batch = config.optimizer == "gd"
    batch_size = config.batch_size or choose_batch_size(len(train_rows))
    steps_per_epoch = 1 if full_batch else math.ceil(len(train_rows) / batch_size)
    optimizer = _optimizer(parameter_groups(model, loss, config), config)
    scheduler = _scheduler(optimizer, config, config.epochs * steps_per_epoch)

    def step() -> None:
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        scheduler.step()

    first = best = evaluate(model, loss, validation_rows, config.beta)
    best_epoch, epochs, best_state = 0, [], _state(model, loss)
    for number in range(1, config.epochs + 1):
        model.train()
        beta = config.beta * min(1.0, number / max(1, config.beta_warmup))
        total = torch.zeros((), device=device)
        optimizer.zero_grad(set_to_none=True)
        for batch, previous_latents in train_rows.shuffled(batch_size, generator):
            inputs = corrupt(batch, noise) if corrupt else batch
            value = loss.objective(model(inputs, noise), batch, beta).mean()
            regularized = value
            # The penalty uses clean rows and, in variational models, the means: these are the published latents.
            if regularizer is not None and previous_latents is not None:
                regularized = value + regularizer.penalty(model.encode(batch), previous_latents)
            # Full-batch gradient descent accumulates the gradient over all batches of the epoch.
            (regularized * (len(batch) / len(train_rows)) if full_batch else regularized).backward()
            if not full_batch:
                step()
                optimizer.zero_grad(set_to_none=True)
            total += value.detach() * len(batch)
        if full_batch:
            step()
        validation_loss = evaluate(model, loss, validation_rows, config.beta)
        epoch = Epoch(number, float(total) / len(train_rows), validation_loss, float(scheduler.get_last_lr()[0]))
        _check_finite(epoch, config)
        epochs.append(epoch)
        report(epoch)
        if number < config.beta_warmup:  # validation losses with the full β say little before β has reached it
            continue
        if epoch.validation_loss < best:
            best, best_epoch, best_state = epoch.validation_loss, number, _state(model, loss)
        elif number - max(best_epoch, config.beta_warmup) >= config.patience:
            break
    model.load_state_dict(best_state[0])
    loss.load_state_dict(best_state[1])
    model.eval()
    return TrainingResult(
        epochs=tuple(epochs),
        best_epoch=best_epoch,
        first_loss=first,
        best_loss=best,
        validation_rows=len(validation_rows),
    )


def _check_rows(**counts: int) -> None:
    for name, count in counts.items():
        if count == 0:
            raise TrainingError(
                f"the window has no {name} rows; land more days, or make the {name} part of the window longer"
            )


def _check_finite(epoch: Epoch, config: TrainingConfig) -> None:
    if not math.isfinite(epoch.train_loss) or not math.isfinite(epoch.validation_loss):
        raise TrainingError(
            f"the loss of epoch {epoch.number} is not finite (training {epoch.train_loss}, validation "
            f"{epoch.validation_loss}); lower learning_rate={config.learning_rate:g}, or set clip_norm"
        )


@torch.no_grad()
def evaluate(
    model: AutoEncoder, loss: ReconstructionLoss, rows: Tensor, beta: float = 1.0, batch_size: int | None = None
) -> float:
    """Return the mean objective of rows, in evaluation mode: without noise, at the means of variational latents."""
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
        # The last step asks for one more learning rate.
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1, cycle_momentum=False)
    factor = _cosine_with_warmup(steps) if config.schedule == "cosine" else lambda _: 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _cosine_with_warmup(steps: int) -> Callable[[int], float]:
    """Return a schedule that rises for 5 % of the steps, then falls to 0 as a cosine (Loshchilov & Hutter 2017)."""
    warmup = max(1, steps // 20)
    return lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _state(model: AutoEncoder, loss: ReconstructionLoss) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copy.deepcopy(model.state_dict()), copy.deepcopy(loss.state_dict())
