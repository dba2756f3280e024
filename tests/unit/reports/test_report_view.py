"""Content of the pages: assessments of days, causes, nearest normal rows, and pages of single days."""

import dataclasses
import datetime as dt
import html
import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Contribution
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.latents.read import published_days
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.monitoring.daily_drift import DayDrift, drifting_days, read_all_days, read_drift
from ae_pipeline.monitoring.day_assessment import assess_day
from ae_pipeline.monitoring.deviations import Deviation
from ae_pipeline.registry.history import Change, Entry, record
from ae_pipeline.reports.build import Report, day_page
from ae_pipeline.reports.cards import unseen_days_summary
from ae_pipeline.reports.charts import calibration_chart, score_chart
from ae_pipeline.reports.groups import cause, group_rows
from ae_pipeline.reports.index import most_worth_a_look, with_causes
from ae_pipeline.reports.latent_map import latents_in, nearest_neighbors, project, projection, reference_rows
from ae_pipeline.reports.ranking import RankedRow, as_rows, ranked_day, reported_days
from ae_pipeline.reports.view import Published
from ae_pipeline.scoring.drift import Effect, Part
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.fit import with_reference
from tests.support.reports import Text, as_dataset, published, reported
from tests.support.sensors import Fitted


@pytest.fixture(scope="module")
def bundle(fitted: Fitted) -> ModelBundle:
    """The fitted model with the distributions of its training window."""
    return with_reference(fitted.bundle, fitted.columns, fitted.paths)


def row(name: str, score: float, *parts: tuple[str, float, str], day: int = 1) -> RankedRow:
    given = tuple(Contribution(column, surprisal, actual, "usual") for column, surprisal, actual in parts)
    at = dt.datetime(2024, 1, day, tzinfo=dt.UTC)
    return RankedRow(
        row_id=name,
        event_time=at,
        score=score,
        p_value=0.001,
        is_anomaly=True,
        is_discovery=None,
        is_known_anomaly=None,
        because="because",
        contributions=given,
    )


def day_of(row: RankedRow) -> str:
    assert row.event_time is not None
    return row.event_time.date().isoformat()


def first_match(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match is not None
    return match


class TestCauses:
    def test_rows_with_the_same_cause_form_a_group(self) -> None:
        rows = [
            row("a", 30.0, ("load", 20.0, "9"), ("mode", 8.0, "off"), day=3),
            row("b", 20.0, ("mode", 9.0, "off"), ("load", 12.0, "7"), ("power", 1.0, "2"), day=1),
            row("c", 10.0, ("power", 9.0, "0")),
        ]
        first, second = group_rows(rows)
        assert [one.row_id for one in first.rows] == ["a", "b"]
        assert first.columns == ("load", "mode")
        assert first.message == "load, mode is off"
        assert first.days == ("2024-01-01", "2024-01-03")
        assert (second.message, len(second.rows)) == ("power is 0", 1)

    def test_a_small_contribution_is_not_part_of_the_cause(self) -> None:
        assert cause(row("a", 9.0, ("x", 10.0, "1"), ("y", 2.9, "1"))) == ("x",)
        assert cause(row("a", 9.0, ("x", 10.0, "1"), ("y", 3.0, "1"))) == ("x", "y")

    def test_rows_without_an_explanation_have_no_group(self) -> None:
        assert group_rows([row("a", 1.0)]) == []


def entry(rows: int, flagged: int = 0, day: str = "2024-03-01", known: int = 0) -> ReportDay:
    return ReportDay(
        day=day,
        rows=rows,
        flagged=flagged,
        known_anomalies=known,
        known_flagged=known,
        discovery_count=0,
        content_hash="hash",
    )


def weeks(rows: int) -> dict[str, int]:
    return {(dt.date(2024, 3, 1) - dt.timedelta(weeks=week)).isoformat(): rows for week in range(1, 5)}


class TestAssessment:
    def test_a_usual_day_within_its_budget_needs_no_attention(self) -> None:
        assessment = assess_day(entry(1000, 1), weeks(990), None, (), 0.001)
        assert not assessment.is_wrong
        assert assessment.message.startswith(
            "nothing unusual: 1 of 1,000 rows are flagged, and the alert budget allows 1.0"
        )
        assert assessment.completeness == pytest.approx(1000 / 990)

    @pytest.mark.parametrize(
        ("given", "previous", "deviations", "message"),
        [
            (entry(1000, 30), {}, (), "30 rows are flagged, 30 times the budget"),
            (entry(500), weeks(1000), (), "500 rows came, where the same weekday usually has 1,000"),
            (entry(1000), {}, (Deviation(columns=("x",), message="x is odd"),), "x is odd"),
            (
                entry(1000, 30),
                {},
                tuple(Deviation(columns=(name,), message=f"{name} is odd") for name in "xyz"),
                "30 rows are flagged, 30 times the budget; x is odd, and the day is unusual in 2 more ways",
            ),
        ],
    )
    def test_the_message_contains_every_reason(
        self, given: ReportDay, previous: dict[str, int], deviations: tuple[Deviation, ...], message: str
    ) -> None:
        assessment = assess_day(given, previous, None, deviations, 0.001)
        assert assessment.is_wrong
        assert assessment.message == message

    def test_the_aside_says_that_single_rows_are_not_unusual(self) -> None:
        odd = (Deviation(columns=("x",), message="x is odd"),)
        assert assess_day(entry(1000, 2), {}, None, odd, 0.001).aside == (
            "The day as a whole is unusual, but the number of flagged rows is not significantly above the budget: 2 of "
            "1,000 rows are flagged, and the alert budget allows 1.0."
        )
        assert assess_day(entry(1000, 30, known=30), {}, None, odd, 0.001).aside == (
            "The day as a whole is unusual, but the number of flagged rows is within the budget: 0 of 970 rows that "
            "are not known anomalies are flagged, and the alert budget allows 1.0."
        )
        assert not assess_day(entry(1000, 30), {}, None, odd, 0.001).aside  # single rows are unusual too
        assert not assess_day(entry(500), weeks(1000), None, (), 0.001).aside  # too few rows say nothing about rows

    def test_known_anomalies_do_not_count_against_the_budget(self) -> None:
        assert not assess_day(entry(1000, 30, known=30), {}, None, (), 0.001).is_wrong

    def test_the_usual_number_of_rows_needs_two_previous_weeks(self) -> None:
        two = dict(list(weeks(1000).items())[:2])
        assert assess_day(entry(10), two, None, (), 0.001).usual_rows == 1000
        assert assess_day(entry(10), dict(list(two.items())[:1]), None, (), 0.001).usual_rows is None

    def test_a_day_with_drift_of_its_scores_only_needs_attention(self) -> None:
        effect = Effect(
            part=Part.SCORE, name="score", psi=2.0, is_drift=True, message="stability index 2.00, at most 0.5"
        )
        assessment = assess_day(
            entry(1000),
            {},
            DayDrift(day="2024-03-01", is_after=True, rows=1000, effects=(effect,), is_judged=True),
            (),
            0.001,
        )
        assert assessment.is_wrong
        assert "score: stability index 2.00" in assessment.message


class TestMap:
    @pytest.fixture
    def table(self, dataset: Fitted, fitted: Fitted) -> pl.DataFrame:
        published(dataset, dataset.days)
        return pl.read_delta(dataset.paths.latents).sort("row_id")

    def test_the_axes_have_the_largest_variance_of_the_training_rows(self, fitted: Fitted) -> None:
        rows = fitted.window.rows("train", fitted.paths)
        coordinates = project(fitted.bundle.encode(rows).astype(np.float64), fitted.bundle)
        np.testing.assert_allclose(coordinates.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(np.cov(coordinates.T, bias=True), np.eye(2), atol=1e-4)
        directions = projection(fitted.bundle)
        assert (directions[np.abs(directions).argmax(axis=0), [0, 1]] > 0).all()

    def test_neighbors_are_the_nearest_rows_without_the_row_itself(
        self, dataset: Fitted, fitted: Fitted, table: pl.DataFrame
    ) -> None:
        reference = reference_rows(published_days(dataset.paths), dataset.paths, fitted.bundle)
        assert not reference["is_anomaly"].any()
        rows = table.filter(pl.col("row_id").is_in(reference["row_id"].head(5).implode()))
        neighbors = nearest_neighbors(rows, reference, fitted.bundle)
        white = latents_in(reference) @ fitted.bundle.mahalanobis.whitening
        for one in rows.iter_rows(named=True):
            latents = latents_in(rows.filter(pl.col("row_id") == one["row_id"])) @ fitted.bundle.mahalanobis.whitening
            far = np.sqrt(np.square(white - latents).sum(1))
            expected = sorted(zip(far, reference["row_id"], strict=True))[1:4]
            assert [name for name, _ in neighbors[one["row_id"]]] == [name for _, name in expected]
            assert [distance for _, distance in neighbors[one["row_id"]]] == pytest.approx([far for far, _ in expected])


class TestCharts:
    def test_score_bars_are_shares_and_flagged_rows_are_counted(self) -> None:
        chart = score_chart(np.array([0.5, 0.5, 9.0]), np.linspace(0, 8, 100), 7.0, "2024-01-01")
        spec = json.loads(chart.spec)
        values = max(spec["datasets"].values(), key=len)
        for whose in ("2024-01-01", "calibration"):
            assert sum(value["share"] for value in values if value["rows"] == whose) == pytest.approx(1)
        assert chart.message.endswith("are flagged: 1.")

    def test_calibrated_p_values_lie_on_the_diagonal(self) -> None:
        p_values = np.arange(1, 10_001) / 10_000
        spec = json.loads(calibration_chart(p_values, "10,000 rows.").spec)
        points = max(spec["datasets"].values(), key=len)
        for point in points:
            assert point["share"] == pytest.approx(point["budget"], abs=1e-4)


class Reported(NamedTuple):
    """Twelve published and reported days; 40 rows of the fifth lack `load`."""

    dataset: Fitted
    days: tuple[str, ...]
    report: Report


def published_table(dataset: Dataset, bundle: ModelBundle, entries: Mapping[str, ReportDay]) -> Published:
    files = published_days(dataset.paths)
    return Published(files=files, dataset=dataset, bundle=bundle, model_version=3, entries=entries)


class TestDays:
    @pytest.fixture
    def report(self, dataset: Fitted, bundle: ModelBundle, rewrite_day: Callable[..., None]) -> Reported:
        days = dataset.days[-12:]
        odd = dataset.features(days[4]).with_columns(
            load=pl.when(pl.int_range(pl.len()) < 40).then(None).otherwise("load")
        )
        rewrite_day(dataset, days[4], odd)
        dataset = dataclasses.replace(dataset, bundle=bundle)
        published(dataset, days)
        drift = bundle.config.drift.model_copy(update={"min_rows": 30})
        config = bundle.config.model_copy(update={"drift": drift})
        dataset = dataclasses.replace(dataset, bundle=dataclasses.replace(bundle, config=config))
        return Reported(dataset, days, reported(dataset, days))

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
        assert "Of the rows that are not flagged, the 20 with the highest scores are explained_rows." in text
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
        assert f'<a href="{days[2]}.html">' in text
        assert f'<a href="{days[6]}.html">' in text

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
        shown = dict(part.split(" ", 1) for part in values_text.split(", "))
        assert set(shown) == set(values) - {"row_id"}
        assert shown["mode"] == values["mode"]
        assert shown["load"] == "missing"
        assert shown["event_time"] == f"{values['event_time']:%Y-%m-%d %H:%M}"
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
        record(dataset.paths, Entry(at=at, change=Change.PROMOTED, version=3, previous=None, who="us", why="tested"))
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
        assert "no rows arrived" not in Text(built.page.read_text()).text
        rewrite_day(dataset, "2024-12-31", dataset.features(days[-1]).clear())
        again = reported(dataset, days)
        assert f"2024-12-31; on {days[-1]} " in Text(again.page.read_text()).text
        assert json.loads(again.summary.read_text())["verdict"]["is_wrong"]
        page = day_page(days[2], as_dataset(dataset), dataset.bundle, 3)
        assert "no rows arrived" not in Text(page.read_text()).text

    def test_files_without_a_valid_row_are_counted(self, report: Reported) -> None:
        dataset, days, _ = report
        assert "no valid row" not in Text(reported(dataset, days).page.read_text()).text
        known = LandedFile(1, 1, "", 1, "", None)
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
