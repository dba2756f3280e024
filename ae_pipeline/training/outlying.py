"""Leave single outliers out of a calibration whose rows have no order in time, by the scores of the new model."""

import math

import numpy as np
import numpy.typing as npt

from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.screened import (
    beyond_cap,
    describe_screening,
    leaves_enough,
    leaves_enough_images,
)

Array = npt.NDArray[np.float64]

_LEVEL = 0.03
"""Level of the test that the highest score is an outlier; see `count_outlying`."""

_MIN_SPACINGS = 3
"""Spacings between the other high scores from which the tail is estimated."""

_FEWEST, _MAX_SHARE = 2, 0.05
"""Outliers are at most this number, or this share of the rows. More rows of high scores are a kind of their own."""

MAX_SMALL = 200
"""Calibration rows or images up to which single outliers are looked for. With more of them, a threshold does not depend
on one, and ten rows of a rare but normal kind would look like outliers."""

_LOWEST = 1e-9
"""Scores below this count as this, so that they have a logarithm."""


def count_outlying(calibration: Array, others: Array) -> int:
    """Return how many of the highest calibration scores lie apart from the rest.

    Ranks cannot tell one defect among nine images from the highest of nine normal ones. So the rule looks at gaps. It
    assumes that the logarithms of scores above their median have an exponential tail. Then the spacings below each
    score are independent and exponential, the j-th from the top with a mean of 1/j (Rényi 1953). The highest k scores
    are outliers if the gap below them is too large for the distance from there to the median. For t, the ratio of the
    two, the p-value is the product of j / (j + k · t) over the spacings between k and the median. It must be below
    0.03 / k³. At most two scores, or 5 % of them, are outliers.

    Scores with a normal, exponential, lognormal or Pareto tail have a logarithm with at most such a tail. The scale of
    the scores does not matter.

    Args:
        calibration: Scores of calibration rows or images.
        others: Scores of validation rows or images. They count among the rest, and their outliers among the highest.

    Examples:
        >>> usual = np.array([3.4, 3.6, 4.0, 4.1, 4.3, 4.6, 4.8, 4.8])
        >>> count_outlying(np.append(usual, 5.2), usual), count_outlying(np.append(usual, 25.0), usual)
        (0, 1)
    """
    from scipy.special import gammaln

    scores = np.concatenate([calibration, others])
    order = np.argsort(-scores, kind="stable")
    logs = np.log(np.maximum(scores[order], _LOWEST))
    half = len(scores) // 2
    most = max(_FEWEST, int(_MAX_SHARE * len(scores)))
    count = np.arange(1, min(half - _MIN_SPACINGS, most) + 1)
    if not len(count):
        return 0
    distance = logs[count] - logs[half]
    gap = logs[count - 1] - logs[count]
    # Without a distance, most scores are equal, and no tail can be estimated.
    ratio = count * np.divide(gap, distance, out=np.zeros_like(gap), where=distance > 0)
    log_p = gammaln(half + 1) - gammaln(count + 1) - gammaln(half + 1 + ratio) + gammaln(count + 1 + ratio)
    highest = int(count[log_p < math.log(_LEVEL) - 3 * np.log(count)].max(initial=0))
    return int((order[:highest] < len(calibration)).sum())


def screen_outlying(
    calibration: Array, others: Array, patches: Array | None, dataset: Dataset, earlier: ScreeningFacts | None
) -> tuple[int, ScreeningFacts]:
    """Return how many of the highest calibration rows or images to leave out.

    Args:
        calibration: Scores of the calibration rows, or of their images if rows are patches.
        others: Scores of the validation rows or images.
        patches: Number of patches of each calibration image; None unless rows are patches.
        dataset: Configuration of the dataset.
        earlier: What the model that serves has left out.

    Returns:
        The number, and what both screenings found. Nothing is left out if it would be more than
        `training.max_screened_share`, or too much for the alert budgets.
    """
    gone = count_outlying(calibration, others)
    change, of_images, rows = None, None, gone
    if patches is not None and gone:
        of_images, rows = gone, int(patches[np.argsort(-calibration, kind="stable")[:gone]].sum())
    total = len(calibration) if patches is None else int(patches.sum())
    if of_images is not None and not leaves_enough_images(of_images, len(calibration), dataset):
        change = beyond_cap("calibration", dataset.config, of_images)
    elif rows and not leaves_enough("calibration", rows, total, dataset):
        change = beyond_cap("calibration", dataset.config)
    if change is not None:
        gone, rows = 0, 0
    left = {"calibration": rows} if rows else {}
    changed = {"calibration": change} if change is not None else {}
    message = describe_screening({}, {}, left, changed, of_images, noun_of_rows(dataset.config))
    by_scores = ScreeningFacts(judged_by="its own scores", rows=left, changed=tuple(changed), message=message)
    return gone, by_scores if earlier is None else _merged(earlier, by_scores)


def _merged(earlier: ScreeningFacts, by_scores: ScreeningFacts) -> ScreeningFacts:
    """Return the facts of two screenings in a row."""
    if not by_scores.rows and not by_scores.changed:
        return earlier
    if not earlier.rows and not earlier.changed:
        return by_scores
    parts = dict.fromkeys((*earlier.rows, *by_scores.rows))
    return earlier.model_copy(
        update={
            "rows": {part: earlier.rows.get(part, 0) + by_scores.rows.get(part, 0) for part in parts},
            "changed": tuple(dict.fromkeys((*earlier.changed, *by_scores.changed))),
            "message": f"{earlier.message}; by its own scores, {by_scores.message}",
        }
    )
