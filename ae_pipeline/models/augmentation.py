"""Random symmetries of the training images."""

from collections.abc import Callable

import torch
from torch import Tensor

from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.models.noise import draw

Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]
"""Maps images, (n, channels, height, width), to others of this shape, which replace them as inputs and targets."""


def build_augmentation(config: TrainingConfig) -> Augmentation | None:
    """Return the configured augmentation of images, or None if there is none.

    Each image is mirrored, turned upside down or transposed with a probability of one half, independently of others.
    """
    dimensions = {"none": (), "mirror": (3,), "flips": (3, 2), "turns": (3, 2)}[config.augmentation]

    def augment(x: Tensor, generator: torch.Generator | None) -> Tensor:
        for dimension in dimensions:
            x = torch.where(_half(x, generator), x.flip(dimension), x)
        return torch.where(_half(x, generator), x.mT, x) if config.augmentation == "turns" else x

    return augment if dimensions else None


def _half(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return which images change, about one half of them, (n, 1, 1, 1)."""
    return draw(torch.rand, (len(x), 1, 1, 1), x, generator) < 0.5
