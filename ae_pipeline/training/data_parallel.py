"""A training on several workers, each on its part of every batch."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ae_pipeline.common.device import prepare
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.engine.mapping import VARIABLE, Engine, selected_engine
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.corruption import Corruption
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.loop import TrainingResult, train
from ae_pipeline.training.peers import Peers
from ae_pipeline.training.regularizer import LatentRegularizer
from ae_pipeline.training.rows import InMemory

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The arguments of `train`, for another process."""

    model: AutoEncoder
    loss: ReconstructionLoss
    train_rows: Matrix
    validation_rows: Matrix
    config: TrainingConfig
    seed: int
    state: Tensor
    corrupt: Corruption | None
    regularizer: LatentRegularizer | None


def require_workers(config: TrainingConfig, device: torch.device) -> None:
    """Raise an error if the workers of a training cannot be had.

    Args:
        config: Number of workers and threads.
        device: Device of the training.

    Raises:
        ConfigError: The engine is not Ray, Ray is not installed, or the cluster has too few cores or GPUs.
        EngineError: The cluster does not answer.
    """
    if config.workers == 1:
        return
    engine = selected_engine()
    if engine is not Engine.RAY:
        raise ConfigError(
            f"training.workers={config.workers} needs Ray, but the engine is {engine}; set {VARIABLE}=ray, or "
            "training.workers: 1"
        )
    from ae_pipeline.engine.ray_train import require_capacity

    require_capacity(config.workers, config.threads, use_gpu=device.type == "cuda")


def refuse_streaming(config: TrainingConfig) -> None:
    """Raise an error if several workers are configured, for rows that do not fit into memory.

    Raises:
        ConfigError: There are several workers.
    """
    if config.workers > 1:
        raise ConfigError(
            f"training.workers={config.workers}, but the training rows exceed training.memory_budget, and workers do "
            "not read rows from disk; raise memory_budget, shorten window_days, or set workers: 1"
        )


def train_on_workers(
    model: AutoEncoder,
    loss: ReconstructionLoss,
    train_rows: Matrix,
    validation_rows: Tensor,
    config: TrainingConfig,
    generator: torch.Generator,
    report: Callable[[Epoch], None],
    corrupt: Corruption | None,
    regularizer: LatentRegularizer | None,
) -> TrainingResult:
    """Train a model in place as `train` does, on the workers of Ray Train that are configured.

    Args:
        model: Autoencoder, on the kind of device that the workers use.
        loss: Loss on the same device.
        train_rows: Encoded rows, (n, …). Each worker has all of them.
        validation_rows: Encoded rows, (n, …).
        config: Settings of the training.
        generator: Generator on the CPU.
        report: Callback after each epoch.
        corrupt: Noise on the inputs, with its tensors on the CPU.
        regularizer: Penalty that keeps the latents near those of a previous model.

    Raises:
        TrainingError: There are no rows, or the loss is not finite.
        ConfigError: The workers cannot be had.
        EngineError: The cluster does not answer, or lost workers three times.
        DeviceError: The CUDA device of a worker failed, or has too little memory.
    """
    from ae_pipeline.engine.ray_train import work_together

    device, cpu = validation_rows.device, torch.device("cpu")
    training = _Training(
        model=copy.deepcopy(model).to(cpu),
        loss=copy.deepcopy(loss).to(cpu),
        train_rows=train_rows,
        validation_rows=validation_rows.cpu().numpy(),
        config=config,
        seed=generator.initial_seed(),
        state=generator.get_state(),
        corrupt=corrupt,
        regularizer=regularizer.to(cpu) if regularizer else None,
    )
    weights, scales, result = work_together(
        _train_as_peer,
        training,
        workers=config.workers,
        threads=config.threads,
        use_gpu=device.type == "cuda",
        report=report,
    )
    model.load_state_dict(weights)
    loss.load_state_dict(scales)
    model.eval()
    return result


def _train_as_peer(
    training: _Training, device: torch.device, report: Callable[[Epoch], None]
) -> tuple[State, State, TrainingResult]:
    """Train with the other processes of the process group, and return the weights of model and loss."""
    prepare(device)
    torch.set_num_threads(training.config.threads)
    generator = torch.Generator().manual_seed(training.seed)
    generator.set_state(training.state)
    model, loss = training.model.to(device), training.loss.to(device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to the rows
        train_rows, validation_rows = (
            torch.from_numpy(rows) for rows in (training.train_rows, training.validation_rows)
        )
    latents = training.regularizer.latents if training.regularizer else None
    result = train(
        model,
        loss,
        InMemory.on(device, train_rows, latents),
        validation_rows.to(device),
        training.config,
        generator,
        report,
        corrupt=training.corrupt,
        regularizer=training.regularizer,
        peers=Peers.of_process_group(),
    )
    cpu = torch.device("cpu")
    return model.to(cpu).state_dict(), loss.to(cpu).state_dict(), result
