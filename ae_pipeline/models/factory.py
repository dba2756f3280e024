"""The one place that knows which architectures and losses there are."""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.model import LossTerm, Output
from ae_pipeline.config.pipeline import PipelineConfig

if TYPE_CHECKING:
    import torch

    from ae_pipeline.encoding.encoder import Encoder
    from ae_pipeline.models.base import AutoEncoder
    from ae_pipeline.models.losses import ReconstructionLoss


@dataclass(frozen=True)
class Architecture:
    """One kind of autoencoder.

    Attributes:
        module: Where its `build_coder` is; imported when a model is built, since the definitions load without torch.
        takes_tables: Whether it can read rows of numbers; all can read images.
        can_tie: Whether its decoder can take the encoder's weights.
    """

    module: str
    takes_tables: bool
    can_tie: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "dense": Architecture("ae_pipeline.models.dense", takes_tables=True, can_tie=True),
    "conv": Architecture("ae_pipeline.models.conv", takes_tables=False),
}
"""All architectures, by the name that the configuration has for them."""


USUAL_LATENT_DIM = 8
"""Where the configuration names none; half of the encoded inputs where these are fewer than 16."""


def check_architecture(config: PipelineConfig) -> Architecture:
    """Gives the configured architecture.

    Raises:
        ConfigError: There is none of this name, it cannot read what the dataset holds, or it cannot tie weights.
    """
    name = config.model.architecture
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture={name!r} is none of {', '.join(ARCHITECTURES)}; choose one of them")
    if config.images is None and not ARCHITECTURES[name].takes_tables:
        tables = ", ".join(key for key, entry in ARCHITECTURES.items() if entry.takes_tables)
        raise ConfigError(
            f"architecture={name!r} reads images, and {config.dataset!r} has no section images; add it, or choose "
            f"{tables}"
        )
    if config.model.tied and not ARCHITECTURES[name].can_tie:
        able = ", ".join(key for key, entry in ARCHITECTURES.items() if entry.can_tie)
        raise ConfigError(f"tied=true goes with architecture {able}, got {name!r}; leave it out")
    return ARCHITECTURES[name]


def build_model(
    config: PipelineConfig, shape: tuple[int, ...], generator: "torch.Generator | None" = None
) -> "AutoEncoder":
    """Builds the configured autoencoder.

    Args:
        config: The pipeline's.
        shape: Of one encoded input: (width,), or (channels, height, width).
        generator: Draws the weights; without one they are left to be loaded.

    Raises:
        ConfigError: The latent space is no narrower than the input, or the architecture does not fit it.
    """
    from torch import nn

    from ae_pipeline.models.base import AutoEncoder, initialize
    from ae_pipeline.models.variational import VariationalAutoEncoder

    architecture, settings = check_architecture(config), config.model
    width = math.prod(shape)
    latent_dim = settings.latent_dim or max(1, min(USUAL_LATENT_DIM, width // 2))
    # Noise keeps a wider code from copying its input (Vincent et al. 2008); nothing else does.
    if 2 <= width <= latent_dim and config.training.corruption == "none":
        raise ConfigError(
            f"latent_dim={latent_dim} is not smaller than the {width} encoded inputs; choose 1–{width - 1}, "
            "or set corruption"
        )
    form = VariationalAutoEncoder if settings.variational else AutoEncoder
    build_encoder_decoder = importlib.import_module(architecture.module).build_encoder_decoder
    halves = build_encoder_decoder(settings, shape, form.codes_per_latent * latent_dim, latent_dim)
    output = {Output.LINEAR: nn.Identity, Output.SIGMOID: nn.Sigmoid, Output.TANH: nn.Tanh}[config.output]
    model = form(halves, latent_dim, output())
    if generator is not None:
        initialize(model, generator)
    return model


def build_loss(config: PipelineConfig, encoder: "Encoder") -> "ReconstructionLoss":
    """Builds the configured reconstruction loss for what an encoder gives."""
    from ae_pipeline.encoding.image_encoder import ImageEncoder
    from ae_pipeline.models.image_loss import ImageLoss
    from ae_pipeline.models.losses import LikelihoodLoss, TermsLoss

    terms, delta = config.loss, config.model.huber_delta
    if isinstance(encoder, ImageEncoder):
        return ImageLoss(encoder.shape, encoder.span, terms, delta)
    names = [column.name for column in encoder.columns]
    if LossTerm.LIKELIHOOD in terms:
        return LikelihoodLoss(encoder.blocks, names)
    return TermsLoss(encoder.blocks, names, terms, delta)
