"""Blocks of rows that suit the memory of a device, and tensors that a fitted part keeps on each device."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")

_CPU_CELLS, _CUDA_CELLS = 2**19, 2**27
"""Numbers of an intermediate result in one block. On a CPU, a block fits into the cache of a processor. Smaller ones
have more calls, for which threads wait for each other. On a CUDA device, a batch of a table is one block, since each
block waits for the device several times.
"""


def blocks(rows: Tensor, cells: int) -> tuple[Tensor, ...]:
    """Return rows in blocks, one of which may be empty.

    Args:
        rows: Shape (n, …).
        cells: Numbers that a row has in the widest intermediate result.
    """
    limit = _CPU_CELLS if rows.device.type == "cpu" else _CUDA_CELLS
    split: tuple[Tensor, ...] = rows.split(max(1, limit // max(cells, 1)))
    return split


def double(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a float64 tensor on a device."""
    return torch.as_tensor(values, dtype=torch.float64, device=device)


def per_device(make: Callable[[S, torch.device], T]) -> Callable[[S, torch.device], T]:
    """Decorate a method that makes tensors on a device, so that each object makes them once for each device."""

    @functools.wraps(make)
    def cached(part: S, device: torch.device) -> T:
        by_device: dict[torch.device, T] = vars(part).setdefault(f"{make.__name__} by device", {})
        if device not in by_device:
            by_device[device] = make(part, device)
        return by_device[device]

    return cached
