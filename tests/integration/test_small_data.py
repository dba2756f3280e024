"""Small, narrow and young datasets publish a report without any setting of sizes."""

import datetime as dt
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.shop import Shop, make_shop

pytestmark = pytest.mark.slow

FIRST = dt.date(2024, 3, 4)  # a Monday


def flowers(rows: int) -> str:
    """Return measurements of three species as CSV, like the iris data."""
    rng = random.Random(0)
    lines = ["plant,sepal,petal,width,species"]
    for index in range(rows):
        species = index % 3
        petal = rng.gauss([1.5, 4.3, 5.5][species], 0.3)
        sepal, width = rng.gauss(5 + species / 2, 0.4), petal / 3 + rng.gauss(0, 0.1)
        lines.append(f"p{index},{sepal:.1f},{petal:.1f},{width:.1f},{'abc'[species]}")
    return "\n".join(lines) + "\n"


def one_column(rows: int) -> str:
    rng = random.Random(0)
    return "plant,height\n" + "".join(f"p{index},{rng.gauss(10, 2):.2f}\n" for index in range(rows))


def readings(days: int, hours: int = 24) -> str:
    """Return readings of a meter as CSV; the load depends on the hour."""
    rng = random.Random(0)
    lines = ["id,at,load,voltage"]
    for index in range(days * hours):
        time = dt.datetime.combine(FIRST, dt.time()) + dt.timedelta(days=index // hours, hours=index % hours)
        lines.append(f"{index},{time.isoformat()},{5 + time.hour / 4 + rng.gauss(0, 0.3):.2f},{rng.gauss(230, 1):.1f}")
    return "\n".join(lines) + "\n"


def attributes(identity: str, event_time: str | None = None) -> dict[str, Any]:
    """Return the YAML that any dataset needs, and nothing else."""
    times = {"event_time": event_time, "start": FIRST.isoformat(), "end": "2024-12-31"} if event_time else {}
    return {"dataset": "orders", "identity": [identity], **times}


def land_and_run(shop: Shop, text: str, days: int | None) -> None:
    """Land one file, and run all jobs of the dataset."""
    shop.land("all", text)
    last = (FIRST + dt.timedelta(days=days - 1)).isoformat() if days else None
    range_of_days = (FIRST.isoformat(), last) if days else ()
    assert shop.run("ingest", *range_of_days).success
    assert shop.run("train").success
    assert shop.run("publish", *range_of_days).success


CASES: dict[str, tuple[Callable[[], str], dict[str, Any], int | None, int]] = {
    "150 rows": (lambda: flowers(150), attributes("plant"), None, 150),
    "30 rows": (lambda: flowers(30), attributes("plant"), None, 30),
    "20 rows of one column": (lambda: one_column(20), attributes("plant"), None, 20),
    "2 days": (lambda: readings(2), attributes("id", "at"), 2, 48),
    "5 days of 6 rows": (lambda: readings(5, 6), attributes("id", "at"), 5, 30),
}


def check_report(shop: Shop, rows: int) -> None:
    """Check that there is a report of all rows, and that few of them are flagged."""
    summary = json.loads((shop.paths.reports / "summary.json").read_text())
    assert summary["rows"] == rows
    assert 0 < summary["budget"] <= 0.3
    assert summary["flagged"] <= max(4 * summary["budget"] * rows, 3)
    assert (shop.paths.reports / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("case", CASES)
def test_a_report_is_published_without_settings(case: str, tmp_path: Path) -> None:
    text, settings, days, rows = CASES[case]
    for shop in make_shop(tmp_path, settings):
        land_and_run(shop, text(), days)
        check_report(shop, rows)


def test_three_weeks_are_published_and_the_chosen_sizes_recorded(tmp_path: Path) -> None:
    for shop in make_shop(tmp_path, attributes("id", "at")):
        land_and_run(shop, readings(21), 21)
        check_report(shop, 504)
        tracker = shop.workspace.tracker()
        bundle = json.loads((tracker.bundle_folder(shop.champion) / "bundle.json").read_text())
        params = tracker.client.get_run(shop.champion.run_id).data.params
        chosen = bundle["facts"]["chosen"]
        assert chosen == {
            "training.validation_days": 3,
            "training.calibration_days": 7,
            "gate.days": 1,
            "alerts.budget": 0.006,
            "training.batch_size": 8,
            "model.latent_dim": 2,
        }
        assert {key: float(params[key]) for key in chosen} == chosen
        assert [len(bundle["window"][part]) for part in ("train", "validation", "calibration", "gate")] == [10, 3, 7, 1]


def test_settings_that_do_not_fit_fail_with_settings_that_do(tmp_path: Path) -> None:
    wrong = {"training": {"validation_days": 21, "calibration_days": 42}, "alerts": {"budget": 0.001}}
    for shop in make_shop(tmp_path / "wrong", attributes("id", "at") | wrong):
        shop.land("all", readings(21))
        assert shop.run("ingest", "2024-03-04", "2024-03-24").success
        message = shop.failure_message(shop.run("train"))
    assert "leave no training day" in message
    assert "alerts.budget=0.001 needs 999 calibration rows" in message
    proposed = yaml.safe_load(message.partition("set in its defs.yaml:\n")[2])
    merged = {key: wrong.get(key, {}) | proposed.get(key, {}) for key in {*wrong, *proposed}}
    for shop in make_shop(tmp_path / "right", attributes("id", "at") | merged):
        land_and_run(shop, readings(21), 21)
