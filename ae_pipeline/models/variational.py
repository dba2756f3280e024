"""The variational form of every architecture."""

import torch
from torch import Tensor

from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput
from ae_pipeline.models.noise import draw

MAX_LOG_VARIANCE = 10.0
"""Log variances are clipped to ± this value, so that neither samples nor divergences overflow."""


class VariationalAutoEncoder(AutoEncoder):
    """An autoencoder that encodes to a normal distribution with diagonal covariance, with a standard normal prior.

    Training samples z by reparameterization, z = µ + σ ε (Kingma & Welling 2014, §2.4). Evaluation uses z = µ.
    Divergence and samples refer to the learned latents, before `latent_transform`.
    """

    codes_per_latent = 2

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of each learned latent, both of shape (n, latent_dim)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> AutoEncoderOutput:
        """Encode and decode inputs. Training needs the generator to sample the latents."""
        mean, log_variance = self.posterior(x)
        z = mean
        if self.training:
            noise = draw(torch.randn, mean.shape, mean, generator)
            z = mean + torch.exp(0.5 * log_variance) * noise
        return AutoEncoderOutput(
            self.latent_transform(z), self._decode_learned(z, x), kl_divergence(mean, log_variance)
        )

    def _learned_latents(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(µ, σ²) ‖ N(0, 1)) summed over the latents, nats, shape (n,) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
