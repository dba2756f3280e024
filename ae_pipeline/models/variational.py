"""The variational form of any architecture."""

import torch
from torch import Tensor

from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput

MAX_LOG_VARIANCE = 10.0
"""Logarithms of variances are held within ± this, so that no draw and no divergence overflows."""


class VariationalAutoEncoder(AutoEncoder):
    """Encodes to a normal distribution with a diagonal covariance, against a standard normal prior.

    In training z is drawn by reparameterisation, z = µ + σ ε (Kingma & Welling 2014, §2.4); in evaluation it is µ.
    Divergence and draws are of the latents as they were learnt, whatever axes these are told in.
    """

    codes_per_latent = 2

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives mean and logarithm of the variance of each latent as it was learnt, both (n, latent_dim)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> AutoEncoderOutput:
        """Encodes and decodes; in training with a draw of the generator, which is then needed."""
        mean, log_variance = self.posterior(x)
        z = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            z = mean + torch.exp(0.5 * log_variance) * noise
        return AutoEncoderOutput(self.latent_transform(z), self._decoded(z), kl_divergence(mean, log_variance))

    def _learnt(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(µ, σ²) ‖ N(0, 1)) summed over the latents, nats, (n,) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
