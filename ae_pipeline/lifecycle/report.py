"""The report on days: what its checks say, and the alerts that it raises."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.escape import escape_markdown
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import PLAIN, ColumnNames, noun_of_rows
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.lifecycle.alerts import alert_wrong_days, post_due_and_show
from ae_pipeline.lifecycle.publish import load_table_model
from ae_pipeline.lifecycle.published_facts import PublishedFacts
from ae_pipeline.lifecycle.training_metrics import experiment_note
from ae_pipeline.monitoring.budget import TOLERATED_FACTOR, is_over_budget
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.feedback import marks_digest
from ae_pipeline.monitoring.verdict import AS_A_WHOLE, WHOLE, DayAssessment, ReasonKind
from ae_pipeline.registry.names import PUBLISHED_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.build import Report, build_report
from ae_pipeline.reports.page import refresh_operations, shown_marks
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset

logger = logging.getLogger(__name__)

VERDICT_TAG = "newest verdict"
"""Tag of the MLflow run of the version that scored the newest complete day, with the verdict on that day."""

SINCE_TAG = "verdict since"
"""Tag with the first of the days in a row that have this verdict: MLflow cuts off long tags."""

REPORT_TAG = "report"
"""Tag with the address of the report, as of its last run."""


@dataclass(frozen=True, kw_only=True)
class ReportedDays:
    """A report and what its checks say.

    Attributes:
        report: The report.
        version: Version that scored the table.
        budget: Alert budget of the version.
        days: Days that were asked for.
        names: How messages name columns and rows.
    """

    report: Report
    version: TrackedVersion
    budget: float
    days: tuple[str, ...]
    names: ColumnNames = PLAIN

    @property
    def rows(self) -> int:
        """Rows that are not known anomalies. Known anomalies should be flagged and do not count against the budget."""
        return sum(day.rows - day.known_anomalies for day in self.report.judged)

    @property
    def flagged(self) -> int:
        """Flagged rows among them that people marked neither as known nor as false alarms."""
        return sum(day.flagged - day.known_flagged for day in self.report.judged) - self.report.hidden

    @property
    def flagged_share(self) -> float:
        """Share of flagged rows."""
        return self.flagged / max(self.rows, 1)

    @property
    def max_flagged_share(self) -> float:
        """Share of flagged rows that the check allows."""
        return TOLERATED_FACTOR * self.budget

    @property
    def is_over_budget(self) -> bool:
        """Whether more rows are flagged than the check allows, on these days together or on the newest one."""
        return is_over_budget(self.rows, self.flagged, self.budget) or bool(self._reasons({ReasonKind.OVER_BUDGET}))

    @property
    def budget_message(self) -> str:
        """How the flagged rows relate to the budget."""
        unknown = " that are not known anomalies" if self.report.labels else ""
        times = self.flagged_share / self.budget
        newest = "".join(f"; {self._newest_day}: {each}" for each in self._reasons({ReasonKind.OVER_BUDGET}))
        return (
            f"{self.flagged:,} of {self.rows:,} {self.names.rows}{unknown} are flagged, {times:.1f} times the budget "
            f"of {self.budget:.2%}{newest if len(self.report.judged) > 1 else ''}"
        )

    @property
    def _newest_day(self) -> str:
        newest = self.report.newest_assessment
        return newest.title if newest else "no day"

    def _reasons(self, kinds: Collection[ReasonKind]) -> list[str]:
        """Return why the newest complete day is wrong, as far as people do not know it."""
        newest = self.report.newest_assessment
        return [reason.message for reason in newest.reasons if reason.kind in kinds] if newest else []

    @property
    def unusual(self) -> list[str]:
        """How the newest complete day as a whole is unusual, in the training window or after it."""
        return self._reasons(AS_A_WHOLE)

    @property
    def unusual_message(self) -> str:
        """What the check of the day as a whole says."""
        newest = self.report.newest_assessment
        fine = (
            "it is like the training window"
            if newest and newest.is_compared
            else f"it has too few {self.names.rows} to compare"
        )
        known = newest.known_as_a_whole if newest else ""
        return f"{self._newest_day}: {'; '.join(self.unusual) or known or fine}"

    @property
    def missing_rows(self) -> list[str]:
        """Which rows the newest complete day lacks."""
        return self._reasons({ReasonKind.MISSING_ROWS})

    @property
    def completeness_message(self) -> str:
        """What the check of the number of rows says."""
        newest = self.report.newest_assessment
        if self.missing_rows or newest is None:
            return f"{self._newest_day}: {'; '.join(self.missing_rows) or f'no {self.names.rows}'}"
        if newest.day == WHOLE:
            return f"{self.names.rows} without event time have no days, so none can be incomplete"
        came = f"{newest.day}: {pluralize(newest.rows, self.names.row)}"
        if newest.usual_rows is None:
            return f"{came}; how many are usual is known from two earlier weeks on"
        return f"{came}, {newest.usual_rows:,} are usual on this weekday"

    @property
    def days_after_window(self) -> tuple[DayDrift, ...]:
        """Complete days that the checks judge and that lie after the training window."""
        filling = self.report.filling.day if self.report.filling else ""
        return tuple(
            day
            for day in self.report.drift
            if day.is_after and day.day in {judged.day for judged in self.report.judged} and day.day != filling
        )

    @property
    def drifting(self) -> list[DayDrift]:
        """Those of them that have drifted in a way that no mark covers."""
        return [day for day in self.days_after_window if day.effects and day.day not in self.report.known_drift]

    @property
    def drift_message(self) -> str:
        """Which days have drifted, and how."""
        days, drifting = self.days_after_window, self.drifting
        evaluated = [day for day in days if day.is_judged]
        if not days:
            count = sum(day.is_after for day in self.report.drift)
            verb = "is" if count == 1 else "are"
            return f"none of these days is after the training window; {pluralize(count, 'day')} of the table {verb}"
        if not drifting:
            few, known = len(days) - len(evaluated), sum(bool(day.effects) for day in days)
            skipped = f"; {few} more {'has' if few == 1 else 'have'} too few {self.names.rows}" if few else ""
            skipped += f"; the drift of {known} more is known or a false alarm" if known else ""
            alike = len(evaluated) - known
            verb = "is" if alike == 1 else "are"
            return f"{pluralize(alike, 'day')} after the training window {verb} like it{skipped}"
        return (
            f"{len(drifting)} of {pluralize(len(evaluated), 'day')} after the training window "
            f"{'has' if len(evaluated) == 1 else 'have'} drifted; "
            f"{drifting[-1].day}: {drifting[-1].message(self.names)}"
        )


def report_on_days(
    dataset: Dataset, tracker: Tracker, days: Sequence[str], run_id: str, address_of: Callable[[Path], str]
) -> ReportedDays:
    """Rank and explain the rows of days, and raise alerts about days that are wrong.

    Args:
        dataset: Dataset to report on.
        tracker: The model store.
        days: Days to report on; they must be published.
        run_id: Dagster run, for alerts.
        address_of: Function from a file to its address at the server of the data folder.
    """
    version, bundle = load_table_model(dataset, tracker)

    def alert(assessments: Mapping[str, DayAssessment]) -> None:
        alert_wrong_days(assessments, bundle, dataset, run_id)

    report = build_report(days, dataset, bundle, version.version, version.run_id, on_assessed=alert)
    if shown_marks(dataset.paths) != marks_digest(dataset.paths):  # marked while the report was built
        refresh_operations(dataset)
    post_due_and_show(dataset)
    if newest := report.newest_assessment:
        _show_in_mlflow(newest, address_of(report.page), dataset, version, tracker)
    page = dataset.paths.address(report.page)
    logger.info(f"{report.flagged:,} of {pluralize(report.rows, noun_of_rows(dataset.config))} flagged; {page}")
    return ReportedDays(
        report=report,
        version=version,
        budget=bundle.calibration.budget,
        days=tuple(days),
        names=column_names(dataset),
    )


def _show_in_mlflow(
    newest: DayAssessment, address: str, dataset: Dataset, version: TrackedVersion, tracker: Tracker
) -> None:
    """Show verdict, report, flags and drift in the run of the version, and the verdict in the list of runs."""
    verdict = f"{newest.title}: {newest.headline}"
    try:
        tracker.tag_run(version.run_id, VERDICT_TAG, verdict)
        if newest.since:
            tracker.tag_run(version.run_id, SINCE_TAG, newest.since)
        tracker.tag_run(version.run_id, REPORT_TAG, address)
        tracker.lead_description(version.run_id, f"**{escape_markdown(verdict)}** [Open the report]({address}).")
        if facts := PublishedFacts.of_summary(read_summary(dataset.paths) or {}):
            tracker.tag_run(version.run_id, PUBLISHED_TAG, facts.model_dump_json())
        tracker.describe_experiment(dataset.name, experiment_note(dataset.config, verdict, address))
    except StorageError as error:
        logger.warning(f"MLflow does not show the verdict, nor the flags of the version: {error}")
