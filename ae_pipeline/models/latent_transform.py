"""The axes that a network's latents are told in."""

import torch
from torch import Tensor, nn


class LatentTransform(nn.Module):
    """An invertible affine layer between the latents that a network learnt and those that it publishes.

    It is the identity until `turn`. What a network learns and reconstructs does not depend on it, and so it goes with
    every architecture and form: tied weights and the divergence of a variational form stay in the learnt latents, which
    a map folded into their layers would change.

    Args:
        latent_dim: Width of the latent space.
    """

    matrix: Tensor
    offset: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(latent_dim))
        self.register_buffer("offset", torch.zeros(latent_dim))

    def forward(self, learnt: Tensor) -> Tensor:
        """Maps learnt latents, (n, latent_dim), to published ones."""
        return learnt @ self.matrix + self.offset

    def back(self, published: Tensor) -> Tensor:
        """Maps published latents, (n, latent_dim), to learnt ones."""
        learnt: Tensor = torch.linalg.solve(self.matrix, published - self.offset, left=False)
        return learnt

    def compose(self, matrix: Tensor, offset: Tensor) -> None:
        """Lets a map follow that takes published latents z to z @ matrix + offset.

        Args:
            matrix: Invertible, (latent_dim, latent_dim).
            offset: (latent_dim,).
        """
        own = self.matrix.to(matrix)
        self.offset.copy_(self.offset.to(matrix) @ matrix + offset)
        self.matrix.copy_(own @ matrix)
