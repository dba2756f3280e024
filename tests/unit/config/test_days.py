"""The days of a dataset: from `start` to `end`, and never after today."""

import datetime as dt

import pytest

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.days import check_days, has_come, last_day
from ae_pipeline.config.pipeline import PipelineConfig

TODAY = dt.date(2024, 3, 10)


@pytest.fixture(autouse=True)
def _today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PipelineConfig, "today", lambda _: TODAY)


def config(end: str | None = None) -> PipelineConfig:
    """Return a dataset that starts on 1 March 2024."""
    return PipelineConfig.model_validate(
        {"dataset": "orders", "identity": ["id"], "event_time": "time", "start": "2024-03-01", "end": end}
    )


@pytest.mark.parametrize(
    ("end", "last"), [(None, "2024-03-10"), ("2024-03-05", "2024-03-05"), ("2030-01-01", "2024-03-10")]
)
def test_the_last_day_is_never_after_today(end: str | None, last: str) -> None:
    assert last_day(config(end), TODAY).isoformat() == last


@pytest.mark.parametrize(
    ("days", "end", "problem"),
    [
        (["2024-03-11"], None, "2024-03-11 is not a day of 'orders': it is after today, 2024-03-10"),
        (["2024-03-01", "2024-04-06"], None, "2024-04-06 is not a day of 'orders': it is after today"),
        (["2024-03-11"], "2030-01-01", "2024-03-11 is not a day of 'orders': it is after today"),
        (["2024-03-06"], "2024-03-05", "2024-03-06 is not a day of 'orders': it is outside 2024-03-01 to 2024-03-05"),
        (["2024-02-29", "2024-03-02"], None, "2024-02-29 is not a day of 'orders': it is outside 2024-03-01 to"),
        ([], None, "'orders' has a partition for each day, but this run names no day; choose days from 2024-03-01 to"),
    ],
)
def test_a_run_outside_the_days_is_refused(days: list[str], end: str | None, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_days(days, config(end))
    assert str(refused.value).startswith(problem)


@pytest.mark.parametrize("days", [["2024-03-01"], ["2024-03-10"], ["2024-03-01", "2024-03-10"]])
def test_a_run_of_days_of_the_dataset_is_accepted(days: list[str]) -> None:
    check_days(days, config())


def test_a_day_has_come_when_it_begins() -> None:
    assert [has_come(day, config()) for day in ("2024-03-09", "2024-03-10", "2024-03-11")] == [True, True, False]
    assert has_come("all", PipelineConfig(dataset="orders"))
