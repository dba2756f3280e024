"""Whole runs over odd identities and values: any character, no identity, huge numbers and missing booleans."""

import datetime as dt
import json
import os
import random
import time
from typing import Any

import polars as pl
import pytest

from ae_pipeline.storage.parquet import read_facts
from tests.support.shop import ATTRIBUTES, DAYS, ROWS, Shop, make_shop

pytestmark = pytest.mark.slow

CHARACTERS = [
    *("\x00", "\x01", "\x1f", "\x1b[31m", "\n", "\t", "\r", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffe", "\uffff"),
    *("'", '"', "|", "<b>", "</script>", "`", "\\", "{{x}}", "%s", "&amp;", "🙂", "#", "[a](b)"),
]
LARGEST = 1.7976931348623157e308
HUGE = {100: 1e300, 101: -1e300, 102: 5e-324, 103: LARGEST, 104: -LARGEST}


def land_orders(shop: Shop, *, has_identity: bool) -> int:
    """Land the orders of all days, and return how many there are."""
    rng, number = random.Random(0), 0
    shop.landing.mkdir(parents=True)
    for day in DAYS:
        rows: list[dict[str, Any]] = []
        for index in range(ROWS):
            items, country = rng.randint(1, 9), rng.choice(["DE", "FR", "NA"])
            price = HUGE.get(number, items * {"DE": 10, "FR": 12, "NA": 15}[country] + rng.random())
            flag, serial = rng.choice([True, False, None]), 2**60 + rng.randint(0, 1000)
            serial = 2**61 + number if index == ROWS - 1 else serial
            hour = dt.datetime.fromisoformat(day) + dt.timedelta(hours=index % 24)
            if not has_identity and index in {5, 6}:
                items, country, price, flag, serial, hour = 3, "DE", 30.0, True, 2**60, dt.datetime.fromisoformat(day)
            key = f"{CHARACTERS[number % len(CHARACTERS)]}{number}{CHARACTERS[index % len(CHARACTERS)]}"
            rows.append({"order_id": key, "created_at": hour, "items": items, "country": country, "price": price})
            rows[-1] |= {"is_gift": flag, "serial": serial}
            number += 1
        path = shop.landing / f"{day}.parquet"
        pl.DataFrame(rows).drop([] if has_identity else ["order_id"]).write_parquet(path)
        written = time.time() - 3600
        os.utime(path, (written, written))
    return number


@pytest.mark.parametrize("has_identity", [True, False])
def test_a_report_is_built_over_odd_identities_and_values(
    tmp_path_factory: pytest.TempPathFactory, has_identity: bool
) -> None:
    attributes = {**ATTRIBUTES, "identity": ["order_id"] if has_identity else [], "exclude": []}
    for shop in make_shop(tmp_path_factory.mktemp("odd"), attributes):
        rows = land_orders(shop, has_identity=has_identity)
        assert shop.run("ingest", DAYS[0], DAYS[-1]).success
        assert shop.run("train").success
        assert shop.run("publish", DAYS[0], DAYS[-1]).success
        summary = json.loads((shop.paths.reports / "summary.json").read_text(encoding="utf-8"))
        assert summary["rows"] == rows
        assert ("order_id" in summary["columns_left_out"]) == has_identity
        facts = [read_facts(shop.paths.raw(day)) for day in DAYS]
        repeated = sum(int(fact["repeated"]) for fact in facts)
        assert repeated == (0 if has_identity else len(DAYS))
        page = (shop.paths.reports / "report.html").read_text(encoding="utf-8")
        assert not set("\x00\x01\x1f\x1b\u2028\uffff") & set(page)
        serials = {f"{value:,}" for day in DAYS for value in pl.read_parquet(shop.paths.raw(day))["serial"]}
        shown = [
            part["actual"]
            for row in summary["strangest"]
            for part in row["contributions"]
            if part["column"] == "serial"
        ]
        assert shown
        assert set(shown) <= serials
