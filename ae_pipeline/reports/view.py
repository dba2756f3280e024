"""The published table with its ranked days and its drift: what the pages of a report are made from."""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ae_pipeline.config.days import has_come
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.day_assessment import assess_day, first_with_verdict
from ae_pipeline.monitoring.deviations import DETAILED, Deviation, deviations_of
from ae_pipeline.monitoring.feedback import UNREVIEWED, Review
from ae_pipeline.monitoring.locations import describe_location
from ae_pipeline.monitoring.newest_day import FillingDay, filling_day
from ae_pipeline.monitoring.verdict import WHOLE, DayAssessment, DayState, LabelLimits
from ae_pipeline.reports.charts import Chart, calibration_chart, drift_chart, latent_chart, loss_chart, score_chart
from ae_pipeline.reports.groups import Group
from ae_pipeline.reports.index import day_entry
from ae_pipeline.reports.labels import normal_scores
from ae_pipeline.reports.latent_map import columns_of, reference_rows
from ae_pipeline.reports.row_details import RowDetails
from ae_pipeline.scoring.drift import Part
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, whole
from ae_pipeline.storage.paths import ALL_ROWS


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published table, its ranked days and its drift.

    Attributes:
        files: Published days.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.
        entries: Counts of the ranked days, by day.
        drift: Drift of the days.
        review: Rows and days as people marked them.
    """

    files: Mapping[str, PublishedDay]
    dataset: Dataset
    bundle: ModelBundle
    model_version: int
    entries: Mapping[str, ReportDay]
    drift: Sequence[DayDrift] = field(default=())
    review: Review = UNREVIEWED

    @cached_property
    def names(self) -> ColumnNames:
        """How pages name columns."""
        return column_names(self.dataset)

    @cached_property
    def newest(self) -> str | None:
        """Newest day with rows; None if no day has rows."""
        return max(self.days_with_rows, default=None)

    @cached_property
    def filling(self) -> FillingDay | None:
        """The newest day, if it is still filling."""
        return filling_day({day: entry.rows for day, entry in self.entries.items()}, self.dataset)

    @cached_property
    def headline(self) -> str | None:
        """Newest complete day with rows, which the page over all days assesses; the newest one if none is complete."""
        complete = (day for day in self.days_with_rows if not self._filling(day))
        return max(complete, default=self.newest)

    def _filling(self, day: str) -> str:
        """Return why a day counts as still filling; empty if it does not."""
        return self.filling.message if self.filling and self.filling.day == day else ""

    @cached_property
    def drift_by_day(self) -> dict[str, DayDrift]:
        """Drift of the days, by day."""
        return {day.day: day for day in self.drift}

    @cached_property
    def reference(self) -> pl.DataFrame:
        """Normal rows of the calibration days."""
        return reference_rows(self.files, self.dataset.paths, self.bundle)

    @cached_property
    def row_details(self) -> RowDetails:
        """Details of single rows."""
        return RowDetails(
            files=self.files,
            paths=self.dataset.paths,
            bundle=self.bundle,
            config=self.dataset.config,
            reference=self.reference,
        )

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of the landed files; empty without one."""
        path = self.dataset.paths.ledger
        return Ledger.load(path) if path.exists() else Ledger()

    @property
    def landed_files(self) -> Collection[LandedFile]:
        """Landed files in the ledger."""
        return self.ledger.files.values()

    @cached_property
    def _categories(self) -> set[str]:
        return {entry.name for entry in self.bundle.reference if entry.part == Part.COLUMN and entry.is_category}

    def page_of(self, day: str) -> Path:
        """Return the path of the page of a day; it need not exist."""
        return self.dataset.paths.reports / "days" / f"{day}.html"

    def days_with_page(self) -> list[str]:
        """Return the days that have a page now, the oldest first."""
        pages = self.dataset.paths.reports / "days"
        return sorted(self.entries.keys() & {page.stem for page in pages.glob("[!.]*.html")})

    @cached_property
    def days_with_rows(self) -> list[str]:
        """Days with rows, whose pages the data server can draw, the oldest first."""
        return sorted(day for day, entry in self.entries.items() if entry.rows)

    def features_link(self, day: str | None, page: Path) -> str:
        """Return a link from a page to the features of a day; empty without a day."""
        return os.path.relpath(self.dataset.paths.features(day), page.parent) if day else ""

    def deviations(self, day: str, *, in_detail: bool = True) -> tuple[Deviation, ...]:
        """Return how a day as a whole differs from the training window.

        Args:
            day: ISO date.
            in_detail: Whether to locate the affected rows in categories.
        """
        drift = self.drift_by_day.get(day)
        if drift is None or not drift.effects:
            return ()
        columns = {effect.name for effect in drift.effects if effect.part == Part.COLUMN}
        if not columns:
            return ()
        thresholds = self.dataset.config.drift
        if in_detail and any(effect.missing > thresholds.missing for effect in drift.effects):
            columns |= {"row_id", *self._categories}
        features = self._features(day, {*columns, "event_time"})
        return deviations_of(drift, features, self.bundle, thresholds, self.names)

    def _features(self, day: str, columns: Collection[str]) -> pl.DataFrame:
        """Read those of the columns that the features of a day have, with times in the time zone of the dataset."""
        file = pl.scan_parquet(whole(self.dataset.paths.features(day)), glob=False)
        features = file.select([name for name in file.collect_schema().names() if name in columns]).collect()
        return features.with_columns(
            pl.selectors.datetime(time_zone="*").dt.convert_time_zone(self.dataset.config.timezone)
        )

    def assess(self, day: str, *, in_detail: bool = True) -> DayAssessment:
        """Return the assessment of a day.

        Args:
            day: ISO date, or `ALL_ROWS`.
            in_detail: Whether to locate the affected rows in categories.
        """
        budget, deviations = self.bundle.calibration.budget, self.deviations(day, in_detail=in_detail)
        assessment = assess_day(
            self.entries[day],
            self._rows_by_day,
            self.drift_by_day.get(day),
            deviations,
            budget,
            self._filling(day),
            self.review,
            LabelLimits(self.dataset.config.alerts.min_recall, self.dataset.config.alerts.min_precision),
            self.names,
        )
        return assessment if self.dataset.config.is_daily else replace(assessment, day=WHOLE)

    def assess_in_brief(self, day: str) -> DayAssessment:
        """Return the assessment of a day without the places of its deviations. It is kept."""
        if day not in self._in_brief:
            self._in_brief[day] = self.assess(day, in_detail=False)
        return self._in_brief[day]

    @cached_property
    def _in_brief(self) -> dict[str, DayAssessment]:
        return {}

    @cached_property
    def _rows_by_day(self) -> dict[str, int]:
        return {day: entry.rows for day, entry in self.entries.items()}

    def assess_with_later_days(self, day: str) -> DayAssessment:
        """Return the assessment of a day and since when its verdict holds.

        That of the headline has a remark about later days without rows.
        """
        assessment = self.assess(day)
        assessment = replace(assessment, since=self._since(day, assessment.verdict))
        if not self.dataset.config.is_daily or day != self.headline or self.newest is None:
            return assessment
        features = self.dataset.paths.features
        paths = features("_").parent.glob("[!.]*.parquet")
        later = [path.stem for path in paths if path.stem > self.newest and has_come(path.stem, self.dataset.config)]
        empty = sorted(other for other in later if read_facts(features(other)).get("rows") == "0")
        if not empty:
            return assessment
        no_rows = f"There are no {self.names.rows} of {empty[0]}" + (f" to {empty[-1]}." if len(empty) > 1 else ".")
        return replace(assessment, remark=no_rows)

    def _since(self, day: str, verdict: DayState) -> str:
        """Return the first of the days in a row, up to a day, that have its verdict; empty for rows without days."""
        if not self.dataset.config.is_daily:
            return ""
        earlier = self.days_with_rows[: bisect_left(self.days_with_rows, day)][::-1]
        return first_with_verdict(day, verdict, ((other, self.assess_in_brief(other).verdict) for other in earlier))

    @cached_property
    def assessments(self) -> dict[str, DayAssessment]:
        """Assessments of all days, without the places of their deviations, by day, the oldest first."""
        return {day: self.assess_in_brief(day) for day in sorted(self.entries)}

    def index(self) -> list[dict[str, Any]]:
        """Return counts and verdicts of all days, the oldest first; a wrong day has a message under `words`."""
        return [day_entry(day, each) for day, each in self.assessments.items()]

    def locate(self, groups: Sequence[Group], day: str) -> list[Group]:
        """Return groups of rows of a day; the largest ones with phrases that locate their rows within the day."""
        features = self._features(day, {*self._categories, "row_id", "event_time"})
        located = []
        for group in groups[:DETAILED]:
            mask = features["row_id"].is_in([row.row_id for row in group.rows])
            categories = [name for name in features.columns if name in self._categories and name not in group.columns]
            located.append(replace(group, where=describe_location(features, mask, categories, self.names)))
        return [*located, *groups[DETAILED:]]

    def charts(self, day: str) -> list[Chart]:
        """Return charts that show a day and how reliable the model is."""
        bundle, config = self.bundle, self.dataset.config
        rows = published_day(self.files[day], self.dataset.paths, columns_of(bundle))
        nouns = self.names.rows
        name = day if day != ALL_ROWS else "the dataset"
        charts = [
            score_chart(rows["score"].to_numpy(), bundle.calibration.scores, bundle.calibration.threshold, name, nouns),
            latent_chart(rows, self.reference, bundle, name),
        ]
        drift = self.dataset.paths.reports / "drift.parquet"
        if read_facts(drift):
            effects = pl.read_parquet(drift, glob=False).filter(pl.col("day") <= day)
            charts += [chart] if (chart := drift_chart(effects, config.drift, self.names)) else []
        charts.append(self._calibration(day))
        if bundle.facts.epochs:
            charts.append(loss_chart(bundle.facts.epochs, bundle.facts.best_epoch, bundle.loss.unit))
        return charts

    def _calibration(self, day: str) -> Chart:
        window = self.bundle.window
        after = [file for other, file in self.files.items() if window.days[-1] < other <= day]
        part, files = "after the training window", after[-len(window.calibration) :]
        if not self.dataset.config.is_daily:
            part, files = "of the dataset, including those of the training", list(self.files.values())
        elif not files:
            part = "of the calibration days, which lie near the line by construction. Later days are the real test"
            files = [self.files[other] for other in window.calibration if other in self.files]
        p_values = np.asarray(self.bundle.calibration.p_values(normal_scores(files, self.dataset)))
        part += "" if self.dataset.config.label is None else ". Known anomalies are left out"
        return calibration_chart(p_values, f"{len(p_values):,} {self.names.rows} {part}.", self.names.rows)


def adjacent(day: str, days: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the last day before a day, and the first one after it.

    Args:
        day: ISO date.
        days: Days to choose from, the oldest first.

    >>> adjacent("2013-01-02", ["2013-01-01", "2013-01-02", "2013-01-05"])
    ('2013-01-01', '2013-01-05')
    """
    first, last = bisect_left(days, day), bisect_right(days, day)
    return days[first - 1] if first else None, days[last] if last < len(days) else None
