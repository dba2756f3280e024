"""Choose the days that the report page lists."""

from collections.abc import Mapping, Sequence
from typing import Any

from ae_pipeline.config.display import PLAIN, ColumnNames
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.reports.groups import group_rows
from ae_pipeline.reports.ranking import as_rows, ranked_day
from ae_pipeline.storage.paths import DatasetPaths

_MAX_DAYS = 20
"""Days that need attention, and about the number of all listed days."""

_CAUSES = 3
"""Causes that are named of a day."""


def day_entry(day: str, assessment: DayAssessment) -> dict[str, Any]:
    """Return counts and verdict of a day as the page lists them; a wrong day has a message under `words`.

    Args:
        day: ISO date, or `ALL_ROWS`.
        assessment: Assessment of the day.
    """
    return {
        "day": day,
        "rows": assessment.rows,
        "flagged": assessment.flagged,
        "new": assessment.new,
        "state": assessment.verdict.value,
        "words": assessment.message if assessment.is_wrong else "",
    }


def most_worth_a_look(index: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the listed days: the newest that need attention, then those with the most flagged rows.

    Args:
        index: All days. A day that needs attention has a message under `words`.
    """
    urgent = sorted((entry for entry in index if entry["words"]), key=lambda entry: entry["day"], reverse=True)
    others = [entry for entry in index if not entry["words"] and entry["flagged"]]
    others.sort(key=lambda entry: (-entry["flagged"], entry["day"]))
    return [*urgent[:_MAX_DAYS], *others[: max(_MAX_DAYS // 3, _MAX_DAYS - len(urgent))]]


def with_causes(
    index: Sequence[Mapping[str, Any]], paths: DatasetPaths, timezone: str = "UTC", names: ColumnNames = PLAIN
) -> list[Mapping[str, Any]]:
    """Return days with a message each: those without one get the causes of their flagged rows.

    Args:
        index: Listed days.
        paths: Paths of the dataset.
        timezone: Time zone of the dataset.
        names: How the messages name columns.
    """
    described: list[Mapping[str, Any]] = []
    for entry in index:
        causes = [] if entry["words"] else group_rows(as_rows(ranked_day(entry["day"], paths), timezone), names)
        message = entry["words"] or "; ".join(cause.message for cause in causes[:_CAUSES])
        described.append({**entry, "words": message})
    return described
