"""Random numbers on the device of a tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class PartGenerator(torch.Generator):
    """A generator of a process that has some rows of a batch, where other processes have the others.

    Numbers are drawn for all rows of the batch, as one process would draw them.

    Attributes:
        start: Number of the first row of the part, from 0.
        total: Rows of the batch.
    """

    start: int
    total: int


def draw(
    distribution: Callable[..., Tensor], shape: Sequence[int], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Return random numbers with the device and type of a tensor.

    Args:
        distribution: `torch.rand` or `torch.randn`.
        shape: Shape of the numbers. The first dimension is the rows.
        like: Tensor whose device and type they get.
        generator: Generator. One on another device draws there, and the numbers are copied.
    """
    source = like.device if generator is None else generator.device
    if isinstance(generator, PartGenerator):
        whole = distribution((generator.total, *shape[1:]), generator=generator, device=source, dtype=like.dtype)
        return whole[generator.start : generator.start + shape[0]].to(like.device)
    return distribution(tuple(shape), generator=generator, device=source, dtype=like.dtype).to(like.device)
