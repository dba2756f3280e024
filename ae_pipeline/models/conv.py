"""Convolutional architecture: each level halves the image, and the decoder mirrors the encoder."""

import itertools
import math

from torch import nn

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.model import ModelConfig
from ae_pipeline.models.base import ACTIVATIONS, EncoderDecoder
from ae_pipeline.models.convolution import Conv2d, UpsampledConv2d
from ae_pipeline.models.dense import stack

_Size = tuple[int, int]


def build_encoder_decoder(config: ModelConfig, shape: tuple[int, ...], codes: int, latents: int) -> EncoderDecoder:
    """Build an encoder image → levels of half the size and more channels → codes, and the mirrored decoder.

    The encoder rounds odd sizes up. The decoder restores them exactly.

    Args:
        config: Channels of the levels, kind of down- and upsampling, and dense layers after the levels.
        shape: Channels, height and width of an image.
        codes: Number of encoder outputs.
        latents: Number of decoder inputs.

    Raises:
        ConfigError: An image cannot be halved that often.
    """
    channels = (shape[0], *config.channels)
    sizes = _level_sizes((shape[1], shape[2]), len(config.channels))
    down = [
        layer
        for inputs, outputs in itertools.pairwise(channels)
        for layer in (*_downsample(config, inputs, outputs), ACTIVATIONS[config.activation]())
    ]
    hidden, last = config.hidden or (), (channels[-1], *sizes[-1])
    widths = [math.prod(last), *hidden]
    to_codes = stack([nn.Linear(*pair) for pair in itertools.pairwise([*widths, codes])], config.activation)
    from_latents = stack([nn.Linear(*pair) for pair in itertools.pairwise([latents, *widths[::-1]])], config.activation)
    up: list[nn.Module] = []
    for level in range(len(sizes) - 1, 0, -1):
        layers = _upsample(config, channels[level], channels[level - 1], sizes[level - 1])
        up += [ACTIVATIONS[config.activation](), *layers]
    return EncoderDecoder(
        encoder=nn.Sequential(*down, nn.Flatten(), to_codes),
        decoder=nn.Sequential(from_latents, nn.Unflatten(1, last), *up),
    )


def _level_sizes(image: _Size, levels: int) -> list[_Size]:
    """Return height and width of the image and after each level."""
    sizes = [image]
    for level in range(levels):
        if max(sizes[-1]) == 1:
            raise ConfigError(
                f"channels names {levels} levels, but images of {image[0]}×{image[1]} are a single pixel after "
                f"{level}; " + (f"name at most {level}" if level else "choose architecture dense")
            )
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return sizes


def _downsample(config: ModelConfig, inputs: int, outputs: int) -> list[nn.Module]:
    if config.down == "stride":
        return [Conv2d(inputs, outputs, 3, stride=2, padding=1)]
    return [Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)]


def _upsample(config: ModelConfig, inputs: int, outputs: int, size: _Size) -> list[nn.Module]:
    if config.up == "upsample":
        return [
            nn.Identity(),
            UpsampledConv2d(inputs, outputs, size),
        ]  # stored weights have the number of a second layer
    # A transposed convolution turns n pixels into 2 n − 1. An even size needs one more.
    output_padding = (1 - size[0] % 2, 1 - size[1] % 2)
    return [nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=output_padding)]
