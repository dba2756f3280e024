"""A project in a time zone, one that gets a time zone later, and files that are deleted."""

import datetime as dt
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
import pytest

from ae_pipeline import read_latents
from ae_pipeline.cli.project import Project
from ae_pipeline.cli.summary import summarize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.lifecycle.plan import days_to_publish, plan_serving, plan_training
from ae_pipeline.orchestration.assets.common import daily_partitions
from ae_pipeline.orchestration.sensors import landing_requests, rebuild_requests
from tests.support.shop import ATTRIBUTES, DAYS, Shop, make_shop, orders_csv

ZONE = "America/New_York"
LOCAL_DAYS = [(dt.date(2024, 2, 16) + dt.timedelta(days=n)).isoformat() for n in range(25)]
"""Days around 10 March 2024, which has 23 hours."""

LOCAL = {**ATTRIBUTES, "timezone": ZONE, "start": LOCAL_DAYS[0], "end": LOCAL_DAYS[-1]}


def local_csv(day: str) -> str:
    """Return orders of a local day, two in each of its hours, with instants in UTC. The price depends on the items."""
    start = dt.datetime.combine(dt.date.fromisoformat(day), dt.time(), ZoneInfo(ZONE)).astimezone(dt.UTC)
    following = dt.datetime.combine(dt.date.fromisoformat(day) + dt.timedelta(days=1), dt.time(), ZoneInfo(ZONE))
    times = [start + dt.timedelta(minutes=30 * n) for n in range(int((following - start).total_seconds() // 1800))]
    lines = ["order_id,created_at,items,country,price"]
    for n, moment in enumerate(times):
        items, country = n % 9 + 1, ("DE", "FR", "NA")[n % 3]
        lines.append(f"{day}-{n},{moment:%Y-%m-%dT%H:%M:%SZ},{items},{country},{items * 10 + n % 7 / 7:.2f}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def local_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project in New York whose days are published."""
    for shop in make_shop(tmp_path_factory.mktemp("local"), LOCAL):
        for day in LOCAL_DAYS:
            shop.land(day, local_csv(day))
        assert shop.run("ingest", LOCAL_DAYS[0], LOCAL_DAYS[-1]).success
        assert shop.run("train").success
        assert shop.run("publish", LOCAL_DAYS[0], LOCAL_DAYS[-1]).success
        yield shop


def rows_by_date(shop: Shop) -> dict[str, int]:
    """Return the number of rows of each date in the table."""
    rows = pl.DataFrame(read_latents("orders", data=shop.paths.root).arrow)
    return dict(sorted(Counter(map(str, rows["date"])).items()))


class TestLocalShop:
    def test_each_stage_has_the_rows_of_local_days(self, local_shop: Shop) -> None:
        expected = {day: 46 if day == "2024-03-10" else 48 for day in LOCAL_DAYS}
        for stage in (local_shop.paths.raw, local_shop.paths.features):
            assert {day: pl.read_parquet(stage(day)).height for day in LOCAL_DAYS} == expected
        assert rows_by_date(local_shop) == expected
        summary = json.loads((local_shop.paths.reports / "summary.json").read_text())
        assert {day["day"]: day["rows"] for day in summary["days"]} == expected
        assert summary["timezone"] == ZONE

    def test_dates_of_the_table_are_local_and_times_are_utc(self, local_shop: Shop) -> None:
        rows = pl.DataFrame(read_latents("orders", data=local_shop.paths.root).arrow)
        assert rows.schema["event_time"] == pl.Datetime("us", "UTC")
        assert (rows["event_time"].dt.convert_time_zone(ZONE).dt.date() == rows["date"]).all()
        assert (rows["event_time"].dt.date() != rows["date"]).sum() > 200

    def test_a_date_selects_a_local_day(self, local_shop: Shop) -> None:
        latents = read_latents("orders", start="2024-03-10", end="2024-03-11", data=local_shop.paths.root)
        times = pl.DataFrame(latents.arrow)["event_time"]
        assert (times.len(), str(times.min()), str(times.max())) == (
            46,
            "2024-03-10 05:00:00+00:00",
            "2024-03-11 03:30:00+00:00",
        )

    def test_partitions_and_schedule_are_in_the_zone(self, local_shop: Shop) -> None:
        partitions = daily_partitions(local_shop.config)
        assert partitions is not None
        window = partitions.time_window_for_partition_key("2024-03-10")
        assert window.end.timestamp() - window.start.timestamp() == 23 * 3600
        node = local_shop.defs.resolve_asset_graph().get(dg.AssetKey(["orders", "raw_data"]))
        assert node.description is not None
        assert "Partitions are days from midnight to midnight in the time zone America/New_York." in node.description
        schedule = local_shop.defs.resolve_schedule_def("orders_retrain")
        assert schedule.execution_timezone == ZONE

    def test_the_model_sees_local_clocks(self, local_shop: Shop) -> None:
        bundle = ModelBundle.load(local_shop.workspace.tracker().bundle_folder(local_shop.champion))
        assert isinstance(bundle.encoder, TableEncoder)
        assert bundle.encoder.timezone == ZONE
        midnights = [dt.datetime(2024, 3, day, hour, tzinfo=dt.UTC) for day, hour in ((10, 5), (11, 4))]
        assert [bundle.encoder.speak("event_time", time) for time in midnights] == ["00:00 Sun", "00:00 Mon"]

    def test_no_work_is_left(self, local_shop: Shop) -> None:
        assert local_shop.requested(landing_requests) == "every landed file is read, and every day has its features"
        assert local_shop.requested(rebuild_requests) == "every day is published and reported on under version 1"

    def test_the_page_names_the_zone(self, local_shop: Shop) -> None:
        page = (local_shop.paths.reports / "report.html").read_text()
        assert "Midnight to midnight, America/New_York." in page
        contract = (Path(local_shop.paths.latents) / "_contract" / "contract.md").read_text()
        assert "Day of event_time, America/New_York." in contract


def test_a_time_zone_can_be_added_later(tmp_path: Path) -> None:
    """Every file is read again, rows move to their local days, and nothing stays on a day that no longer matches."""
    with_night = {
        **ATTRIBUTES,
        "start": DAYS[0],
        "end": (dt.date.fromisoformat(DAYS[-1]) + dt.timedelta(1)).isoformat(),
    }
    for shop in make_shop(tmp_path, with_night):
        shop.publish_first_version()
        last = with_night["end"]
        shop.land("night", f"order_id,created_at,items,country,price\n9,{last}T03:00:00Z,1,DE,10\n")
        assert shop.run_requests(landing_requests)
        assert shop.run_requests(rebuild_requests)
        assert rows_by_date(shop)[last] == 1
        utc_settings = plan_training(shop.dataset, shop.workspace.tracker())
        assert "fewer than min_new_rows" in utc_settings.idle
    for shop in make_shop(tmp_path, {**ATTRIBUTES, "timezone": ZONE, "start": "2024-02-09"}):
        assert shop.run_requests(landing_requests)
        raw = {path.stem for path in shop.paths.raw("_").parent.iterdir()}
        assert raw == {"2024-02-09", *DAYS}
        assert {path.stem for path in shop.paths.features("_").parent.iterdir()} == raw
        plan = plan_training(shop.dataset, shop.workspace.tracker())
        assert "time zone" in plan.work[0].reason
        assert shop.run_requests(rebuild_requests)
        expected = {"2024-02-09": 10, **dict.fromkeys(DAYS, 40), DAYS[-1]: 31}
        assert rows_by_date(shop) == expected
        assert {path.stem for path in (shop.paths.reports / "days").glob("*.parquet")} == set(expected)
        assert plan_serving(shop.dataset, shop.workspace.tracker()).work == ()


class TestDeletedFiles:
    def test_withdrawn_rows_leave_every_stage(self, serving_shop: Shop) -> None:
        shop = serving_shop
        contract = shop.paths.contract
        contract.write_text(contract.read_text().replace("dataset: orders", "dataset: orders\non_delete: withdraw"))
        deleted = DAYS[5]
        (shop.landing / f"orders_{deleted}.csv").unlink()
        os.utime(shop.landing, (time.time() - 60, time.time() - 60))
        assert shop.run_requests(landing_requests) == [
            f"orders_intake 1 deleted file: orders_{deleted}.csv",
            f"orders_ingest {deleted}",
        ]
        assert shop.run_requests(rebuild_requests) == [f"orders_publish {deleted}"]
        assert deleted not in rows_by_date(shop)
        assert len(rows_by_date(shop)) == len(DAYS) - 2
        for stage in (shop.paths.raw, shop.paths.features):
            assert pl.read_parquet(stage(deleted)).height == 0
        summary = json.loads((shop.paths.reports / "summary.json").read_text())
        assert deleted not in [day["day"] for day in summary["days"] if day["rows"]]
        assert deleted not in pl.read_parquet(shop.paths.reports / "alerts.parquet")["event_time"].dt.date().cast(
            pl.String
        )
        assert shop.requested(landing_requests) == "every landed file is read, and every day has its features"

    def test_an_empty_landing_folder_is_named_by_the_sensor(self, serving_shop: Shop) -> None:
        for path in serving_shop.landing.iterdir():
            path.unlink()
        answer = serving_shop.requested(landing_requests)
        assert f"{serving_shop.landing} is missing or has no file of 'orders'" in answer
        result = serving_shop.run("intake")
        assert not result.success
        assert "An unmounted disk looks like this, so their rows stay" in serving_shop.failure_message(result)
        assert len(rows_by_date(serving_shop)) == len(DAYS) - 1


class TestFillingDay:
    def test_the_headline_is_the_newest_complete_day(self, serving_shop: Shop) -> None:
        """Half of a day has come; later the rest comes."""
        shop, day = serving_shop, DAYS[-1]
        lines = orders_csv(day).splitlines(keepends=True)
        shop.land(day, "".join(lines[:15]))
        shop.run_requests(landing_requests)
        shop.run_requests(rebuild_requests)
        summary = json.loads((shop.paths.reports / "summary.json").read_text())
        assert summary["verdict"]["day"] == DAYS[-2]
        assert summary["filling"]["day"] == day
        assert summary["filling"]["words"] == (
            f"{day} is still filling: 14 rows came so far, where the same weekday usually has 40, the last one of "
            "13:30 UTC"
        )
        page = (shop.paths.reports / "report.html").read_text()
        assert f"{day} is still filling: 14 rows came so far" in page
        assert "It is not assessed until it is complete." in page
        project = Project(shop.defs, shop.workspace, {"orders": shop.dataset}, shop.instance)
        text = summarize(shop.dataset, project.tracker, shop.defs, shop.instance)
        assert f"complete day     {DAYS[-2]}: " in text
        assert f"still filling    {day} is still filling: 14 rows" in text
        shop.land(day, "".join(lines))
        shop.run_requests(landing_requests)
        shop.run_requests(rebuild_requests)
        summary = json.loads((shop.paths.reports / "summary.json").read_text())
        assert (summary["verdict"]["day"], summary["filling"]) == (day, None)

    def test_a_day_that_is_over_is_reported_again(self, serving_shop: Shop) -> None:
        shop = serving_shop
        assert days_to_publish(shop.dataset, shop.workspace.tracker()) == []
        path = shop.paths.reports / "summary.json"
        summary = json.loads(path.read_text())
        summary["filling"] = {"day": DAYS[-2], "rows": 1, "usual_rows": 2, "last_event": "", "words": ""}
        path.write_text(json.dumps(summary))
        assert days_to_publish(shop.dataset, shop.workspace.tracker()) == [DAYS[-2]]
        shop.run_requests(rebuild_requests)
        assert json.loads(path.read_text())["filling"] is None


def test_utc_is_the_default() -> None:
    assert PipelineConfig.model_validate(ATTRIBUTES).timezone == "UTC"
