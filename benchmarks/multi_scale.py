"""A convolutional architecture that reads and writes images at three scales, without connections past the latents.

It was tried for `benchmarks.image_evidence` and is not in the package. Each scale has a level of half its size. The
decoder adds the outputs of the scales, as in a Laplacian pyramid (Burt and Adelson 1983).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ae_pipeline.config.model import ModelConfig
from ae_pipeline.models.base import ACTIVATIONS, EncoderDecoder

SCALES = (1, 2, 4)


def build_encoder_decoder(config: ModelConfig, shape: tuple[int, ...], codes: int, latents: int) -> EncoderDecoder:
    """Build an encoder of images at three scales and the mirrored decoder; see `ae_pipeline.models.conv`."""
    channels, height, width = shape
    maps = [(config.channels[0], height // (2 * scale), width // (2 * scale)) for scale in SCALES]
    return EncoderDecoder(
        encoder=_Encoder(config, channels, maps, codes), decoder=_Decoder(config, channels, maps, latents)
    )


class _Encoder(nn.Module):
    def __init__(self, config: ModelConfig, channels: int, maps: list[tuple[int, int, int]], codes: int) -> None:
        super().__init__()
        self._levels = nn.ModuleList(nn.Conv2d(channels, each[0], 3, stride=2, padding=1) for each in maps)
        self._activation = ACTIVATIONS[config.activation]()
        self._to_codes = nn.Linear(sum(map(math.prod, maps)), codes)

    def forward(self, x: Tensor) -> Tensor:
        levels = (level(functional.avg_pool2d(x, scale)) for level, scale in zip(self._levels, SCALES, strict=True))
        codes: Tensor = self._to_codes(torch.cat([self._activation(level).flatten(1) for level in levels], 1))
        return codes


class _Decoder(nn.Module):
    def __init__(self, config: ModelConfig, channels: int, maps: list[tuple[int, int, int]], latents: int) -> None:
        super().__init__()
        self._maps = maps
        self._from_latents = nn.Linear(latents, sum(map(math.prod, maps)))
        self._activation = ACTIVATIONS[config.activation]()
        self._levels = nn.ModuleList(nn.Conv2d(each[0], channels, 3, padding=1) for each in maps)

    def forward(self, z: Tensor) -> Tensor:
        maps = self._activation(self._from_latents(z)).split([math.prod(each) for each in self._maps], 1)
        size = [2 * side for side in self._maps[0][1:]]
        output = z.new_zeros(())
        for level, values, shape in zip(self._levels, maps, self._maps, strict=True):
            at_scale = level(functional.interpolate(values.unflatten(1, shape), scale_factor=2))
            output = output + functional.interpolate(at_scale, size, mode="bilinear", align_corners=False)
        return output
