"""Dense layers that narrow to the latent space, mirrored by the decoder."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from ae_pipeline.config.model import ModelConfig
from ae_pipeline.models.base import ACTIVATIONS, EncoderDecoder


def build_encoder_decoder(config: ModelConfig, shape: tuple[int, ...], codes: int, latents: int) -> EncoderDecoder:
    """Width → hidden → … → codes, and from the latents the same way back; the last layer of each half is linear.

    Args:
        config: Widths, activation, and whether the weights are tied.
        shape: Of one input; images are flattened.
        codes: What the encoder gives.
        latents: What the decoder takes.
    """
    width = math.prod(shape)
    hidden = (128,) if config.hidden is None else config.hidden
    layers = [nn.Linear(*widths) for widths in itertools.pairwise([width, *hidden, codes])]
    if config.tied:
        # Of the last layer the decoder takes the rows that give the latents themselves.
        rows = [*hidden, latents]
        back: list[nn.Module] = [_Transposed(layer, n) for layer, n in zip(layers[::-1], rows[::-1], strict=True)]
    else:
        back = [nn.Linear(*widths) for widths in itertools.pairwise([latents, *hidden[::-1], width])]
    encoder, decoder = stack(layers, config.activation), stack(back, config.activation)
    if len(shape) == 1:
        return EncoderDecoder(encoder, decoder)
    return EncoderDecoder(nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, shape)))


def stack(layers: Sequence[nn.Module], activation: str) -> nn.Sequential:
    """Puts layers one after another, with an activation between any two."""
    between = ACTIVATIONS[activation]
    return nn.Sequential(*[part for layer in layers for part in (layer, between())][:-1])


class _Transposed(nn.Module):
    """A linear layer with the transposed weights of another one and a bias of its own."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        super().__init__()
        # In a tuple, so that the weights are counted and saved once: where they belong.
        self._tied = (layer,)
        self._rows = rows
        self.bias = nn.Parameter(layer.weight.new_zeros(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, rows) to (n, inputs of the other layer)."""
        return functional.linear(x, self._tied[0].weight[: self._rows].T, self.bias)
