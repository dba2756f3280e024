"""Score the calibration rows of a new model, without the days that a screening leaves out."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.features.split import Window, sample_by_hash
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.screening import Screened, screen_by_own_scores

_MAX_ROWS = 2**20
"""Calibration rows that are scored, unless the alert budget needs more."""


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of the calibration rows.

    Attributes:
        scores: Scores in the order of the rows, shape (n,).
        window: Window with the calibration days that remain.
        screening: What was left out of validation and calibration; None if nothing was screened.
    """

    scores: npt.NDArray[np.float64]
    window: Window
    screening: ScreeningFacts | None


def score_calibration(
    detector: Detector, screened: Screened, dataset: Dataset, budget: float, count: int
) -> CalibrationScores:
    """Score the calibration rows, or a hash sample of very many, which is exchangeable with new rows too.

    If no model that serves has screened the window, the scores themselves tell which days are outliers.

    Args:
        detector: Fitted detector.
        screened: Window without what a screening left out.
        dataset: Configuration and paths of the dataset.
        budget: Share of normal rows that may be flagged.
        count: Number of calibration rows.
    """
    window = screened.window
    share = min(max(_MAX_ROWS, math.ceil(100 / budget)) / max(count, 1), 1.0)

    def rows(days: Window) -> Iterator[pl.DataFrame]:
        for batch in days.batches("calibration", dataset.paths):
            yield sample_by_hash(screened.keep("calibration", batch), share)

    is_unscreened = screened.facts is None and dataset.config.training.max_screened_share
    if not is_unscreened or not dataset.config.is_daily or window.is_by_row:
        return CalibrationScores(detector.scores(rows(window)), window, screened.facts)
    by_day = {day: detector.scores(rows(dataclasses.replace(window, calibration=(day,)))) for day in window.calibration}
    left_out, facts = screen_by_own_scores(by_day, dataset, budget)
    kept = tuple(day for day in by_day if day not in left_out)
    scores = np.concatenate([np.empty(0), *(by_day[day] for day in kept)])
    return CalibrationScores(scores, dataclasses.replace(window, calibration=kept), facts)
