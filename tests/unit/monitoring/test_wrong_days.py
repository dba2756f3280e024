"""Alerts about wrong days: one for each reason, none for what people know or for days of the training window."""

from dataclasses import replace

import pytest

from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.lifecycle.alerts import RECENT_DAYS, alert_wrong_days, raise_without_lock
from ae_pipeline.monitoring.alerts import Alert, AlertEvent, alerts_of
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.day_assessment import assess_day
from ae_pipeline.monitoring.deviations import Deviation
from ae_pipeline.monitoring.feedback import Mark, MarkKind, MarkState, Review
from ae_pipeline.monitoring.verdict import WHOLE
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS
from tests.support.reports import as_dataset
from tests.support.sensors import Fitted

DAY = "2024-03-15"
ENTRY = ReportDay(
    day=DAY, rows=60, flagged=30, known_anomalies=0, known_flagged=0, discovery_count=0, content_hash="hash"
)
WEEKS = {"2024-03-08": 100, "2024-03-01": 100}


def test_each_reason_raises_one_alert(dataset: Fitted) -> None:
    lacking = (Deviation(columns=("load",), message="80% of rows (48) lack load", rows=48, is_missing=True),)
    wrong = assess_day(ENTRY, WEEKS, None, lacking, 0.01)
    in_window = dataset.bundle.window.days[-1]
    for _ in range(2):
        alert_wrong_days({DAY: wrong, in_window: wrong}, dataset.bundle, as_dataset(dataset), "run")
    assert [(alert.event.value, alert.message) for alert in alerts_of(dataset.paths)] == [
        ("over_budget", f"30 of 60 rows of {DAY} are flagged, 50.0 times the budget"),
        ("null_flood", f"{DAY}: 80% of rows (48) lack load"),
        ("missing_rows", f"{DAY}: 60 rows came, where the same weekday usually has 100"),
    ]


@pytest.mark.parametrize(("noun", "nouns"), [("image", "images"), ("patch", "patches")])
def test_alerts_name_images_and_patches(dataset: Fitted, noun: str, nouns: str) -> None:
    wrong = assess_day(ENTRY, WEEKS, None, (), 0.01, names=ColumnNames(row=noun))
    missed = replace(ENTRY, day=ALL_ROWS, rows=100, known_anomalies=40)
    undated = replace(assess_day(missed, {}, None, (), 0.01, names=ColumnNames(row=noun)), day=WHOLE)
    alert_wrong_days({DAY: wrong, "2024-03-16": undated}, dataset.bundle, as_dataset(dataset), "run")
    assert [alert.message for alert in alerts_of(dataset.paths)] == [
        f"30 of 60 {nouns} of {DAY} are flagged, 50.0 times the budget",
        f"{DAY}: 60 {nouns} came, where the same weekday usually has 100",
        f"30 of 60 {nouns} of 2024-03-16 are flagged, 50.0 times the budget",
        f"all {nouns}: 40 of 40 known anomalies are not flagged (recall 0%, at least 50% is expected)",
    ]


def test_alerts_about_rows_without_days_name_no_day(dataset: Fitted) -> None:
    undated = Dataset(dataset.config.model_copy(update={"event_time": None}), dataset.paths)
    missed = replace(ENTRY, day=ALL_ROWS, rows=100, known_anomalies=40)
    wrong = replace(assess_day(missed, {}, None, (), 0.01), day="all rows")
    alert_wrong_days({ALL_ROWS: wrong}, dataset.bundle, undated, "run")
    assert [alert.message for alert in alerts_of(dataset.paths)] == [
        "30 of 60 rows are flagged, 50.0 times the budget",
        "all rows: 40 of 40 known anomalies are not flagged (recall 0%, at least 50% is expected)",
    ]


def test_only_the_newest_days_of_a_run_raise_more_than_alerts_about_the_budget(dataset: Fitted) -> None:
    odd = (Deviation(columns=("load",), message="load is odd", rows=40),)
    days = [f"2024-03-{day}" for day in range(15, 15 + RECENT_DAYS + 2)]
    wrong = {day: assess_day(replace(ENTRY, day=day), {}, None, odd, 0.01) for day in days}
    alert_wrong_days(wrong, dataset.bundle, as_dataset(dataset), "run")
    raised = alerts_of(dataset.paths)
    assert sum(alert.event == AlertEvent.OVER_BUDGET for alert in raised) == len(days)
    unusual = [alert.message for alert in raised if alert.event == AlertEvent.UNUSUAL_DAY]
    assert unusual == [f"{day}: load is odd" for day in days[2:]]


def test_an_alert_is_stored_although_the_locks_cannot_be_reached(
    dataset: Fitted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise StorageError("the locks of the server db:5432 cannot be used")

    monkeypatch.setattr("ae_pipeline.storage.session.locks", fail)
    raise_without_lock(Alert(event=AlertEvent.RUN_FAILED, key="a", message="it failed"), as_dataset(dataset))
    assert [alert.message for alert in alerts_of(dataset.paths)] == ["it failed"]
    assert "the report does not show it yet: the locks of the server db:5432" in caplog.text


def test_what_is_marked_as_known_raises_none(dataset: Fitted) -> None:
    odd = (Deviation(columns=("load",), message="load is odd", rows=40),)
    wrong = assess_day(ENTRY, {}, None, odd, 0.01)
    sizes = {"flagged": 30.0, **{reason.kind.value: reason.size for reason in wrong.all_reasons}}
    mark = Mark(kind=MarkKind.DAY, subject=DAY, state=MarkState.KNOWN, day=DAY, columns=("load",), sizes=sizes)
    known = wrong.reviewed(Review(days={DAY: mark}), DAY)
    alert_wrong_days({DAY: known}, dataset.bundle, as_dataset(dataset), "run")
    assert alerts_of(dataset.paths) == []
    grown = assess_day(replace(ENTRY, flagged=46), {}, None, odd, 0.01, review=Review(days={DAY: mark}))
    alert_wrong_days({DAY: grown}, dataset.bundle, as_dataset(dataset), "run")
    assert [alert.event.value for alert in alerts_of(dataset.paths)] == ["over_budget"]
