"""An exact test of paired differences that come in groups."""

import numpy as np
import numpy.typing as npt


def sign_flip_p_value(differences: npt.NDArray[np.int_], groups: npt.NDArray[np.str_] | None = None) -> float:
    """Return the probability that chance alone gives a sum of differences this high, or a higher one.

    If chance alone decides, the sum of each group is as likely negative as positive. The differences of a group may
    depend on each other, so they change their sign together. The distribution is exact, over all signs of all groups.
    With c groups the result is 2**-c at least. With single differences of -1, 0 and 1 it is the sign test.

    Args:
        differences: Whole numbers, shape (n,).
        groups: Group of each difference, shape (n,); each is a group of its own by default.

    Examples:
        >>> sign_flip_p_value(np.array([1, 1, 1, 1]))
        0.0625
        >>> sign_flip_p_value(np.array([1, 1, 1, 1]), np.array(["a", "a", "b", "b"]))
        0.25
    """
    sums = differences
    if groups is not None:
        names, of_row = np.unique(groups, return_inverse=True)
        sums = np.bincount(of_row, weights=differences, minlength=len(names)).round().astype(int)
    sizes = np.abs(sums[sums != 0])
    probabilities = np.ones(1)  # of each total of the positive sums
    for size in sizes:
        probabilities = (np.pad(probabilities, (0, size)) + np.pad(probabilities, (size, 0))) / 2
    return min(float(probabilities[sums[sums > 0].sum() :].sum()), 1.0)
