"""Convert scores to conformal p-values with held-out rows, and to flags within the alert budget."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ae_pipeline.common.errors import TrainingError

Array = npt.NDArray[np.float64]

IMAGE_BUDGET = "alerts.image_budget"
"""Key of the budget for images whose patches are rows."""

_TIE_TOLERANCE = 1e-7
"""Relative difference up to which two scores tie."""


@dataclass(frozen=True)
class Calibration:
    """Sorted scores of held-out rows, which turn a new score into a conformal p-value.

    For a row exchangeable with the n calibration rows that a screening kept, P(p_value ≤ b) ≤ b for every b. Without
    ties it is at least b − 1/(n + 1) (Vovk, Gammerman & Shafer 2005, §2.2). Time breaks exchangeability: the guarantee
    weakens as rows drift away from the calibration days.

    Attributes:
        scores: Ascending scores of the calibration rows, shape (n,).
        budget: Share of normal rows that may be flagged.

    Examples:
        >>> import numpy as np
        >>> calibration = Calibration(np.array([1.0, 2.0, 3.0, 4.0]), budget=0.2)
        >>> p_values = calibration.p_values(np.array([2.5, 5.0]))
        >>> p_values.tolist()
        [0.6, 0.2]
        >>> calibration.flags(p_values).tolist()
        [False, True]
    """

    scores: Array
    budget: float

    def p_values(self, scores: Array) -> Array:
        """Return (1 + number of calibration rows that score as high) / (n + 1) for each score.

        Scores within a relative 1e-7 tie. Rounding depends on the batch of a score and must not break ties.
        """
        lowest = scores - _TIE_TOLERANCE * np.abs(scores)
        order, lower = np.argsort(lowest), np.empty(len(lowest), np.intp)
        lower[order] = np.searchsorted(self.scores, lowest[order], side="left")  # much faster for sorted values
        p_values: Array = (1 + len(self.scores) - lower) / (len(self.scores) + 1)
        return p_values

    def flags(self, p_values: Array) -> npt.NDArray[np.bool_]:
        """Return which rows are within the budget."""
        return np.asarray(p_values <= self.budget)

    @property
    def threshold(self) -> float:
        """Lowest calibration score that is not flagged. Rows with a higher score are flagged."""
        n = len(self.scores)
        # Use the division that makes p-values: a product such as 0.29 * 100 rounds to less than 29.
        flagged = int(self.flags(np.arange(1, n + 1) / (n + 1)).sum())
        return float(self.scores[n - flagged])


def benjamini_hochberg(p_values: Array, rate: float) -> npt.NDArray[np.bool_]:
    """Return the rows that the Benjamini–Hochberg procedure marks at a false discovery rate (1995), shape (n,).

    The rate also holds for conformal p-values of one calibration, although they depend on each other (Bates et al.
    2023). Of m rows, k are marked if the k-th lowest p-value is at most rate · k / m. With n calibration rows, no
    p-value is below 1 / (n + 1). So the procedure marks no rows, or at least m / (rate · (n + 1)).

    Args:
        p_values: p-values of all rows that are tested together, shape (n,).
        rate: Expected share of false alarms among the marked rows.

    Examples:
        >>> import numpy as np
        >>> benjamini_hochberg(np.array([0.01, 0.02, 0.9]), rate=0.05).tolist()
        [True, True, False]
    """
    from scipy.stats import false_discovery_control

    if not len(p_values):
        return np.zeros(0, dtype=np.bool_)
    # The tolerance keeps rounding from deciding where an adjusted p-value equals the rate.
    return np.asarray(false_discovery_control(p_values) <= rate * (1 + 1e-12))


def ks_distance(scores: Array, others: Array) -> float:
    """Return the Kolmogorov–Smirnov statistic: the largest difference between two empirical distribution functions.

    It is 0 for equal samples and 1 if all of one sample are higher. A few anomalies among many rows move it by their
    share at most. It measures the size of a difference, not its significance.

    Args:
        scores: Scores of one or more rows.
        others: Scores of one or more other rows.
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(scores, others, method="asymp").statistic)


def ks_critical_value(rows: int, others: int) -> float:
    """Return the distance that two samples of one distribution exceed with probability 0.01 (Smirnov 1939)."""
    return 1.63 * math.sqrt(1 / rows + 1 / others)


def calibrate(scores: Array, budget: float, days: int | None, key: str = "alerts.budget") -> Calibration:
    """Return a calibration with the scores of held-out rows.

    Args:
        scores: Scores in any order. Neither the weights nor the tails may be fitted on these rows.
        budget: Share of normal rows that may be flagged.
        days: Number of days of these rows, for the remedy in the error. None if the rows have no event time.
        key: Key of the budget in the YAML.

    Raises:
        TrainingError: The budget needs more rows.
    """
    check_budget(len(scores), budget, days, key)
    return Calibration(np.sort(scores), budget)


def check_budget(rows: int, budget: float, days: int | None, key: str = "alerts.budget") -> None:
    """Raise an error if there are too few calibration rows for a budget.

    Args:
        rows: Number of calibration rows.
        budget: Share of normal rows that may be flagged.
        days: Number of days of these rows. None if the rows have no event time.
        key: Key of the budget in the YAML; that of images counts images.

    Raises:
        TrainingError: The budget needs more rows.
    """
    unit = "images" if key == IMAGE_BUDGET else "rows"
    needed = math.ceil(round(1 / budget, 6)) - 1
    if rows >= needed:
        return
    lowest = f"the budget to {1 / (rows + 1):.2g} or more"
    if days is None:
        available, remedy = f"there are {rows:,}", f"land more {unit}, or set {lowest}"
    else:
        enough = math.ceil(days * needed / max(rows, 1))
        available = f"the {days} calibration days hold {rows:,}"
        remedy = f"set calibration_days to about {enough}, or {lowest}"
    raise TrainingError(f"{key}={budget:g} needs {needed:,} calibration {unit}, and {available}; {remedy}")
