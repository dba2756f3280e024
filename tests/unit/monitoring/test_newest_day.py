"""The newest day: whether it is still filling, and what its assessment says then."""

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnDisplay
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift
from ae_pipeline.monitoring.day_assessment import assess_day
from ae_pipeline.monitoring.deviations import Deviation
from ae_pipeline.monitoring.newest_day import FillingDay, filling_day, filling_json
from ae_pipeline.scoring.drift import Effect, Part
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

DAY = "2024-03-10"
LATER = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)


def weeks(rows: int) -> dict[str, int]:
    """Return the same number of rows for four earlier weeks."""
    return {(dt.date.fromisoformat(DAY) - dt.timedelta(weeks=n)).isoformat(): rows for n in range(1, 5)}


def filling(
    root: Path, times: list[str], previous: dict[str, int], now: dt.datetime, timezone: str = "UTC", **settings: Any
) -> FillingDay | None:
    """Return whether a day is filling whose last rows have these local times."""
    values = {"dataset": "shop", "identity": ["id"], "event_time": "t", "start": "2024-01-01", "timezone": timezone}
    config = PipelineConfig.model_validate({**values, **settings})
    dataset = Dataset(config, DatasetPaths(root, "shop"))
    zone = config.zone
    moments = [dt.datetime.fromisoformat(f"{DAY}T{time}").replace(tzinfo=zone).astimezone(dt.UTC) for time in times]
    dataset.paths.features(DAY).parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"event_time": moments}).write_parquet(dataset.paths.features(DAY))
    return filling_day({**previous, DAY: len(times)}, dataset, now)


def at(hour: int, minute: int = 0, day: int = 10) -> dt.datetime:
    return dt.datetime(2024, 3, day, hour, minute, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("times", "now", "is_filling"),
    [
        (["00:10", "09:00"], at(10), True),
        (["00:10", "09:00"], at(23, 59), True),
        (["00:10", "09:00"], at(0, day=11), False),  # the day is over
        (["00:10", "22:59"], at(23, 30), True),
        (["00:10", "23:00"], at(23, 30), False),  # the last event is at the end of the day
        (["00:00", "00:00"], at(10), False),  # dates have no time of day
        (["00:10", "09:00"], at(10, day=9), True),  # planned rows of tomorrow
    ],
)
def test_a_day_fills_until_it_is_over(tmp_path: Path, times: list[str], now: dt.datetime, is_filling: bool) -> None:
    assert (filling(tmp_path, times, {}, now) is not None) == is_filling


@pytest.mark.parametrize(
    ("timezone", "now", "is_filling"),
    [
        ("America/New_York", at(3, 59, day=11), True),  # summer time ends the day at 04:00 UTC
        ("America/New_York", at(4, 0, day=11), False),
        ("Asia/Kolkata", at(18, 29), True),
        ("Asia/Kolkata", at(18, 30), False),
    ],
)
def test_the_clock_is_that_of_the_time_zone(tmp_path: Path, timezone: str, now: dt.datetime, is_filling: bool) -> None:
    assert (filling(tmp_path, ["00:10", "09:00"], {}, now, timezone) is not None) == is_filling


@pytest.mark.parametrize(("rows", "is_filling"), [(79, True), (80, False), (300, False)])
def test_a_day_with_few_rows_fills_although_it_is_over(tmp_path: Path, rows: int, is_filling: bool) -> None:
    times = ["08:00"] * (rows - 1) + ["23:30"]
    day = filling(tmp_path, times, weeks(100), LATER)
    assert (day is not None) == is_filling


def test_without_two_earlier_weeks_the_rows_say_nothing(tmp_path: Path) -> None:
    assert filling(tmp_path, ["08:00", "09:00"], dict(list(weeks(100).items())[:1]), LATER) is None


def test_the_message_names_rows_time_and_zone(tmp_path: Path) -> None:
    day = filling(tmp_path, ["08:00", "09:05"], weeks(1200), LATER, "America/New_York")
    assert day is not None
    assert day.message == (
        "2024-03-10 is still filling: 2 rows came so far, where the same weekday usually has 1,200, the last one of "
        "09:05 America/New_York"
    )
    assert filling_json(day)["last_event"] == "2024-03-10T09:05:00-04:00"


def test_rows_without_event_time_never_fill(tmp_path: Path) -> None:
    config = PipelineConfig.model_validate({"dataset": "shop", "identity": ["id"]})
    assert filling_day({"all": 3}, Dataset(config, DatasetPaths(tmp_path, "shop")), LATER) is None


def test_drift_names_columns_by_their_titles_for_people() -> None:
    effects = (
        Effect(part=Part.COLUMN, name="arr_delay", psi=2.0, is_drift=True, message="it moved"),
        Effect(part=Part.LATENT, name="z_003", psi=1.0, is_drift=True, message="it moved"),
    )
    drift = DayDrift(day=DAY, is_after=True, rows=100, effects=effects, is_judged=True)
    names = ColumnNames({"arr_delay": ColumnDisplay(title="arrival delay")})
    assert drift.message() == "column arr_delay: it moved · latent z_003: it moved"
    assert drift.message(names) == "column arrival delay: it moved · latent z_003: it moved"
    entry = ReportDay(
        day=DAY, rows=100, flagged=0, known_anomalies=0, known_flagged=0, discovery_count=0, content_hash="hash"
    )
    assessment = assess_day(entry, {}, drift, (), 0.001, names=names)
    assert "column arrival delay: it moved" in assessment.message


def test_only_flagged_rows_of_a_filling_day_count() -> None:
    counts = {"rows": 100, "known_anomalies": 0, "known_flagged": 0, "discovery_count": 0, "content_hash": "hash"}
    effect = Effect(part=Part.COLUMN, name="x", psi=1.0, is_drift=True, message="it moved")
    drift = DayDrift(day=DAY, is_after=True, rows=100, effects=(effect,), is_judged=True)
    odd = (Deviation(columns=("x",), message="x is odd"),)
    message = f"{DAY} is still filling"
    quiet, over = (
        assess_day(ReportDay(day=DAY, flagged=flagged, **counts), weeks(1000), drift, odd, 0.001, message)  # type: ignore[arg-type]
        for flagged in (0, 9)
    )
    assert (quiet.is_wrong, quiet.is_filling, quiet.deviations) == (False, True, ())
    assert quiet.message.startswith("nothing unusual: 0 of 100 rows are flagged")
    assert quiet.aside == f"{message}. It is not compared with other days until it is complete."
    assert over.is_wrong
    assert over.message == "9 rows are flagged, 90 times the budget"
