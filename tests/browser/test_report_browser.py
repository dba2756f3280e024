"""The pages in Chromium: no errors or requests, usable by mouse and by keyboard, and accessible."""

import csv
import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.escape import spreadsheet_text
from ae_pipeline.common.text import one_in
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.reports.day_pages import day_page
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from tests.support.missing import CHROMIUM, needs_chromium
from tests.support.reports import SCRIPT, published, reported
from tests.support.sensors import Fitted

playwright = pytest.importorskip("playwright.sync_api", reason="pages in a browser: pip install '.[dev]'")
pytestmark = needs_chromium

MAX_BYTES, MAX_FIRST_PAINT, MAX_HEIGHT = 2_000_000, 1000, 4000
"""Size of a page, time to its first paint in milliseconds, and height in pixels."""


@pytest.fixture(scope="module")
def pages(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report over five days with anomalous rows on the second, and the page of that day."""
    dataset = fitted.at(tmp_path_factory.mktemp("browser") / "data")
    days = dataset.days[-5:]
    rows = dataset.features(days[1]).with_row_index("i")
    strange = rows.with_columns(
        mode=pl.when(pl.col("i") == 5).then(pl.lit(SCRIPT)).otherwise("mode"),
        row_id=pl.when(pl.col("i") == 5).then(pl.lit(SCRIPT)).otherwise("row_id"),
        load=pl.when((pl.col("i") == 5) | pl.col("i").is_between(10, 16)).then(-pl.col("load") * 9).otherwise("load"),
    )
    write_parquet(dataset.paths.features(days[1]), strange.drop("i").to_arrow(), {"input_hash": "changed"})
    published(dataset, days)
    reported(dataset, days)
    report = reported(dataset, [days[1]])
    return {"window": report.page, "day": dataset.paths.reports / "days" / f"{days[1]}.html"}


@pytest.fixture(scope="module")
def year(fitted: Fitted, other_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report over 336,720 rows of 366 days with some anomalous rows, and the page of its newest day."""
    dataset = fitted.at(tmp_path_factory.mktemp("year") / "data")
    # Without an ensemble, because it would take a minute and the page does not depend on it.
    dataset = replace(dataset, config=other_bundle.config, bundle=other_bundle)
    known = pl.concat(map(dataset.features, dataset.days))
    rng = np.random.default_rng(0)
    last = dt.date.fromisoformat(dataset.days[-1])
    days = [(last + dt.timedelta(days=index + 1)).isoformat() for index in range(366)]
    for index, day in enumerate(days):
        rows = known[rng.integers(0, known.height, 920).tolist()]
        strange = pl.when(pl.int_range(920) < index % 5).then(-pl.col("load") * 9).otherwise("load")
        moved = rows.with_columns(
            row_id=pl.format("{}/{}", pl.lit(day), pl.int_range(920)),
            event_time=pl.lit(day).str.to_datetime(time_unit="us", time_zone="UTC")
            + pl.duration(minutes=pl.int_range(920)),
            load=strange,
        )
        write_parquet(dataset.paths.features(day), moved.to_arrow(), {"input_hash": day})
    published(dataset, days)
    report = reported(dataset, days)
    page = day_page(days[-1], Dataset(dataset.config, dataset.paths), dataset.bundle, 3)
    return {"window": report.page, "day": page}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """An open page, and its problems: console messages, errors, dialogs and requests."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light", width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".chart svg")

    def _dismiss(self, dialog: Any) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.problems.append(f"requested {url}")

    def first_paint(self) -> float:
        """Return the fastest first paint of up to three loads, milliseconds; other tests share the machine."""
        paints: list[float] = []
        while len(paints) < 3 and min(paints, default=MAX_FIRST_PAINT) >= MAX_FIRST_PAINT:
            if paints:
                self.page.reload()
                self.page.wait_for_selector(".chart svg")
            paints.append(self.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        return min(paints)

    def show_all(self) -> None:
        more = self.page.locator(".more:has-text('rows')")
        if more.is_visible():
            more.click()

    def shown(self) -> list[str]:
        rows: list[str] = self.page.eval_on_selector_all(
            "#rows > tbody:not([hidden])", "all => all.map(one => one.dataset.row)"
        )
        return rows


@pytest.fixture(params=["window", "day"])
def visit(request: pytest.FixtureRequest, browser: Any, pages: dict[str, Path]) -> Iterator[Visit]:
    opened = Visit(browser, pages[request.param])
    yield opened
    opened.page.close()


def test_a_page_opens_fast_without_errors_or_requests(visit: Visit, pages: dict[str, Path]) -> None:
    assert visit.first_paint() < MAX_FIRST_PAINT
    assert visit.page.locator(".chart svg").count() == visit.page.locator(".chart").count() >= 3
    assert visit.problems == []
    assert max(page.stat().st_size for page in pages.values()) < MAX_BYTES


@pytest.mark.parametrize("name", ["window", "day"])
def test_a_page_over_a_year_is_as_small_and_fast(browser: Any, year: dict[str, Path], name: str) -> None:
    folder = year["window"].parent
    assert json.loads((folder / "summary.json").read_text())["rows"] == 336_720
    visit = Visit(browser, year[name])
    assert visit.first_paint() < MAX_FIRST_PAINT
    assert visit.problems == []
    assert visit.page.evaluate("document.documentElement.scrollHeight") <= MAX_HEIGHT
    assert year[name].stat().st_size < MAX_BYTES
    visit.page.close()


def test_the_page_of_a_day_matches_its_parquet_file(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["day"])
    alerts = pl.read_parquet(pages["day"].with_suffix(".parquet")).filter("is_anomaly")
    assert alerts.height >= 8
    for alert in alerts.iter_rows(named=True):
        body = visit.page.locator(f"#rows > tbody[data-row='{alert['row_id']}']")
        cells = [text.strip() for text in body.locator("tr").first.locator("td").all_inner_texts()]
        p_value = f"{alert['p_value']:.2g} {one_in(alert['p_value'])}"
        assert cells == [f"{alert['score']:.1f} ⚑", alert["row_id"], p_value, alert["because"]]
        assert float(body.get_attribute("data-score") or "") == alert["score"]
        assert float(body.get_attribute("data-p") or "") == alert["p_value"]
        body.locator(".open").click()
        cells_of_parts = [row.locator("td").all_inner_texts()[:4] for row in body.locator(".detail tbody tr").all()]
        parts = alert["contributions"]
        assert cells_of_parts == [[p["column"], p["actual"], p["expected"], f"{p['surprise']:.1f}"] for p in parts]
    assert f"{alerts.height} of 60 rows" in visit.page.inner_text(".card >> nth=0")
    visit.page.close()


def test_the_page_over_all_days_matches_the_summary(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["window"])
    summary = json.loads(pages["window"].with_name("summary.json").read_text())
    shown = visit.page.eval_on_selector_all(
        "#rows > tbody", "all => all.map(one => [one.dataset.row, +one.dataset.score])"
    )
    assert shown[:50] == [[row["row_id"], row["score"]] for row in summary["strangest"]]
    verdict = summary["verdict"]
    assert f"{verdict['flagged']} of {verdict['rows']} rows" in visit.page.inner_text(".card >> nth=0")
    assert verdict["words"] in visit.page.inner_text(".assessment")
    assert f"{summary['rows']:,}" in visit.page.inner_text("body")
    visit.page.close()


def test_text_of_the_data_is_not_executed(visit: Visit) -> None:
    assert SCRIPT in visit.page.inner_text("#rows")
    assert visit.problems == []


def test_rows_are_sorted_by_mouse_and_by_keyboard(visit: Visit) -> None:
    assert 10 <= len(visit.shown()) <= 20
    visit.show_all()
    first = visit.shown()
    visit.page.click("th button[data-key=row]")
    assert visit.shown() == sorted(first, reverse=True)
    visit.page.focus("th button[data-key=row]")
    visit.page.keyboard.press("Enter")
    assert visit.shown() == sorted(first)
    assert visit.page.get_attribute("th:has(button[data-key=row])", "aria-sort") == "ascending"
    visit.page.click("th button[data-key=score]")
    assert visit.shown() == first


def test_rows_are_searched_and_filtered(visit: Visit) -> None:
    visit.show_all()
    everything = visit.shown()
    visit.page.fill("#search", "<SCRIPT>alert")
    assert visit.shown() == [SCRIPT]
    for word in ("copy", "mark this", "actual"):  # of buttons, links and headings
        visit.page.fill("#search", word)
        assert visit.shown() == []
    visit.page.fill("#search", "expected")  # of the reason, which is a button too
    assert len(visit.shown()) >= 8
    visit.page.fill("#search", "")
    visit.page.focus("#flagged")
    visit.page.keyboard.press("Space")
    flagged = visit.shown()
    assert 0 < len(flagged) < len(everything)
    assert f"{len(flagged)} of {len(everything)} rows shown" in visit.page.inner_text("#shown")


def test_a_row_is_expanded_by_mouse_and_by_keyboard(visit: Visit) -> None:
    button = visit.page.locator("#rows .open").first
    detail = visit.page.locator(f"#{button.get_attribute('aria-controls')}")
    assert not detail.is_visible()
    button.click()
    assert detail.is_visible()
    for message in ("actual", "expected", "unusualness, nats", "Nearest normal rows", "row_id ="):
        assert message in detail.inner_text()
    assert detail.locator(".meter").count() == detail.locator("tbody tr").count() >= 2
    button.press("Enter")
    assert not detail.is_visible()


def test_a_cause_filters_its_rows_and_can_be_cleared(visit: Visit) -> None:
    everything = visit.shown()
    pick = visit.page.locator(".pick").first
    count = int(visit.page.locator("tr:has(.pick) td").first.inner_text())
    pick.click()
    assert len(visit.shown()) == count
    visit.page.click("#all")
    assert visit.shown() == everything


def test_a_table_is_saved_as_csv_and_an_identity_copied(visit: Visit) -> None:
    with visit.page.expect_download() as saved:
        visit.page.click("button[aria-label='Download rows as CSV']")
    assert saved.value.suggested_filename == "rows.csv"
    header, *lines = list(csv.reader(saved.value.path().read_text().splitlines()))
    assert header == ["score", "row", "p-value", "because", "flagged", "discovery", "marked"]
    assert len(lines) == visit.page.locator("#rows > tbody").count() >= 10  # also those that are not shown
    highest = visit.page.locator("#rows > tbody").first
    assert [lines[0][0], lines[0][1]] == [highest.get_attribute("data-score"), highest.get_attribute("data-row")]
    flags = visit.page.eval_on_selector_all("#rows > tbody", "all => all.map(one => one.dataset.flagged)")
    assert [line[4] for line in lines] == [{"1": "yes", "0": "no"}[flag] for flag in flags]
    with visit.page.expect_download() as causes:
        visit.page.click("button[aria-label='Download causes as CSV']")
    header, *groups = list(csv.reader(causes.value.path().read_text().splitlines()))
    assert header[:4] == ["rows", "cause", "highest score", "days"]
    assert header[4:] in (["marked"], ["locations", "marked"])  # the page of a day locates its causes
    labels = [str(pick.get_attribute("aria-label")) for pick in visit.page.locator(".causes .pick").all()]
    assert [group[1] for group in groups] == [label.split(" with the cause ")[1] for label in labels]
    highest.locator(".open").click()
    highest.locator(".copies").click()
    assert highest.locator(".copies").inner_text() == "copied"
    visit.page.fill("#search", "")
    visit.page.press("#search", "Control+v")
    assert visit.page.input_value("#search") == lines[0][1]


def test_cells_of_csv_are_no_formulas_and_keep_their_spaces(visit: Visit) -> None:
    source = files("ae_pipeline").joinpath("reports", "page.csv.js").read_text(encoding="utf-8")
    texts = [
        "a  b ",
        "=1",
        " +x",
        "-x",
        "@x",
        "\t=1",
        "\uff1d1",
        "\uff0bx",
        "\uff0dx",
        "\uff20x",
        "a;=1",
        "a\tb",
        'a"b',
        "a,b",
    ]
    cells = visit.page.evaluate(f"(texts) => {{ {source} return texts.map(csvCell); }}", [*texts, "-1,234.5", "1e-05"])
    for text, cell in zip(texts, cells, strict=False):
        assert next(csv.reader([cell])) == [spreadsheet_text(text)]
        assert cell.startswith('"') == any(mark in text for mark in '",;\t')
    assert cells[-2:] == ['"-1,234.5"', "1e-05"]
    id_cell = visit.page.locator("#rows > tbody > tr > td[data-value]").nth(1)
    id_cell.evaluate("cell => cell.dataset.value = 'two  spaces'")
    with visit.page.expect_download() as saved:
        visit.page.click("button[aria-label='Download rows as CSV']")
    assert list(csv.reader(saved.value.path().read_text().splitlines()))[1][1] == "two  spaces"


def test_a_section_and_the_example_of_a_cause_are_linked(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["window"])
    visit.page.focus("#most-anomalous-rows .anchor")
    visit.page.keyboard.press("Enter")
    assert visit.page.url.endswith("#most-anomalous-rows")
    example = visit.page.locator("table.causes a[href^='#row-']").first
    row = visit.page.locator(f"[id='{str(example.get_attribute('href'))[1:]}']")
    example.click()
    row.locator(".detail").wait_for()
    assert row.get_attribute("data-row") == example.get_attribute("title")
    visit.page.close()


def test_a_link_to_a_row_expands_it(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["day"].as_uri())
    link = page.locator("#rows > tbody").nth(1).get_attribute("id")
    page.goto("about:blank")
    page.goto(f"{pages['day'].as_uri()}#{link}")
    assert page.locator("#detail-2").is_visible()
    assert not page.locator("#detail-1").is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["window", "day"])
def test_a_page_is_accessible_in_both_themes(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit = Visit(browser, pages[name], scheme)
    visit.page.locator("#rows .open").first.click()
    violations = [
        f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in Axe().run(visit.page).response["violations"]
    ]
    assert violations == []
    visit.page.close()


def test_a_page_fits_a_phone(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["window"], width=380)
    wide = visit.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 380
    visit.page.close()
