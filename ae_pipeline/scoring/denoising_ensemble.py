"""Small denoising autoencoders that are trained together and used for scoring only."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.scoring.blocks import blocks, per_device

Array = npt.NDArray[np.float64]

NETWORKS = 4
_LAYERS = 4
_STEPS, _BATCH_ROWS, _VALIDATION_STEPS = 800, 256, 40
_LEARNING_RATE, _WEIGHT_DECAY, _NOISE = 3e-3, 1e-4, 0.2
_MAX_HELD_OUT = 1000
_MIN_VARIANCE = 1e-3


@dataclass(frozen=True)
class DenoisingEnsemble:
    """Networks with one hidden layer in the encoder and in the decoder. Their weights are stacked for batched products.

    Attributes:
        weights: Weights of each layer, shape (networks, inputs, outputs).
        biases: Biases of each layer, shape (networks, 1, outputs).
        means: Mean residuals of each network, shape (networks, 1, width).
        whitening: Matrices that make the covariance of the residuals the identity, shape (networks, width, width).
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    means: Tensor
    whitening: Tensor

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by name."""
        layers = {f"weight_{index}": weight for index, weight in enumerate(self.weights)}
        layers |= {f"bias_{index}": bias for index, bias in enumerate(self.biases)}
        arrays = {name: layer.float().numpy() for name, layer in layers.items()}
        return arrays | {"means": self.means.numpy(), "whitening": self.whitening.numpy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "DenoisingEnsemble":
        """Return the ensemble that `arrays` describes."""
        tensors = {name: torch.from_numpy(value).double() for name, value in arrays.items()}
        weights, biases = (tuple(tensors[f"{kind}_{index}"] for index in range(_LAYERS)) for kind in ("weight", "bias"))
        return cls(weights, biases, tensors["means"], tensors["whitening"])

    def _residuals(self, x: Tensor) -> Tensor:
        """Return reconstruction minus rows for each network, shape (networks, n, width); rows have shape (n, width)."""
        return _reconstruct(self.weights, self.biases, x.expand(NETWORKS, *x.shape)) - x

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance of the residuals, mean over directions and networks, shape (n,)."""
        layers = self._layers(rows.device)
        (weight_0, weight_1, weight_2, weight_3), (bias_0, bias_2, bias_3) = layers.weights, layers.biases
        parts = []
        for block in blocks(rows, len(weight_0) + len(layers.whitening)):
            # One column for each row: the few outputs of a layer are then the fast side of its product.
            columns = block.T
            hidden = torch.addmm(bias_0, weight_0, columns).relu_().unflatten(0, (NETWORKS, -1))
            hidden = torch.baddbmm(bias_2, weight_2, torch.bmm(weight_1, hidden)).relu_()
            white = (
                torch.addmm(bias_3, layers.whitening, columns).unflatten(0, (NETWORKS, -1)).baddbmm_(weight_3, hidden)
            )
            parts.append(white.square_().mean((0, 1)))
        return torch.cat(parts)

    @per_device
    def _layers(self, device: torch.device) -> "_Layers":
        weight_0, weight_1, weight_2, weight_3 = (layer.to(device) for layer in self.weights)
        bias_0, bias_1, bias_2, bias_3 = (layer.to(device) for layer in self.biases)
        whitening = self.whitening.to(device)
        return _Layers(
            weights=tuple(
                layer.mT.contiguous()
                for layer in (weight_0.transpose(0, 1).flatten(1), weight_1, weight_2, weight_3 @ whitening)
            ),
            # No activation follows the second layer, so that the third one can have its bias.
            biases=(
                bias_0.reshape(-1, 1),
                (bias_1 @ weight_2 + bias_2).mT.contiguous(),
                ((bias_3 - self.means.to(device)) @ whitening).reshape(-1, 1),
            ),
            whitening=-whitening.mT.flatten(0, 1),
        )


class _Layers(NamedTuple):
    """Transposed layers for scoring. The first ones of all networks are one product, the last include the whitening."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    whitening: Tensor


def fit_denoising_ensemble(rows: Array, generator: torch.Generator) -> DenoisingEnsemble:
    """Train the networks on z-scores, shape (n, width).

    Each network keeps its best weights on held-out rows (early stopping), which avoids overfitting to few rows.
    """
    count, width = rows.shape
    hidden, latent = min(max(2 * width, 16), 64), min(max(width // 3, 2), 16)
    sizes = [width, hidden, latent, hidden, width]
    x = torch.from_numpy(rows).float()[torch.randperm(count, generator=generator)]
    held_out = max(1, min(_MAX_HELD_OUT, count // 8))
    x, validation = x[held_out:], x[:held_out].expand(NETWORKS, held_out, width)
    weights, biases = [], []
    for inputs, outputs in itertools.pairwise(sizes):
        bound = 0.7 * math.sqrt(6 / inputs)
        uniform = torch.rand(NETWORKS, inputs, outputs, generator=generator)
        weights.append(((2 * uniform - 1) * bound).requires_grad_())
        biases.append(torch.zeros(NETWORKS, 1, outputs, requires_grad=True))
    parameters = [*weights, *biases]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    best_losses = torch.full((NETWORKS,), math.inf)
    best = [parameter.detach().clone() for parameter in parameters]
    for step in range(1, _STEPS + 1):
        batch = x[torch.randint(len(x), (NETWORKS, min(_BATCH_ROWS, len(x))), generator=generator)]
        noise = _NOISE * torch.randn(batch.shape, generator=generator)
        loss = (_reconstruct(weights, biases, batch + noise) - batch).square().mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _VALIDATION_STEPS == 0:
            with torch.no_grad():
                losses = (_reconstruct(weights, biases, validation) - validation).square().mean((1, 2))
                is_better = losses < best_losses
                best_losses = torch.where(is_better, losses, best_losses)
                for kept, parameter in zip(best, parameters, strict=True):
                    kept[is_better] = parameter[is_better]
    best = [kept.double().contiguous() for kept in best]
    networks = DenoisingEnsemble(tuple(best[:_LAYERS]), tuple(best[_LAYERS:]), torch.zeros(0), torch.zeros(0))
    residuals = networks._residuals(torch.from_numpy(rows))
    means = residuals.mean(1, keepdim=True)
    centered = residuals - means
    variances, directions = torch.linalg.eigh(centered.mT @ centered / count)
    floor = (_MIN_VARIANCE * variances.amax(1, keepdim=True)).clamp(min=1e-12)
    whitening = directions / torch.maximum(variances, floor).sqrt().unsqueeze(1)
    # Loaded arrays are contiguous. Another memory layout would sum in another order and round differently.
    return DenoisingEnsemble(networks.weights, networks.biases, means.contiguous(), whitening.contiguous())


def _reconstruct(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    weight_0, weight_1, weight_2, weight_3 = weights
    bias_0, bias_1, bias_2, bias_3 = biases
    z = torch.baddbmm(bias_1, torch.relu(torch.baddbmm(bias_0, x, weight_0)), weight_1)
    return torch.baddbmm(bias_3, torch.relu(torch.baddbmm(bias_2, z, weight_2)), weight_3)
