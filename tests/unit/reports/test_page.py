"""The page over all days: rendered again from its stored variables, with the current alerts and pages of days."""

import json
import re

import pytest

from ae_pipeline.monitoring.alerts import Alert, AlertEvent, raise_alert
from ae_pipeline.registry.history import Change, HistoryEntry, record
from ae_pipeline.reports.build import Report
from ae_pipeline.reports.day_pages import day_page
from ae_pipeline.reports.page import by_reason, page_environment, refresh_operations
from tests.support.reports import SCRIPT, Text, as_dataset, published, reported
from tests.support.sensors import Fitted

pytestmark = pytest.mark.slow


@pytest.fixture
def days(fitted: Fitted) -> tuple[str, ...]:
    return fitted.days[-3:]


@pytest.fixture
def report(dataset: Fitted, days: tuple[str, ...]) -> Report:
    published(dataset, days)
    return reported(dataset, days)


class TestRefresh:
    def test_the_page_is_the_same_if_nothing_has_changed(self, dataset: Fitted, report: Report) -> None:
        previous = report.page.read_bytes()
        report.page.write_text("damaged")
        refresh_operations(as_dataset(dataset))
        assert report.page.read_bytes() == previous

    def test_new_alerts_and_versions_appear_on_the_page(self, dataset: Fitted, report: Report) -> None:
        previous = report.page.read_text()
        for reason in ("latent", "ensemble", "categories", "event time", "image", "spot", "flat"):
            assert f"<em>{reason}</em>" in previous  # each reason that is no column is explained
        assert '<h2 id="alerts">' not in previous
        alert = Alert(event=AlertEvent.RUN_FAILED, key="a", message=f"a run failed: {SCRIPT}")
        assert raise_alert(alert, as_dataset(dataset))
        entry = HistoryEntry(
            at="2024-03-01T12:00:00+00:00", change=Change.PROMOTED, version=3, previous=2, who="us", why="it is better"
        )
        record(dataset.paths, entry)
        assert report.page.read_text() == previous
        refresh_operations(as_dataset(dataset))
        page = report.page.read_text()
        assert SCRIPT not in page
        assert f"a run failed: {SCRIPT}" in Text(page).text
        assert "2024-03-01 12:003promoted2usit is better" in Text(page).text

    def test_a_new_page_of_a_day_is_linked(self, dataset: Fitted, report: Report, days: tuple[str, ...]) -> None:
        link = f'<a href="days/{days[0]}.html"'
        assert link not in report.page.read_text()
        day_page(days[0], as_dataset(dataset), dataset.bundle, 3)
        links = report.page.read_text().count(link)
        rows_of_day = [row for row in report.strangest if row.event_time and str(row.event_time.date()) == days[0]]
        assert report.page.read_text().count(f"<span>{link}>{days[0][8:]}</a>") == 1  # of the calendar
        assert links > len(rows_of_day)
        reported(dataset, days)
        assert report.page.read_text().count(link) == links

    def test_variables_of_another_version_are_ignored(self, dataset: Fitted, report: Report) -> None:
        (path,) = report.page.parent.glob("report.context.*")
        context = json.loads(path.read_text())
        path.write_text(json.dumps({**context, "version": context["version"] + 1}))
        report.page.write_text("kept")
        refresh_operations(as_dataset(dataset))
        assert report.page.read_text() == "kept"


def test_columns_are_grouped_by_the_reason_to_leave_them_out() -> None:
    left_out = {"a": "constant", "b": "identifier", "c": "constant"}
    assert by_reason(left_out) == {"constant": ["a", "c"], "identifier": ["b"]}


def test_the_stability_index_is_explained_where_it_stands() -> None:
    text = page_environment().from_string("{{ text|explained }}").render(text="<b> (stability index 0.7)")
    assert re.fullmatch(r"&lt;b&gt; \(<abbr title=\"[^\"<]+\">stability index</abbr> 0\.7\)", text)


def test_all_table_headers_say_what_they_are_headers_of() -> None:
    environment = page_environment()
    assert environment.loader is not None
    templates = [name for name in environment.list_templates() if name.endswith(".html.j2")]
    sources = {name: environment.loader.get_source(environment, name)[0] for name in templates}
    headers = [(name, header) for name, source in sources.items() for header in re.findall(r"<th\b[^>]*>", source)]
    assert len(headers) > 50
    assert [each for each in headers if "scope=" not in each[1]] == []
