"""Random numbers on the device of a tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def draw(
    distribution: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return random numbers with the device and type of a tensor.

    Args:
        distribution: `torch.rand` or `torch.randn`.
        shape: Shape of the numbers.
        like: Tensor whose device and type they get.
        generator: Generator. One on another device draws there, and the numbers are copied.
    """
    source = like.device if generator is None else generator.device
    return distribution(tuple(shape), generator=generator, device=source, dtype=like.dtype).to(like.device)
