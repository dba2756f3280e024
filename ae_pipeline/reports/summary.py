"""`summary.json`: the content of the report page for other programs, and its JSON schema."""

import datetime as dt
import json
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from ae_pipeline.config.section import Section
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.storage.paths import DatasetPaths


class DayReason(Section):
    """A reason why a day is wrong."""

    kind: str
    size: float = Field(description="Affected rows, or number of drifted measurements.")
    columns: list[str]


class DayCount(Section):
    """Counts of a day."""

    day: str = Field(description="ISO date in the time zone of the dataset; `all` for rows without event time.")
    rows: int
    flagged: int = Field(description="Rows within the alert budget.")
    state: str | None = Field(default=None, description="Verdict: `calm`, `worth a look` or `wrong`.")
    words: str = ""
    reasons: list[DayReason] = Field(
        default=[], description="Why the day is wrong, with reasons that a mark of a person covers."
    )


class DayDrift(Section):
    """Drift of a day, compared with the training window of the model."""

    day: str
    rows: int
    is_after: bool = Field(description="Whether the day is after the window; of other days only columns are compared.")
    is_judged: bool = Field(description="Whether the day has enough rows for a comparison.")
    drifted: str = Field(description="Description of the drift; empty without drift.")


class DayDeviation(Section):
    """One way in which a day as a whole differs from the training window."""

    columns: list[str]
    words: str
    rows: int = Field(description="Affected rows; 0 if single rows cannot be identified.")
    where: str = Field(description="SQL condition that selects these rows from the features of the day; may be empty.")
    splits: list[str] = Field(description="Phrases that locate the affected rows in categories.")


class VerdictReason(Section):
    """A reason for a verdict, in the order of the message."""

    kind: str
    words: str


class DayVerdict(Section):
    """Assessment of the newest complete day; of the newest day if no day is complete."""

    day: str
    state: str | None = Field(default=None, description="Verdict: `calm`, `worth a look` or `wrong`.")
    is_wrong: bool = Field(description="Whether the state is `wrong`.")
    words: str
    since: str = Field(
        default="",
        description="First of the days in a row with this state; empty for rows without event time, or if unknown.",
    )
    aside: str = Field(description="Remark that completes the message; may be empty.")
    rows: int
    flagged: int
    known: int = Field(description="Flagged rows that are known anomalies.")
    hidden: int = Field(default=0, description="Further flagged rows that people marked as known or as false alarms.")
    reasons: list[VerdictReason] = Field(default=[], description="Why the day is wrong.")
    expected: float = Field(description="Flagged rows that the budget allows, among rows that are not known anomalies.")
    usual_rows: int | None = Field(description="Median number of rows on the same weekday of the previous weeks.")
    is_filling: bool = Field(
        default=False, description="Whether the day is still filling; then only its flagged rows are assessed."
    )
    deviations: list[DayDeviation]


class FillingDay(Section):
    """The newest day, while its rows have not all arrived."""

    day: str
    rows: int = Field(description="Rows so far.")
    usual_rows: int | None = Field(description="Median number of rows on the same weekday of the previous weeks.")
    last_event: str = Field(description="Newest event time, in the time zone of the dataset.")
    words: str


class AlertGroup(Section):
    """Listed rows with the same cause."""

    columns: list[str]
    words: str
    rows: int
    highest_score: float = Field(description="Nats.")
    days: list[str]


class CategoryValue(Section):
    """Column and value of a category."""

    column: str
    value: str


class Contribution(Section):
    """Contribution of one part to the score of a row."""

    column: str
    surprise: float = Field(description="Surprisal, nats.")
    actual: str
    expected: str
    categories: list[CategoryValue] = Field(
        default=[], description="Columns and values of a rare combination; empty for other parts."
    )


class RegionBox(Section):
    """Region of an image, in pixels: from `top` and `left` to below `bottom` and `right`."""

    top: int
    left: int
    bottom: int
    right: int
    heat: float = Field(description="Highest residual, as a multiple of the usual one.")


class StrangeRow(Section):
    """A listed row; `alerts.parquet` contains all ranked rows."""

    row_id: str
    event_time: str | None = Field(description="UTC.")
    score: float = Field(description="Surprisal, nats; a higher score is more anomalous.")
    p_value: float = Field(description="Share of calibration rows with a score at least as high.")
    is_anomaly: bool
    is_discovery: bool | None
    is_known_anomaly: bool | None
    because: str
    contributions: list[Contribution]
    boxes: list[RegionBox] = Field(default=[], description="Hottest regions of an image or patch; empty for tables.")


class VersionFeedback(Section):
    """Rows that one version flagged, as people marked them."""

    version: int
    real: int
    known: int
    false_alarms: int
    precision: float | None = Field(description="Real ones among real ones and false alarms; null without any.")


class Summary(Section):
    """Content of the report, without pictures and charts."""

    format: Literal[3] = 3
    dataset: str
    model_version: int
    mlflow_run: str
    latent_space: str | None
    rows: int = Field(description="Scored rows of all published days.")
    flagged: int
    budget: float = Field(description="Share of normal rows that may be flagged.")
    expected_alerts: float = Field(
        description="Flagged rows that the budget allows: rows without known anomalies, times budget."
    )
    false_discovery_rate: float | None
    discoveries: int | None
    timezone: str = Field(default="UTC", description="Time zone of the dataset, in which its days start and end.")
    verdict: DayVerdict | None = Field(
        description="Assessment of the newest complete day; null if no day is published."
    )
    filling: FillingDay | None = Field(
        default=None, description="The newest day, if it is still filling; null if it is complete."
    )
    refused: str = Field(default="", description="Which landed files are refused, and why; empty if none is.")
    groups: list[AlertGroup] = Field(description="Causes of the listed rows, the most frequent first.")
    alignment: dict[str, Any] | None = Field(
        description="Comparison of the latents with those of the previous version."
    )
    score_threshold: float = Field(description="Nats; rows with a higher score are flagged.")
    calibration_rows: int
    rows_by_part: dict[str, int] = Field(description="Rows that the model was fitted on, by part of its window.")
    train_days: list[str] = Field(description="First and last day.")
    calibration_days: list[str] = Field(description="First and last day.")
    screening: str | None = Field(
        default=None, description="What the training left out of validation and calibration, as a sentence."
    )
    columns: list[str] = Field(description="Columns that the model uses.")
    columns_left_out: dict[str, str] = Field(description="Reason why each other column is left out.")
    labels: dict[str, Any] | None = Field(description="Scores measured against the label; null without a label.")
    images: dict[str, Any] | None = Field(
        default=None, description="Verdicts on images and measures of heat maps; null for tables."
    )
    drift: list[DayDrift]
    days: list[DayCount]
    feedback: list[VersionFeedback] = Field(default=[], description="What people marked, by version of the model.")
    strangest: list[StrangeRow]
    files: dict[str, str] = Field(description="Files in the same directory.")

    def text(self) -> str:
        """Return the summary as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1)


def assessment_json(assessment: DayAssessment) -> dict[str, Any]:
    """Return an assessment as `summary.json` stores it: messages are under the key `words`."""
    return {
        "day": assessment.day,
        "state": assessment.verdict.value,
        "is_wrong": assessment.is_wrong,
        "words": assessment.message,
        "since": assessment.since,
        "aside": assessment.aside,
        "rows": assessment.rows,
        "flagged": assessment.flagged,
        "known": assessment.known,
        "hidden": assessment.hidden,
        "expected": assessment.expected,
        "usual_rows": assessment.usual_rows,
        "reasons": [{"kind": reason.kind.value, "words": reason.message} for reason in assessment.reasons],
        "is_filling": assessment.is_filling,
        "deviations": [
            {
                "columns": list(deviation.columns),
                "words": deviation.message,
                "rows": deviation.rows,
                "where": deviation.where,
                "splits": list(deviation.splits),
            }
            for deviation in assessment.deviations
        ],
    }


def day_count(day: str, assessment: DayAssessment) -> dict[str, Any]:
    """Return counts and verdict of a day as `summary.json` stores them.

    Args:
        day: ISO date, or `ALL_ROWS`.
        assessment: Assessment of the day.
    """
    return {
        "day": day,
        "rows": assessment.rows,
        "flagged": assessment.flagged,
        "state": assessment.verdict.value,
        "words": assessment.message,
        "reasons": [
            {"kind": each.kind.value, "size": each.size, "columns": list(each.columns)}
            for each in assessment.all_reasons
        ],
    }


def read_summary(paths: DatasetPaths) -> dict[str, Any] | None:
    """Return `summary.json`, or None if it is missing or damaged; the next run then writes it again."""
    file = paths.reports / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a ValueError is text that is no UTF-8, or no JSON
        return None
    return summary if isinstance(summary, dict) else None


def schema_text() -> str:
    """Return the JSON schema of `summary.json`."""
    return json.dumps(Summary.model_json_schema(), indent=1)


def row_facts(row: Any) -> dict[str, Any]:
    """Return a ranked row as `summary.json` stores it."""
    event_time = None if row.event_time is None else row.event_time.astimezone(dt.UTC).isoformat()
    contributions = [part.record() for part in row.contributions]
    boxes = [box._asdict() for box in row.boxes]
    return {**asdict(row), "event_time": event_time, "contributions": contributions, "boxes": boxes}
