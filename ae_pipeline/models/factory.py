"""The one place that knows which architectures there are."""

import torch

from ae_pipeline.config import ModelConfig
from ae_pipeline.errors import ConfigError
from ae_pipeline.models.base import AutoEncoder, initialise
from ae_pipeline.models.dense import DenseAutoEncoder


def build_model(config: ModelConfig, width: int, generator: torch.Generator | None = None) -> AutoEncoder:
    """Builds the configured autoencoder.

    Args:
        config: Architecture and sizes.
        width: Columns of the encoded input.
        generator: Draws the weights; without one they are left to be loaded.

    Raises:
        ConfigError: The latent space is no narrower than the input.
    """
    if width >= 2 and config.latent_dim >= width:
        raise ConfigError(
            f"latent_dim={config.latent_dim} is not smaller than the {width} encoded inputs; choose 1–{width - 1}"
        )
    model = DenseAutoEncoder(width, config.hidden, config.latent_dim, config.activation)
    if generator is not None:
        initialise(model, generator)
    return model
