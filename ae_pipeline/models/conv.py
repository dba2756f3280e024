"""Convolutions that halve an image level by level, mirrored by the decoder."""

import itertools
import math

from torch import nn

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.model import ModelConfig
from ae_pipeline.models.base import ACTIVATIONS, EncoderDecoder
from ae_pipeline.models.dense import stack

_Size = tuple[int, int]


def build_encoder_decoder(config: ModelConfig, shape: tuple[int, ...], codes: int, latents: int) -> EncoderDecoder:
    """Image → levels of half the size and more channels → codes, and from the latents the same way back.

    Sizes that are odd are rounded up on the way down, and met again exactly on the way up.

    Args:
        config: Channels of the levels, how they halve and double, and dense layers behind them.
        shape: Channels, height and width of an image.
        codes: What the encoder gives.
        latents: What the decoder takes.

    Raises:
        ConfigError: There are more levels than the image can be halved.
    """
    channels = (shape[0], *config.channels)
    sizes = _sizes((shape[1], shape[2]), len(config.channels))
    down = [
        layer
        for inputs, outputs in itertools.pairwise(channels)
        for layer in (*_down(config, inputs, outputs), ACTIVATIONS[config.activation]())
    ]
    hidden, last = config.hidden or (), (channels[-1], *sizes[-1])
    widths = [math.prod(last), *hidden]
    inward = stack([nn.Linear(*pair) for pair in itertools.pairwise([*widths, codes])], config.activation)
    outward = stack([nn.Linear(*pair) for pair in itertools.pairwise([latents, *widths[::-1]])], config.activation)
    up: list[nn.Module] = []
    for level in range(len(sizes) - 1, 0, -1):
        up += [ACTIVATIONS[config.activation](), *_up(config, channels[level], channels[level - 1], sizes[level - 1])]
    return EncoderDecoder(
        nn.Sequential(*down, nn.Flatten(), inward),
        nn.Sequential(outward, nn.Unflatten(1, last), *up),
    )


def _sizes(image: _Size, levels: int) -> list[_Size]:
    """Heights and widths before, between and after the levels."""
    sizes = [image]
    for level in range(levels):
        if max(sizes[-1]) == 1:
            raise ConfigError(
                f"channels names {levels} levels, and images of {image[0]}×{image[1]} are a single pixel after "
                f"{level}; " + (f"name at most {level}" if level else "choose architecture dense")
            )
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return sizes


def _down(config: ModelConfig, inputs: int, outputs: int) -> list[nn.Module]:
    if config.down == "stride":
        return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)]


def _up(config: ModelConfig, inputs: int, outputs: int, size: _Size) -> list[nn.Module]:
    if config.up == "upsample":
        return [nn.Upsample(size=size), nn.Conv2d(inputs, outputs, 3, padding=1)]
    # From n pixels a transposed convolution makes 2 n − 1, and one more where the size is even.
    even = (1 - size[0] % 2, 1 - size[1] % 2)
    return [nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=even)]
