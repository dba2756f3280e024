"""The contract of every autoencoder: x → latent z → reconstruction x̂."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ae_pipeline.models.latent_transform import LatentTransform

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Activations between the layers, by the name that the configuration has for them."""


_ROWS_AT_ONCE, _ELEMENTS_AT_ONCE = 8192, 2**21


class AutoEncoderOutput(NamedTuple):
    """What a network makes of n rows.

    Attributes:
        latents: z, (n, latent_dim); a draw in the training of variational forms.
        output: x̂, of the inputs' shape.
        kl: Divergence of the latents' distribution from the prior, nats, (n,); zero for forms without one.
    """

    latents: Tensor
    output: Tensor
    kl: Tensor


class EncoderDecoder(NamedTuple):
    """The two halves that an architecture builds, whatever the form they serve.

    Attributes:
        encoder: Inputs (n, *shape) to codes (n, codes): the latents, or for variational forms their means and the
            logarithms of their variances.
        decoder: Latents (n, latent_dim) to (n, *shape), before the activation of the output.
    """

    encoder: nn.Module
    decoder: nn.Module


class AutoEncoder(nn.Module):
    """An encoder to `latent_dim` numbers and a decoder back; deterministic in evaluation.

    Outputs are on the scale that the loss expects: of the inputs, or under the likelihood of tables logits for binary
    and categorical blocks.

    Args:
        coder: Both halves.
        latent_dim: Width of the latent space.
        output: Activation of the output.
    """

    codes_per_latent = 1
    """Numbers that the encoder gives for each latent."""

    def __init__(self, halves: EncoderDecoder, latent_dim: int, output: nn.Module) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder, self.decoder, self.output = halves.encoder, halves.decoder, output
        self.latent_transform = LatentTransform(latent_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Maps inputs of shape (n, …) to latents of shape (n, latent_dim)."""
        z: Tensor = self.latent_transform(self._learnt(x))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Maps latents of shape (n, latent_dim) to outputs of the inputs' shape."""
        return self._decoded(self.latent_transform.back(z))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> AutoEncoderOutput:  # noqa: ARG002
        """Encodes and decodes.

        Args:
            x: Inputs, (n, …).
            generator: On the inputs' device; draws what a form draws in training.
        """
        learnt = self._learnt(x)
        return AutoEncoderOutput(self.latent_transform(learnt), self._decoded(learnt), x.new_zeros(len(x)))

    def _learnt(self, x: Tensor) -> Tensor:
        """Maps inputs to latents before their axes are turned."""
        learnt: Tensor = self.encoder(x)
        return learnt

    def _decoded(self, learnt: Tensor) -> Tensor:
        output: Tensor = self.output(self.decoder(learnt))
        return output


def rows_at_once(shape: Sequence[int]) -> int:
    """Gives how many inputs of a shape to pass through a network together: fewer of large images."""
    return max(1, min(_ROWS_AT_ONCE, _ELEMENTS_AT_ONCE // math.prod(shape)))


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draws the weights of all layers from one generator: Kaiming-uniform (He et al. 2015), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = (6 / _inputs_per_output(layer)) ** 0.5 * 0.7
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _inputs_per_output(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    taps = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    # Of a transposed convolution each output is reached by one tap in as many as the stride leaves out.
    return taps / (layer.stride[0] * layer.stride[1]) if isinstance(layer, nn.ConvTranspose2d) else taps
