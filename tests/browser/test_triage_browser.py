"""An on-call engineer marks a cause on the served page, and the next day's banner leaves it out."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pytest

from ae_pipeline.cli.servers import serve_folder
from ae_pipeline.storage.parquet import write_parquet
from tests.support.reports import as_dataset, published, reported
from tests.support.sensors import Fitted

playwright = pytest.importorskip("playwright.sync_api", reason="pages in a browser: pip install '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install the Debian package chromium")

TOKEN = "correct-horse-battery"


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


@pytest.fixture
def project(fitted: Fitted, tmp_path: Path) -> Fitted:
    """A report whose newest day has seven flagged rows, while the next day has not come yet."""
    dataset = fitted.at(tmp_path / "data")
    *days, newest, _ = dataset.days[-5:]
    spoil(dataset, newest)
    published(dataset, [*days, newest])
    reported(dataset, [*days, newest])
    return dataset


@pytest.fixture
def page(project: Fitted) -> Iterator[Any]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        serve_folder(project.paths.root, port, TOKEN, datasets={project.name: as_dataset(project)}),
        playwright.sync_playwright() as driver,
    ):
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(base_url=f"http://127.0.0.1:{port}", viewport={"width": 380, "height": 800})
        page.set_default_timeout(60_000)
        yield page
        chromium.close()


def serious(page: Any) -> list[str]:
    """Return the serious violations that axe reports of a page."""
    from axe_playwright_python.sync_playwright import Axe

    # The policy of these pages forbids other scripts than their own.
    session = page.context.new_cdp_session(page)
    session.send("Page.setBypassCSP", {"enabled": True})
    page.reload()
    violations = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in violations if one["impact"] in IMPACTS]


IMPACTS = {"serious", "critical"}


def test_on_call_marks_a_cause_and_the_next_day_leaves_it_out(project: Fitted, page: Any) -> None:
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
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

    today, tomorrow = project.days[-2:]
    repeat(project, today, tomorrow)
    published(project, [tomorrow])
    reported(project, [tomorrow])
    verdict = json.loads((project.paths.reports / "summary.json").read_text())["verdict"]
    assert verdict["day"] == tomorrow
    assert verdict["state"] != "wrong"
    assert verdict["hidden"] >= 5
    page.reload()
    assert verdict["words"] in page.inner_text(".assessment")
    # A click within a sandboxed page is answered with 401 once, and then with the page.
    assert [each for each in problems if "401" not in each] == []
    page.goto(f"/mark/sensors?kind=day&subject={tomorrow}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert serious(page) == []
    page.goto("/")
    assert serious(page) == []
    for day in project.days[-5:]:
        load = pl.when(pl.int_range(pl.len()) % 3 > 0).then("load")
        write_parquet(project.paths.features(day), project.features(day).with_columns(load=load).to_arrow(), {})
    explore(page)
    assert [each for each in problems if "401" not in each] == []


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
    page.wait_for_selector("#map svg[aria-label*='load by z_000, colored by mode']")
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
