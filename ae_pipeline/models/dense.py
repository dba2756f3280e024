"""Dense autoencoder: fully connected layers that narrow to the latent space, mirrored by the decoder."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from ae_pipeline.models.base import AutoEncoder

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class DenseAutoEncoder(AutoEncoder):
    """Width → hidden → … → latent_dim, and the same way back; the latent layer and the output are linear.

    Args:
        width: Columns of the input.
        hidden: Widths of the encoder's hidden layers.
        latent_dim: Width of the latent space.
        activation: Name in `ACTIVATIONS`.
    """

    def __init__(self, width: int, hidden: Sequence[int], latent_dim: int, activation: str) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        widths = [width, *hidden, latent_dim]
        self.encoder = _stack(widths, ACTIVATIONS[activation])
        self.decoder = _stack(widths[::-1], ACTIVATIONS[activation])

    def encode(self, x: Tensor) -> Tensor:
        """Maps (n, width) to (n, latent_dim)."""
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Maps (n, latent_dim) to (n, width)."""
        output: Tensor = self.decoder(z)
        return output


def _stack(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])
