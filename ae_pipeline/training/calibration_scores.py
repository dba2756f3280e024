"""Score the calibration rows of a new model, without what a screening leaves out."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.detector.image_verdicts import IMAGE_ID, has_patches, image_id, score_images
from ae_pipeline.features.sizes import budget_rows, choose_budget
from ae_pipeline.features.split import Window, sample_by_hash
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.outlying import MAX_SMALL, screen_outlying
from ae_pipeline.training.own_screening import is_highest, screen_by_own_scores
from ae_pipeline.training.screened import Screened
from ae_pipeline.training.tails import counting, leaving_one_out

_MAX_ROWS = 2**20
"""Calibration rows that are scored, unless the alert budget needs more."""

_IMAGE_RESERVE = 4
"""Calibration images that are scored, as a multiple of those that the image budget needs."""


@dataclass(frozen=True, kw_only=True)
class CalibrationScores:
    """Scores of the calibration rows.

    Attributes:
        scores: Scores in the order of the rows, shape (n,).
        detector: Detector that gave the scores. It has also counted the categories of these rows.
        screened: Window with the calibration days and rows that remain, and what was left out.
        images: Scores of the images whose patches these rows are; None unless rows are patches.
    """

    scores: npt.NDArray[np.float64]
    screened: Screened
    detector: Detector
    images: npt.NDArray[np.float64] | None = None


def score_calibration(
    detector: Detector, screened: Screened, dataset: Dataset, budget: float, count: int, images: int | None = None
) -> CalibrationScores:
    """Score the calibration rows, or a hash sample of very many, which is exchangeable with new rows too.

    If no model that serves has screened the window, the scores themselves tell which days and rows are outliers. If a
    hash divides few rows, they tell single outliers in any case: the alert budget of a model that serves cannot tell
    one of them. The model that judges has not counted the categories of these rows. Otherwise a fault that
    repeats a wrong combination would make it known, and its day would stay.

    Combinations of categories can start in the calibration. So the rows of the days that remain are counted too, and
    each is scored as if it alone was not. A new row is then never scored as rarer than a calibration row like it, so
    the p-values stay valid.

    Args:
        detector: Fitted detector.
        screened: Window without what a screening left out.
        dataset: Configuration and paths of the dataset.
        budget: Share of normal rows that may be flagged.
        count: Number of calibration rows.
        images: Number of calibration images, if rows are patches. The sample keeps whole images.
    """
    window, config = screened.window, dataset.config
    share = min(max(_MAX_ROWS, math.ceil(100 / budget)) / max(count, 1), 1.0)
    if images is not None:
        needed = budget_rows(config.alerts.image_budget or choose_budget(images))
        share = max(share, min(1.0, _IMAGE_RESERVE * needed / max(images, 1)))
    of_image, noun = image_id(config.identity) if has_patches(config) else None, noun_of_rows(config)

    def sampled(days: Window, part: str = "calibration") -> Iterator[pl.DataFrame]:
        for batch in days.batches(part, dataset.paths):
            yield sample_by_hash(screened.keep(part, batch), share, of_image)

    def scored(days: Window, counted: Detector, part: str = "calibration") -> _Scored:
        identities: list[pl.Series] = []

        def rows() -> Iterator[pl.DataFrame]:
            for kept in sampled(days, part):
                identities.append(kept["row_id"])
                yield kept

        return _Scored(counted.scores(rows()), pl.concat([pl.Series(dtype=pl.String), *identities]))

    parts = list[_Scored]()
    is_small = window.is_by_row and (count if images is None else images) <= MAX_SMALL
    is_judged = bool(config.training.max_screened_share) and (
        is_small or (screened.facts is None and not window.is_by_row)
    )
    if is_judged and is_small:
        parts = [scored(window, detector)]
        others = scored(window, leaving_one_out(detector), "validation")
        row_ids, facts = _outlying(parts[0], others, screened, dataset)
        screened = screened.leaving_out(window, row_ids, facts)
        if row_ids.len():
            screened = _sampled_only(screened, share, pluralize(len(parts[0].scores), noun), of_image)
        parts = [parts[0].without(row_ids)]
    elif is_judged:
        by_day = {day: scored(dataclasses.replace(window, calibration=(day,)), detector) for day in window.calibration}
        # The detector has counted the validation rows, but not the calibration rows.
        validation = leaving_one_out(detector).scores(sampled(window, "validation"))
        images_of = None
        if of_image is not None:
            images_of = {
                day: part.row_ids.to_frame("row_id").select(of_image).to_series() for day, part in by_day.items()
            }
        scores_of = {day: part.scores for day, part in by_day.items()}
        judged = screen_by_own_scores(scores_of, validation, dataset, budget, images_of)
        window = dataclasses.replace(window, calibration=tuple(day for day in by_day if day not in judged.days))
        parts, row_ids = _without_highest([by_day[day] for day in window.calibration], judged.excess)
        screened = screened.leaving_out(window, row_ids, judged.facts)
        if judged.facts.rows:
            screened = _sampled_only(screened, share, pluralize(sum(map(len, scores_of.values())), noun), of_image)
    if not is_judged or detector.cooccurrence is not None:
        detector = counting(detector, sampled(window))
        parts = [scored(window, leaving_one_out(detector))]
    scores = np.concatenate([np.empty(0), *(part.scores for part in parts)])
    of_images = None
    if of_image is not None:
        row_ids = pl.concat([pl.Series(dtype=pl.String), *(part.row_ids for part in parts)])
        of_images = _whole_images(_Scored(scores, row_ids), screened, "calibration", config)["score"].to_numpy()
    return CalibrationScores(scores=scores, screened=screened, detector=detector, images=of_images)


@dataclass(frozen=True)
class _Scored:
    """Scores of rows, and their identities."""

    scores: npt.NDArray[np.float64]
    row_ids: pl.Series

    def without(self, row_ids: pl.Series) -> "_Scored":
        """Return these rows without some of them."""
        is_kept = ~self.row_ids.is_in(row_ids.implode())
        return _Scored(self.scores[is_kept.to_numpy()], self.row_ids.filter(is_kept))


def _sampled_only(screened: Screened, share: float, seen: str, of_image: pl.Expr | None) -> Screened:
    """Return a screened window of which only the rows of the sample are used that the screening has seen."""
    facts = screened.facts
    if facts is None or share >= 1:
        return screened
    facts = facts.model_copy(update={"message": f"{facts.message}, of a sample of {seen}"})
    return dataclasses.replace(screened, facts=facts, calibration_share=share, sampled_by=of_image)


def _outlying(
    calibration: _Scored, validation: _Scored, screened: Screened, dataset: Dataset
) -> tuple[pl.Series, ScreeningFacts]:
    """Return the identities of the calibration rows with outlying scores, and what the screenings found.

    If rows are patches, whole images are judged, and all patches of an outlying one go.
    """
    config = dataset.config
    if not has_patches(config):
        gone, facts = screen_outlying(calibration.scores, validation.scores, None, dataset, screened.facts)
        return calibration.row_ids.filter(pl.Series(is_highest(calibration.scores, gone))), facts
    images, others = (
        _whole_images(part, screened, name, config)
        for part, name in ((calibration, "calibration"), (validation, "validation"))
    )
    scores = images["score"].to_numpy()
    patches = images["patches"].to_numpy().astype(np.float64)
    gone, facts = screen_outlying(scores, others["score"].to_numpy(), patches, dataset, screened.facts)
    names = images.filter(pl.Series(is_highest(scores, gone)))[IMAGE_ID]
    of_image = calibration.row_ids.to_frame("row_id").select(image_id(config.identity)).to_series()
    return calibration.row_ids.filter(of_image.is_in(names.implode())), facts


def _without_highest(parts: Sequence[_Scored], excess: int) -> tuple[list[_Scored], pl.Series]:
    """Return scored rows without a number of those with the highest scores, and the identities of these."""
    scores = np.concatenate([np.empty(0), *(part.scores for part in parts)])
    row_ids = pl.concat([pl.Series("row_id", dtype=pl.String), *(part.row_ids for part in parts)])
    is_left_out = is_highest(scores, excess)
    kept = _Scored(scores[~is_left_out], row_ids.filter(pl.Series(~is_left_out)))
    return [kept], row_ids.filter(pl.Series(is_left_out))


def _whole_images(scored: _Scored, screened: Screened, part: str, config: PipelineConfig) -> pl.DataFrame:
    """Return `score_images` of the patches of a part, without images of which a screening left out patches."""
    patches = pl.DataFrame({"row_id": scored.row_ids, "score": scored.scores})
    images = score_images(patches, config.identity, config.alerts.image_patches)
    return images.filter(~pl.col(IMAGE_ID).is_in(screened.incomplete_images(part, config).implode()))
