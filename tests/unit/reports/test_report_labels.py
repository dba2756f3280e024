"""Scores measured against labels: the measures, their rows, and where they are reported."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import published_days
from ae_pipeline.monitoring.feedback import Mark, MarkKind, MarkState, add_mark
from ae_pipeline.reports.build import Report
from ae_pipeline.reports.labels import measure, measure_labels, normal_scores
from ae_pipeline.reports.latent_map import reference_rows
from ae_pipeline.reports.ranking import reported_days
from ae_pipeline.reports.view import Published
from tests.support.reports import Text, as_dataset, published, reported
from tests.support.sensors import Fitted, with_config

pytestmark = pytest.mark.slow


def random_scores(seed: int, n: int, distinct: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return random scores with ties, labels and flags; anomalies have higher scores."""
    rng = np.random.default_rng(seed)
    anomalies = rng.random(n) < 0.2
    anomalies[:2] = True, False
    scores = np.round(rng.normal(anomalies * 1.0, 1.0) * distinct) / distinct
    return scores, anomalies, scores > 1.5


class TestMeasures:
    @pytest.mark.parametrize(("n", "distinct"), [(2, 1), (50, 1), (500, 3), (4000, 1000)])
    @pytest.mark.parametrize("seed", range(3))
    def test_auroc_and_average_precision_match_scikit_learn(self, seed: int, n: int, distinct: int) -> None:
        scores, anomalies, flagged = random_scores(seed, n, distinct)
        measures = measure(scores, anomalies, flagged)
        assert measures.auroc == pytest.approx(roc_auc_score(anomalies, scores), abs=1e-12)
        assert measures.average_precision == pytest.approx(average_precision_score(anomalies, scores), abs=1e-12)

    def test_auroc_is_the_share_of_ordered_pairs_and_ties_count_half(self) -> None:
        scores = np.array([3.0, 1.0, 2.0, 2.0, 0.0])
        anomalies = np.array([True, True, False, False, False])
        measures = measure(scores, anomalies, scores > 1.5)
        assert measures.auroc == pytest.approx((3 + 1) / 6, abs=1e-12)
        assert measure(scores, anomalies, scores > 1.5).average_precision == (1 / 1 + 2 / 4) / 2
        assert measure(scores[::-1] * 0, anomalies, scores > 1.5).auroc == 0.5

    def test_flagged_rows_are_counted_by_label(self) -> None:
        flagged = np.array([True, False, True, True, False])
        measures = measure(np.arange(5.0), np.array([True, True, False, False, False]), flagged)
        assert (
            measures.rows,
            measures.anomalies,
            measures.anomalies_flagged,
            measures.normal,
            measures.normal_flagged,
        ) == (
            *(5, 2, 1),
            *(3, 2),
        )

    @pytest.mark.parametrize("anomaly", [True, False])
    def test_auroc_is_none_if_all_labels_are_the_same(self, anomaly: bool) -> None:
        measures = measure(np.arange(3.0), np.full(3, anomaly), np.zeros(3, bool))
        assert (measures.auroc, measures.average_precision, measures.rows) == (None, None, 3)


@pytest.fixture
def labelled(dataset: Fitted, rewrite_day: Callable[..., None]) -> Fitted:
    """Ten published days, two of validation and eight of calibration, with an anomaly in every sixth row."""
    for day in dataset.days[-10:]:
        rows = dataset.features(day).with_row_index("i")
        planted, unknown = pl.col("i") % 6 == 0, pl.col("i") % 6 == 1
        rows = rows.with_columns(
            power=pl.when(planted).then(pl.col("power") * 1.2).otherwise("power"),
            **{LABEL: pl.when(~unknown).then(planted)},
        )
        rewrite_day(dataset, day, rows.drop("i"))
    published(dataset, dataset.days[-10:])
    config = dataset.config.model_copy(update={"label": "power > 2.1 * load"})
    return replace(dataset, bundle=with_config(dataset.bundle, config))


@pytest.fixture
def report(labelled: Fitted) -> Report:
    return reported(labelled, labelled.days[-10:])


def scores_and_labels(dataset: Fitted, days: tuple[str, ...]) -> pl.DataFrame:
    table = pl.read_delta(dataset.paths.latents).filter(pl.col("date").dt.to_string().is_in(days))
    labels = pl.concat([dataset.features(day).select("row_id", LABEL) for day in days])
    return table.join(labels, on="row_id").drop_nulls(LABEL)


def test_unflagged_known_anomalies_are_no_reference_rows(labelled: Fitted) -> None:
    normal = reference_rows(published_days(labelled.paths), labelled.paths, labelled.bundle)
    rows = scores_and_labels(labelled, labelled.window.calibration)
    assert rows.filter(~pl.col("is_anomaly") & pl.col(LABEL)).height > 0
    known = rows.filter(pl.col(LABEL))["row_id"].implode()
    assert normal.height > 100
    assert not normal["row_id"].is_in(known).any()


def test_known_anomalies_are_no_part_of_the_calibration_chart(labelled: Fitted, report: Report) -> None:
    files = list(published_days(labelled.paths).values())
    rows = pl.read_delta(labelled.paths.latents).join(
        pl.concat([labelled.features(each).select("row_id", LABEL) for each in labelled.days[-10:]]), on="row_id"
    )
    normal = rows.filter(pl.col(LABEL).is_null() | ~pl.col(LABEL))
    assert 0 < normal.height < rows.height
    np.testing.assert_array_equal(np.sort(normal_scores(files, as_dataset(labelled))), normal["score"].sort())
    view = Published(
        files=published_days(labelled.paths),
        dataset=as_dataset(labelled),
        bundle=labelled.bundle,
        model_version=3,
        entries=reported_days(labelled.days[-10:], labelled.paths),
    )
    charts = view.charts(labelled.days[-1])
    message = next(chart.message for chart in charts if chart.name == "calibration")
    calibration = normal.filter(pl.col("date").cast(pl.String).is_in(labelled.window.calibration)).height
    assert message.startswith(f"{calibration:,} rows of the calibration days")
    assert "Known anomalies are left out" in message
    row_id, at = normal["row_id"][0], str(normal["date"][0])
    mark = Mark(kind=MarkKind.ROW, subject=row_id, state=MarkState.REAL, day=at, rows={row_id: at}, who="ana")
    add_mark(mark, labelled.paths)
    assert len(normal_scores(files, as_dataset(labelled))) == normal.height - 1
    labelled.paths.features(labelled.days[-1]).unlink()  # another run builds it again; the table is whole
    of_day = rows.filter(pl.col("date").cast(pl.String) == labelled.days[-1])
    known = of_day.filter(pl.col(LABEL).fill_null(False)).height
    assert len(normal_scores(files, as_dataset(labelled))) == normal.height - 1 + known


class TestOfAReport:
    @pytest.mark.parametrize(("part", "days"), [("all_rows", 10), ("held_out", 8)])
    def test_all_rows_and_held_out_rows_are_measured(
        self, labelled: Fitted, report: Report, part: str, days: int
    ) -> None:
        rows = scores_and_labels(labelled, labelled.days[-days:])
        flagged = rows.filter("is_anomaly")
        measures = json.loads(report.summary.read_text())["labels"][part]
        assert {name: measures[name] for name in ("rows", "anomalies", "anomalies_flagged", "normal_flagged")} == {
            "rows": 50 * days,
            "anomalies": 10 * days,
            "anomalies_flagged": flagged[LABEL].sum(),
            "normal_flagged": flagged.height - flagged[LABEL].sum(),
        }
        truth, scores = rows[LABEL].to_numpy(), rows["score"].to_numpy()
        assert measures["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        assert measures["average_precision"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
        assert 0.5 < measures["auroc"] < 1

    def test_the_page_shows_the_measures_and_names_the_rows(self, labelled: Fitted, report: Report) -> None:
        page = " ".join(Text(report.page.read_text()).text.split())
        assert report.labels is not None
        whole, held_out = report.labels.all_rows, report.labels.held_out
        assert held_out is not None
        assert "A row is a known anomaly if power > 2.1 * load. Only this report uses the label" in page
        assert "rows with a known label500400" in page
        assert f"{whole.anomalies_flagged} of 100 ({whole.anomalies_flagged / 100:.2%})" in page
        assert f"{held_out.normal_flagged} of 320 ({held_out.normal_flagged / 320:.2%})" in page
        assert f"{whole.auroc:.4f}" in page
        assert f"{held_out.average_precision:.4f} (0.2000)" in page
        assert "The label of 100 further rows is unknown." in page
        assert f"all but {labelled.days[0]} to {labelled.days[31]}." in page

    def test_misses_and_false_alarms_are_listed(self, labelled: Fitted, report: Report) -> None:
        rows = scores_and_labels(labelled, labelled.days[-10:]).sort("score", descending=True)
        page = report.page.read_text().split('<h2 id="misses-and-false-alarms">')[1].split("<h2")[0]
        assert report.labels is not None
        for wrong_rows, is_known in ((report.labels.misses, True), (report.labels.false_alarms, False)):
            wrong = rows.filter((pl.col(LABEL) == is_known) & (pl.col("is_anomaly") != is_known))
            assert [each.row_id for each in wrong_rows] == wrong["row_id"].head(20).to_list()
            assert wrong.height > 0
            assert all(each.row_id in page for each in wrong_rows)

    def test_days_and_ranked_rows_contain_the_labels(self, labelled: Fitted, report: Report) -> None:
        table = pl.read_delta(labelled.paths.latents)
        known = pl.concat([labelled.features(day).select("row_id", LABEL) for day in labelled.days[-10:]])
        flagged = set(table.filter("is_anomaly")["row_id"])
        assert (report.known_anomalies, report.known_flagged) == (
            100,
            len(flagged & set(known.filter(LABEL)["row_id"])),
        )
        assert [day.known_anomalies for day in report.days] == [10] * 10
        alerts = pl.read_parquet(report.alerts)
        assert (
            alerts[LABEL].to_list()
            == alerts.select("row_id").join(known, on="row_id", maintain_order="left")[LABEL].to_list()
        )
        assert set(alerts[LABEL].to_list()) == {True, False, None}
        assert LABEL not in table.columns

    def test_learned_false_alarms_are_not_held_out(self, labelled: Fitted) -> None:
        labelled = replace(labelled, config=labelled.bundle.config)
        files, day = published_days(labelled.paths), labelled.window.calibration[0]
        row_id = labelled.features(day).drop_nulls(LABEL)["row_id"][3]
        before = measure_labels(files, labelled, labelled.bundle)
        mark = Mark(
            kind=MarkKind.ROW, subject=row_id, state=MarkState.FALSE_ALARM, day=day, rows={row_id: day}, who="ana"
        )
        add_mark(mark, labelled.paths)
        after = measure_labels(files, labelled, labelled.bundle)
        assert before is not None
        assert after is not None
        assert before.held_out is not None
        assert after.held_out is not None
        assert (before.held_out.rows, after.held_out.rows) == (400, 399)
        assert after.all_rows.rows == before.all_rows.rows == 500

    def test_nothing_is_measured_without_a_label(self, dataset: Fitted) -> None:
        published(dataset, dataset.days[-2:])
        report = reported(dataset, dataset.days[-2:])
        assert json.loads(report.summary.read_text())["labels"] is None
        assert (report.labels, report.known_anomalies, report.known_flagged) == (None, 0, 0)
        page = Text(report.page.read_text()).text
        assert "Known anomalies" not in page
        assert "label" not in page
