"""Training: optimiser, schedule, early stopping, device; reports through one callback."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ae_pipeline.config import TrainingConfig
from ae_pipeline.errors import ConfigError, TrainingError
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.losses import TabularLoss


@dataclass(frozen=True)
class Epoch:
    """Figures of one pass over the training rows.

    Attributes:
        number: Counted from 1.
        train_loss: Mean negative log likelihood of a training row during the pass, nats.
        validation_loss: Mean over the validation rows after it, nats.
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
        first_loss: Validation loss before the first step.
        best_loss: The lowest validation loss.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    first_loss: float
    best_loss: float


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
    loss: TabularLoss,
    train_rows: Tensor,
    validation_rows: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
    report: Callable[[Epoch], None] = lambda _: None,
) -> TrainingResult:
    """Fits a model in place with AdamW on shuffled batches of rows in memory, and restores the best epoch's weights.

    The learning rate rises over the first 5 % of the steps and follows a cosine to zero (Loshchilov & Hutter 2017).

    Args:
        model: On the device to use.
        loss: On the same device; its scales are learnt too.
        train_rows: Encoded rows, (n, width), on the same device.
        validation_rows: Likewise; they steer early stopping and nothing else.
        config: Epochs, batch size and step sizes.
        generator: On the CPU; draws the order of rows.
        report: Called after each epoch.

    Raises:
        TrainingError: There are no rows, or the loss is not finite.
    """
    for name, rows in (("training", train_rows), ("validation", validation_rows)):
        if len(rows) == 0:
            raise TrainingError(
                f"there are no {name} rows; land more days, or make the {name} part of the window longer"
            )
    parameters = [*model.parameters(), *loss.parameters()]
    batches = math.ceil(len(train_rows) / config.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(config.epochs * batches))

    first = best = evaluate(model, loss, validation_rows)
    best_epoch, epochs, kept = 0, [], _state(model, loss)
    for number in range(1, config.epochs + 1):
        model.train()
        total = torch.zeros((), device=train_rows.device)
        order = torch.randperm(len(train_rows), generator=generator).to(train_rows.device)
        for chosen in order.split(config.batch_size):
            batch = train_rows[chosen]
            optimizer.zero_grad(set_to_none=True)
            value = loss(model(batch)[1], batch).sum(1).mean()
            value.backward()
            optimizer.step()
            scheduler.step()
            total += value.detach() * len(batch)
        validation_loss = evaluate(model, loss, validation_rows)
        epoch = Epoch(number, float(total) / len(train_rows), validation_loss, float(scheduler.get_last_lr()[0]))
        if not math.isfinite(epoch.train_loss) or not math.isfinite(epoch.validation_loss):
            raise TrainingError(
                f"the loss of epoch {number} is not finite ({epoch.train_loss}, validation "
                f"{epoch.validation_loss}); lower learning_rate={config.learning_rate:g}"
            )
        epochs.append(epoch)
        report(epoch)
        if epoch.validation_loss < best:
            best, best_epoch, kept = epoch.validation_loss, number, _state(model, loss)
        elif number - best_epoch >= config.patience:
            break
    model.load_state_dict(kept[0])
    loss.load_state_dict(kept[1])
    model.eval()
    return TrainingResult(tuple(epochs), best_epoch, first, best)


@torch.no_grad()
def evaluate(model: AutoEncoder, loss: TabularLoss, rows: Tensor, batch_size: int = 8192) -> float:
    """Mean negative log likelihood of rows, nats."""
    model.eval()
    total = sum(float(loss(model(batch)[1], batch).sum(dtype=torch.float64)) for batch in rows.split(batch_size))
    return total / len(rows)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 20)
    return lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def _state(model: AutoEncoder, loss: TabularLoss) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return copy.deepcopy(model.state_dict()), copy.deepcopy(loss.state_dict())
