"""Compare the published scores with known anomalies, if the configuration has a label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import pluralize
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import LABEL, Window
from ae_pipeline.latents.read import PublishedDay, published_day, subsample
from ae_pipeline.monitoring.feedback import Mark, MarkState, marks_of
from ae_pipeline.monitoring.marks_summary import rows_in_state
from ae_pipeline.reports.ranking import scored_and_known, with_label
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

Array = npt.NDArray[np.float64]

_CURVE_POINTS = 60
"""Points of the curve of recall and precision."""

_MAX_LISTED = 20
_LISTED = {"row_id": pl.String(), "day": pl.String(), "score": pl.Float64()}
"""Rows of the lists of misses and false alarms, and their columns."""

_UNSEEN = "that neither the network nor the tails of its losses were fitted on"
_ALL_BUT_FITTED = f"rows {_UNSEEN}: all but those of its training and validation parts"
_CHANGED = "unknown, because the rows have changed since the training"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Scores of labeled rows, measured against their labels.

    Attributes:
        rows: Rows with a known label.
        anomalies: Known anomalies.
        anomalies_flagged: Flagged known anomalies.
        normal_flagged: Flagged rows that are known to be normal.
        auroc: Area under the ROC curve; None unless there are both anomalies and normal rows.
        average_precision: Average precision; None under the same condition.
        curve: Recall and precision at thresholds from high to low, at most 60; empty under the same condition.
        best_threshold: Score that separates anomalies from normal rows best, by F1; None under the same condition.
        best_recall: Share of the anomalies that score at least as high.
        best_precision: Share of anomalies among all rows that score at least as high.
    """

    rows: int
    anomalies: int
    anomalies_flagged: int
    normal_flagged: int
    auroc: float | None
    average_precision: float | None
    curve: tuple[tuple[float, float], ...] = ()
    best_threshold: float | None = None
    best_recall: float | None = None
    best_precision: float | None = None

    @property
    def normal(self) -> int:
        """Rows that are known to be normal."""
        return self.rows - self.anomalies


@dataclass(frozen=True)
class LabeledRow:
    """A row whose flag contradicts its label.

    Attributes:
        row_id: Identity of the row.
        day: ISO date, or `ALL_ROWS`.
        score: Surprisal, nats.
    """

    row_id: str
    day: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Published scores, measured against the label.

    Attributes:
        label: Expression that is true for known anomalies.
        only_normal: Whether known anomalies were excluded from the training.
        unknown: Published rows without a known label.
        all_rows: Measures over all published rows with a known label.
        held_out: Measures over those that the model was not fitted on; None if these rows are unknown.
        held_out_is: Description of the held-out rows, or why they are unknown.
        misses: Known anomalies that are not flagged, at most 20, the highest score first.
        false_alarms: Flagged rows that are known to be normal, at most 20, the highest score first.
    """

    label: str
    only_normal: bool
    unknown: int
    all_rows: Measures
    held_out: Measures | None
    held_out_is: str
    misses: tuple[LabeledRow, ...] = ()
    false_alarms: tuple[LabeledRow, ...] = ()


def measure(scores: Array, anomalies: npt.NDArray[np.bool_], flagged: npt.NDArray[np.bool_]) -> Measures:
    """Measure the scores of n rows with known labels.

    Args:
        scores: Scores, (n,).
        anomalies: Whether each row is a known anomaly, (n,).
        flagged: Whether each row is flagged, (n,).

    >>> scores, anomalies = np.array([3.0, 1.0, 2.0]), np.array([True, False, False])
    >>> measure(scores, anomalies, scores > 1.5).auroc
    1.0
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    has_both = bool(anomalies.any() and not anomalies.all())
    further: dict[str, Any] = {}
    if has_both:
        precision, recall, thresholds = precision_recall_curve(anomalies, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(np.argmax(f1[:-1]))  # the last point has no threshold
        chosen = np.unique(np.linspace(0, len(recall) - 1, _CURVE_POINTS).astype(int))[::-1]
        further = {
            "curve": tuple((float(recall[each]), float(precision[each])) for each in chosen),
            "best_threshold": float(thresholds[best]),
            "best_recall": float(recall[best]),
            "best_precision": float(precision[best]),
        }
    return Measures(
        rows=len(scores),
        anomalies=int(anomalies.sum()),
        anomalies_flagged=int((anomalies & flagged).sum()),
        normal_flagged=int((~anomalies & flagged).sum()),
        auroc=float(roc_auc_score(anomalies, scores)) if has_both else None,
        average_precision=float(average_precision_score(anomalies, scores)) if has_both else None,
        **further,
    )


def measure_labels(files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle) -> Labels | None:
    """Measure the scores of all published rows against their labels; return None without a label.

    A person's mark replaces the label of a row: it is newer, and somebody looked at the row. A training learns false
    alarms, so they are not held out.

    Rows are read one day at a time. Only a score and three booleans of each row stay in memory.

    Args:
        files: Published days.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
    """
    config, paths = dataset.config, dataset.paths
    if config.label is None:
        return None
    window = bundle.window
    seen = seen_rows(bundle, paths) if ALL_ROWS in window.train else None
    message = _ALL_BUT_FITTED if seen is not None else _CHANGED if ALL_ROWS in window.train else _all_but_days(window)
    marks = marks_of(paths)
    label = marked_label(marks)
    fitted_days, learned = {*window.train, *window.validation} - {ALL_ROWS}, false_alarm_ids(paths)
    parts = [pl.DataFrame(schema={"score": pl.Float64, "is_anomaly": pl.Boolean, LABEL: pl.Boolean, "new": pl.Boolean})]
    misses, alarms = (pl.DataFrame(schema=_LISTED) for _ in range(2))
    for day in sorted(files):
        rows = scored_and_known(files[day], paths).with_columns(label)
        misses = _with_day(misses, rows.filter(pl.col(LABEL) & ~pl.col("is_anomaly")), day)
        alarms = _with_day(alarms, rows.filter(~pl.col(LABEL) & pl.col("is_anomaly")), day)
        unseen = ~pl.col("row_id").is_in(seen.implode()) if seen is not None else pl.lit(day not in fitted_days)
        unseen &= ~pl.col("row_id").is_in(learned.implode())
        parts.append(rows.select("score", "is_anomaly", LABEL, unseen.alias("new")))
    rows = pl.concat(parts)
    labeled = rows.drop_nulls(LABEL)
    is_seen_known = ALL_ROWS not in window.train or seen is not None
    return Labels(
        label=config.label,
        only_normal=window.only_normal,
        unknown=rows.height - labeled.height,
        all_rows=measure_rows(labeled),
        held_out=measure_rows(labeled.filter("new")) if is_seen_known else None,
        held_out_is=message,
        misses=highest(misses),
        false_alarms=highest(alarms),
    )


def _with_day(rows: pl.DataFrame, of_day: pl.DataFrame, day: str) -> pl.DataFrame:
    """Return the rows with the highest scores of those so far and those of a day."""
    return _sorted(pl.concat([rows, of_day.select("row_id", pl.lit(day).alias("day"), "score")]))


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("score", "row_id", descending=[True, False]).head(_MAX_LISTED)


def highest(rows: pl.DataFrame) -> tuple[LabeledRow, ...]:
    """Return the rows with the highest scores, at most 20; they have `row_id`, `day` and `score`."""
    return tuple(LabeledRow(*row) for row in _sorted(rows).iter_rows())


def normal_scores(days: Sequence[PublishedDay], dataset: Dataset) -> Array:
    """Return scores of the rows of some days that are not known anomalies, (n,).

    Of a day with more than 20,000 rows, every n-th row is taken. All rows count without a label, and on a day whose
    features cannot be read.

    Args:
        days: Published days.
        dataset: Configuration and paths of the dataset.
    """
    paths, parts = dataset.paths, [np.empty(0)]
    if dataset.config.label is None:
        parts += [subsample(published_day(day, paths, ["score"]))["score"].to_numpy() for day in days]
        return np.concatenate(parts)
    label = marked_label(marks_of(paths))
    for day in days:
        rows = subsample(published_day(day, paths, ["row_id", "score"]))
        try:
            labeled = with_label(rows, day.day, paths).with_columns(label)
        except (OSError, StorageError):  # the table is whole without the features, which another run builds again
            labeled = rows.with_columns(pl.lit(None, pl.Boolean).alias(LABEL))
        parts.append(labeled.filter(~pl.col(LABEL).fill_null(value=False))["score"].to_numpy())
    return np.concatenate(parts)


def false_alarm_ids(paths: DatasetPaths) -> pl.Series:
    """Return the identities of the rows that people marked as false alarms, which a training learns."""
    by_day = rows_in_state(marks_of(paths), MarkState.FALSE_ALARM)
    return pl.Series([row_id for row_ids in by_day.values() for row_id in row_ids], dtype=pl.String)


def marked_label(marks: Sequence[Mark]) -> pl.Expr:
    """Return the label of rows with `row_id`, which the mark of a person replaces."""
    label = pl.col(LABEL)
    for state, value in ((MarkState.REAL, True), (MarkState.FALSE_ALARM, False)):
        row_ids = [row_id for of_day in rows_in_state(marks, state).values() for row_id in of_day]
        if row_ids:
            is_marked = pl.col("row_id").is_in(pl.Series(row_ids, dtype=pl.String).implode())
            label = pl.when(is_marked).then(pl.lit(value)).otherwise(label)
    return label.alias(LABEL)


def measure_rows(rows: pl.DataFrame) -> Measures:
    """Measure rows or images with `score`, a known label and `is_anomaly`."""
    return measure(*(rows[name].to_numpy() for name in ("score", LABEL, "is_anomaly")))


def _all_but_days(window: Window) -> str:
    """Describe the days that the model was fitted on. A changed world interleaves them with the calibration days."""
    fitted = sorted({*window.train, *window.validation})
    between = [day for day in window.calibration if day < fitted[-1]]
    without = f", except {pluralize(len(between), 'calibration day')} between them" if between else ""
    return f"rows of days {_UNSEEN}: all but {fitted[0]} to {fitted[-1]}{without}"


def seen_rows(bundle: ModelBundle, paths: DatasetPaths) -> pl.Series | None:
    """Return the rows that the model was fitted on, if a hash assigned the rows; None if they have changed since."""
    content = {day: read_facts(paths.features(day)).get("content_hash", "") for day in bundle.window.train}
    is_daily = ALL_ROWS not in content
    if hash_json(list(content.items()) if is_daily else content) != bundle.window.fingerprint:
        return None
    return pl.concat([bundle.window.rows(part, paths, ["row_id"])["row_id"] for part in ("train", "validation")])
