"""Small denoising autoencoders, trained together, that only score."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

NETWORKS = 4
_LAYERS = 4
_STEPS, _BATCH, _LOOK_EVERY = 800, 256, 40
_LEARNING_RATE, _WEIGHT_DECAY, _NOISE = 3e-3, 1e-4, 0.2
_MOST_HELD_OUT = 1000
_LEAST_VARIANCE = 1e-3
_AT_ONCE = 4096


@dataclass(frozen=True)
class DenoisingEnsemble:
    """Networks of one hidden layer on either side, whose weights are stacked so that one product serves all.

    Attributes:
        weights: Of each layer, (members, inputs, outputs).
        biases: Of each layer, (members, 1, outputs).
        means: Of each member's residuals, (members, 1, width).
        whitening: Makes the covariance of each member's residuals the identity, (members, width, width).
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    means: Tensor
    whitening: Tensor

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Gives what to keep, by name."""
        layers = {f"weight_{index}": weight for index, weight in enumerate(self.weights)}
        layers |= {f"bias_{index}": bias for index, bias in enumerate(self.biases)}
        kept = {name: layer.float().numpy() for name, layer in layers.items()}
        return kept | {"means": self.means.numpy(), "whitening": self.whitening.numpy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "DenoisingEnsemble":
        """Makes members of what `arrays` gave."""
        found = {name: torch.from_numpy(value).double() for name, value in arrays.items()}
        weights, biases = (tuple(found[f"{kind}_{index}"] for index in range(_LAYERS)) for kind in ("weight", "bias"))
        return cls(weights, biases, found["means"], found["whitening"])

    def _residuals(self, x: Tensor) -> Tensor:
        """Gives what each member makes of rows of shape (n, width) less the rows, (members, n, width)."""
        return _reconstruct(self.weights, self.biases, x.expand(NETWORKS, *x.shape)) - x

    def __call__(self, rows: Array) -> Array:
        """Gives the squared Mahalanobis distance of the residuals as a mean over directions and members, (n,)."""
        parts = (self._residuals(part) - self.means for part in torch.from_numpy(rows).split(_AT_ONCE))
        distances = [(part @ self.whitening).square().mean((0, 2)).numpy() for part in parts]
        return np.concatenate([np.empty(0), *distances])


def fit_denoising_ensemble(rows: Array, generator: torch.Generator) -> DenoisingEnsemble:
    """Trains members on rows in units of spread, (n, width).

    Each keeps the weights that did best on rows held out, so that they do not learn few rows by heart.
    """
    count, width = rows.shape
    hidden, latent = min(max(2 * width, 16), 64), min(max(width // 3, 2), 16)
    sizes = [width, hidden, latent, hidden, width]
    x = torch.from_numpy(rows).float()[torch.randperm(count, generator=generator)]
    held_out = max(1, min(_MOST_HELD_OUT, count // 8))
    x, other = x[held_out:], x[:held_out].expand(NETWORKS, held_out, width)
    weights, biases = [], []
    for inputs, outputs in itertools.pairwise(sizes):
        bound = 0.7 * math.sqrt(6 / inputs)
        drawn = torch.rand(NETWORKS, inputs, outputs, generator=generator)
        weights.append(((2 * drawn - 1) * bound).requires_grad_())
        biases.append(torch.zeros(NETWORKS, 1, outputs, requires_grad=True))
    parameters = [*weights, *biases]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    best, kept = torch.full((NETWORKS,), math.inf), [parameter.detach().clone() for parameter in parameters]
    for step in range(1, _STEPS + 1):
        batch = x[torch.randint(len(x), (NETWORKS, min(_BATCH, len(x))), generator=generator)]
        noise = _NOISE * torch.randn(batch.shape, generator=generator)
        loss = (_reconstruct(weights, biases, batch + noise) - batch).square().mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _LOOK_EVERY == 0:
            with torch.no_grad():
                losses = (_reconstruct(weights, biases, other) - other).square().mean((1, 2))
                better = losses < best
                best = torch.where(better, losses, best)
                for keep, parameter in zip(kept, parameters, strict=True):
                    keep[better] = parameter[better]
    kept = [keep.double().contiguous() for keep in kept]
    found = DenoisingEnsemble(tuple(kept[:_LAYERS]), tuple(kept[_LAYERS:]), torch.zeros(0), torch.zeros(0))
    residuals = found._residuals(torch.from_numpy(rows))
    means = residuals.mean(1, keepdim=True)
    centred = residuals - means
    variances, directions = torch.linalg.eigh(centred.mT @ centred / count)
    floor = (_LEAST_VARIANCE * variances.amax(1, keepdim=True)).clamp(min=1e-12)
    whitening = directions / torch.maximum(variances, floor).sqrt().unsqueeze(1)
    # Contiguous as they will be read back: another layout is summed in another order.
    return DenoisingEnsemble(found.weights, found.biases, means.contiguous(), whitening.contiguous())


def _reconstruct(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    first, into, out, last = weights
    a, b, c, d = biases
    z = torch.baddbmm(b, torch.relu(torch.baddbmm(a, x, first)), into)
    return torch.baddbmm(d, torch.relu(torch.baddbmm(c, z, out)), last)
