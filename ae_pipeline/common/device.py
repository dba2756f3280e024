"""Work on a CUDA device or on the CPU: determinism, batches that shrink when memory runs out, and errors."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import BoundedSemaphore, Lock
from typing import Any, Protocol, TypeVar

import torch

from ae_pipeline.common.errors import ConfigError, DeviceError
from ae_pipeline.common.memory import keep_freed_memory
from ae_pipeline.common.text import first_line

R = TypeVar("R")

logger = logging.getLogger(__name__)

_TURNS: dict[torch.device, BoundedSemaphore] = {}
"""Turns of the threads of this process on each CUDA device; see `device_turn`."""


class Rows(Protocol):
    """A batch of rows that slices divide, such as a tensor or a frame."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: slice, /) -> Any:
        """Return some of the rows."""


B = TypeVar("B", bound=Rows)


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`, or for a name of torch such as `cuda:1`.

    Raises:
        ConfigError: `cuda` is configured, but no CUDA device is available.

    Examples:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch finds no CUDA device on this machine; choose auto or cpu")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    prepare(device)
    return device


def device_to_serve(name: str) -> torch.device:
    """Return the device on which a model scores that was configured with `auto`, `cpu` or `cuda`.

    A model that was trained on a CUDA device also serves on machines without one.

    Examples:
        >>> device_to_serve("cpu")
        device(type='cpu')
    """
    if name == "cuda" and not torch.cuda.is_available():
        logger.info("the model was configured with device=cuda; this machine has no CUDA device, so the CPU scores")
        name = "cpu"
    return choose_device(name)


def prepare(device: torch.device) -> None:
    """Prepare this process for a device.

    Freed memory is kept for the next batch. The convolutions of a CUDA device become reproducible: cuDNN chooses the
    same deterministic algorithm each time.
    """
    keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def device_turn(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context manager that waits for a turn on a CUDA device, and for nothing on the CPU.

    Two threads keep a device busy: one prepares its calls while those of the other run. More of them would only hinder
    each other, and need memory on the device. A thread must not wait for a second turn while it has one.
    """
    return _TURNS.setdefault(device, BoundedSemaphore(2)) if device.type == "cuda" else nullcontext()


class _FullFloat32:
    """See `full_float32`."""

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._previous: _Precision = "none", "none", True

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._previous = _exchange_precision(("ieee", "ieee", False))
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                _exchange_precision(self._previous)


_Precision = tuple[str, str, Any]
"""Precision of float32 products on CUDA and on the CPU, and whether CUDA may sum products of bfloat16 in bfloat16."""


def _exchange_precision(precision: _Precision) -> _Precision:
    """Set the precision of products, and return the previous one."""
    settings: Any = torch.backends
    cuda = settings.cuda.matmul
    reduced = cuda.allow_bf16_reduced_precision_reduction
    split_k = getattr(cuda, "allow_bf16_reduced_precision_reduction_split_k", None)  # torch >= 2.10
    reduced = reduced if split_k is None else (reduced, split_k)
    cuda.allow_bf16_reduced_precision_reduction = precision[2]
    if not hasattr(cuda, "fp32_precision"):  # torch < 2.9
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if precision[0] == "ieee" else precision[0])
        return legacy, legacy, reduced
    cpu = settings.mkldnn.matmul
    previous = cuda.fp32_precision, cpu.fp32_precision, reduced
    cuda.fp32_precision, cpu.fp32_precision = precision[:2]
    return previous


full_float32 = _FullFloat32()
"""Context manager in which products are summed in float32, and those of float32 use no TF32 or bfloat16.

It also holds in a program that allows other precisions.
Torch has no setting for one product or one thread. Products of other threads are more exact meanwhile. The last of
several threads restores the settings.
"""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run the work of this thread on a CUDA stream of its own, so that graphs of it can be captured.

    The work starts after what the caller has queued, and the caller goes on after it. On the CPU nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn what a CUDA device raises into errors with a remedy.

    Raises:
        DeviceError: The device has too little memory even for a single row, or it failed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the CUDA device has too little free memory ({first_line(error)}); end other programs that use it, "
            "choose a smaller model.hidden or training.batch_size, or set training.device: cpu"
        ) from error
    except RuntimeError as error:
        if not any(name in str(error) for name in ("CUDA", "CUBLAS", "cuBLAS", "cuDNN", "CUDNN", "NVRTC")):
            raise
        raise DeviceError(
            f"the CUDA device failed ({first_line(error)}); start this process again, since the device does not "
            "recover within it, check the driver with `nvidia-smi`, or set training.device: cpu"
        ) from error


def shrinking(work: Callable[[B], R], batch: B) -> list[R]:
    """Apply work to a batch, and to ever smaller parts of it where the memory of the device runs out.

    Args:
        work: Function of some rows that can be repeated. Its results for parts are joined by the caller.
        batch: Rows.

    Returns:
        The results of the parts in order; one for the whole batch if the memory suffices.

    Raises:
        OutOfMemoryError: A single row does not fit.
    """
    try:
        return [work(batch)]
    except torch.OutOfMemoryError:
        if len(batch) < 2:
            raise
    # After the except block: until its end, the exception keeps the tensors of the failed work in memory.
    half = (len(batch) + 1) // 2
    report_shrinking(half)
    return [result for part in (batch[:half], batch[half:]) for result in shrinking(work, part)]


def report_shrinking(rows: int) -> None:
    """Log that batches shrink, and return unused memory to the device."""
    logger.warning(f"the memory of the device has run out; the work goes on in batches of {rows:,} rows")
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
