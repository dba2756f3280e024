"""One training step: forward pass, gradient and update, run eagerly or replayed from a CUDA graph."""

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ae_pipeline.common.device import report_shrinking
from ae_pipeline.common.text import first_line
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.models.augmentation import build_augmentation
from ae_pipeline.models.base import AutoEncoder, rows_at_once
from ae_pipeline.models.corruption import Corruption
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.models.noise import PartGenerator
from ae_pipeline.training.learning_rates import parameter_groups
from ae_pipeline.training.peers import Peers
from ae_pipeline.training.regularizer import LatentRegularizer
from ae_pipeline.training.rows import TrainingBatch
from ae_pipeline.training.schedules import build_scheduler

Capture = Callable[[Callable[[], None], torch.Generator, torch.optim.Optimizer], Callable[[], None]]
"""Record a function that draws from a generator and steps an optimizer, and return a function that repeats it."""

WARM_UP = 3
"""Eager steps of a shape before it is captured. They allocate what a graph must find: optimizer state, workspaces."""

logger = logging.getLogger(__name__)


class TrainingStep:
    """Train a model and its loss on one batch at a time.

    On a CUDA device, the steps of each shape of a batch are captured once and then replayed as a graph, because a small
    network spends its time on starting kernels. All that changes between steps is a tensor on the device: the rows, the
    learning rate, β and the sum of the losses. Nothing is read back before the end of an epoch.

    Args:
        model: Autoencoder, on the device to train on.
        loss: Loss on the same device.
        config: Optimizer, schedule, clipping.
        steps: Number of all steps.
        rows: Rows of an epoch.
        seed: Seed of the noise.
        device: Device to train on.
        corrupt: Noise on the inputs.
        regularizer: Penalty on the latents, on the same device.
        peers: Processes that share each batch; None if this process trains alone. Steps then run eagerly.
    """

    def __init__(
        self,
        *,
        model: AutoEncoder,
        loss: ReconstructionLoss,
        config: TrainingConfig,
        steps: int,
        rows: int,
        seed: int,
        device: torch.device,
        corrupt: Corruption | None,
        regularizer: LatentRegularizer | None,
        peers: Peers | None = None,
    ) -> None:
        self._peers = peers
        self._model, self._loss, self._corrupt, self._regularizer = model, loss, corrupt, regularizer
        self._augment = build_augmentation(config)
        self._clip_norm, self._rows, self._is_full_batch = config.clip_norm, rows, config.optimizer == "gd"
        self._parameters = [*model.parameters(), *loss.parameters()]
        # A process alone divides a batch on the CPU too. A step that is captured reads no number, such as a seed.
        self._noise = torch.Generator(device) if peers is None and device.type == "cuda" else PartGenerator(device)
        self._noise.manual_seed(seed)
        # Fused kernels read a rate in single precision; the others on the CPU use it as it is.
        precision = torch.float32 if device.type == "cuda" else torch.float64
        rate = torch.tensor(config.learning_rate, dtype=precision, device=device)
        self._beta = torch.zeros((), dtype=torch.float64, device=device)
        self._has_beta = config.beta > 0
        self._total = torch.zeros((), device=device)
        self._optimizer = build_optimizer(model, loss, config, rate)
        self._schedule = build_scheduler(config, steps)
        self._gradient: list[Tensor | None] | None = None
        self._parts = 1
        self._capture = capture_for(device, config) if peers is None else None
        self._graphs: dict[tuple[int, ...], tuple[TrainingBatch, Callable[[], None]]] = {}
        self._eager_steps: Counter[tuple[int, ...]] = Counter()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return self._schedule.rate

    def start_epoch(self, beta: float) -> None:
        """Set β, and start to sum the losses."""
        self._model.train()
        self._beta.fill_(beta)
        self._total.zero_()
        self._gradient = None

    def __call__(self, batch: TrainingBatch) -> None:
        """Train on a batch. If the memory of the device runs out, its gradient is computed in parts.

        Raises:
            OutOfMemoryError: A single row does not fit.
        """
        set_rate(self._optimizer, self._schedule.rate)
        while not self._fits(batch):
            self._parts *= 2
            self._graphs.clear()
            self._optimizer.zero_grad(set_to_none=True)
            report_shrinking(-(-len(batch.rows) // self._parts))
        if not self._is_full_batch:
            self._schedule.advance()

    def finish_epoch(self) -> float:
        """Take the step of full-batch gradient descent, and return the mean loss of the epoch."""
        if self._is_full_batch and self._gradient is not None:
            for parameter, gradient in zip(self._parameters, self._gradient, strict=True):
                parameter.grad = gradient
            self._update()
            self._schedule.advance()
        if self._peers is not None:
            self._peers.agree(self._parameters)
            return self._peers.sum(self._total) / self._rows
        return float(self._total) / self._rows

    def _fits(self, batch: TrainingBatch) -> bool:
        try:
            self._run(batch)
        except torch.OutOfMemoryError:
            if self._peers is not None or self._parts >= len(batch.rows):
                raise
            return False
        return True

    def _run(self, batch: TrainingBatch) -> None:
        shape = tuple(batch.rows.shape)
        if self._capture is not None and shape not in self._graphs and self._eager_steps[shape] >= WARM_UP:
            self._record(batch, shape)
        if shape in self._graphs:
            static, replay = self._graphs[shape]
            for target, source in zip(static, batch, strict=True):
                if target is not None and source is not None:
                    target.copy_(source)
            replay()
        else:
            self._eager_steps[shape] += 1
            self._step(batch)

    def _record(self, batch: TrainingBatch, shape: tuple[int, ...]) -> None:
        """Capture the step for one shape, or give up and go on eagerly."""
        if self._capture is None:
            return
        static = batch.map(Tensor.clone)
        state = self._noise.get_state()
        try:
            replay = self._capture(lambda: self._step(static), self._noise, self._optimizer)
        except RuntimeError as error:
            logger.info(
                f"the training runs step by step, because its step cannot be captured as a graph: {first_line(error)}"
            )
            self._capture = None
            self._graphs.clear()
            self._noise = torch.Generator(self._noise.device)  # the other one stays bound to the failed graph
            self._noise.set_state(state)
        else:
            self._graphs[shape] = static, replay

    def _step(self, batch: TrainingBatch) -> None:
        """Compute the gradient of a batch and update the weights. Capturable: it neither reads nor branches on values.

        The sum of the losses changes last, so that a step that fails for lack of memory can be repeated.
        """
        self._optimizer.zero_grad(set_to_none=True)
        whole = self._rows if self._is_full_batch else len(batch.rows)
        losses = self._backward_in_pieces(batch, whole)
        if self._is_full_batch:
            self._accumulate()
        else:
            self._update()
        for value in losses:
            self._total.add_(value)

    def _backward_in_pieces(self, batch: TrainingBatch, whole: int) -> list[Tensor]:
        """Add the gradient of the rows of a batch that this process has, and return sums of their losses."""
        total = len(batch.rows)
        size = min(-(-total // self._parts), _rows_at_once(batch.rows))
        part, count, start = batch, total, 0
        if self._peers is not None:
            (part, count), start = self._peers.part_of(batch), self._peers.part(total).start
        if isinstance(self._noise, PartGenerator):
            self._noise.begin_batch(total, by_row=size < total)
        losses = list[Tensor]()
        for piece in part.split(size):
            if isinstance(self._noise, PartGenerator):
                self._noise.begin_part(start)
            rows = len(piece.rows) if count else 0
            losses.append(self._backward(piece, rows / whole) * rows)
            start += len(piece.rows)
        return losses

    def _backward(self, batch: TrainingBatch, weight: float) -> Tensor:
        """Add the gradient of the mean over some rows, times a weight, and return the mean loss."""
        rows = self._augment(batch.rows, self._noise) if self._augment else batch.rows
        inputs = self._corrupt(rows, self._noise) if self._corrupt else rows
        beta = self._beta if self._has_beta else 0.0
        value = self._loss.objective(self._model(inputs, self._noise), rows, beta).mean()
        regularized = value
        # The penalty uses the rows as they are and, in variational models, the means: these are the published latents.
        if self._regularizer is not None and batch.latents is not None:
            regularized = value + self._regularizer.penalty(self._model.encode(batch.rows), batch.latents)
        (regularized if weight == 1 else regularized * weight).backward()
        return value.detach()

    def _accumulate(self) -> None:
        """Add the gradient of a batch to that of the epoch."""
        gradients = [parameter.grad for parameter in self._parameters]
        if self._gradient is not None:
            for total, gradient in zip(self._gradient, gradients, strict=True):
                if total is not None and gradient is not None:
                    total.add_(gradient)
        else:
            self._gradient = gradients

    def _update(self) -> None:
        if self._peers is not None:
            self._peers.sum_gradients(self._parameters)
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._optimizer.step()


def _rows_at_once(rows: Tensor) -> int:
    """Return how many rows of a batch compute their gradient together: all, or a few large images on the CPU.

    The activations of one image of 1,024 × 1,536 pixels take hundreds of megabytes.
    """
    is_image_on_cpu = rows.device.type == "cpu" and rows.dim() > 2
    return rows_at_once(rows.shape[1:]) if is_image_on_cpu else len(rows)


def capture_for(device: torch.device, config: TrainingConfig) -> Capture | None:
    """Return how the steps on a device are captured; None if they run eagerly."""
    if device.type != "cuda":
        return None
    if config.optimizer == "gd":
        logger.info("the training runs step by step, because optimizer gd takes one step in an epoch")
        return None
    return cuda_graph


def cuda_graph(
    step: Callable[[], None], generator: torch.Generator, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """Capture a function as a CUDA graph on the current stream, which is not the default one, without running it.

    Args:
        step: Function whose tensors stay where they are.
        generator: Generator on the device that the function draws from. Each replay draws new numbers.
        optimizer: Optimizer that the function steps. It is marked as capturable only meanwhile, because torch warns of
            eager steps otherwise. Its fused kernels are the same.

    Returns:
        Function that replays the graph.

    Raises:
        RuntimeError: The function waits for the device, or does something else that a graph cannot contain.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    _mark_capturable(optimizer, value=True)
    try:
        # Other threads may use the device meanwhile, for example to pin memory.
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            step()
    finally:
        _mark_capturable(optimizer, value=False)
    replay: Callable[[], None] = graph.replay
    return replay


def _mark_capturable(optimizer: torch.optim.Optimizer, *, value: bool) -> None:
    for group in optimizer.param_groups:
        if "capturable" in group:  # plain gradient descent can always be captured
            group["capturable"] = value


def build_optimizer(
    model: AutoEncoder, loss: ReconstructionLoss, config: TrainingConfig, rate: Tensor
) -> torch.optim.Optimizer:
    """Return the configured optimizer, whose learning rates are tensors.

    Args:
        model: Autoencoder.
        loss: Loss. Its scales are trained without weight decay.
        config: Optimizer, momentum and weight decay.
        rate: Learning rate, a number on the CPU or on the device of the model. The optimizer reads it in each step.
    """
    is_cuda, decay = rate.device.type == "cuda", config.weight_decay
    groups = parameter_groups(model, loss)
    match config.optimizer:
        case "gd" | "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, rate, weight_decay=decay, fused=is_cuda)
        case "momentum" | "nesterov":
            nesterov = config.optimizer == "nesterov" and config.momentum > 0
            optimizer = torch.optim.SGD(
                groups, rate, momentum=config.momentum, weight_decay=decay, nesterov=nesterov, fused=is_cuda
            )
        case "adam":
            optimizer = torch.optim.Adam(groups, rate, weight_decay=decay, fused=True)
        case "adamw":
            optimizer = torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)
    for group in optimizer.param_groups:
        # The same tensor, where the optimizer made a copy. A replayed step reads tensors that stay where they are.
        group["lr"] = rate * group["rate_factor"] if "rate_factor" in group else rate
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate * group.get("rate_factor", 1.0))
