"""ECOD: the sum of the empirical tail surprisals of the columns of a row."""

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


_MAX_Z_SCORE = 4.0
"""z-score at which values are clipped for the skewness, so that one broken value does not decide."""


def skewed_up(rows: Array) -> npt.NDArray[np.bool_]:
    """Return which columns of z-scores, shape (n, width), have the longer tail above the mean, shape (width,)."""
    inner = np.clip(rows, -_MAX_Z_SCORE, _MAX_Z_SCORE)
    upwards: npt.NDArray[np.bool_] = ((inner - inner.mean(axis=0)) ** 3).mean(axis=0) > 0
    return upwards


def ecod_score(scores: Array, upwards: npt.NDArray[np.bool_]) -> Array:
    """Return the ECOD score: the highest of three sums over the columns, in nats.

    The sums are those of the upper tails, of the lower tails, and of the longer tail of each column. Rows that are
    moderately far out in many columns score high, even with similar training rows nearby. See Li et al. 2022, "ECOD:
    unsupervised outlier detection using empirical cumulative distribution functions".

    Args:
        scores: Normal scores of the values: normal quantiles of their ranks in the training rows, shape (n, width).
        upwards: Whether the longer tail of each column is the upper one, shape (width,).

    Returns:
        −ln of tail probabilities, nats, shape (n,).
    """
    z = torch.from_numpy(scores)
    above, below = (-torch.special.log_ndtr(side).numpy() for side in (-z, z))
    sums = [tails.sum(axis=1) for tails in (above, below, np.where(upwards, above, below))]
    highest: Array = np.maximum.reduce(sums)
    return highest
