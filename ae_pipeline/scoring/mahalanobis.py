"""How far a latent lies from those of the training rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_LEAST_VARIANCE = 1e-3
"""Of the widest direction: in narrower ones, as of collapsed latents, distance is not counted as more than that."""


@dataclass(frozen=True)
class MahalanobisDistance:
    """Squared Mahalanobis distance in the latent space.

    A row whose latent is far from all others is strange however well it is reconstructed, as whole groups of anomalies
    are once a network has met some of them.

    Attributes:
        mean: Of the training latents, (latent_dim,).
        whitening: Makes their covariance the identity, (latent_dim, latent_dim).
    """

    mean: Array
    whitening: Array

    def __call__(self, latents: Array) -> Array:
        """Gives the distance of latents of shape (n, latent_dim) as a mean over directions, (n,): 1 on average."""
        distance: Array = np.square((latents - self.mean) @ self.whitening).mean(axis=1)
        return distance

    def transformed(self, matrix: Array, offset: Array) -> "MahalanobisDistance":
        """Gives the same distances for latents that an invertible map took to z @ matrix + offset."""
        whitening = np.linalg.solve(matrix, self.whitening).astype(np.float64)
        return MahalanobisDistance(self.mean @ matrix + offset, whitening)


def fit_mahalanobis(latents: Array) -> MahalanobisDistance:
    """Fits mean and covariance on the latents of the training rows, (n, latent_dim)."""
    mean = latents.mean(axis=0)
    variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(latents, rowvar=False, bias=True)))
    floor = max(_LEAST_VARIANCE * float(variances[-1]), 1e-12)
    return MahalanobisDistance(mean, directions / np.sqrt(np.maximum(variances, floor)))
