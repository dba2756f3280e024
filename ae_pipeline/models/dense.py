"""Dense architecture: layers that narrow to the latent space, mirrored by the decoder."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ae_pipeline.config.model import ModelConfig
from ae_pipeline.models.base import ACTIVATIONS, EncoderDecoder


class Linear(nn.Linear):
    """A linear layer that narrows fast in float64 on the CPU. Its parameters are those of `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name of the base class
        """Return the outputs, shape (n, outputs)."""
        is_narrower = self.out_features < self.in_features
        if not is_narrower or input.dtype != torch.float64 or input.device.type != "cpu" or input.dim() != 2:
            return super().forward(input)
        # One column for each row: the few outputs of a layer are then the fast side of its product.
        return torch.addmm(self.bias.unsqueeze(1), self.weight, input.T).T


def build_encoder_decoder(config: ModelConfig, shape: tuple[int, ...], codes: int, latents: int) -> EncoderDecoder:
    """Build an encoder width → hidden → … → codes and the mirrored decoder. The last layer of each is linear.

    Args:
        config: Widths, activation, and whether the weights are tied.
        shape: Shape of one input. Images are flattened.
        codes: Number of encoder outputs.
        latents: Number of decoder inputs.
    """
    width = math.prod(shape)
    hidden = (128,) if config.hidden is None else config.hidden
    layers = [Linear(*widths) for widths in itertools.pairwise([width, *hidden, codes])]
    if config.tied:
        # The last layer may also give log variances. The decoder uses only the rows of the latents.
        rows = [*hidden, latents]
        mirrored: list[nn.Module] = [_Transposed(layer, n) for layer, n in zip(layers[::-1], rows[::-1], strict=True)]
    else:
        mirrored = [Linear(*widths) for widths in itertools.pairwise([latents, *hidden[::-1], width])]
    encoder, decoder = stack(layers, config.activation), stack(mirrored, config.activation)
    if len(shape) == 1:
        return EncoderDecoder(encoder, decoder)
    return EncoderDecoder(nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, shape)))


def stack(layers: Sequence[nn.Module], activation: str) -> nn.Sequential:
    """Chain layers with an activation between each two."""
    between = ACTIVATIONS[activation]
    return nn.Sequential(*[part for layer in layers for part in (layer, between())][:-1])


class _Transposed(nn.Module):
    """A linear layer that shares the transposed weights of another layer and has its own bias."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        super().__init__()
        # A tuple hides the layer from torch, so that its weights are counted and saved only once.
        self._tied = (layer,)
        self._rows = rows
        self.bias = nn.Parameter(layer.weight.new_zeros(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (n, rows) to (n, inputs of the other layer)."""
        return functional.linear(x, self._tied[0].weight[: self._rows].T, self.bias)
