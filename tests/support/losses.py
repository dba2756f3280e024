"""Closed forms of the loss terms, and random tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.special
import torch

from ae_pipeline.config.model import LossTerm
from tests.support.arrays import Array

DELTA = 0.4
"""Distance at which huber changes from quadratic to linear."""


def _bce(output: Array, x: Array) -> Array:
    target = np.clip(x, 0, 1)
    log_likelihood = scipy.special.xlogy(target, output) + scipy.special.xlog1py(1 - target, -output)
    loss: Array = (x - target) ** 2 - log_likelihood
    return loss


CLOSED_FORMS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": lambda output, x: (output - x) ** 2,
    "mae": lambda output, x: np.abs(output - x),
    "huber": lambda output, x: np.where(
        np.abs(output - x) <= DELTA, (output - x) ** 2 / 2, DELTA * (np.abs(output - x) - DELTA / 2)
    ),
    "bce": _bce,
}
"""Loss of each term for one element, written out."""


WEIGHTED = [
    {"mse": 1.0},
    {"mae": 2.0},
    {"huber": 1.0},
    {"bce": 1.0},
    {"mse": 0.7, "mae": 0.2, "huber": 3.0, "bce": 0.5},
]


def named(terms: dict[str, float]) -> str:
    """Return the name of a test parameter."""
    return " + ".join(f"{weight:g} {term}" for term, weight in terms.items())


def closed_form(terms: dict[str, float], output: torch.Tensor, x: torch.Tensor) -> Array:
    """Return the weighted loss of each element in double precision."""
    pair = output.double().numpy(), x.double().numpy()
    losses = [weight * CLOSED_FORMS[term](*pair) for term, weight in terms.items()]
    total: Array = np.sum(losses, axis=0)
    return total


def by_term(terms: Mapping[str, Any]) -> dict[LossTerm, float]:
    """Return weights by loss term."""
    return {LossTerm(term): weight for term, weight in terms.items()}


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random numbers between 0 and 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator(seed: int) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)
