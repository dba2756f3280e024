"""Leave out what the model that serves finds bad in validation and calibration, so that it cannot blind the next one.

A calibration row that scores high raises the threshold. Twenty-five faulty rows among 40,000 are enough to hide
faults like them from a model with an alert budget of one in a thousand.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import BundleError
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.detector.image_verdicts import count_images, has_patches, image_id
from ae_pipeline.features.split import PARTS, Window
from ae_pipeline.scoring.budget import is_over_budget
from ae_pipeline.scoring.drift import Distribution, Part, measure_columns
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.reviewed import NOTHING_REVIEWED, Reviewed
from ae_pipeline.training.screened import (
    MAX_FALSE_ALARM_RATE,
    MIN_DAYS,
    SCREENED_PARTS,
    Screened,
    beyond_cap,
    describe_screening,
    leaves_enough,
    leaves_enough_images,
    needed_rows,
)


@dataclass(frozen=True, kw_only=True)
class _Day:
    """The rows of one day of a part; `scores` are those of the flagged rows, and `row_ids` their identities."""

    day: str
    rows: int
    row_ids: pl.Series
    scores: npt.NDArray[np.float64]
    is_unlike: bool

    def is_bad(self, budget: float, days: int) -> bool:
        rate = MAX_FALSE_ALARM_RATE / max(days, 1)
        return self.is_unlike or is_over_budget(self.rows, len(self.scores), budget, rate)


def screen_by_serving(
    window: Window, dataset: Dataset, serving: ModelBundle | None, reviewed: Reviewed = NOTHING_REVIEWED
) -> Screened:
    """Leave out what the model that serves finds anomalous far beyond its alert budget.

    Days go that are over their budget or unlike the window of that model as a whole. If the flagged rows of the
    remaining days together exceed the budget, the excess goes, the highest scores first. Flagged rows within the budget
    stay: they are its expected false alerts, and without them the next model would flag more than its budget. Labels
    are not read.

    Args:
        window: Days of each part.
        dataset: Configuration and paths of the dataset.
        serving: Model that serves.
        reviewed: Marks of people. Real anomalies go from all parts, false alarms from validation and calibration.

    Returns:
        The screened window. Nothing is left out without a model that can score the rows, or if a part would lose more
        than `training.max_screened_share` of its rows or too many for the alert budget. If the calibration would, the
        data has changed: training takes every other of the newest days, so that the model learns the change, until it
        holds enough days since then.
    """
    window = reviewed.kept_window(window)
    marked = Screened(window, reviewed.left_out(window, dataset.paths), None)
    if serving is None or not dataset.config.training.max_screened_share:
        return marked
    try:
        days = {part: list(_judge_days(part, marked, dataset, serving)) for part in SCREENED_PARTS}
    except BundleError:  # a column of the model no longer exists
        return marked
    budget = serving.calibration.budget
    kept: dict[str, tuple[str, ...]] = {}
    left_days: dict[str, tuple[str, ...]] = {}
    left_rows: dict[str, int] = {}
    row_ids: dict[str, pl.Series] = {}
    changed: dict[str, str] = {}
    of_images = None
    bad_days: list[str] = []
    for part, judged in days.items():
        bad = [day for day in judged if day.is_bad(budget, len(judged)) and day.day not in reviewed.usual_days]
        out = [] if window.is_by_row else bad
        rest = [day for day in judged if day not in out]
        excess = _excess(rest, budget)
        gone = sum(day.rows for day in out) + excess.len()
        if not gone:
            continue
        why = None if _may_go(part, gone, judged, dataset) else beyond_cap(part, dataset.config)
        if part == "calibration" and why is None and has_patches(dataset.config):
            of_images, total = _incomplete_images(marked, [day.day for day in out], excess, dataset)
            why = (
                None if leaves_enough_images(of_images, total, dataset) else beyond_cap(part, dataset.config, of_images)
            )
        if why is not None:
            changed[part] = why
            if part == "calibration":
                bad_days = [day.day for day in out]
            continue
        left_days[part], left_rows[part] = tuple(day.day for day in out), gone
        kept[part] = tuple(day.day for day in rest)
        if not excess.is_empty():
            row_ids[part] = excess
    screened = window if window.is_by_row else dataclasses.replace(window, **kept)  # type: ignore[arg-type]
    previous = serving.facts.screening
    since = previous.changed_since if previous is not None else None
    if "calibration" in changed and not window.is_by_row:
        since = min(bad_days, default=window.calibration[0])
    of_days = {part: rows - len(row_ids.get(part, ())) for part, rows in left_rows.items()}
    message = describe_screening(left_days, of_days, left_rows, changed, of_images, noun_of_rows(dataset.config))
    learning = _learn_change(screened, since, row_ids, reviewed, dataset) if since is not None else None
    if learning is not None:
        newest = len(screened.validation) + len(screened.calibration)
        message += (
            f"; training takes every other of the {newest} validation and calibration days, because the data has "
            f"changed since {since}"
        )
    facts = ScreeningFacts(
        judged_by="the model that serves",
        days={part: names for part, names in left_days.items() if names},
        rows=left_rows,
        changed=tuple(changed),
        changed_since=since,
        message=message,
    )
    if learning is not None:
        return dataclasses.replace(learning, facts=facts)
    return Screened(screened, _remaining(row_ids, screened, reviewed, dataset), facts)


def _remaining(
    row_ids: Mapping[str, pl.Series], window: Window, reviewed: Reviewed, dataset: Dataset
) -> dict[str, pl.Series]:
    """Return the rows that the parts of a screened window leave out: marked ones, and those of the screening."""
    kept = reviewed.left_out(window, dataset.paths)
    parts = [*kept, *(part for part in row_ids if part not in kept)]
    return {part: pl.concat([each[part] for each in (kept, row_ids) if part in each]) for part in parts}


def _learn_change(
    window: Window, since: str, row_ids: Mapping[str, pl.Series], reviewed: Reviewed, dataset: Dataset
) -> Screened | None:
    """Return the interleaved window while the training days hold few days since a change.

    The rows that the screening left out stay left out, of whichever part has their day now.

    Returns:
        None if they hold as many as there are validation days, or if too few calibration rows would remain.
    """
    learned = sum(day >= since for day in window.train)
    if learned >= len(window.validation) or len(window.calibration) < MIN_DAYS:
        return None
    learning = window.interleaved()
    moved = _moved(row_ids, window, learning, dataset)
    result = Screened(learning, _remaining(moved, learning, reviewed, dataset), None)
    is_enough = result.counts(dataset)["calibration"] >= needed_rows(dataset)
    return result if learning.validation and is_enough else None


def _moved(
    row_ids: Mapping[str, pl.Series], window: Window, learning: Window, dataset: Dataset
) -> dict[str, pl.Series]:
    """Return the rows that a screening left out of a window, by their part in the interleaved window."""
    if not row_ids:
        return {}
    gone, newest = pl.concat(list(row_ids.values())).implode(), {*window.validation, *window.calibration}
    moved: dict[str, pl.Series] = {}
    for part in PARTS:
        days = tuple(day for day in getattr(learning, part) if day in newest)
        of_days = dataclasses.replace(learning, **{part: days})  # type: ignore[arg-type]
        for rows in of_days.batches(part, dataset.paths, ["row_id"]):
            of_part = rows["row_id"].filter(rows["row_id"].is_in(gone))
            moved[part] = pl.concat([moved[part], of_part]) if part in moved else of_part
    return {part: of_part for part, of_part in moved.items() if of_part.len()}


def _judge_days(part: str, marked: Screened, dataset: Dataset, serving: ModelBundle) -> Iterator[_Day]:
    """Yield each day of a part with the rows that the model that serves flags, without those that people marked."""
    window = marked.window
    days: tuple[str, ...] = getattr(window, part)
    drift = dataset.config.drift
    known = [each for each in serving.reference if each.part == Part.COLUMN]
    groups: list[tuple[str, Window]] = [("", window)]
    if not window.is_by_row:
        groups = [(day, dataclasses.replace(window, **{part: (day,)})) for day in days]  # type: ignore[arg-type]
    for day, of_day in groups:
        flagged_ids, scores, values, count = (
            [pl.Series("row_id", [], pl.String)],
            [np.empty(0)],
            list[pl.DataFrame](),
            0,
        )
        for batch in of_day.batches(part, dataset.paths):
            rows = marked.keep(part, batch)
            scored = serving.score(rows)
            flagged_ids.append(rows["row_id"].filter(pl.Series(scored.is_anomaly)))
            scores.append(scored.score[scored.is_anomaly])
            count += rows.height
            if day:
                values.append(rows.select(each.name for each in known))
        if count:
            yield _Day(
                day=day,
                rows=count,
                row_ids=pl.concat(flagged_ids),
                scores=np.concatenate(scores),
                is_unlike=bool(day and known) and _is_unlike(pl.concat(values), known, drift),
            )


def _is_unlike(rows: pl.DataFrame, known: Sequence[Distribution], drift: DriftConfig) -> bool:
    """Return whether a column of a day has drifted from the window of the model that serves."""
    return rows.height >= drift.min_rows and any(effect.is_drift for effect in measure_columns(rows, known, drift))


def _excess(days: Sequence[_Day], budget: float) -> pl.Series:
    """Return the identities of the flagged rows beyond the budget, the highest scores first."""
    rows, flagged = sum(day.rows for day in days), sum(len(day.scores) for day in days)
    none = pl.Series("row_id", [], pl.String)
    if not is_over_budget(rows, flagged, budget, MAX_FALSE_ALARM_RATE):
        return none
    row_ids = pl.concat([none, *(day.row_ids for day in days)])
    order = np.argsort(-np.concatenate([day.scores for day in days]), kind="stable")
    return row_ids[order[: flagged - int(budget * rows)]]


def _may_go(part: str, gone: int, judged: Sequence[_Day], dataset: Dataset) -> bool:
    return leaves_enough(part, gone, sum(day.rows for day in judged), dataset)


def _incomplete_images(marked: Screened, days: Sequence[str], row_ids: pl.Series, dataset: Dataset) -> tuple[int, int]:
    """Return the number of calibration images of which patches would go, and of all.

    Args:
        marked: Window without what people marked.
        days: Calibration days that would go.
        row_ids: Identities of further patches that would go.
        dataset: Configuration and paths of the dataset.
    """
    config, left = dataset.config, marked.incomplete_images("calibration", dataset.config)
    of_days = dataclasses.replace(marked.window, calibration=tuple(days))
    of_rows = row_ids.to_frame("row_id").select(image_id(config.identity)).n_unique()
    gone = of_rows + (count_images("calibration", of_days, dataset, left) or 0)
    return gone, count_images("calibration", marked.window, dataset, left) or 0
