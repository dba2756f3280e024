"""What people marked, as a training reads it: real anomalies are left out, and false alarms are learned."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ae_pipeline.common.text import abbreviate
from ae_pipeline.features.split import GATE, PARTS, USABLE, Window
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, whole
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

_SHARE, _MIN_COPIES, _MAX_SHARE = 0.003, 20, 0.05
"""Share of the training rows that the copies of all false alarms make up, copies of each at least, and share at most.

Three rows among 270,000 leave no trace in a training. About 800 copies do; the other rows keep 99.7 % of the weight.
"""


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """Marks of people.

    Attributes:
        real: Identities of the rows that are real anomalies, by day.
        false_alarms: Identities of the rows that are false alarms, by day.
        real_days: Days that are anomalous as a whole.
        usual_days: Days that were wrongly called unusual. No screening leaves them out.
    """

    real: Mapping[str, Sequence[str]] = field(default_factory=dict)
    false_alarms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    real_days: Sequence[str] = ()
    usual_days: Sequence[str] = ()

    def without_marked(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return rows without real anomalies and false alarms.

        Args:
            rows: Rows with `row_id`; without columns if there are none.
        """
        marked = pl.Series([*_all(self.real), *_all(self.false_alarms)], dtype=pl.String)
        return rows.filter(~pl.col("row_id").is_in(marked.implode())) if rows.width else rows

    def is_false_alarm(self, rows: pl.DataFrame) -> pl.Series:
        """Return which rows are false alarms."""
        return rows["row_id"].is_in(pl.Series(_all(self.false_alarms), dtype=pl.String).implode())

    def kept_window(self, window: Window) -> Window:
        """Return a window without days that are anomalous as a whole. A part keeps its days if none would remain."""
        changed: dict[str, tuple[str, ...]] = {}
        for part in (GATE,) if window.is_by_row else (*PARTS, GATE):
            days: tuple[str, ...] = getattr(window, part)
            kept = tuple(day for day in days if day not in self.real_days)
            if kept:
                changed[part] = kept
            elif days:
                logger.warning(f"{part} keeps {abbreviate(days)}, marked as real, because no other day would remain")
        return dataclasses.replace(window, **changed)  # type: ignore[arg-type]

    def left_out(self, window: Window, paths: DatasetPaths) -> dict[str, pl.Series]:
        """Return the identities of the rows that each part of a window leaves out.

        Args:
            window: Days of each part.
            paths: Paths of the dataset.
        """
        left, real = {}, {**self.real, **self._rows_of_real_days(window, paths)}
        for part in PARTS:
            # What the training learns must not decide when it stops, nor how its scores are calibrated.
            marked = real if part == "train" else {**real, **_merged(real, self.false_alarms)}
            days = tuple(day for day in getattr(window, part) if day in marked)
            row_ids = pl.Series([row_id for day in days for row_id in marked[day]], dtype=pl.String)
            if row_ids.is_empty():
                continue
            of_days = window if window.is_by_row else dataclasses.replace(window, **{part: days})  # type: ignore[arg-type]
            batches = of_days.batches(part, paths, ["row_id"])
            present = [rows["row_id"].filter(rows["row_id"].is_in(row_ids.implode())) for rows in batches]
            left[part] = pl.concat(present) if present else row_ids.clear()
        return {part: row_ids for part, row_ids in left.items() if row_ids.len()}

    def _rows_of_real_days(self, window: Window, paths: DatasetPaths) -> dict[str, list[str]]:
        """Return all rows of the days that are anomalous as a whole, if a hash divides the rows of all days."""
        days = [day for day in window.days if day in self.real_days] if window.is_by_row else []
        if days and len(days) == len(window.days):
            logger.warning(f"all parts keep {abbreviate(days)}, marked as real, because no other day would remain")
            return {}
        scans = {day: pl.scan_parquet(whole(paths.features(day)), glob=False) for day in days}
        return {day: scan.select("row_id").collect()["row_id"].to_list() for day, scan in scans.items()}

    def learned(self, dataset: Dataset, columns: Sequence[str]) -> pl.DataFrame:
        """Return the features of the false alarms that a training may learn.

        Args:
            dataset: Configuration and paths of the dataset. Days outside `start` to `end` and rows that do not fulfil
                `training.where` are skipped.
            columns: Columns of the training rows. Days whose features lack one are skipped.
        """
        parts, paths, config = [], dataset.paths, dataset.config
        for day, row_ids in sorted(self.false_alarms.items()):
            if not config.has_day(day) or not read_facts(paths.features(day)):
                continue
            scan = pl.scan_parquet(whole(paths.features(day)), glob=False)
            if set(columns) <= set(scan.collect_schema().names()):
                wanted = pl.Series(row_ids, dtype=pl.String).implode()
                if config.training.where:
                    scan = scan.filter(pl.col(USABLE).fill_null(value=False))
                parts.append(scan.filter(pl.col("row_id").is_in(wanted)).select(columns).collect())
        return pl.concat(parts) if parts else pl.DataFrame()


def copied(learned: pl.DataFrame, train_rows: int) -> pl.DataFrame:
    """Return false alarms, each as often as it takes to learn it.

    Args:
        learned: Result of `Reviewed.learned`.
        train_rows: Number of the training rows that the copies are added to.
    """
    if learned.is_empty():
        return learned
    share = train_rows / learned.height
    return pl.concat([learned] * max(math.ceil(min(max(_SHARE * share, _MIN_COPIES), _MAX_SHARE * share)), 1))


def with_distinct_ids(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows whose copies have identities of their own, so that a hash sample thins the copies of a row."""
    copy = pl.int_range(pl.len()).over("row_id")
    return rows.with_columns(row_id=pl.when(copy > 0).then(pl.format("{}|{}", "row_id", copy)).otherwise("row_id"))


NOTHING_REVIEWED = Reviewed()
"""Nothing is marked."""


def _all(by_day: Mapping[str, Sequence[str]]) -> list[str]:
    return [row_id for row_ids in by_day.values() for row_id in row_ids]


def _merged(one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {day: [*one.get(day, ()), *row_ids] for day, row_ids in other.items()}
