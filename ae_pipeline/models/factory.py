"""The registry of architectures, and the factory of networks and losses."""

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
        module: Module that defines `build_encoder_decoder`. It is imported when a model is built, because the Dagster
            definitions load without torch.
        takes_tables: Whether it accepts rows of numbers. Every architecture accepts images.
        can_tie: Whether its decoder can share the weights of the encoder.

    Examples:
        >>> ARCHITECTURES["conv"]
        Architecture(module='ae_pipeline.models.conv', takes_tables=False, can_tie=False)
    """

    module: str
    takes_tables: bool
    can_tie: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "dense": Architecture("ae_pipeline.models.dense", takes_tables=True, can_tie=True),
    "conv": Architecture("ae_pipeline.models.conv", takes_tables=False),
}
"""All architectures, by their name in the configuration."""


DEFAULT_LATENT_DIM = 8
"""Default width of the latent space. Fewer than 16 encoded inputs get half their number."""


def default_latent_dim(width: int) -> int:
    """Return the width of the latent space for a number of encoded inputs, unless the configuration sets it."""
    return max(1, min(DEFAULT_LATENT_DIM, width // 2))


def check_architecture(config: PipelineConfig) -> Architecture:
    """Return the configured architecture.

    Raises:
        ConfigError: The name is unknown, or the architecture accepts no tables or no tied weights.
    """
    name = config.model.architecture
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture={name!r} is not one of {', '.join(ARCHITECTURES)}; choose one of them")
    if config.images is None and not ARCHITECTURES[name].takes_tables:
        tables = ", ".join(key for key, entry in ARCHITECTURES.items() if entry.takes_tables)
        raise ConfigError(
            f"architecture={name!r} reads images, but {config.dataset!r} has no section images; add it, or choose "
            f"{tables}"
        )
    if config.model.tied and not ARCHITECTURES[name].can_tie:
        tying = ", ".join(key for key, entry in ARCHITECTURES.items() if entry.can_tie)
        raise ConfigError(f"tied=true needs architecture {tying}, got {name!r}; remove tied")
    if config.images is None and config.training.augmentation != "none":
        raise ConfigError(
            f"training.augmentation: {config.training.augmentation} changes images, but {config.dataset!r} has no "
            "section images; remove it"
        )
    return ARCHITECTURES[name]


def build_model(
    config: PipelineConfig, shape: tuple[int, ...], generator: "torch.Generator | None" = None, context: int = 0
) -> "AutoEncoder":
    """Build the configured autoencoder.

    With context, the architecture builds a decoder that reads the latents and the context. With tied weights only the
    encoder reads the context.

    Args:
        config: The configuration of the pipeline.
        shape: Shape of one encoded input: (width,), or (channels, height, width).
        context: Number of the last inputs that are context; see `TableEncoder`.
        generator: Random generator of the initial weights. Without one, load the weights afterwards.

    Raises:
        ConfigError: The latent space is not narrower than the input, or the architecture does not fit the input.

    Examples:
        >>> import torch
        >>> config = PipelineConfig(dataset="orders", identity=("order_id",), model={"latent_dim": 3})
        >>> model = build_model(config, shape=(12,), generator=torch.Generator().manual_seed(0))
        >>> model.encode(torch.zeros(5, 12)).shape
        torch.Size([5, 3])
    """
    from torch import nn

    from ae_pipeline.models.base import AutoEncoder, initialize
    from ae_pipeline.models.variational import VariationalAutoEncoder

    architecture, settings = check_architecture(config), config.model
    width = math.prod(shape) - context
    latent_dim = settings.latent_dim or default_latent_dim(width)
    # Only noise keeps a code that is as wide as the input from copying it (Vincent et al. 2008).
    if 2 <= width <= latent_dim and config.training.corruption == "none":
        raise ConfigError(
            f"latent_dim={latent_dim} is not smaller than the {width} encoded inputs; choose 1–{width - 1}, "
            "or set corruption"
        )
    if config.training.augmentation == "turns" and shape[-2] != shape[-1]:
        raise ConfigError(
            f"training.augmentation: turns needs square images, got {shape[-2]}×{shape[-1]}; choose flips, or set "
            "images.patch or images.crop"
        )
    form = VariationalAutoEncoder if settings.variational else AutoEncoder
    build_encoder_decoder = importlib.import_module(architecture.module).build_encoder_decoder
    is_conditional = context > 0 and not settings.tied
    decoder_inputs = latent_dim + context if is_conditional else latent_dim
    encoder_decoder = build_encoder_decoder(settings, shape, form.codes_per_latent * latent_dim, decoder_inputs)
    output = {Output.LINEAR: nn.Identity, Output.SIGMOID: nn.Sigmoid, Output.TANH: nn.Tanh}[config.output]
    model = form(encoder_decoder, latent_dim, output(), context, is_conditional=is_conditional)
    if generator is not None:
        initialize(model, generator)
    return model


def build_loss(config: PipelineConfig, encoder: "Encoder", *, rates_flatness: bool = True) -> "ReconstructionLoss":
    """Build the configured reconstruction loss for the inputs of an encoder.

    Args:
        config: Configuration of the pipeline.
        encoder: Encoder of the inputs.
        rates_flatness: Whether the scores of images rate flat patches; see `ImageLoss`.
    """
    from ae_pipeline.encoding.image_encoder import ImageEncoder
    from ae_pipeline.models.image_loss import ImageLoss
    from ae_pipeline.models.losses import LikelihoodLoss, TermsLoss

    terms, delta = config.loss, config.model.huber_delta
    if isinstance(encoder, ImageEncoder):
        sizes, levels = (encoder.shape, encoder.span), encoder.levels
        return ImageLoss(*sizes, terms, delta, levels=levels, rates_flatness=rates_flatness)
    names = [column.name for column in encoder.columns]
    if LossTerm.LIKELIHOOD in terms:
        return LikelihoodLoss(encoder.blocks, names)
    return TermsLoss(encoder.blocks, names, terms, delta)
