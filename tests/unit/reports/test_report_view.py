"""Content of the pages: assessments of days, causes, nearest normal rows, and pages of single days."""

import dataclasses
import datetime as dt
import html
import json
import re
from collections.abc import Mapping

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
from ae_pipeline.reports.build import day_page
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
from tests.support.reports import Text, published, reported


@pytest.fixture(scope="module")
def bundle(fitted):
    """The fitted model with what days are held against."""
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


class TestCauses:
    def test_rows_strange_by_the_same_columns_are_one_line_with_what_they_have_in_common(self):
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

    def test_a_column_that_adds_little_is_no_part_of_the_cause(self):
        assert cause(row("a", 9.0, ("x", 10.0, "1"), ("y", 2.9, "1"))) == ("x",)
        assert cause(row("a", 9.0, ("x", 10.0, "1"), ("y", 3.0, "1"))) == ("x", "y")

    def test_rows_without_an_explanation_belong_to_no_cause(self):
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


class TestVerdict:
    def test_a_day_within_its_budget_of_as_many_rows_as_usual_is_nothing_unusual(self):
        found = assess_day(entry(1000, 1), weeks(990), None, (), 0.001)
        assert not found.is_wrong
        assert found.message.startswith("nothing unusual: 1 of 1,000 rows are flagged, and the alert budget allows 1.0")
        assert found.completeness == pytest.approx(1000 / 990)

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
    def test_whatever_is_wrong_is_said(self, given, previous, deviations, message):
        found = assess_day(given, previous, None, deviations, 0.001)
        assert found.is_wrong
        assert found.message == message

    def test_a_day_that_is_unusual_without_an_unusual_row_is_said_to_be_so(self):
        odd = (Deviation(columns=("x",), message="x is odd"),)
        assert assess_day(entry(1000, 2), {}, None, odd, 0.001).aside == (
            "The day as a whole is unusual, but the number of flagged rows is not significantly above the budget: 2 of "
            "1,000 rows are flagged, and the alert budget allows 1.0."
        )
        assert assess_day(entry(1000, 30, known=30), {}, None, odd, 0.001).aside == (
            "The day as a whole is unusual, but the number of flagged rows is within the budget: 0 of 970 rows that are "
            "not known anomalies are flagged, and the alert budget allows 1.0."
        )
        assert not assess_day(entry(1000, 30), {}, None, odd, 0.001).aside  # single rows are unusual too
        assert not assess_day(entry(500), weeks(1000), None, (), 0.001).aside  # too few rows say nothing about rows

    def test_known_anomalies_are_none_of_what_the_budget_is_for(self):
        assert not assess_day(entry(1000, 30, known=30), {}, None, (), 0.001).is_wrong

    def test_two_weeks_before_tell_what_is_usual_and_one_does_not(self):
        two = dict(list(weeks(1000).items())[:2])
        assert assess_day(entry(10), two, None, (), 0.001).usual_rows == 1000
        assert assess_day(entry(10), dict(list(two.items())[:1]), None, (), 0.001).usual_rows is None

    def test_a_day_of_which_only_the_scores_have_drifted_is_wrong_too(self):
        effect = Effect(
            part=Part.SCORE, name="score", psi=2.0, is_drift=True, message="stability index 2.00, at most 0.5"
        )
        found = assess_day(entry(1000), {}, DayDrift(day="2024-03-01", is_after=True, rows=1000, effects=(effect,), is_judged=True), (), 0.001)
        assert found.is_wrong
        assert "score: stability index 2.00" in found.message


class TestMap:
    @pytest.fixture
    def table(self, dataset, fitted):
        published(dataset, dataset.days)
        return pl.read_delta(dataset.paths.latents).sort("row_id")

    def test_its_axes_are_the_widest_directions_of_the_training_latents(self, fitted):
        rows = fitted.window.rows("train", fitted.paths)
        coordinates = project(fitted.bundle.encode(rows).astype(np.float64), fitted.bundle)
        np.testing.assert_allclose(coordinates.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(np.cov(coordinates.T, bias=True), np.eye(2), atol=1e-4)
        directions = projection(fitted.bundle)
        assert (directions[np.abs(directions).argmax(axis=0), [0, 1]] > 0).all()

    def test_ordinary_neighbours_are_the_nearest_and_never_the_row_itself(self, dataset, fitted, table):
        reference = reference_rows(published_days(dataset.paths), dataset.paths, fitted.bundle)
        assert not reference["is_anomaly"].any()
        rows = table.filter(pl.col("row_id").is_in(reference["row_id"].head(5).implode()))
        found = nearest_neighbors(rows, reference, fitted.bundle)
        white = latents_in(reference) @ fitted.bundle.mahalanobis.whitening
        for one in rows.iter_rows(named=True):
            own = latents_in(rows.filter(pl.col("row_id") == one["row_id"])) @ fitted.bundle.mahalanobis.whitening
            far = np.sqrt(np.square(white - own).sum(1))
            expected = sorted(zip(far, reference["row_id"], strict=True))[1:4]
            assert [name for name, _ in found[one["row_id"]]] == [name for _, name in expected]
            assert [distance for _, distance in found[one["row_id"]]] == pytest.approx([far for far, _ in expected])


class TestCharts:
    def test_score_bars_are_shares_and_count_what_lies_beyond_the_threshold(self):
        chart = score_chart(np.array([0.5, 0.5, 9.0]), np.linspace(0, 8, 100), 7.0, "2024-01-01")
        spec = json.loads(chart.spec)
        values = max(spec["datasets"].values(), key=len)
        for whose in ("2024-01-01", "calibration"):
            assert sum(value["share"] for value in values if value["rows"] == whose) == pytest.approx(1)
        assert chart.message.endswith("are flagged: 1.")

    def test_calibrated_p_values_lie_on_the_line(self):
        p_values = np.arange(1, 10_001) / 10_000
        spec = json.loads(calibration_chart(p_values, "10,000 rows.").spec)
        points = max(spec["datasets"].values(), key=len)
        for point in points:
            assert point["share"] == pytest.approx(point["budget"], abs=1e-4)


def published_table(dataset: Dataset, bundle: ModelBundle, entries: Mapping[str, ReportDay]) -> Published:
    files = published_days(dataset.paths)
    return Published(files=files, dataset=dataset, bundle=bundle, model_version=3, entries=entries)


class TestDays:
    @pytest.fixture
    def report(self, dataset, bundle, rewrite_day):
        days = dataset.days[-12:]
        odd = dataset.features(days[4]).with_columns(
            load=pl.when(pl.int_range(pl.len()) < 40).then(None).otherwise("load")
        )
        rewrite_day(dataset, days[4], odd)
        dataset = dataclasses.replace(dataset, bundle=bundle)
        published(dataset, days)
        config = bundle.config
        drift = config.drift.model_copy(update={"min_rows": 30})
        self.config = config.model_copy(update={"drift": drift})
        dataset = dataclasses.replace(dataset, bundle=dataclasses.replace(bundle, config=self.config))
        return dataset, days, reported(dataset, days)

    def test_days_within_the_window_are_judged_by_their_columns_and_train_nothing(self, report):
        dataset, days, _ = report
        found = {day.day: day for day in read_all_days(dataset.paths, 30)}
        assert set(found) == set(days)
        odd = found[days[4]]
        assert not odd.is_after
        assert {effect.name for effect in odd.effects} == {"load"}
        assert not any(
            effect.part != Part.COLUMN for day in found.values() for effect in day.effects if not day.is_after
        )
        assert read_drift(dataset.paths, 30) == ()
        assert drifting_days(dataset.paths, 30) == []

    def test_the_page_over_all_days_says_which_one_to_look_at(self, report):
        _, days, built = report
        text = Text(built.page.read_text()).text
        assert f"{days[4]}" in text
        assert "67% of rows (40) lack load, usually 0.0%" in text

    def test_rows_that_are_not_flagged_are_explained_on_pages_and_in_no_file(self, report):
        dataset, _, built = report
        ranked = pl.read_parquet(built.alerts)
        silent = ranked.filter(~pl.col("is_anomaly"))
        assert silent.height >= 20
        assert silent["contributions"].list.len().max() == 0
        told = [row for row in built.strangest if not row.is_anomaly and row.contributions]
        assert [row.row_id for row in told] == silent["row_id"].head(20).to_list()
        first = told[0]
        features = dataset.features(first.event_time.date().isoformat()).filter(pl.col("row_id") == first.row_id)
        (expected,) = dataset.bundle.explain(features)
        assert [(part.column, part.actual) for part in first.contributions] == [(p.column, p.actual) for p in expected]
        assert [part.surprisal for part in first.contributions] == pytest.approx([part.surprisal for part in expected])
        text = Text(built.page.read_text()).text
        assert text.count("not flagged; most unusual: ") == 20
        assert "Of the rows that are not flagged, the 20 with the highest scores are explained." in text
        assert first.reason in text

    def test_pages_of_days_that_were_made_before_explain_no_further_rows_over_all_days(self, report):
        dataset, days, _ = report
        previous = json.loads((dataset.paths.reports / "summary.json").read_text())["strangest"]
        for day in days[-3:]:
            day_page(day, Dataset(self.config, dataset.paths), dataset.bundle, 3)
        again = reported(dataset, days)
        assert json.loads(again.summary.read_text())["strangest"] == previous
        assert Text(again.page.read_text()).text.count("not flagged; most unusual: ") == 20

    def test_days_whose_features_were_made_under_other_settings_are_listed_unexplained(self, report):
        dataset, days, built = report
        silent = next(row for row in built.strangest if not row.is_anomaly)
        day = silent.event_time.date().isoformat()
        path = dataset.paths.features(day)
        pl.read_parquet(path).drop("load").with_columns(power=pl.lit("n/a")).write_parquet(path)
        entries = reported_days(days, dataset.paths)
        published = published_table(Dataset(self.config, dataset.paths), dataset.bundle, entries)
        bare = [dataclasses.replace(row, contributions=(), because="") for row in built.strangest]
        explained = published.row_details.explanations(bare)
        assert {row.event_time.date().isoformat() for row in explained if row.contributions}.isdisjoint({day})
        assert any(row.contributions for row in explained)
        assert ("power", "n/a") in published.row_details.values(bare)[silent.row_id]

    def test_completeness_counts_rows_and_values(self, report):
        dataset, days, _ = report
        page = Text(day_page(days[4], Dataset(self.config, dataset.paths), dataset.bundle, 3).read_text()).text
        features = dataset.features(days[4]).select(
            known.name for known in dataset.bundle.reference if known.part == "column"
        )
        there = 1 - features.null_count().sum_horizontal()[0] / (features.height * features.width)
        assert f"{there:.0%} of values" in page
        usual = 1 - np.mean([known.missing for known in dataset.bundle.reference if known.part == "column"])
        assert f"{usual:.0%} of the values are usually present" in page

    def test_the_page_of_a_day_says_when_and_how_to_find_the_rows(self, report):
        dataset, days, _ = report
        page = day_page(days[4], Dataset(self.config, dataset.paths), dataset.bundle, 3)
        day = dataset.features(days[4])
        hours = day["event_time"].dt.hour().n_unique()
        assert page.read_text().count('class="total"') == hours
        query = re.search(r"SELECT \* FROM '(.+?)' WHERE (.+?)</code>", page.read_text())
        rows = pl.read_parquet(page.parent / query[1])
        found = pl.SQLContext(day=rows).execute(f"SELECT row_id FROM day WHERE {html.unescape(query[2])}", eager=True)
        assert set(found["row_id"]) == set(day.filter(pl.col("load").is_null())["row_id"])

    def test_the_page_of_a_day_lists_the_rows_and_leads_to_the_days_beside_it(self, report):
        dataset, days, _ = report
        for day in (days[2], days[6], days[4]):
            page = day_page(day, Dataset(self.config, dataset.paths), dataset.bundle, 3)
        day, told = dataset.features(days[4]), page.read_text()
        listed = re.findall(r"<li><code>(.+?)</code>", told)
        assert set(listed) == set(day.filter(pl.col("load").is_null())["row_id"])
        assert f'<a href="{days[2]}.html">' in told
        assert f'<a href="{days[6]}.html">' in told

    def test_causes_of_a_day_say_where_in_it_they_lie(self, report):
        dataset, days, _ = report
        page = day_page(days[4], Dataset(self.config, dataset.paths), dataset.bundle, 3)
        hit = dataset.features(days[4])["load"].is_null()
        hours = dataset.features(days[4])["event_time"].dt.hour().filter(hit)
        assert hours.max() < 23
        text = Text(page.read_text()).text
        causes = text[text.index("Causes") : text.index("Most anomalous rows")]
        assert "load is missing" in causes
        assert re.search(r"nearly every row from \d\d:00 to \d\d:59 UTC", causes)

    def test_listed_days_without_words_say_what_their_flagged_rows_are_strange_by(self, report):
        dataset, days, _ = report
        index = [{"day": days[4], "flagged": 40, "words": ""}, {"day": days[5], "flagged": 0, "words": "odd"}]
        first, second = with_causes(index, dataset.paths)
        groups = group_rows(as_rows(ranked_day(days[4], dataset.paths)))
        assert first["words"] == "; ".join(group.message for group in groups[:3])
        assert second["words"] == "odd"

    def test_a_row_shows_all_its_values(self, report):
        dataset, days, _ = report
        page = Text(day_page(days[4], Dataset(self.config, dataset.paths), dataset.bundle, 3).read_text()).text
        row = next(as_rows(ranked_day(days[4], dataset.paths)))
        values = dataset.features(days[4]).row(by_predicate=pl.col("row_id") == row.row_id, named=True)
        told = re.search(r"Values: (.*?)\.\n", page[page.index(row.row_id) :], re.DOTALL)[1]
        shown = dict(part.split(" ", 1) for part in told.split(", "))
        assert set(shown) == set(values) - {"row_id"}
        assert shown["mode"] == values["mode"]
        assert shown["load"] == "missing"
        assert shown["event_time"] == f"{values['event_time']:%Y-%m-%d %H:%M}"
        assert shown["scheduled"] == f"{int(values['scheduled']) // 60:02d}:{int(values['scheduled']) % 60:02d}"

    def test_the_page_says_how_the_model_does_on_days_that_it_has_not_seen(self, report):
        dataset, days, built = report
        assert "No day after the training window is published" in Text(built.page.read_text()).text
        entries = reported_days(days, dataset.paths)
        window = dataclasses.replace(dataset.bundle.window, calibration=(days[3],))
        earlier = dataclasses.replace(dataset.bundle, window=window)
        published = published_table(Dataset(self.config, dataset.paths), earlier, entries)
        after = [entries[day] for day in days if days[3] < day <= days[9]]
        rows, flagged = sum(day.rows for day in after), sum(day.flagged for day in after)
        assert flagged
        assert unseen_days_summary(published, days[9]) == (
            f"On the 6 days after its training window, the model flags {flagged} of {rows} rows: {flagged / rows:.2%}. "
            f"The alert budget is {dataset.bundle.config.alerts.budget:.2%}."
        )

    def test_a_day_that_was_scored_long_after_it_was_new_is_said_to_be(self, report):
        dataset, days, _ = report
        assert "in hindsight" not in self._with_model_of(dataset, days[0], f"{days[0]}T12:00:00+00:00")
        # That it serves again since a rollback is no hindsight.
        assert "in hindsight" not in self._with_model_of(dataset, days[0], "2025-01-01T12:00:00+00:00")
        dataset.paths.history.unlink()
        assert "so it scored this day in hindsight" in self._with_model_of(dataset, days[0], "2025-01-01T12:00:00+00:00")

    def _with_model_of(self, dataset, day: str, at: str) -> str:
        record(dataset.paths, Entry(at=at, change=Change.PROMOTED, version=3, previous=None, who="us", why="tested"))
        return Text(day_page(day, Dataset(self.config, dataset.paths), dataset.bundle, 3).read_text()).text

    def test_a_day_asked_for_alone_gets_a_page_and_keeps_it_up_to_date(self, report, rewrite_day):
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

    def test_a_report_can_be_made_where_no_calibration_day_is_published(self, dataset, bundle):
        dataset = dataclasses.replace(dataset, bundle=bundle)
        published(dataset, dataset.days[:1])
        text = Text(reported(dataset, dataset.days[:1]).page.read_text()).text
        assert "and 0 normal rows" in text

    def test_days_without_rows_after_the_newest_are_told_at_the_top(self, report, rewrite_day):
        dataset, days, built = report
        assert "no rows arrived" not in Text(built.page.read_text()).text
        rewrite_day(dataset, "2024-12-31", dataset.features(days[-1]).clear())
        again = reported(dataset, days)
        assert f"2024-12-31; on {days[-1]} " in Text(again.page.read_text()).text
        assert json.loads(again.summary.read_text())["verdict"]["is_wrong"]
        page = day_page(days[2], Dataset(self.config, dataset.paths), dataset.bundle, 3)
        assert "no rows arrived" not in Text(page.read_text()).text

    def test_files_that_give_no_row_are_counted_beside_the_rows_in_quarantine(self, report):
        dataset, days, _ = report
        assert "no valid row" not in Text(reported(dataset, days).page.read_text()).text
        known = LandedFile(1, 1, "", 1, "", None)
        refused = dataclasses.replace(known, refused="no header")
        stands = dataclasses.replace(known, refused="no header", staged="d", rows=5, days={days[0]: 5})
        rejected = dataclasses.replace(known, quarantined={"missing identity": 3})
        rows = {"rows": 5, "days": {days[-1]: 5}, "quarantined": {"missing identity": 2}}
        good = dataclasses.replace(known, staged="c", **rows)
        Ledger({"a.csv": refused, "b.csv": rejected, "c.csv": good, "d.csv": stands}).save(dataset.paths.ledger)
        text = Text(reported(dataset, days).page.read_text()).text
        assert "2 rows of its files in quarantine; 2 landed files have no valid row" in text
        assert "the newest version of 1 landed file is invalid, so the previous version is used" in text

    def test_a_page_can_be_asked_for_of_any_reported_day(self, report):
        dataset, days, _ = report
        page = day_page(days[2], Dataset(self.config, dataset.paths), dataset.bundle, 3)
        assert page == dataset.paths.reports / "days" / f"{days[2]}.html"
        assert f"sensors on {days[2]}" in Text(page.read_text()).text
        assert f'<a href="days/{days[2]}.html">{days[2]}</a>' in (dataset.paths.reports / "report.html").read_text()
        for other in ("2019-01-01", "yesterday", "2024-13-01"):
            message = f"'{other}' has no report; 'sensors' has reports of days {days[0]} to {days[-1]}"
            with pytest.raises(PublicationError, match=message):
                day_page(other, Dataset(self.config, dataset.paths), dataset.bundle, 3)

    def test_the_index_has_days_with_words_first_and_then_those_with_most_alerts(self):
        index = [{"day": f"d{n}", "flagged": n % 7, "words": "odd" if n in {3, 5} else ""} for n in range(20)]
        found = [one["day"] for one in most_worth_a_look(index)]
        assert found[:4] == ["d5", "d3", "d13", "d6"]
        assert "d7" not in found, "a day without words and alerts is not worth a look"
