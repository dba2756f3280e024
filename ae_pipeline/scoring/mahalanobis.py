"""Mahalanobis distance of a latent from the latents of the training rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import double, per_device

Array = npt.NDArray[np.float64]

_MIN_VARIANCE = 1e-3
"""Lowest variance of a direction as a share of the largest. It bounds the weight of collapsed latents."""


@dataclass(frozen=True)
class MahalanobisDistance:
    """Squared Mahalanobis distance in the latent space.

    It detects rows with unusual latents even if their reconstruction is good. A network reconstructs a whole group of
    anomalies well once some of them were in its training set.

    Attributes:
        mean: Mean of the training latents, shape (latent_dim,).
        whitening: Matrix that makes their covariance the identity, shape (latent_dim, latent_dim).
    """

    mean: Array
    whitening: Array

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the squared distance of latents, shape (n, latent_dim), per direction, shape (n,). Its mean is 1."""
        mean, whitening = self._tensors(latents.device)
        return ((latents - mean) @ whitening).square().mean(1)

    @per_device
    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return double(self.mean, device), double(self.whitening, device)

    def transformed(self, matrix: Array, offset: Array) -> "MahalanobisDistance":
        """Return the same distance for latents that an invertible map takes to z @ matrix + offset."""
        whitening = np.linalg.solve(matrix, self.whitening).astype(np.float64)
        return MahalanobisDistance(self.mean @ matrix + offset, whitening)


def fit_mahalanobis(latents: Array) -> MahalanobisDistance:
    """Fit mean and covariance on the latents of the training rows, shape (n, latent_dim)."""
    mean = latents.mean(axis=0)
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(latents, rowvar=False, bias=True)))
    floor = max(_MIN_VARIANCE * float(variances[-1]), 1e-12)
    return MahalanobisDistance(mean, directions / np.sqrt(np.maximum(variances, floor)))
