"""The anomaly report: ranking, content, and equal numbers in page, JSON and Parquet."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import polars as pl
import pytest
import scipy.stats

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.read import published_days
from ae_pipeline.reports import ranking
from ae_pipeline.reports.build import Report
from ae_pipeline.reports.ranking import as_rows, is_reported
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.reports import SCRIPT, Text, keep_copy, published, reported, restore
from tests.support.sensors import Fitted, with_config

pytestmark = pytest.mark.slow


def ranked(dataset: Fitted, day: str) -> pl.DataFrame:
    return pl.read_parquet(dataset.paths.reports / "days" / f"{day}.parquet")


def times(dataset: Fitted) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (dataset.paths.reports / "days").glob("*.parquet")}


@pytest.fixture(scope="module")
def days(fitted: Fitted) -> tuple[str, ...]:
    return fitted.days[-5:]


@pytest.fixture(scope="module")
def prepared(
    fitted: Fitted, days: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Fitted, Path, Report, Path]:
    """Five published days with anomalous rows on the second and the fourth, and their report.

    The folders have copies of the files without the report and with it.
    """
    dataset = fitted.at(tmp_path_factory.mktemp("planted") / "data")
    second, fourth = (dataset.features(day).with_row_index("i") for day in (days[1], days[3]))
    second = second.with_columns(
        mode=pl.when(pl.col("i") == 5).then(pl.lit(SCRIPT)).otherwise("mode"),
        row_id=pl.when(pl.col("i") == 5).then(pl.lit("<b>5</b>")).otherwise("row_id"),
        load=pl.when(pl.col("i").is_between(10, 16)).then(-pl.col("load") * 9).otherwise("load"),
    )
    fourth = fourth.with_columns(temperature=pl.when(pl.col("i") == 0).then(-900.5).otherwise("temperature"))
    for day, rows in ((days[1], second), (days[3], fourth)):
        write_parquet(dataset.paths.features(day), rows.drop("i").to_arrow(), {"input_hash": "changed by a test"})
    published(dataset, days)
    before = keep_copy(dataset, "published")
    return dataset, before, reported(dataset, days), keep_copy(dataset, "reported")


@pytest.fixture
def planted(prepared: tuple[Fitted, Path, Report, Path]) -> Fitted:
    """Five published days, whose files a test may change."""
    dataset, before, _, _ = prepared
    restore(dataset, before)
    return dataset


@pytest.fixture
def report(prepared: tuple[Fitted, Path, Report, Path], planted: Fitted) -> Report:
    """The report on these days."""
    _, _, report, after = prepared
    restore(planted, after)
    return report


class TestRanking:
    def test_all_flagged_rows_and_at_least_ten_rows_are_ranked(
        self, planted: Fitted, days: tuple[str, ...], report: Report
    ) -> None:
        table = pl.read_delta(planted.paths.latents)
        for entry in report.days:
            rows = table.filter(pl.col("date").dt.to_string() == entry.day)
            flagged = set(rows.filter("is_anomaly")["row_id"])
            strangest = set(rows.sort("score", descending=True).head(10)["row_id"])
            rows_of_day = ranked(planted, entry.day)
            assert set(rows_of_day["row_id"]) == flagged | strangest
            assert (entry.rows, entry.flagged) == (60, len(flagged))
            assert set(rows_of_day.filter("is_anomaly")["row_id"]) == flagged
        assert report.days[1].flagged >= 8

    def test_rows_are_sorted_by_score(self, planted: Fitted, days: tuple[str, ...], report: Report) -> None:
        for day in days:
            assert ranked(planted, day)["score"].is_sorted(descending=True)
        assert pl.read_parquet(report.alerts)["score"].is_sorted(descending=True)
        assert [row.score for row in report.strangest] == pl.read_parquet(report.alerts)["score"].to_list()

    def test_scores_match_the_published_table(self, planted: Fitted, report: Report) -> None:
        table = pl.read_delta(planted.paths.latents)
        both = pl.read_parquet(report.alerts).join(table, on="row_id", suffix="_published")
        assert both.height == pl.read_parquet(report.alerts).height
        for name in ("score", "p_value", "is_anomaly", "model_version", "event_time"):
            assert both[name].equals(both[f"{name}_published"], check_names=False)

    def test_flagged_rows_are_explained_by_their_top_three_columns(self, report: Report) -> None:
        for row in as_rows(pl.read_parquet(report.alerts)):
            surprises = [part.surprisal for part in row.contributions]
            assert 1 <= len(surprises) <= 3 if row.is_anomaly else not surprises
            assert all(part.actual != part.expected for part in row.contributions)
            assert bool(row.because) == row.is_anomaly
            columns = [part.surprisal for part in row.contributions if part.column not in {"latent", "ensemble"}]
            assert columns == sorted(columns, reverse=True)
            assert not {"latent", "ensemble"} & {part.column for part in row.contributions[1:]}

    def test_a_planted_cause_is_explained_with_its_value(
        self, planted: Fitted, days: tuple[str, ...], report: Report
    ) -> None:
        row = ranked(planted, days[1]).row(by_predicate=pl.col("row_id") == "<b>5</b>", named=True)
        assert {part["column"]: part["actual"] for part in row["contributions"]}["mode"] == SCRIPT
        assert f"mode is {SCRIPT}, expected " in row["because"]
        coldest = ranked(planted, days[3]).row(0, named=True)
        assert {part["column"]: part["actual"] for part in coldest["contributions"]}["temperature"] == "-900"

    def test_discoveries_are_ranked_explained_counted_and_marked(self, planted: Fitted, days: tuple[str, ...]) -> None:
        rate = 0.5
        assert "◆" not in reported(planted, days).page.read_text()
        alerts = planted.config.alerts.model_copy(update={"false_discovery_rate": rate})
        config = planted.config.model_copy(update={"alerts": alerts})
        marked = reported(replace(planted, bundle=with_config(planted.bundle, config)), days)
        table = pl.read_delta(planted.paths.latents)
        count = 0
        for entry in marked.days:
            rows = table.filter(pl.col("date").dt.to_string() == entry.day)
            expected = rows.filter(pl.Series(scipy.stats.false_discovery_control(rows["p_value"].to_numpy()) <= rate))
            rows_of_day = ranked(planted, entry.day)
            assert set(rows_of_day.filter("is_discovery")["row_id"]) == set(expected["row_id"])
            assert entry.discovery_count == expected.height
            with_contributions = rows_of_day.filter(pl.col("contributions").list.len() > 0)
            assert with_contributions.select(pl.col("is_discovery") | pl.col("is_anomaly")).to_series().all()
            count += expected.height
        summary = json.loads(marked.summary.read_text())
        assert (summary["discoveries"], summary["false_discovery_rate"]) == (count, rate)
        assert count > 0
        page = marked.page.read_text()
        assert page.count("◆</td>") == pl.read_parquet(marked.alerts)["is_discovery"].sum()
        assert pl.read_delta(planted.paths.latents).equals(table)

    def test_the_configuration_limits_listed_and_explained_rows(self, planted: Fitted, days: tuple[str, ...]) -> None:
        settings = planted.config.alerts.model_copy(update={"report_rows": 4})
        config = planted.config.model_copy(update={"alerts": settings})
        few = replace(planted, bundle=with_config(planted.bundle, config))
        table = pl.read_delta(planted.paths.latents)
        highest, report = table.sort("score", descending=True).head(4), reported(few, days)
        assert [row.row_id for row in report.strangest] == highest["row_id"].to_list()
        alerts = pl.read_parquet(report.alerts).filter("is_anomaly")  # the file has all of them
        assert set(alerts["row_id"]) == set(table.filter("is_anomaly")["row_id"])
        explained = alerts.filter(pl.col("contributions").list.len() > 0)
        assert (
            explained.height
            == table.filter("is_anomaly").group_by("date").len()["len"].clip(upper_bound=4).sum()
            < alerts.height
        )


class TestPage:
    def test_page_summary_and_parquet_contain_the_same_numbers(
        self, planted: Fitted, days: tuple[str, ...], report: Report
    ) -> None:
        table = pl.read_delta(planted.paths.latents)
        rows, flagged = table.height, int(table["is_anomaly"].sum())
        summary = json.loads(report.summary.read_text())
        assert (summary["rows"], summary["flagged"], report.rows, report.flagged) == (rows, flagged, rows, flagged)
        assert int(pl.read_parquet(report.alerts)["is_anomaly"].sum()) == flagged
        by_day = table.group_by("date").agg(rows=pl.len(), flagged=pl.col("is_anomaly").sum()).sort("date")
        assert [(entry["day"], entry["rows"], entry["flagged"]) for entry in summary["days"]] == [
            (str(day), count, hits) for day, count, hits in by_day.iter_rows()
        ]
        page = Text(report.page.read_text()).text
        assert f"sensors: {flagged} of {rows} rows flagged" in page
        assert (
            f"{flagged / rows:.2%} of the rows are flagged. The alert budget is 1.00%: about 3 rows, "
            f"{0.01 * rows / by_day.height:.1f} a day, are expected to be flagged even if all is well" in page
        )
        assert f"The highest bar is {max(by_day['flagged'])} rows" in page
        states = [entry["state"] for entry in summary["days"]]
        wrong, look = states.count("wrong"), states.count("worth a look")
        assert f"Of 5 days, {wrong} {'is' if wrong == 1 else 'are'} wrong (red, on pale red) and {look} " in page
        bars = re.findall(
            r'<rect x="\d+" width="3" y="[\d.]+" height="([\d.]+)" class="([a-z-]+)"/>', report.page.read_text()
        )
        assert [state for _, state in bars] == [state.replace(" ", "-") for state in states]
        assert [float(height) > 0 for height, _ in bars] == [entry["flagged"] > 0 for entry in summary["days"]]
        assert f"a score above {planted.bundle.calibration.threshold:.2f} nats are flagged" in page
        assert "version 3, MLflow run run-of-mlflow" in page
        bodies = re.findall(r'<tbody id="row-\w+" data-score="([^"]+)" data-row="([^"]*)"', report.page.read_text())
        assert [(float(score), html.unescape(name)) for score, name in bodies] == [
            (row.score, row.row_id) for row in report.strangest
        ]

    def test_the_summary_describes_the_model_and_its_calibration(self, planted: Fitted, report: Report) -> None:
        summary = json.loads(report.summary.read_text())
        assert summary["format"] == 3
        jsonschema.validate(summary, json.loads(report.summary.with_name("summary.schema.json").read_text()))
        assert (summary["model_version"], summary["latent_space"], summary["budget"]) == (
            3,
            latent_space_name(3, planted.bundle.fingerprint),
            0.01,
        )
        assert summary["expected_alerts"] == pytest.approx(3.0)
        assert summary["calibration_rows"] == 480
        assert summary["train_days"] == [planted.days[0], planted.days[25]]
        assert summary["calibration_days"] == [planted.days[-8], planted.days[-1]]
        assert set(summary["columns_left_out"]) == {"serial", "site"}
        assert [row["row_id"] for row in summary["strangest"]] == [row.row_id for row in report.strangest]

    def test_values_are_escaped_on_the_page(self, report: Report) -> None:
        page = report.page.read_text()
        parsed = Text(page)
        assert SCRIPT not in page
        assert "<b>5</b>" not in page
        specs = page.count('-spec">')
        assert specs >= 4
        assert parsed.tags.count("script") == specs + 1  # a specification for each chart, and the scripts
        assert f"mode is {SCRIPT}" in parsed.text
        assert "<b>5</b>" in parsed.text

    def test_a_report_of_one_day_includes_unreported_days(self, planted: Fitted, days: tuple[str, ...]) -> None:
        report = reported(planted, days[:1])
        summary = json.loads(report.summary.read_text())
        assert [entry.day for entry in report.days] == [days[0]]
        assert [entry["day"] for entry in summary["days"]] == sorted(days)
        assert pl.read_parquet(report.alerts)["model_version"].unique().to_list() == [3]
        assert f"about {summary['expected_alerts']:,.0f} row" in " ".join(Text(report.page.read_text()).text.split())


class TestRebuilding:
    def test_a_second_build_changes_no_file(self, planted: Fitted, days: tuple[str, ...], report: Report) -> None:
        previous, page, summary = times(planted), report.page.read_bytes(), report.summary.read_bytes()
        again = reported(planted, days)
        assert times(planted) == previous
        assert [day.content_hash for day in again.days] == [day.content_hash for day in report.days]
        assert again.days == report.days
        assert (again.page.read_bytes(), again.summary.read_bytes()) == (page, summary)

    def test_only_days_with_a_changed_file_are_ranked_again(
        self, planted: Fitted, days: tuple[str, ...], report: Report, rewrite_day: Callable[..., None]
    ) -> None:
        previous = times(planted)
        rewrite_day(planted, days[1], planted.features(days[1]).filter(pl.col("row_id") != "<b>5</b>"))
        published(planted, days)
        files = published_days(planted.paths)
        current = [is_reported(day, files[day], Dataset(planted.config, planted.paths)) for day in days]
        assert current == [True, False, True, True, True]
        again = reported(planted, days)
        assert {day for day in days if times(planted)[day] != previous[day]} == {days[1]}
        assert again.days[1].rows == 59
        assert "<b>5</b>" not in Text(again.page.read_text()).text
        assert is_reported(days[1], files[days[1]], Dataset(planted.config, planted.paths))

    def test_days_of_earlier_reports_stay_on_the_page(self, planted: Fitted, days: tuple[str, ...]) -> None:
        reported(planted, days[:3])
        report = reported(planted, days[3:])
        assert [day.day for day in report.days] == list(days[3:])
        assert [entry["day"] for entry in json.loads(report.summary.read_text())["days"]] == list(days)

    def test_a_day_that_leaves_the_table_leaves_the_report(
        self, planted: Fitted, days: tuple[str, ...], report: Report, rewrite_day: Callable[..., None]
    ) -> None:
        rewrite_day(planted, days[1], planted.features(days[1]).clear())
        published(planted, days)
        again = reported(planted, days)
        assert (again.days[1].rows, again.days[1].flagged) == (0, 0)
        assert days[1] not in {entry["day"] for entry in json.loads(again.summary.read_text())["days"]}
        assert read_facts(planted.paths.reports / "days" / f"{days[1]}.parquet")["rows"] == "0"

    def test_an_unpublished_day_raises_an_error_that_names_it(self, planted: Fitted) -> None:
        with pytest.raises(PublicationError, match=f"{planted.days[0]} of 'sensors' is not in the published table"):
            reported(planted, planted.days[:1])


def test_rows_that_an_earlier_release_ranked_are_read_beside_others(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path, "sensors")
    part = {"column": "load", "surprise": 2.5, "actual": "9", "expected": "1"}
    row = {"row_id": "a", "score": 1.0, "is_anomaly": True, "contributions": [{**part, "categories": None}]}
    earlier = pl.struct(pl.element().struct.field(*part))
    for day, score in {"2024-01-01": 1.0, "2024-01-02": 2.0}.items():
        rows = pl.DataFrame([{**row, "score": score}], schema=ranking._SCHEMA)
        if day == "2024-01-01":
            rows = rows.with_columns(pl.col("contributions").list.eval(earlier))
        write_parquet(paths.reports / "days" / f"{day}.parquet", rows.to_arrow())
    ranked = ranking.all_ranked(paths, {"2024-01-01", "2024-01-02"})
    assert ranked["score"].to_list() == [2.0, 1.0]
    assert ranked["contributions"].to_list() == [row["contributions"]] * 2
