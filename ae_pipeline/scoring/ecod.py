"""ECOD: the sum of the empirical tail surprisals of the columns of a row."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

_MAX_Z_SCORE = 4.0
"""z-score at which values are clipped for the skewness, so that one broken value does not decide."""


def skewed_up(rows: Array) -> npt.NDArray[np.bool_]:
    """Return which columns of z-scores, shape (n, width), have the longer tail above the mean, shape (width,)."""
    inner = np.clip(rows, -_MAX_Z_SCORE, _MAX_Z_SCORE)
    upwards: npt.NDArray[np.bool_] = ((inner - inner.mean(axis=0)) ** 3).mean(axis=0) > 0
    return upwards


def ecod_score(ranks: Tensor, upwards: Tensor) -> Tensor:
    """Return the ECOD score: the highest of three sums over the columns, in nats.

    The sums are those of the upper tails, of the lower tails, and of the longer tail of each column. Rows that are
    moderately far out in many columns score high, even with similar training rows nearby. See Li et al. 2022, "ECOD:
    unsupervised outlier detection using empirical cumulative distribution functions".

    Args:
        ranks: Ranks of the values in the training rows, strictly between 0 and 1, shape (n, width).
        upwards: Whether the longer tail of each column is the upper one, shape (width,).

    Returns:
        −ln of tail probabilities, nats, shape (n,).
    """
    above, below = -torch.log1p(-ranks), -ranks.log()
    return torch.stack([tails.sum(1) for tails in (above, below, torch.where(upwards, above, below))]).amax(0)
