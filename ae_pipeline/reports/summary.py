"""summary.json: what the page shows, for other programs, and the schema that describes it."""

import json
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from ae_pipeline.config.model import Section


class DayCount(Section):
    """Rows of a day."""

    day: str = Field(description="ISO date, UTC; `all` for rows without event time.")
    rows: int
    flagged: int = Field(description="Rows within the alert budget.")


class DayDrift(Section):
    """A day beside the training window of the model."""

    day: str
    rows: int
    is_after: bool = Field(description="Whether it comes after the window; of others only the columns are looked at.")
    is_judged: bool = Field(description="Whether it has rows enough to be judged.")
    drifted: str = Field(description="What has drifted, in words; empty where the day is like the window.")


class DayDeviation(Section):
    """One way in which a day as a whole is unlike the training window."""

    columns: list[str]
    words: str
    rows: int = Field(description="That show it, where they can be told.")
    where: str = Field(description="SQL condition that finds them in the day's features; empty where none does.")
    splits: list[str] = Field(description="In which parts of the day's rows most of them lie, in words.")


class DayVerdict(Section):
    """What the newest day comes to."""

    day: str
    is_wrong: bool = Field(description="Whether somebody should look.")
    words: str
    aside: str = Field(description="What else somebody must know to understand the words; may be empty.")
    rows: int
    flagged: int
    known: int = Field(description="Of the flagged rows, known anomalies.")
    expected: float = Field(
        description="Flagged rows that the budget would have, of those that are no known anomalies."
    )
    usual_rows: int | None = Field(description="Median of the same weekday in the weeks before.")
    deviations: list[DayDeviation]


class AlertGroup(Section):
    """Listed rows that the same columns made strange."""

    columns: list[str]
    words: str
    rows: int
    highest_score: float = Field(description="Nats.")
    days: list[str]


class Contribution(Section):
    """One part of a row's score."""

    column: str
    surprise: float = Field(description="Nats.")
    actual: str
    expected: str


class StrangeRow(Section):
    """A listed row; `alerts.parquet` has all of them."""

    row_id: str
    event_time: str | None = Field(description="UTC.")
    score: float = Field(description="Surprise, nats; the higher, the stranger.")
    p_value: float = Field(description="Share of rows like those of the calibration that score as high.")
    is_anomaly: bool
    is_discovery: bool | None
    is_known_anomaly: bool | None
    because: str
    contributions: list[Contribution]


class Summary(Section):
    """Everything that the report says, without the pictures."""

    format: Literal[3] = 3
    dataset: str
    model_version: int
    mlflow_run: str
    latent_space: str | None
    rows: int = Field(description="Scored, over all published days.")
    flagged: int
    budget: float = Field(description="Share of normal rows that may be flagged.")
    expected_alerts: float = Field(description="Rows times budget.")
    false_discovery_rate: float | None
    discoveries: int | None
    verdict: DayVerdict | None = Field(description="Of the newest day; none where nothing was published.")
    groups: list[AlertGroup] = Field(description="Causes of the listed rows, the most frequent first.")
    alignment: dict[str, Any] | None = Field(description="Latents beside those of the version that served before.")
    score_threshold: float = Field(description="Nats; rows that score higher are flagged.")
    calibration_rows: int
    rows_by_part: dict[str, int] = Field(description="Rows that the model was fitted on, by part of its window.")
    train_days: list[str] = Field(description="First and last.")
    calibration_days: list[str] = Field(description="First and last.")
    columns: list[str] = Field(description="That the model sees.")
    columns_left_out: dict[str, str] = Field(description="Why, by column.")
    labels: dict[str, Any] | None = Field(description="Scores measured by the label, where there is one.")
    drift: list[DayDrift]
    days: list[DayCount]
    strangest: list[StrangeRow]
    files: dict[str, str] = Field(description="What lies beside this file.")

    def text(self) -> str:
        """Writes it as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1)


def schema_text() -> str:
    """Writes the JSON schema of summary.json."""
    return json.dumps(Summary.model_json_schema(), indent=1)


def row_facts(row: Any) -> dict[str, Any]:
    """Gives what summary.json says of a ranked row."""
    when = None if row.event_time is None else row.event_time.isoformat()
    return {**asdict(row), "event_time": when, "contributions": [part.record() for part in row.contributions]}
