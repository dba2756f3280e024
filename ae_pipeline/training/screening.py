"""Leave bad days and rows out of validation and calibration, so that they cannot blind the next model.

A calibration row that scores high raises the threshold. Twenty-five faulty rows among 40,000 are enough to hide
faults like them from a model with an alert budget of one in a thousand.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import BundleError
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.detector.image_verdicts import image_of_row
from ae_pipeline.features.sizes import MIN_CALIBRATION_ROWS, budget_rows
from ae_pipeline.features.split import PARTS, Window
from ae_pipeline.scoring.budget import is_over_budget
from ae_pipeline.scoring.drift import Distribution, Part, measure_columns
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.reviewed import NOTHING_REVIEWED, Reviewed

SCREENED_PARTS = ("validation", "calibration")
"""Parts of the window that are screened."""

_MAX_FALSE_ALARM_RATE = 1e-3
"""Largest probability that a part of exchangeable rows loses a day or a row, by each of the rules."""

_MAX_NEIGHBOR_RATE = 0.05
"""Largest probability that a day is lost because the day before or after it is bad. An outage can pass midnight."""

_TOP_ROWS, _MAX_TOP_SHARE = 40, 0.05
"""Highest scores that tell whether a day has too many of them: this number of rows, and this share at most."""

_MIN_DAYS = 4
"""Calibration days from which they can be compared with one another."""


@dataclass(frozen=True)
class Screened:
    """A window without the days and rows that a screening left out.

    Attributes:
        window: The window without these days.
        row_ids: Identities of further rows that are left out, by part.
        facts: What was left out, and why; None if nothing was screened.
    """

    window: Window
    row_ids: Mapping[str, pl.Series]
    facts: ScreeningFacts | None

    def keep(self, part: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Return rows of a part without those that are left out."""
        row_ids = self.row_ids.get(part)
        return rows if row_ids is None else rows.filter(~pl.col("row_id").is_in(row_ids.implode()))

    def incomplete_images(self, part: str, config: PipelineConfig) -> pl.Series:
        """Return the identities of the images of a part of which rows are left out."""
        row_ids = self.row_ids.get(part, pl.Series("row_id", [], dtype=pl.String))
        return row_ids.alias("row_id").to_frame().select(image_of_row(config)).to_series().unique()

    def counts(self, dataset: Dataset) -> dict[str, int]:
        """Return the number of rows of each part that remain."""
        return {part: self.window.count(part, dataset.paths) - len(self.row_ids.get(part, ())) for part in PARTS}


@dataclass(frozen=True, kw_only=True)
class _Day:
    """The rows of one day of a part; `scores` are those of the flagged rows, and `row_ids` their identities."""

    day: str
    rows: int
    row_ids: pl.Series
    scores: npt.NDArray[np.float64]
    is_unlike: bool

    def is_bad(self, budget: float, days: int) -> bool:
        rate = _MAX_FALSE_ALARM_RATE / max(days, 1)
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
    cap = dataset.config.training.max_screened_share
    window = reviewed.kept_window(window)
    marked = Screened(window, reviewed.left_out(window, dataset.paths), None)
    if serving is None or not cap:
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
    changed: list[str] = []
    bad_days: list[str] = []
    for part, judged in days.items():
        bad = [day for day in judged if day.is_bad(budget, len(judged)) and day.day not in reviewed.usual_days]
        out = [] if window.is_by_row else bad
        rest = [day for day in judged if day not in out]
        excess = _excess(rest, budget)
        gone = sum(day.rows for day in out) + excess.len()
        if not gone:
            continue
        if not _may_go(part, gone, judged, dataset):
            changed.append(part)
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
    message = _message(left_days, left_rows, changed, cap)
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
    if learned >= len(window.validation) or len(window.calibration) < _MIN_DAYS:
        return None
    learning = window.interleaved()
    moved = _moved(row_ids, window, learning, dataset)
    result = Screened(learning, _remaining(moved, learning, reviewed, dataset), None)
    is_enough = result.counts(dataset)["calibration"] >= _needed_rows(dataset)
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


def screen_by_own_scores(
    scored: Mapping[str, npt.NDArray[np.float64]], dataset: Dataset, budget: float
) -> tuple[list[str], ScreeningFacts]:
    """Return the calibration days that hold far too many of the highest scores, for a model without a predecessor.

    The highest scores are the share of the alert budget, or about 40 rows if that share has fewer. Exchangeable days
    share them evenly. The dates before and after a bad day need less evidence, because a fault does not end at
    midnight: its last rows on the next day can be all that the budget allows. They go only if the cap permits.

    Args:
        scored: Scores of the rows of each calibration day under the new model, by date.
        dataset: Configuration of the dataset.
        budget: Share of normal rows that may be flagged.
    """
    scores = np.concatenate([np.empty(0), *scored.values()])
    cap = dataset.config.training.max_screened_share
    bad: list[str] = []
    gone = 0
    if cap and len(scored) >= _MIN_DAYS:
        share = max(budget, min(_MAX_TOP_SHARE, _TOP_ROWS / len(scores)))
        threshold = np.quantile(scores, 1 - share)

        def is_bad(day: str, rate: float) -> bool:
            return is_over_budget(len(scored[day]), int((scored[day] > threshold).sum()), share, rate)

        days = list(scored)
        bad = [day for day in days if is_bad(day, _MAX_FALSE_ALARM_RATE / len(days))]
        dates = {day: dt.date.fromisoformat(day).toordinal() for day in days}
        beside = {day for day in days if {dates[day] - 1, dates[day] + 1} & {dates[each] for each in bad}}
        spoiled = [day for day in days if day in bad or (day in beside and is_bad(day, _MAX_NEIGHBOR_RATE))]
        gone = sum(len(scored[day]) for day in spoiled)
        if _leaves_enough("calibration", gone, len(scores), dataset):
            bad = spoiled
        gone = sum(len(scored[day]) for day in bad)
    is_changed = bool(bad) and not _leaves_enough("calibration", gone, len(scores), dataset)
    left_days, left_rows = ({"calibration": tuple(bad)}, {"calibration": gone}) if bad and not is_changed else ({}, {})
    changed = ["calibration"] if is_changed else []
    facts = ScreeningFacts(
        judged_by="its own scores",
        days=left_days,
        rows=left_rows,
        changed=tuple(changed),
        message=_message(left_days, left_rows, changed, cap),
    )
    return list(left_days.get("calibration", ())), facts


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
    if not is_over_budget(rows, flagged, budget, _MAX_FALSE_ALARM_RATE):
        return none
    row_ids = pl.concat([none, *(day.row_ids for day in days)])
    order = np.argsort(-np.concatenate([day.scores for day in days]), kind="stable")
    return row_ids[order[: flagged - int(budget * rows)]]


def _may_go(part: str, gone: int, judged: Sequence[_Day], dataset: Dataset) -> bool:
    return _leaves_enough(part, gone, sum(day.rows for day in judged), dataset)


def _leaves_enough(part: str, gone: int, rows: int, dataset: Dataset) -> bool:
    """Return whether so many rows may go: neither more than the cap, nor too many for the alert budget."""
    is_enough = part != "calibration" or rows - gone >= _needed_rows(dataset)
    return gone <= dataset.config.training.max_screened_share * rows and is_enough


def _needed_rows(dataset: Dataset) -> int:
    """Return the number of calibration rows that the configured alert budget needs."""
    budget = dataset.config.alerts.budget
    return max(MIN_CALIBRATION_ROWS, budget_rows(budget) if budget else 0)


def _message(days: dict[str, tuple[str, ...]], rows: dict[str, int], changed: Sequence[str], cap: float) -> str:
    phrases = []
    for part, count in rows.items():
        of_days = f", all of {abbreviate(days[part])}" if days.get(part) else ""
        phrases.append(f"{pluralize(count, 'row')} left out of {part}{of_days}")
    phrases += [
        f"the data has changed: {part} would lose more than {cap:.0%} of its rows, or more than the alert budget "
        "allows, so nothing of it is left out"
        for part in changed
    ]
    return "; ".join(phrases) or "nothing left out of validation and calibration"


def screening_metrics(facts: ScreeningFacts | None) -> dict[str, float]:
    """Return the metrics of a screening: rows of each part that were left out, and whether the part had changed."""
    if facts is None:
        return {}
    rows = {f"screening.{part}.rows": float(facts.rows.get(part, 0)) for part in SCREENED_PARTS}
    return rows | {f"screening.{part}.changed": float(part in facts.changed) for part in SCREENED_PARTS}
