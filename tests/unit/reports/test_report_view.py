"""Content of the pages of days, and of the page over all days."""

import dataclasses
import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.latents.read import published_days
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import drifting_days, read_all_days, read_drift
from ae_pipeline.registry.history import Change, HistoryEntry, record
from ae_pipeline.reports.build import Report
from ae_pipeline.reports.cards import unseen_days_summary
from ae_pipeline.reports.day_pages import day_page
from ae_pipeline.reports.groups import group_rows
from ae_pipeline.reports.index import most_worth_a_look, with_causes
from ae_pipeline.reports.page import render_report
from ae_pipeline.reports.ranking import RankedRow, as_rows, ranked_day, reported_days
from ae_pipeline.reports.view import Published
from ae_pipeline.scoring.drift import Part
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.training.reference import with_reference
from tests.support.reports import Text, as_dataset, keep_copy, published, reported, restore
from tests.support.sensors import Fitted, with_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(fitted: Fitted) -> ModelBundle:
    """The fitted model with the distributions of its training window."""
    return with_reference(fitted.bundle, fitted.columns, fitted.paths)


def day_of(row: RankedRow) -> str:
    assert row.event_time is not None
    return row.event_time.date().isoformat()


def first_match(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match is not None
    return match


class Reported(NamedTuple):
    """Twelve published and reported days; 40 rows of the fifth lack `load`."""

    dataset: Fitted
    days: tuple[str, ...]
    report: Report


def published_table(dataset: Dataset, bundle: ModelBundle, entries: Mapping[str, ReportDay]) -> Published:
    files = published_days(dataset.paths)
    return Published(files=files, dataset=dataset, bundle=bundle, model_version=3, entries=entries)


class TestDays:
    @pytest.fixture(scope="class")
    def prepared(
        self, fitted: Fitted, bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Reported, Path]:
        """The report, and a copy of its files."""
        dataset = dataclasses.replace(fitted.at(tmp_path_factory.mktemp("reported") / "data"), bundle=bundle)
        days = dataset.days[-12:]
        odd = dataset.features(days[4]).with_columns(
            load=pl.when(pl.int_range(pl.len()) < 40).then(None).otherwise("load")
        )
        write_parquet(dataset.paths.features(days[4]), odd.to_arrow(), {"input_hash": "changed by a test"})
        published(dataset, days)
        drift = bundle.config.drift.model_copy(update={"min_rows": 30})
        config = bundle.config.model_copy(update={"drift": drift})
        dataset = dataclasses.replace(dataset, bundle=with_config(bundle, config))
        return Reported(dataset, days, reported(dataset, days)), keep_copy(dataset, "copy")

    @pytest.fixture
    def report(self, prepared: tuple[Reported, Path]) -> Reported:
        """The report, whose files a test may change."""
        restore(prepared[0].dataset, prepared[1])
        return prepared[0]

    def test_only_columns_of_days_within_the_window_are_compared(self, report: Reported) -> None:
        dataset, days, _ = report
        drift = {day.day: day for day in read_all_days(dataset.paths, 30)}
        assert set(drift) == set(days)
        odd = drift[days[4]]
        assert not odd.is_after
        assert {effect.name for effect in odd.effects} == {"load"}
        assert not any(
            effect.part != Part.COLUMN for day in drift.values() for effect in day.effects if not day.is_after
        )
        assert read_drift(dataset.paths, 30) == ()
        assert drifting_days(dataset.paths, 30) == []

    @pytest.mark.parametrize(("usual", "text"), [(1, "1 row is usual on"), (2, "2 rows are usual on")])
    def test_a_page_agrees_with_the_number_of_usual_rows(self, report: Reported, usual: int, text: str) -> None:
        context = json.loads((report.dataset.paths.reports / "report.context.json").read_text(encoding="utf-8"))
        context["variables"]["assessment"]["usual_rows"] = usual
        assert text in Text(render_report(context["variables"], as_dataset(report.dataset))).text

    def test_the_page_over_all_days_names_the_day_to_look_at(self, report: Reported) -> None:
        _, days, built = report
        text = Text(built.page.read_text()).text
        assert f"{days[4]}" in text
        assert "67% of rows (40) lack load, usually 0.0%" in text

    def test_unflagged_rows_are_explained_on_pages_only(self, report: Reported) -> None:
        dataset, _, built = report
        ranked = pl.read_parquet(built.alerts)
        silent = ranked.filter(~pl.col("is_anomaly"))
        assert silent.height >= 20
        assert silent["contributions"].list.len().max() == 0
        explained_rows = [row for row in built.strangest if not row.is_anomaly and row.contributions]
        assert [row.row_id for row in explained_rows] == silent["row_id"].head(20).to_list()
        first = explained_rows[0]
        features = dataset.features(day_of(first)).filter(pl.col("row_id") == first.row_id)
        (expected,) = dataset.bundle.explain(features)
        assert [(part.column, part.actual) for part in first.contributions] == [(p.column, p.actual) for p in expected]
        assert [part.surprisal for part in first.contributions] == pytest.approx([part.surprisal for part in expected])
        text = Text(built.page.read_text()).text
        assert text.count("not flagged; most unusual: ") == 20
        assert "Of the rows that are not flagged, the 20 with the highest scores are explained." in text
        assert first.reason in text

    def test_pages_of_days_do_not_change_the_explained_rows(self, report: Reported) -> None:
        dataset, days, _ = report
        previous = json.loads((dataset.paths.reports / "summary.json").read_text())["strangest"]
        for day in days[-3:]:
            day_page(day, as_dataset(dataset), dataset.bundle, 3)
        again = reported(dataset, days)
        assert json.loads(again.summary.read_text())["strangest"] == previous
        assert Text(again.page.read_text()).text.count("not flagged; most unusual: ") == 20

    def test_rows_with_features_of_other_settings_are_not_explained(self, report: Reported) -> None:
        dataset, days, built = report
        silent = next(row for row in built.strangest if not row.is_anomaly)
        day = day_of(silent)
        path = dataset.paths.features(day)
        pl.read_parquet(path).drop("load").with_columns(power=pl.lit("n/a")).write_parquet(path)
        entries = reported_days(days, dataset.paths)
        published = published_table(as_dataset(dataset), dataset.bundle, entries)
        bare = [dataclasses.replace(row, contributions=(), because="") for row in built.strangest]
        explained_rows = published.row_details.explanations(bare)
        assert {day_of(row) for row in explained_rows if row.contributions}.isdisjoint({day})
        assert any(row.contributions for row in explained_rows)
        assert ("power", "n/a") in published.row_details.values(bare)[silent.row_id]

    def test_completeness_is_the_share_of_present_values(self, report: Reported) -> None:
        dataset, days, _ = report
        page = Text(day_page(days[4], as_dataset(dataset), dataset.bundle, 3).read_text()).text
        features = dataset.features(days[4]).select(
            known.name for known in dataset.bundle.reference if known.part == "column"
        )
        present = 1 - features.null_count().sum_horizontal()[0] / (features.height * features.width)
        assert f"{present:.0%} of values" in page
        usual = 1 - np.mean([known.missing for known in dataset.bundle.reference if known.part == "column"])
        assert f"{usual:.0%} of the values are usually present" in page

    def test_the_page_of_a_day_has_hours_and_a_query_for_the_rows(self, report: Reported) -> None:
        dataset, days, _ = report
        page = day_page(days[4], as_dataset(dataset), dataset.bundle, 3)
        day = dataset.features(days[4])
        hours = day["event_time"].dt.hour().n_unique()
        assert page.read_text().count('class="total"') == hours
        query = first_match(r"SELECT \* FROM '(.+?)' WHERE (.+?)</code>", page.read_text())
        rows = pl.read_parquet(page.parent / query[1])
        matches = pl.SQLContext(day=rows, eager=True).execute(f"SELECT row_id FROM day WHERE {html.unescape(query[2])}")
        assert set(matches["row_id"]) == set(day.filter(pl.col("load").is_null())["row_id"])

    def test_the_page_of_a_day_lists_rows_and_links_adjacent_days(self, report: Reported) -> None:
        dataset, days, _ = report
        for other in (days[2], days[6], days[4]):
            page = day_page(other, as_dataset(dataset), dataset.bundle, 3)
        day, text = dataset.features(days[4]), page.read_text()
        row_ids = re.findall(r"<li><code>(.+?)</code>", text)
        assert set(row_ids) == set(day.filter(pl.col("load").is_null())["row_id"])
        assert f'<a class="d" href="{days[2]}.html">' in text
        assert f'<a class="d" href="{days[6]}.html">' in text

    def test_causes_of_a_day_are_located_within_the_day(self, report: Reported) -> None:
        dataset, days, _ = report
        page = day_page(days[4], as_dataset(dataset), dataset.bundle, 3)
        hit = dataset.features(days[4])["load"].is_null()
        hours = dataset.features(days[4])["event_time"].dt.hour().filter(hit)
        assert max(hours.to_list()) < 23
        text = Text(page.read_text()).text
        causes = text[text.index("Causes") : text.index("Most anomalous rows")]
        assert "load is missing" in causes
        assert re.search(r"nearly every row from \d\d:00 to \d\d:59 UTC", causes)

    def test_listed_days_without_a_message_get_their_causes(self, report: Reported) -> None:
        dataset, days, _ = report
        index = [{"day": days[4], "flagged": 40, "words": ""}, {"day": days[5], "flagged": 0, "words": "odd"}]
        first, second = with_causes(index, dataset.paths)
        groups = group_rows(as_rows(ranked_day(days[4], dataset.paths)))
        assert first["words"] == "; ".join(group.message for group in groups[:3])
        assert second["words"] == "odd"

    def test_a_row_shows_all_its_values(self, report: Reported) -> None:
        dataset, days, _ = report
        page = Text(day_page(days[4], as_dataset(dataset), dataset.bundle, 3).read_text()).text
        row = next(as_rows(ranked_day(days[4], dataset.paths)))
        values = dataset.features(days[4]).row(by_predicate=pl.col("row_id") == row.row_id, named=True)
        values_text = first_match(r"Values: ((?s:.*?))\.\n", page[page.index(row.row_id) :])[1]
        event_time, others = values_text.removeprefix("event time ").split(", ", 1)
        assert event_time == f"{values['event_time']:%Y-%m-%d %H:%M}"
        shown = dict(part.split(" ", 1) for part in others.split(", "))
        assert set(shown) == set(values) - {"row_id", "event_time"}
        assert shown["mode"] == values["mode"]
        assert shown["load"] == "missing"
        assert shown["scheduled"] == f"{int(values['scheduled']) // 60:02d}:{int(values['scheduled']) % 60:02d}"

    def test_the_page_states_the_flagged_share_of_unseen_days(self, report: Reported) -> None:
        dataset, days, built = report
        assert "No day after the training window is published" in Text(built.page.read_text()).text
        entries = reported_days(days, dataset.paths)
        window = dataclasses.replace(dataset.bundle.window, calibration=(days[3],))
        earlier = dataclasses.replace(dataset.bundle, window=window)
        published = published_table(as_dataset(dataset), earlier, entries)
        after = [entries[day] for day in days if days[3] < day <= days[9]]
        rows, flagged = sum(day.rows for day in after), sum(day.flagged for day in after)
        assert flagged
        assert unseen_days_summary(published, days[9]) == (
            f"On the 6 days after its training window, the model flags {flagged} of {rows} rows: {flagged / rows:.2%}. "
            f"The alert budget is {dataset.bundle.config.alerts.budget:.2%}."
        )

    def test_the_page_says_that_a_day_was_scored_in_hindsight(self, report: Reported) -> None:
        dataset, days, _ = report
        assert "in hindsight" not in self._with_model_of(dataset, days[0], f"{days[0]}T12:00:00+00:00")
        # That it serves again since a rollback is no hindsight.
        assert "in hindsight" not in self._with_model_of(dataset, days[0], "2025-01-01T12:00:00+00:00")
        dataset.paths.history.unlink()
        assert "so it scored this day in hindsight" in self._with_model_of(
            dataset, days[0], "2025-01-01T12:00:00+00:00"
        )

    def _with_model_of(self, dataset: Fitted, day: str, at: str) -> str:
        record(
            dataset.paths, HistoryEntry(at=at, change=Change.PROMOTED, version=3, previous=None, who="us", why="tested")
        )
        return Text(day_page(day, as_dataset(dataset), dataset.bundle, 3).read_text()).text

    def test_a_day_reported_alone_gets_a_page_that_is_kept_current(
        self, report: Reported, rewrite_day: Callable[..., None]
    ) -> None:
        dataset, days, _ = report
        pages = dataset.paths.reports / "days"
        assert not list(pages.glob("*.html"))
        reported(dataset, [days[4]])
        page = pages / f"{days[4]}.html"
        previous = Text(page.read_text()).text
        assert "67% of rows (40) lack load, usually 0.0%" in previous
        rewrite_day(dataset, days[4], dataset.features(days[4]).with_columns(load=pl.lit(0.1)))
        published(dataset, days)
        again = Text(reported(dataset, days).page.read_text()).text
        assert "lack load" not in Text(page.read_text()).text
        assert "lack load" not in again
        assert f'href="days/{days[4]}.html"' in (dataset.paths.reports / "report.html").read_text()

    def test_a_report_needs_no_published_calibration_day(self, dataset: Fitted, bundle: ModelBundle) -> None:
        dataset = dataclasses.replace(dataset, bundle=bundle)
        published(dataset, dataset.days[:1])
        text = Text(reported(dataset, dataset.days[:1]).page.read_text()).text
        assert "and 0 normal rows" in text

    def test_the_page_names_later_days_without_rows(self, report: Reported, rewrite_day: Callable[..., None]) -> None:
        dataset, days, built = report
        assert "There are no rows of" not in Text(built.page.read_text()).text
        rewrite_day(dataset, "2024-12-31", dataset.features(days[-1]).clear())
        again = reported(dataset, days)
        assert "There are no rows of 2024-12-31." in Text(again.page.read_text()).text
        before, after = (json.loads(each.summary.read_text())["verdict"] for each in (built, again))
        assert (after["day"], after["aside"]) == (days[-1], "There are no rows of 2024-12-31.")
        assert after["is_wrong"] == before["is_wrong"]
        page = day_page(days[2], as_dataset(dataset), dataset.bundle, 3)
        assert "There are no rows of" not in Text(page.read_text()).text

    def test_files_without_a_valid_row_are_counted(self, report: Reported) -> None:
        dataset, days, _ = report
        assert "no valid row" not in Text(reported(dataset, days).page.read_text()).text
        known = LandedFile(size=1, modified_ns=1, sha256="", landed_ns=1, contract="", staged=None)
        refused = dataclasses.replace(known, refused="no header")
        stands = dataclasses.replace(known, refused="no header", staged="d", rows=5, days={days[0]: 5})
        rejected = dataclasses.replace(known, quarantined={"missing identity": 3})
        good = dataclasses.replace(known, staged="c", rows=5, days={days[-1]: 5}, quarantined={"missing identity": 2})
        Ledger({"a.csv": refused, "b.csv": rejected, "c.csv": good, "d.csv": stands}).save(dataset.paths.ledger)
        text = Text(reported(dataset, days).page.read_text()).text
        assert "2 rows of its files in quarantine; 2 landed files have no valid row" in text
        assert "the newest version of 1 landed file is invalid, so the previous version is used" in text

    def test_any_reported_day_can_get_a_page(self, report: Reported) -> None:
        dataset, days, _ = report
        page = day_page(days[2], as_dataset(dataset), dataset.bundle, 3)
        assert page == dataset.paths.reports / "days" / f"{days[2]}.html"
        assert f"sensors on {days[2]}" in Text(page.read_text()).text
        assert f'<a href="days/{days[2]}.html">{days[2]}</a>' in (dataset.paths.reports / "report.html").read_text()
        for other in ("2019-01-01", "yesterday", "2024-13-01"):
            message = f"'{other}' has no report; 'sensors' has reports of days {days[0]} to {days[-1]}"
            with pytest.raises(PublicationError, match=message):
                day_page(other, as_dataset(dataset), dataset.bundle, 3)

    def test_days_that_need_attention_are_listed_first(self) -> None:
        index = [{"day": f"d{n}", "flagged": n % 7, "words": "odd" if n in {3, 5} else ""} for n in range(20)]
        listed_days = [one["day"] for one in most_worth_a_look(index)]
        assert listed_days[:4] == ["d5", "d3", "d13", "d6"]
        assert "d7" not in listed_days, "a day without words and alerts is not worth a look"
