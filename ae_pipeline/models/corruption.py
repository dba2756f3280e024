"""Input noise for denoising autoencoders."""

from collections.abc import Callable

import torch
from torch import Tensor

from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.models.noise import draw

Corruption = Callable[[Tensor, torch.Generator | None], Tensor]
"""Maps clean inputs, shape (n, …), to noisy ones."""


def build_corruption(
    config: TrainingConfig, groups: Tensor | None = None, ends: tuple[float, float] = (0.0, 1.0), context: int = 0
) -> Corruption | None:
    """Return the configured corruption, or None if there is none (Vincent et al. 2008; 2010, §3.3).

    Masking and salt-and-pepper noise hit a pixel in all its channels, and a table column in its whole encoding.

    Args:
        config: Kind and level of the noise.
        groups: For tables, the group number of each encoded column, shape (width,), on the device of the
            inputs. Noise hits a whole group.
        ends: Lowest and highest value of the input scale. Salt and pepper use them.
        context: Number of the last inputs that are context and stay clean.
    """
    level = config.corruption_level
    count = 0 if groups is None else int(groups.max()) + 1  # once: on a device, reading a value waits for it

    def group_draws(x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw one uniform number per group and row, in a shape that broadcasts to x."""
        if groups is None:
            return draw(torch.rand, (len(x), 1, *x.shape[2:]), x, generator)
        return draw(torch.rand, (len(x), count), x, generator)[:, groups.to(x.device)]

    def gaussian(x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x + level * draw(torch.randn, x.shape, x, generator)

    def masking(x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x * (group_draws(x, generator) >= level)

    def salt_and_pepper(x: Tensor, generator: torch.Generator | None) -> Tensor:
        draws = group_draws(x, generator)
        low, high = ends
        return x.masked_fill(draws < level, high).masked_fill(draws < level / 2, low)

    corruptions = {"gaussian": gaussian, "masking": masking, "salt_and_pepper": salt_and_pepper}
    corrupt = corruptions.get(config.corruption)
    if corrupt is None or not context:
        return corrupt
    return lambda x, generator: torch.cat([corrupt(x, generator)[:, :-context], x[:, -context:]], 1)
