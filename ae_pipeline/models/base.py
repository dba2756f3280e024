"""The contract of every autoencoder: x → latent z → reconstruction x̂."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class AutoEncoder(nn.Module, ABC):
    """An encoder to `latent_dim` numbers and a decoder back.

    `encode` and `decode` are deterministic in evaluation. Outputs are on the scale that the loss of the input's blocks
    expects: values for numbers and cycles, logits for binary and categorical blocks.
    """

    latent_dim: int

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Maps inputs of shape (n, …) to latents of shape (n, latent_dim)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Maps latents of shape (n, latent_dim) to outputs of the inputs' shape."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives latents and outputs."""
        z = self.encode(x)
        return z, self.decode(z)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws the weights of all linear layers from one generator: Kaiming-uniform (He et al. 2015), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = (6 / layer.in_features) ** 0.5 * 0.7
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
