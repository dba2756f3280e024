"""How far out the values of a row lie, column by column: their empirical tails, added up."""

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


_OUTERMOST = 4.0
"""Spreads from the mean beyond which a value counts no more for the skewness, so that a broken one does not decide."""


def skewed_up(rows: Array) -> npt.NDArray[np.bool_]:
    """Tells in which columns of rows in units of spread, (n, width), the longer tail is the upper one, (width,)."""
    inner = np.clip(rows, -_OUTERMOST, _OUTERMOST)
    upwards: npt.NDArray[np.bool_] = ((inner - inner.mean(axis=0)) ** 3).mean(axis=0) > 0
    return upwards


def ecod_score(scores: Array, upwards: npt.NDArray[np.bool_]) -> Array:
    """Gives the highest of three sums over a row's columns: of upper tails, of lower ones, of each column's longer one.

    A row that is somewhat far out in many columns stands out by it, also where training rows like it lie near. It is
    ECOD's score (Li et al. 2022, "ECOD: unsupervised outlier detection using empirical cumulative distribution
    functions").

    Args:
        scores: Normal quantiles of the values' ranks among the training rows, (n, width).
        upwards: Of each column, whether its longer tail is the upper one, (width,).

    Returns:
        −ln of tail probabilities, nats, (n,).
    """
    z = torch.from_numpy(scores)
    above, below = (-torch.special.log_ndtr(side).numpy() for side in (-z, z))
    sums = [tails.sum(axis=1) for tails in (above, below, np.where(upwards, above, below))]
    highest: Array = np.maximum.reduce(sums)
    return highest
