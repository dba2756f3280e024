"""Leave bad days and rows out of the calibration of a model without a predecessor, by its own scores."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.text import plural
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.scoring.budget import TOLERATED_FACTOR, is_over_budget
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.screened import (
    MAX_FALSE_ALARM_RATE,
    MIN_DAYS,
    beyond_cap,
    describe_screening,
    leaves_enough,
    leaves_enough_images,
)

Array = npt.NDArray[np.float64]

_MAX_NEIGHBOR_RATE = 0.05
"""Largest probability that a day is lost because the day before or after it is bad. An outage can pass midnight."""

_TOP_ROWS, _MAX_TOP_SHARE = 40, 0.05
"""Highest scores that tell whether a day has too many of them: this number of rows, and this share at most."""

_FEWEST_TOP_ROWS, _LEVELS = 10, 32
"""Fewest highest scores that tell whether the calibration has too many of them, and numbers of them that are tried."""

_MAX_BUDGETS = 10
"""Rows that may be left out one by one, as a multiple of the alert budget. A few faulty rows are not more."""

_MIN_DISTANCE, _SIGNIFICANCE = 0.02, 0.01
"""Kolmogorov–Smirnov distance and its level from which the scores have shifted as a whole."""


class OwnScreening(NamedTuple):
    """What a new model leaves out of its calibration.

    Attributes:
        days: Days that are left out.
        excess: Number of rows of the other days that are left out: those with the highest scores.
        facts: What is left out, and why.
    """

    days: Sequence[str]
    excess: int
    facts: ScreeningFacts


def screen_by_own_scores(
    scored: Mapping[str, Array],
    validation: Array,
    dataset: Dataset,
    budget: float,
    images: Mapping[str, pl.Series] | None = None,
) -> OwnScreening:
    """Return what to leave out of the calibration of a model without a predecessor.

    Days that hold far too many of the highest scores go; see `_bad_days`. If the other days together have far more of
    the highest scores than the validation days, the excess goes.

    Args:
        scored: Scores of the rows of each calibration day under the new model, by date.
        validation: Scores of the validation rows. Without them, no rows of the other days are left out.
        dataset: Configuration of the dataset.
        budget: Share of normal rows that may be flagged.
        images: Image of each row of each calibration day, by date, if rows are patches.

    Returns:
        Nothing is left out if it would be more than `training.max_screened_share` of the rows or of the images, or too
        many for their alert budgets. The same holds if the excess is more than ten times the alert budget, or if the
        scores of the remaining rows are higher than those of validation as a whole. Then the data has changed.
    """
    rows = sum(map(len, scored.values()))
    cap = dataset.config.training.max_screened_share
    bad = _bad_days(scored, validation, dataset, budget) if cap and len(scored) >= MIN_DAYS else []
    of_days = sum(len(scored[day]) for day in bad)
    rest = np.concatenate([np.empty(0), *(scores for day, scores in scored.items() if day not in bad)])
    excess = count_excess(rest, validation) if cap else 0
    gone = of_days + excess
    change = _describe_change(rest, excess, validation, budget, dataset.config) if excess else None
    if change is None and gone and not leaves_enough("calibration", gone, rows, dataset):
        change = beyond_cap("calibration", dataset.config)
    of_images = None
    if images is not None and gone and change is None:
        of_images = _count_incomplete(images, bad, rest, excess)
        if not leaves_enough_images(of_images, pl.concat(list(images.values())).n_unique(), dataset):
            change = beyond_cap("calibration", dataset.config, of_images)
    if change is not None:
        bad, excess, gone = [], 0, 0
    left_days = {"calibration": tuple(bad)} if bad else {}
    changed = {"calibration": change} if change is not None else {}
    facts = ScreeningFacts(
        judged_by="its own scores",
        days=left_days,
        rows={"calibration": gone} if gone else {},
        changed=tuple(changed),
        message=describe_screening(
            left_days,
            {"calibration": of_days if bad else 0},
            {"calibration": gone},
            changed,
            of_images,
            noun_of_rows(dataset.config),
        ),
    )
    return OwnScreening(bad, excess, facts)


def is_highest(scores: Array, count: int) -> npt.NDArray[np.bool_]:
    """Return which scores are a number of the highest ones. Of equal scores, the first are."""
    is_high = np.zeros(len(scores), dtype=np.bool_)
    is_high[np.argsort(-scores, kind="stable")[:count]] = True
    return is_high


def _count_incomplete(images: Mapping[str, pl.Series], bad: Sequence[str], scores: Array, excess: int) -> int:
    """Return the number of images of which patches would go: those of bad days, and those of the highest scores."""
    rest = [of_day for day, of_day in images.items() if day not in bad]
    highest = pl.concat(rest).filter(pl.Series(is_highest(scores, excess))) if excess else rest[0].clear()
    return pl.concat([highest, *(images[day] for day in bad)]).n_unique()


def _describe_change(
    scores: Array, excess: int, validation: Array, budget: float, config: PipelineConfig
) -> str | None:
    """Return why an excess of the highest scores shows that the data has changed; None if it is a few faulty rows.

    Faulty rows leave the other rows as they are. A shift of the data raises the scores of most rows, and the highest of
    them are then not faulty. To leave these out would break the alert budget on the next days.
    """
    if excess > _MAX_BUDGETS * budget * len(scores):
        nouns = plural(noun_of_rows(config))
        return f"{excess:,} {nouns} of calibration score too high, more than {_MAX_BUDGETS} times the alert budget"
    if _is_shifted(scores[~is_highest(scores, excess)], validation):
        return "calibration as a whole scores higher than validation"
    return None


def _is_shifted(scores: Array, usual: Array) -> bool:
    """Return whether scores as a whole are higher than usual ones, by a one-sided Kolmogorov–Smirnov test."""
    from scipy.stats import ks_2samp

    if not len(scores) or not len(usual):
        return False
    shift = ks_2samp(scores, usual, alternative="less", method="asymp")
    return bool(shift.statistic > _MIN_DISTANCE and shift.pvalue < _SIGNIFICANCE)


def _bad_days(scored: Mapping[str, Array], validation: Array, dataset: Dataset, budget: float) -> list[str]:
    """Return the days that hold far too many of the highest scores.

    The highest scores are the share of the alert budget, or about 40 rows if that share has fewer. Exchangeable days
    share them evenly. The dates before and after a bad day need less evidence, because a fault does not end at
    midnight: its last rows on the next day can be all that the budget allows. They go only if the cap permits.

    If the data drifts, the newest days have the highest scores. So a day stays if the usual scores of the other days
    are higher than those of validation, and its own are higher still.
    """
    scores = np.concatenate(list(scored.values()))
    share = max(budget, min(_MAX_TOP_SHARE, _TOP_ROWS / len(scores)))
    threshold = np.quantile(scores, 1 - share)

    def is_bad(day: str, rate: float) -> bool:
        return is_over_budget(len(scored[day]), int((scored[day] > threshold).sum()), share, rate)

    bad = [day for day in scored if is_bad(day, MAX_FALSE_ALARM_RATE / len(scored))]
    dates = {day: dt.date.fromisoformat(day).toordinal() for day in scored}
    beside = {day for day in scored if {dates[day] - 1, dates[day] + 1} & {dates[each] for each in bad}}
    usual = {day: each[each <= threshold] for day, each in scored.items()}
    others = np.concatenate([np.empty(0), *(each for day, each in usual.items() if day not in bad)])
    if _is_shifted(others, validation[validation <= threshold]):
        bad = [day for day in bad if not _is_shifted(usual[day], others)]
    spoiled = [day for day in scored if day in bad or (day in beside and is_bad(day, _MAX_NEIGHBOR_RATE))]
    gone = sum(len(scored[day]) for day in spoiled)
    return spoiled if leaves_enough("calibration", gone, len(scores), dataset) else bad


def count_excess(calibration: Array, validation: Array) -> int:
    """Return how many of the highest calibration scores are too many, compared with those of validation rows.

    Of the highest scores of both, exchangeable rows have their share, and days of more outliers more than that. Three
    times the odds are tolerated, and chance. Beyond that, what exceeds the rate of the validation rows is too many.
    Rows within that rate stay: they are the expected false alerts. The number of highest scores is not known in
    advance, so that several are tried, with a Bonferroni correction.

    Args:
        calibration: Scores of calibration rows.
        validation: Scores of validation rows.

    Examples:
        >>> usual = np.arange(1000.0)
        >>> count_excess(usual, usual), count_excess(np.append(usual, np.full(100, 5000.0)), usual)
        (0, 100)
    """
    from scipy.stats import binom

    if not len(calibration) or not len(validation):
        return 0
    is_calibration = np.arange(len(calibration) + len(validation)) < len(calibration)
    # Among equal scores, those of validation count as the higher ones.
    order = np.lexsort((is_calibration, -np.concatenate([calibration, validation])))
    most = max(len(order) // 2, 1)
    top = np.unique(np.geomspace(min(_FEWEST_TOP_ROWS, most), most, _LEVELS).astype(np.int64))
    of_calibration = np.cumsum(is_calibration[order])
    odds = TOLERATED_FACTOR * len(calibration) / len(validation)
    is_over = binom.sf(of_calibration[top - 1] - 1, top, odds / (1 + odds)) < MAX_FALSE_ALARM_RATE / len(top)
    taken = np.arange(1, top[is_over].max(initial=0) + 1)
    usual = (taken - of_calibration[: len(taken)]) * len(calibration) / len(validation)
    return int(np.max(of_calibration[: len(taken)] - np.ceil(usual), initial=0))
