"""The affine layer from learned latents to published latents."""

import torch
from torch import Tensor, nn


class LatentTransform(nn.Module):
    """An invertible affine layer between the latents that a network learned and the latents that it publishes.

    It is the identity until `compose` is called. Training and reconstruction do not depend on it, so it works with
    every architecture and form. Folding the map into the layers instead would change tied weights and the KL divergence
    of a variational form.

    Args:
        latent_dim: Width of the latent space.
    """

    matrix: Tensor
    offset: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(latent_dim))
        self.register_buffer("offset", torch.zeros(latent_dim))

    def forward(self, learned: Tensor) -> Tensor:
        """Map learned latents, shape (n, latent_dim), to published latents."""
        return learned @ self.matrix + self.offset

    def inverse(self, published: Tensor) -> Tensor:
        """Map published latents, shape (n, latent_dim), to learned latents."""
        learned: Tensor = torch.linalg.solve(self.matrix, published - self.offset, left=False)
        return learned

    def compose(self, matrix: Tensor, offset: Tensor) -> None:
        """Append a map that takes published latents z to z @ matrix + offset.

        Args:
            matrix: Invertible, shape (latent_dim, latent_dim).
            offset: Shape (latent_dim,).
        """
        composed = self.matrix.to(matrix) @ matrix
        self.offset.copy_(self.offset.to(matrix) @ matrix + offset)
        self.matrix.copy_(composed)
