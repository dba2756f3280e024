"""The base class of every autoencoder: x → latents z → reconstruction x̂."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ae_pipeline.models.latent_transform import LatentTransform

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Activations between layers, by their name in the configuration."""


_CPU = torch.device("cpu")
_MAX_BATCH, _MAX_CUDA_BATCH, _MAX_CUDA_TABLE = (8192, 2**21), (65_536, 2**22), (131_072, 2**23)
"""Upper limits on the rows and the inputs of a batch for inference. Smaller batches leave a CUDA device idle."""


class AutoEncoderOutput(NamedTuple):
    """The output of an autoencoder for n rows.

    Attributes:
        latents: z, shape (n, latent_dim). A variational form samples them in training.
        output: x̂, of the shape of the inputs.
        kl: KL divergence of the latent distribution from the prior in nats, shape (n,). Zero for plain forms.

    Examples:
        >>> import torch
        >>> result = AutoEncoderOutput(torch.zeros(5, 2), torch.zeros(5, 12), torch.zeros(5))
        >>> result.output.shape
        torch.Size([5, 12])
    """

    latents: Tensor
    output: Tensor
    kl: Tensor


class EncoderDecoder(NamedTuple):
    """The encoder and the decoder that an architecture builds, for plain and variational forms.

    Attributes:
        encoder: Maps inputs (n, *shape) to codes (n, codes). Codes are the latents of a plain form, and the means and
            log variances of a variational form.
        decoder: Maps latents (n, latent_dim) to (n, *shape), before the output activation.

    Examples:
        >>> from torch import nn
        >>> pair = EncoderDecoder(encoder=nn.Linear(12, 2), decoder=nn.Linear(2, 12))
        >>> pair.decoder
        Linear(in_features=2, out_features=12, bias=True)
    """

    encoder: nn.Module
    decoder: nn.Module


class AutoEncoder(nn.Module):
    """An encoder to `latent_dim` numbers and a decoder back. Deterministic in evaluation.

    Outputs are on the scale that the loss expects. That is the scale of the inputs; the likelihood of tables expects
    logits for binary and categorical blocks.

    Args:
        encoder_decoder: The encoder and the decoder.
        latent_dim: Width of the latent space.
        output: Output activation.
        context: Number of the last inputs that are context. They are not reconstructed: the output repeats them.
        is_conditional: Whether the decoder reads the context too, after the latents (Sohn et al. 2015).

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> pair = EncoderDecoder(encoder=nn.Linear(12, 2), decoder=nn.Linear(2, 12))
        >>> model = AutoEncoder(pair, latent_dim=2, output=nn.Identity())
        >>> model.encode(torch.zeros(5, 12)).shape
        torch.Size([5, 2])
        >>> model(torch.zeros(5, 12)).output.shape
        torch.Size([5, 12])
    """

    codes_per_latent = 1
    """Number of encoder outputs for each latent."""

    def __init__(
        self,
        encoder_decoder: EncoderDecoder,
        latent_dim: int,
        output: nn.Module,
        context: int = 0,
        *,
        is_conditional: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.context, self.is_conditional = latent_dim, context, is_conditional
        self.encoder, self.decoder, self.output = encoder_decoder.encoder, encoder_decoder.decoder, output
        self.latent_transform = LatentTransform(latent_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Map inputs of shape (n, …) to latents of shape (n, latent_dim)."""
        z: Tensor = self.latent_transform(self._learned_latents(x))
        return z

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Map latents of shape (n, latent_dim) to outputs of the shape of the inputs.

        Args:
            z: Latents.
            x: Inputs whose context the decoder reads. Without them the context is zero.
        """
        context = z.new_zeros(len(z), self.context) if x is None else x
        return self._decode_learned(self.latent_transform.inverse(z), context)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> AutoEncoderOutput:  # noqa: ARG002
        """Encode and decode inputs.

        Args:
            x: Inputs, shape (n, …).
            generator: Random generator on the device of the inputs. Only variational forms in training use it.
        """
        learned = self._learned_latents(x)
        return AutoEncoderOutput(self.latent_transform(learned), self._decode_learned(learned, x), x.new_zeros(len(x)))

    def _learned_latents(self, x: Tensor) -> Tensor:
        """Map inputs to the latents before `latent_transform`."""
        learned: Tensor = self.encoder(x)
        return learned

    def _decode_learned(self, learned: Tensor, x: Tensor) -> Tensor:
        """Map latents before `latent_transform` to outputs, given inputs that end with the context."""
        if not self.context:
            output: Tensor = self.output(self.decoder(learned))
            return output
        context = x[:, -self.context :]
        decoded = self.output(self.decoder(torch.cat([learned, context], 1) if self.is_conditional else learned))
        return torch.cat([decoded[:, : -self.context], context], 1)


def rows_at_once(shape: Sequence[int], device: torch.device = _CPU) -> int:
    """Return the batch size for inference on inputs of a shape. Larger inputs get smaller batches."""
    on_cuda = _MAX_CUDA_TABLE if len(shape) == 1 else _MAX_CUDA_BATCH
    rows, elements = _MAX_BATCH if device.type == "cpu" else on_cuda
    return max(1, min(rows, elements // math.prod(shape)))


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all layers from one generator: Kaiming-uniform (He et al. 2015), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = (6 / _inputs_per_output(layer)) ** 0.5 * 0.7
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _inputs_per_output(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    weights = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    # In a transposed convolution, one weight in stride² reaches each output.
    return weights / (layer.stride[0] * layer.stride[1]) if isinstance(layer, nn.ConvTranspose2d) else weights
