"""Noise on inputs whose clean form is to be reconstructed."""

from collections.abc import Callable

import torch
from torch import Tensor

from ae_pipeline.config.model import TrainingConfig

Corruption = Callable[[Tensor, torch.Generator], Tensor]
"""Makes noisy inputs of clean ones, (n, …), with draws of a generator on their device."""


def build_corruption(
    config: TrainingConfig, groups: Tensor | None = None, ends: tuple[float, float] = (0.0, 1.0)
) -> Corruption | None:
    """Gives the configured corruption, or None (Vincent et al. 2008; 2010, §3.3).

    Masking and salt-and-pepper noise strike a pixel in all its channels, and a column of a table in all parts of its
    code.

    Args:
        config: Kind and level.
        groups: Of tables: for each encoded column the number of what is struck together, (width,).
        ends: Of the scale of the inputs: what salt and pepper are.
    """
    level = config.corruption_level

    def struck(x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws uniform numbers, one for all that is struck together; broadcasts to the shape of x."""
        if groups is None:
            return torch.rand((len(x), 1, *x.shape[2:]), generator=generator, device=x.device, dtype=x.dtype)
        count = int(groups.max()) + 1
        draws = torch.rand((len(x), count), generator=generator, device=x.device, dtype=x.dtype)
        return draws[:, groups.to(x.device)]

    def gaussian(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + level * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    def masking(x: Tensor, generator: torch.Generator) -> Tensor:
        return x * (struck(x, generator) >= level)

    def salt_and_pepper(x: Tensor, generator: torch.Generator) -> Tensor:
        draws = struck(x, generator)
        low, high = (x.new_tensor(end) for end in ends)
        return torch.where(draws < level / 2, low, torch.where(draws < level, high, x))

    known = {"gaussian": gaussian, "masking": masking, "salt_and_pepper": salt_and_pepper}
    return known.get(config.corruption)
