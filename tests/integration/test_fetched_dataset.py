"""A project whose dataset fetches its rows: the sensor asks seldom, a failure is told, and a day can be built."""

import datetime as dt
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from ae_pipeline.orchestration.sensors import landing_requests
from tests.support.shop import ATTRIBUTES, DAYS, ROWS, Shop, make_shop, orders_csv

pytestmark = pytest.mark.slow


class Source:
    """A source of orders that counts its calls, and may fail."""

    def __init__(self) -> None:
        self.days: list[str] = []
        self.failure: Exception | None = None

    def fetch_day(self, day: dt.date) -> pl.DataFrame:
        """Return the orders of a day."""
        if self.failure:
            raise self.failure
        self.days.append(day.isoformat())
        return pl.read_csv(io.StringIO(orders_csv(day.isoformat())), infer_schema=False)


@pytest.fixture
def source() -> Iterator[Source]:
    """The source, as a module that the YAML names."""
    module, source = types.ModuleType("orders_source_of_a_test"), Source()
    module.fetch_day = source.fetch_day  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield source
    del sys.modules[module.__name__]


@pytest.fixture
def shop(source: Source, tmp_path: Path) -> Iterator[Shop]:
    """A project whose orders come from the source."""
    yield from make_shop(tmp_path, {**ATTRIBUTES, "source": {"callable": "orders_source_of_a_test:fetch_day"}})


def test_sensor_fetches_once_and_then_waits(shop: Shop, source: Source) -> None:
    what = "24 days to fetch with the callable orders_source_of_a_test:fetch_day of 'orders'"
    assert shop.requested(landing_requests) == [f"orders_intake {what}"]
    assert source.days == []
    assert len(shop.run_requests(landing_requests)) == 2  # intake and ingest
    assert source.days == DAYS
    assert shop.metadata("raw_data")["dagster/row_count"] == len(DAYS) * ROWS
    assert shop.requested(landing_requests) == "every landed file is read, and every day has its features"


def test_failure_is_told_and_tried_again_later(shop: Shop, source: Source) -> None:
    source.failure = ConnectionError("the server at https://me:s3cret@host is down")
    result = shop.run_request(shop.request(landing_requests))
    message = shop.failure_message(result)
    assert message.startswith(
        "the callable orders_source_of_a_test:fetch_day of 'orders' for 2024-02-10 failed: ConnectionError: the server"
    )
    assert "s3cret" not in message
    assert "next attempt at" in str(shop.requested(landing_requests))
    source.failure = None
    assert shop.run("ingest", DAYS[0], DAYS[1]).success  # a person builds two days, which fetches all that are due
    assert source.days == DAYS


def test_deleted_day_is_fetched_alone(shop: Shop, source: Source) -> None:
    shop.run_requests(landing_requests)
    source.days.clear()
    (shop.landing / f"{DAYS[3]}.parquet").unlink()
    assert shop.run("intake").success
    assert source.days == [DAYS[3]]
