"""Drift of single days through the whole chain: checks, report, sensors and retraining."""

import datetime as dt
from collections.abc import Iterator

import dagster as dg
import polars as pl
import pytest

from ae_pipeline.monitoring.daily_drift import drifting_days, read_drift
from ae_pipeline.orchestration.sensors import early_training_requests, landing_requests, rebuild_requests
from tests.support.shop import ATTRIBUTES, DAYS, FIRST, Shop, orders_csv, published_shop


@pytest.fixture
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    attributes = {
        **ATTRIBUTES,
        "end": NEW[-1],
        "drift": {"min_rows": 30, "psi": 1.0},
        "retrain": {"min_new_rows": 50, "drifting_days": 2},
    }
    yield from published_shop(tmp_path_factory, attributes, DAYS[:-3])


NEW = [(FIRST + dt.timedelta(days=index)).isoformat() for index in range(len(DAYS) - 3, len(DAYS) + 2)]
"""Days after the initial days of the shop."""


def drifting_csv(day: str) -> str:
    """Return orders of a day on which every price is in another currency, and one country is new."""
    return orders_csv(day).replace(",NA,", ",XX,1").replace(",DE,", ",DE,1")


def drift_check(shop: Shop) -> dg.AssetCheckEvaluation:
    """Return the latest result of the drift check."""
    key = dg.AssetCheckKey(dg.AssetKey(["orders", "anomaly_report"]), "drift")
    (record,) = shop.instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).values()
    assert record.evaluation
    return record.evaluation


class TestDailyDrift:
    def test_only_days_after_the_window_are_checked(self, shop: Shop) -> None:
        days = read_drift(shop.paths, 30)
        assert [day.day for day in days] == DAYS[-5:-3]  # the days of the gate
        assert not any(day.effects for day in days)
        assert drift_check(shop).passed
        assert drift_check(shop).description == "2 days after the training window are like it"

    def test_drifting_day_warns_and_appears_in_the_report(self, shop: Shop) -> None:
        shop.land(NEW[0], drifting_csv(NEW[0]))
        assert shop.run("day", NEW[0]).success
        check = drift_check(shop)
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert f"1 of 1 day after the training window has drifted; {NEW[0]}: " in str(check.description)
        assert "column country" in str(check.description)
        page = (shop.paths.reports / "report.html").read_text()
        assert "with new categories, at most 5.0%" in page
        table = pl.read_parquet(shop.paths.reports / "drift.parquet")
        assert set(table["part"]) == {"column", "score", "latent"}
        assert set(table["name"]) == {"items", "country", "price", "score", "z_000", "z_001"}

    def test_corrected_day_is_checked_again(self, shop: Shop) -> None:
        shop.land(NEW[0], drifting_csv(NEW[0]))
        assert shop.run("day", NEW[0]).success
        shop.land(NEW[0])
        assert shop.run("day", NEW[0]).success
        assert drift_check(shop).passed
        assert drifting_days(shop.paths, 30) == []

    def test_day_with_few_rows_is_not_checked(self, shop: Shop) -> None:
        shop.land(NEW[0], "\n".join(drifting_csv(NEW[0]).splitlines()[:11]) + "\n")
        shop.land(NEW[1])  # the newest day of few rows would still be filling
        assert shop.run("day", NEW[0], NEW[1]).success
        description = "1 day after the training window is like it; 1 more has too few rows"
        assert drift_check(shop).description == description

    def test_drift_triggers_training_on_enough_new_drifting_days(self, shop: Shop) -> None:
        assert shop.requested(early_training_requests) == "0 days in a row have drifted, fewer than drifting_days=2"
        answers = []
        for index, day in enumerate(NEW, 1):
            shop.land(day, drifting_csv(day))
            shop.run_requests(landing_requests)
            shop.run_requests(rebuild_requests)
            assert drifting_days(shop.paths, 30) == list(NEW[:index])
            answers.append(shop.requested(early_training_requests))
        few = "{} days in a row have drifted; {} of them are new to a training, fewer than drifting_days=2"
        assert answers[0] == "1 day in a row has drifted, fewer than drifting_days=2"
        assert str(answers[1]).startswith(few.format(2, 0))
        assert str(answers[2]).startswith(few.format(3, 1))
        assert str(answers[2]).endswith("the newest 2 belong to the gate")
        (request,) = list(answers[3])
        assert request.startswith("orders_train 4 days in a row have drifted; 160 rows on 4 new or changed days")
        assert [sensor.name for sensor in shop.defs.sensors or []].count("orders_drift") == 1
        shop.land(NEW[4], drifting_csv(NEW[4]).replace(",9,", ",8,"))
        shop.run_requests(landing_requests)
        waits = "the training waits until new days are published under the version that serves"
        assert shop.requested(early_training_requests) == f"{waits}: {NEW[4]}"

    def test_drift_does_not_trigger_training_twice(self, shop: Shop) -> None:
        for day in NEW[:4]:
            shop.land(day, drifting_csv(day))
        shop.run_requests(landing_requests)
        shop.run_requests(rebuild_requests)
        assert len(shop.run_requests(early_training_requests)) == 1  # whether the challenger was promoted or rejected
        shop.run_requests(rebuild_requests)
        shop.land(NEW[4], drifting_csv(NEW[4]))
        shop.run_requests(landing_requests)
        shop.run_requests(rebuild_requests)
        assert isinstance(shop.requested(early_training_requests), str)
