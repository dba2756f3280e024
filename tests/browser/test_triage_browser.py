"""An on-call engineer marks a cause on the served page, and the next day's banner leaves it out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pytest

from ae_pipeline.lifecycle.alerts import alert_wrong_days
from ae_pipeline.monitoring.verdict import DayAssessment
from ae_pipeline.monitoring.webhook import PostResult
from ae_pipeline.reports.build import build_report
from ae_pipeline.storage.parquet import write_parquet
from tests.support.missing import needs_chromium
from tests.support.reports import as_dataset, published
from tests.support.sensors import Fitted, sensor_config, with_config
from tests.support.served import TOKEN, serious, served_page

pytest.importorskip("playwright.sync_api", reason="pages in a browser: pip install '.[dev]'")
pytestmark = needs_chromium


def spoil(dataset: Fitted, day: str) -> None:
    """Give seven rows of a day a load that does not fit their power."""
    rows = dataset.features(day).with_row_index("i")
    load = pl.when(pl.col("i").is_between(10, 16)).then(-pl.col("load") * 9).otherwise("load")
    write_parquet(dataset.paths.features(day), rows.with_columns(load=load).drop("i").to_arrow(), {"input_hash": day})


def repeat(dataset: Fitted, today: str, tomorrow: str) -> None:
    """Let the seven rows happen again on the next day."""
    again = dataset.features(today).slice(10, 7)
    later = again.with_columns(row_id=pl.col("row_id") + "-again", event_time=pl.col("event_time").dt.offset_by("1d"))
    rows = pl.concat([dataset.features(tomorrow).slice(7), later])
    write_parquet(dataset.paths.features(tomorrow), rows.to_arrow(), {"input_hash": tomorrow})


Posted = list[dict[str, Any]]
"""Bodies that the webhook got."""


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Posted:
    bodies: Posted = []

    def accept(_: str, body: bytes, *__: object) -> PostResult:
        bodies.append(json.loads(body))
        return PostResult(True)

    monkeypatch.setenv("SENSORS_WEBHOOK", "https://chat.example.com/hook")
    monkeypatch.setattr("ae_pipeline.monitoring.alerts.post_json", accept)
    return bodies


def reported_with_alerts(dataset: Fitted, days: Sequence[str]) -> None:
    """Build the report of days, and raise its alerts, as a run does. The model was fitted before these days."""
    window = replace(dataset.window, calibration=dataset.window.calibration[:-5])
    earlier = replace(dataset.bundle, window=window)

    def alert(assessments: Mapping[str, DayAssessment]) -> None:
        alert_wrong_days(assessments, earlier, as_dataset(dataset), "run")

    build_report(days, as_dataset(dataset), dataset.bundle, 3, "run-of-mlflow", on_assessed=alert)


@pytest.fixture
def project(fitted: Fitted, tmp_path: Path, posted: Posted) -> Fitted:
    """A report whose newest day has seven flagged rows, while the next day has not come yet."""
    config = sensor_config(alerts={"budget": 0.01, "webhook": "SENSORS_WEBHOOK"})
    dataset = replace(fitted.at(tmp_path / "data"), bundle=with_config(fitted.bundle, config))
    *days, newest, _ = dataset.days[-5:]
    spoil(dataset, newest)
    published(dataset, [*days, newest])
    reported_with_alerts(dataset, [*days, newest])
    return dataset


@pytest.fixture
def page(project: Fitted) -> Iterator[Any]:
    with served_page(as_dataset(project)) as page:
        yield page


def test_on_call_marks_a_cause_and_the_next_day_leaves_it_out(project: Fitted, page: Any, posted: Posted) -> None:
    today, tomorrow = project.days[-2:]
    assert [(body["event"], today in body["text"]) for body in posted] == [("over_budget", True)]
    page.goto(f"/?token={TOKEN}")
    assert "WRONG" in page.inner_text(".assessment")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.click("h2 a")
    page.wait_for_selector(".assessment.wrong")
    causes = page.locator(".causes tbody tr:visible").count()
    for number in range(causes):
        page.locator(".causes a.served").nth(number).click()
        page.check("input[value=known]")
        page.fill("input[name=note]", "the new sensor counts backwards")
        page.press("input[name=note]", "Enter")
        page.wait_for_selector("#result:has-text('Saved: known')")
        page.click("text=Back to the report")
        page.wait_for_selector(".state")
    assert "CALM" in page.inner_text(".assessment")
    assert "more are known or false alarms" in page.inner_text(".assessment")

    repeat(project, today, tomorrow)
    published(project, [tomorrow])
    reported_with_alerts(project, [tomorrow])
    assert len(posted) == 1  # the webhook leaves it out too
    verdict = json.loads((project.paths.reports / "summary.json").read_text())["verdict"]
    assert verdict["day"] == tomorrow
    assert verdict["state"] != "wrong"
    assert verdict["hidden"] >= 5
    page.reload()
    assert verdict["words"] in page.inner_text(".assessment")
    assert page.problems == []
    page.goto(f"/mark/sensors?kind=day&subject={tomorrow}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert serious(page) == []
    page.goto("/")
    assert serious(page) == []
    for day in project.days[-5:]:
        load = pl.when(pl.int_range(pl.len()) % 3 > 0).then("load")
        write_parquet(project.paths.features(day), project.features(day).with_columns(load=load).to_arrow(), {})
    explore(page)
    assert page.problems == []


def explore(page: Any) -> None:
    """Open the pages to explore, and choose rows by a rectangle over points."""
    page.goto("/")
    page.click("text=Explore")
    page.wait_for_selector(".chart svg")
    assert serious(page) == []
    page.click("text=temperature")
    page.wait_for_selector("#chart-drift svg, #chart-missing svg")
    assert page.locator(".chart svg").count() == page.locator(".chart").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.wait_for_selector(".chart svg")
    page.goto("/explore/sensors/latents")
    page.wait_for_selector("#map svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.select_option("#color", "mode")
    page.select_option("#y", "load")
    total = page.inner_text("#chosen").split(" of ")[0]
    page.wait_for_selector("#map svg[aria-label*='load by latent 0, colored by mode']")
    box = page.locator("#map svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.05)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.85, steps=5)
    page.mouse.up()
    page.wait_for_function("total => !document.querySelector('#chosen').textContent.startsWith(total)", arg=total)
    chosen = int(page.inner_text("#chosen").split(" of ")[0])
    assert 0 < chosen < int(total)
    assert page.locator("#points tbody tr").count() == min(chosen, 25)
    header, *lines = unquote(page.get_attribute("#download", "href").partition(",")[2]).splitlines()
    assert len(lines) == chosen
    position = header.split(",").index("load")
    assert all(line.split(",")[position] for line in lines)  # a missing value is not zero
    assert serious(page) == []
