"""What a page shows: verdict, causes, rows with their neighbours, charts; of one day, or of all days."""

import datetime as dt
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.latents.read import PublishedDay, published_day, scores_of
from ae_pipeline.monitoring.budget import ReportDay, is_over_budget
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.day_assessment import DayAssessment, assess_day
from ae_pipeline.monitoring.deviations import DETAILED, Deviation, deviations_of, whereabouts
from ae_pipeline.registry.history import Change, history
from ae_pipeline.reports.charts import Chart, calibration_chart, drift_chart, latent_chart, loss_chart, score_chart
from ae_pipeline.reports.groups import Group, group_rows
from ae_pipeline.reports.latent_map import columns_of, reference_rows
from ae_pipeline.reports.ranking import RankedRow
from ae_pipeline.reports.row_details import RowDetails
from ae_pipeline.scoring.drift import Part
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_SOON = dt.timedelta(days=7)
"""After a day: a model that serves only later has not scored it when it was new."""

_TREND = 30
"""Days of the trend."""


@dataclass(frozen=True)
class PageContext:
    """What a page shows beside its own lists.

    Attributes:
        daily: Whether rows have days.
        verdict: Of the day; None where there is none.
        recent: The days up to it: rows, flagged, what the budget would have, whether they are over it.
        model: Version, since when it serves, whether that is long after the day, up to when it has learnt, and how many
            days before the day that is.
        drift_words: In few words, and in more.
        values: Share of the model's values that are there on the day, and in the training window; None where that is
            not known.
        rejected: Rows in quarantine of the files that the day's rows came from.
        unused: How many of all landed files give no row, and how many stand in for a newer version that cannot be used.
        strangest: Rows that are listed.
        groups: Of them, those that are flagged or discoveries, by what made them strange.
        group_of: Place of each row's group from 1, as text, by row_id.
        nearest: Ordinary rows near each, with their distances, by row_id.
        told: Their columns and values, by row_id.
        trust: How the model has done on rows that it has not seen, for a person; may be empty.
        links: Where features and page of a row's day are, beside this page.
        charts: In their order.
        cache: Folder for what pages have in common.
    """

    daily: bool
    verdict: DayAssessment | None
    recent: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any]
    drift_words: tuple[str, str]
    values: tuple[float, float] | None
    rejected: int
    unused: tuple[int, int]
    strangest: Sequence[RankedRow]
    groups: Sequence[Group]
    group_of: Mapping[str, str]
    nearest: Mapping[str, Sequence[tuple[str, float]]]
    told: Mapping[str, Sequence[tuple[str, str]]]
    trust: str
    links: Callable[[RankedRow], Mapping[str, str | bool | None] | None]
    charts: Sequence[Chart]
    cache: Path


@dataclass(frozen=True)
class Published:
    """A published table with what was made of it, from which pages are drawn.

    Attributes:
        files: The published days.
        paths: The dataset's.
        bundle: The model that the table was scored with.
        config: The settings of now.
        model_version: Its version.
        entries: Ranked days, by day.
        drift: Days beside the training window.
    """

    files: Mapping[str, PublishedDay]
    paths: DatasetPaths
    bundle: ModelBundle
    config: PipelineConfig
    model_version: int
    entries: Mapping[str, ReportDay]
    drift: Sequence[DayDrift] = field(default=())

    @property
    def newest(self) -> str | None:
        """The newest day with rows."""
        return max((day for day, entry in self.entries.items() if entry.rows), default=None)

    @cached_property
    def drift_of(self) -> dict[str, DayDrift]:
        """Days beside the training window, by day."""
        return {day.day: day for day in self.drift}

    @cached_property
    def reference(self) -> pl.DataFrame:
        """Ordinary rows of the calibration days."""
        return reference_rows(self.files, self.paths, self.bundle)

    @cached_property
    def _categories(self) -> set[str]:
        """Columns whose values part the rows of a day."""
        return {entry.name for entry in self.bundle.reference if entry.part == Part.COLUMN and entry.is_category}

    @cached_property
    def listed(self) -> RowDetails:
        """What is told of single rows."""
        return RowDetails(self.files, self.paths, self.bundle, self.config, self.reference)

    def page_of(self, day: str) -> Path:
        """Where the page of a day is, if it has one."""
        return self.paths.reports / "days" / f"{day}.html"

    def pages_beside(self, day: str) -> tuple[str | None, str | None]:
        """Names the next days before and after a day that have a page."""
        others = [other for other in self.entries if self.page_of(other).exists()]
        previous, after = [other for other in others if other < day], [other for other in others if other > day]
        return max(previous, default=None), min(after, default=None)

    def features_beside(self, page: Path, day: str | None) -> str:
        """Says where the features of a day are, beside a page; nothing without a day."""
        return os.path.relpath(self.paths.features(day), page.parent) if day else ""

    def deviations(self, day: str, *, in_detail: bool = True) -> tuple[Deviation, ...]:
        """Says how a day as a whole is unlike the training window, in detail also in which parts of its rows."""
        drift = self.drift_of.get(day)
        if drift is None or not drift.effects:
            return ()
        columns = {effect.name for effect in drift.effects if effect.part == Part.COLUMN}
        if not columns:
            return ()
        if in_detail and any(effect.missing > self.config.drift.missing for effect in drift.effects):
            columns |= {"row_id", *self._categories}
        file = pl.scan_parquet(self.paths.features(day), glob=False)
        there = [name for name in file.collect_schema().names() if name in columns or name == "event_time"]
        features = file.select(there).collect()
        return deviations_of(drift, features, self.bundle, self.config.drift)

    def verdict(self, day: str, *, in_detail: bool = True) -> DayAssessment:
        """Judges a day."""
        previous = {other: entry.rows for other, entry in self.entries.items() if other < day}
        budget, deviations = self.bundle.config.alerts.budget, self.deviations(day, in_detail=in_detail)
        found = assess_day(self.entries[day], previous, self.drift_of.get(day), deviations, budget)
        return found if self.config.is_daily else replace(found, day="all rows")

    def _verdict_at_top(self, day: str) -> DayAssessment:
        """Judges a day, and says where days without a row have come after the newest."""
        verdict = self.verdict(day)
        if not self.config.is_daily or day != self.newest:
            return verdict
        later = [path.stem for path in self.paths.features("_").parent.glob("*.parquet") if path.stem > day]
        if not (empty := sorted(one for one in later if read_facts(self.paths.features(one)).get("rows") == "0")):
            return verdict
        none_came = f"no row has come for {empty[0]}" + (f" to {empty[-1]}" if len(empty) > 1 else "")
        message = f"{verdict.message}; {none_came}" if verdict.is_wrong else f"{none_came}; on {day} {verdict.message}"
        return replace(verdict, is_wrong=True, message=message)

    def index(self, page: Path) -> list[dict[str, Any]]:
        """Lists all days with what somebody should know of each, the oldest first."""
        found = []
        for day in sorted(self.entries):
            entry, verdict = self.entries[day], self.verdict(day, in_detail=False)
            message = verdict.message if verdict.is_wrong else ""
            link = os.path.relpath(self.page_of(day), page.parent) if self.page_of(day).exists() else None
            found.append({"day": day, "rows": entry.rows, "flagged": entry.flagged, "words": message, "page": link})
        return found

    def show(self, day: str | None, strangest: Sequence[RankedRow], page: Path) -> PageContext:
        """Gathers what a page shows.

        Args:
            day: Whose verdict stands at its top.
            strangest: Rows to list.
            page: Where it will be.
        """
        groups = group_rows(strangest)
        if groups and day and page == self.page_of(day):
            groups = self._located(groups, day)
        group_of = {row.row_id: str(index) for index, group in enumerate(groups, 1) for row in group.rows}
        return PageContext(
            self.config.is_daily,
            self._verdict_at_top(day) if day else None,
            self._recent(day),
            self._model(day),
            self._drift_words(day),
            self._values(day),
            self._rejected(day),
            (
                sum(not entry.days for entry in self._landed),
                sum(bool(entry.refused and entry.days) for entry in self._landed),
            ),
            self.listed.explanations(strangest),
            groups,
            group_of,
            self.listed.nearest(strangest),
            self.listed.values(strangest),
            self._trust(day),
            lambda row: self._link(row, page),
            self.charts(day) if day else (),
            self.paths.cache,
        )

    def _located(self, groups: Sequence[Group], day: str) -> list[Group]:
        """Says of the largest groups of a day where in it they lie."""
        known = self._categories
        file = pl.scan_parquet(self.paths.features(day), glob=False)
        there = [name for name in file.collect_schema().names() if name in known or name in {"row_id", "event_time"}]
        features = file.select(there).collect()
        found = []
        for group in groups[:DETAILED]:
            hit = features["row_id"].is_in([row.row_id for row in group.rows])
            parts = [name for name in there if name in known and name not in group.columns]
            found.append(replace(group, where=whereabouts(features, hit, parts)))
        return [*found, *groups[DETAILED:]]

    def _recent(self, day: str | None) -> list[dict[str, Any]]:
        budget = self.bundle.config.alerts.budget
        return [
            {
                "day": entry.day,
                "rows": entry.rows,
                "flagged": entry.flagged,
                "expected": budget * (entry.rows - entry.known_anomalies),
                "is_over": is_over_budget(
                    entry.rows - entry.known_anomalies, entry.flagged - entry.known_flagged, budget
                ),
            }
            for other, entry in sorted(self.entries.items())
            if day and other <= day
        ][-_TREND:]

    def _model(self, day: str | None) -> dict[str, Any]:
        served = [
            entry
            for entry in history(self.paths)
            if entry.version == self.model_version and entry.change in {Change.PROMOTED, Change.ROLLED_BACK}
        ]
        learnt_to = self.bundle.window.days[-1]
        since = served[-1].at[:10] if served else None
        behind, is_later = None, False
        if day and self.config.is_daily:
            own = dt.date.fromisoformat(day)
            behind = (own - dt.date.fromisoformat(learnt_to)).days if day > learnt_to else None
            is_later = bool(served) and dt.date.fromisoformat(served[0].at[:10]) > own + _SOON
        return {
            "version": self.model_version,
            "learnt_to": learnt_to if learnt_to != ALL_ROWS else "the rows of its training",
            "days_behind": behind,
            "since": since,
            "is_later": is_later,
        }

    def _drift_words(self, day: str | None) -> tuple[str, str]:
        drift = self.drift_of.get(day or "")
        if drift is None:
            return "not known", "rows without event time have no days to compare"
        if not drift.is_judged:
            return "not known", "too few rows to hold the day against the training window"
        where = (
            "" if drift.is_after else "; the training has seen this day, so that scores and latents are not compared"
        )
        if drift.effects:
            count = len(drift.effects)
            noun = "column" if all(effect.part == Part.COLUMN for effect in drift.effects) else "figure"
            names = ", ".join(dict.fromkeys(effect.name for effect in drift.effects[:3]))
            more = f" and {count - 3} more" if count > 3 else ""
            told = f"{count} {noun if count == 1 else f'{noun}s'} far from the training window, {names}{more}"
            return "drifted", f"{told}{where}"
        return "none", f"no column, latent or score far from the training window{where}"

    def _values(self, day: str | None) -> tuple[float, float] | None:
        known = {entry.name: entry.missing for entry in self.bundle.reference if entry.part == Part.COLUMN}
        if day is None or not known:
            return None
        file = pl.scan_parquet(self.paths.features(day), glob=False)
        there = [name for name in file.collect_schema().names() if name in known]
        rows = int(file.select(pl.len()).collect().item())
        missing = file.select(pl.col(there).null_count()).collect(engine="streaming").rows() if there else [()]
        gone = sum(missing[0]) + rows * (len(known) - len(there))
        return 1 - gone / max(rows * len(known), 1), 1 - sum(known.values()) / len(known)

    def _trust(self, day: str | None) -> str:
        if not self.config.is_daily or day is None:
            return ""
        learnt_to, budget = self.bundle.window.days[-1], self.bundle.config.alerts.budget
        after = [entry for other, entry in self.entries.items() if learnt_to < other <= day and entry.rows]
        rows = sum(entry.rows - entry.known_anomalies for entry in after)
        flagged = sum(entry.flagged - entry.known_flagged for entry in after)
        if not rows:
            return "No row after the training is published: how it does on what it has not seen is not known."
        days = "On the day" if len(after) == 1 else f"On the {len(after)} days"
        but = " that are not known anomalies" if any(entry.known_anomalies for entry in after) else ""
        counts = f"{flagged:,} of {rows:,} rows{but}, {flagged / rows:.2%}"
        return f"{days} after its training it flags {counts}; the budget is {budget:.2%}."

    @cached_property
    def _landed(self) -> Collection[LandedFile]:
        return Ledger.load(self.paths.ledger).files.values() if self.paths.ledger.exists() else ()

    def _rejected(self, day: str | None) -> int:
        return sum(sum(entry.quarantined.values()) for entry in self._landed if day in entry.days)

    def _link(self, row: RankedRow, page: Path) -> dict[str, str | bool | None]:
        day = self.listed.day_of(row)
        own = self.page_of(day)
        there = own.exists() and own != page
        return {
            "day": day,
            "daily": self.config.is_daily,
            "features": self.features_beside(page, day),
            "page": os.path.relpath(own, page.parent) if there else None,
        }

    def charts(self, day: str) -> list[Chart]:
        """Draws what a day looks like, and what tells whether the model can be trusted."""
        bundle = self.bundle
        rows = published_day(self.files[day], self.paths, columns_of(bundle))
        name = _named(day)
        charts = [
            score_chart(rows["score"].to_numpy(), bundle.calibration.scores, bundle.calibration.threshold, name),
            latent_chart(rows, self.reference, bundle, name),
        ]
        index = self.paths.reports / "drift.parquet"
        if index.exists():
            effects = pl.read_parquet(index).filter(pl.col("day") <= day)
            charts += [chart] if (chart := drift_chart(effects, self.config.drift)) else []
        charts.append(self._calibration(day))
        if bundle.facts.epochs:
            charts.append(loss_chart(bundle.facts.epochs, bundle.facts.best_epoch, bundle.loss.unit))
        return charts

    def _calibration(self, day: str) -> Chart:
        after = [found for other, found in self.files.items() if self.bundle.window.days[-1] < other <= day]
        whose, days = "after the training window", after[-len(self.bundle.window.calibration) :]
        if not self.config.is_daily:
            whose, days = "of all, also of the training", list(self.files.values())
        elif not days:
            whose = "of the calibration days themselves: near the line by their making. Days after them are the test"
            days = [self.files[other] for other in self.bundle.window.calibration if other in self.files]
        p_values = self.bundle.calibration.p_values(scores_of(days, self.paths))
        return calibration_chart(np.asarray(p_values), f"{len(p_values):,} rows {whose}.")


def _named(day: str) -> str:
    return day if day != ALL_ROWS else "all rows"
