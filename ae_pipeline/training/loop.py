"""The training loop: epochs and early stopping."""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ae_pipeline.common.device import device_errors, own_stream, shrinking
from ae_pipeline.common.errors import TrainingError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.features.sizes import choose_batch_size
from ae_pipeline.models.base import AutoEncoder, rows_at_once
from ae_pipeline.models.corruption import Corruption
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.peers import Peers
from ae_pipeline.training.regularizer import LatentRegularizer
from ae_pipeline.training.rows import InMemory, TrainingRows
from ae_pipeline.training.step import TrainingStep

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 10.0
"""Time after which an epoch logs how far it is."""


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
    peers: Peers | None = None,
) -> TrainingResult:
    """Train a model in place on mini-batches, and restore the weights of the best epoch.

    Args:
        model: Autoencoder, on the device to train on.
        loss: Loss on the same device. Its scales are trained too, if it has any.
        train_rows: Encoded rows, (n, …), on the same device. Rows from disk bring the latents of the previous model
            along for the regularizer.
        validation_rows: Encoded rows, (n, …), on the same device, for early stopping only.
        config: Optimizer, schedule, epochs, batch size, and β of variational models.
        generator: Generator on the CPU. The order of rows and the noise come from it, or from its seed on a device.
        report: Callback after each epoch.
        corrupt: Noise on the inputs. Targets and validation rows stay clean.
        regularizer: Penalty that keeps the latents near those of a previous model. The losses of an epoch leave it out.
        peers: Processes that call this function with the same arguments and share each batch; None without any.

    Raises:
        TrainingError: There are no rows, or the loss is not finite.
        DeviceError: The CUDA device failed, or has too little memory for one row.
    """
    if isinstance(train_rows, Tensor):
        train_rows = InMemory(train_rows, regularizer.latents if regularizer else None)
    _check_rows(training=len(train_rows), validation=len(validation_rows))
    with device_errors(), own_stream(train_rows.device):
        return _train(model, loss, train_rows, validation_rows, config, generator, report, corrupt, regularizer, peers)


def _train(
    model: AutoEncoder,
    loss: ReconstructionLoss,
    train_rows: TrainingRows,
    validation_rows: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
    report: Callable[[Epoch], None],
    corrupt: Corruption | None,
    regularizer: LatentRegularizer | None,
    peers: Peers | None,
) -> TrainingResult:
    device = train_rows.device
    # Rows are shuffled where they are: copying the order of many rows to a device would take longer than an epoch.
    order = generator if device.type == "cpu" else torch.Generator(device).manual_seed(generator.initial_seed())
    batch_size = config.batch_size or choose_batch_size(len(train_rows), math.prod(validation_rows.shape[1:]))
    steps_per_epoch = 1 if config.optimizer == "gd" else math.ceil(len(train_rows) / batch_size)
    step = TrainingStep(
        model=model,
        loss=loss,
        config=config,
        steps=config.epochs * steps_per_epoch,
        rows=len(train_rows),
        seed=generator.initial_seed() + 1,
        device=device,
        corrupt=corrupt,
        regularizer=regularizer.to(device) if regularizer else None,
        peers=peers,
    )
    first = best = _validate(model, loss, validation_rows, config.beta, peers)
    best_epoch, epochs, best_state = 0, [], _state(model, loss)
    progress = ProgressLogger(logger, _PROGRESS_SECONDS)
    for number in range(1, config.epochs + 1):
        step.start_epoch(config.beta * min(1.0, number / max(1, config.beta_warmup)))
        for done, batch in enumerate(train_rows.shuffled(batch_size, order), start=1):
            step(batch)
            progress.update(done, steps_per_epoch, f"batches of epoch {number} learned")
        train_loss = step.finish_epoch()
        validation_loss = _validate(model, loss, validation_rows, config.beta, peers)
        epoch = Epoch(number, train_loss, validation_loss, step.learning_rate)
        _check_finite(epoch, config)
        epochs.append(epoch)
        report(epoch)
        if number < config.beta_warmup:  # validation losses with the full β say little before β has reached it
            continue
        if epoch.validation_loss < best:
            best, best_epoch = epoch.validation_loss, number
            _keep(best_state, model, loss)
        elif number - max(best_epoch, config.beta_warmup) >= config.patience:
            break
    model.load_state_dict(best_state[0])
    loss.load_state_dict(best_state[1])
    model.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
    loss.zero_grad(set_to_none=True)
    model.eval()
    return TrainingResult(
        epochs=tuple(epochs),
        best_epoch=best_epoch,
        first_loss=first,
        best_loss=best,
        validation_rows=len(validation_rows),
    )


def _validate(model: AutoEncoder, loss: ReconstructionLoss, rows: Tensor, beta: float, peers: Peers | None) -> float:
    if peers is None:
        return evaluate(model, loss, rows, beta)
    part = rows[peers.part(len(rows))]
    total = evaluate(model, loss, part, beta) * len(part) if len(part) else 0.0
    return peers.sum(torch.tensor(total, dtype=torch.float64, device=rows.device)) / len(rows)


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

    def objective(batch: Tensor) -> Tensor:
        return loss.objective(model(batch), batch, beta).sum(dtype=torch.float64)

    total = torch.zeros((), dtype=torch.float64, device=rows.device)  # read once, since each read waits for a device
    for batch in rows.split(batch_size or rows_at_once(rows.shape[1:], rows.device)):
        for part in shrinking(objective, batch):
            total += part
    return float(total) / len(rows)


_State = tuple[dict[str, Tensor], dict[str, Tensor]]


def _state(model: AutoEncoder, loss: ReconstructionLoss) -> _State:
    return copy.deepcopy(model.state_dict()), copy.deepcopy(loss.state_dict())


def _keep(state: _State, model: AutoEncoder, loss: ReconstructionLoss) -> None:
    """Overwrite a copy of the weights with the present ones, without a second copy."""
    for kept, current in zip(state, (model.state_dict(), loss.state_dict()), strict=True):
        for name, value in current.items():
            kept[name].copy_(value)
