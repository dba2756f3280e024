"""A penalty that keeps the latents of a network near those of a previous model."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentRegularizer:
    """A penalty on the distance between the latents of a network and those of a previous model.

    Backward-compatible training (Shen et al. 2020) keeps the output of an old classifier on new features. This keeps
    the features.

    Attributes:
        latents: Latents of the training rows, or of a sample of them, under the previous model, (n, latent_dim).
        weight: Penalty of a squared distance of one standard deviation, in units of the loss.
    """

    latents: Tensor
    weight: float

    def penalty(self, latents: Tensor, previous: Tensor) -> Tensor:
        """Return the mean penalty of n rows.

        Args:
            latents: Latents of the network, (n, latent_dim).
            previous: Latents of the same rows under the previous model, (n, latent_dim).
        """
        return self.weight * ((latents - previous.to(latents)) / self._std.to(latents)).square().sum(1).mean()

    def to(self, device: torch.device) -> "LatentRegularizer":
        """Return the same penalty with its tensors on a device."""
        return replace(self, latents=self.latents.to(device))

    @cached_property
    def _std(self) -> Tensor:
        std = self.latents.std(0)
        return std.clamp(min=max(1e-6 * float(std.max()), 1e-12))
