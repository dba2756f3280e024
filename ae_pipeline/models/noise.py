"""Random numbers on the device of a tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class PartGenerator(torch.Generator):
    """A generator for some rows of a batch, whose other rows are processed elsewhere or later.

    The numbers of a row do not depend on which rows a part has. They are drawn for all rows of the batch, as for an
    undivided one. In a batch whose rows are large, each row has a seed of its own instead, so that a part draws the
    numbers of its rows alone.
    """

    _start = 0
    _total = 0
    _seed: int | None = None
    _draws = 0

    def begin_batch(self, total: int, *, by_row: bool) -> None:
        """Set the number of rows of the batch, and whether each row has a seed of its own."""
        self._total = total
        self._seed = int(torch.randint(2**62, (), generator=self, device=self.device)) if by_row else None

    def begin_part(self, start: int) -> None:
        """Set the number of the first row of the next part, from 0."""
        self._start, self._draws = start, 0

    def draw(self, distribution: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return random numbers of the rows of the part."""
        if self._seed is None:
            whole = distribution((self._total, *shape[1:]), generator=self, device=self.device, dtype=dtype)
            return whole[self._start : self._start + shape[0]]
        numbers, row_generator = (
            torch.empty(tuple(shape), device=self.device, dtype=dtype),
            torch.Generator(self.device),
        )
        first = self._seed + self._draws * self._total + self._start
        for row, values in enumerate(numbers):
            row_generator.manual_seed(first + row)
            distribution(tuple(shape[1:]), generator=row_generator, device=self.device, dtype=dtype, out=values)
        self._draws += 1
        return numbers


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
        return generator.draw(distribution, shape, like.dtype).to(like.device)
    return distribution(tuple(shape), generator=generator, device=source, dtype=like.dtype).to(like.device)
