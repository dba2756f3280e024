"""Charts of a training as PNG, and the model card."""

import json
import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from ae_pipeline.gate.results import GateResult
from ae_pipeline.reports.charts import Chart, loss_chart
from ae_pipeline.reports.model_card import head_of, model_card, training_charts
from ae_pipeline.reports.pictures import as_address
from ae_pipeline.reports.render import render_png
from tests.support.sensors import Fitted, with_encoder


@pytest.fixture(scope="module")
def parts(fitted: Fitted) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of validation days and of a day after the window."""
    return pl.concat(map(fitted.features, fitted.window.validation)), fitted.features(fitted.days[-1])


def values(chart: Chart) -> list[list[dict[str, Any]]]:
    return list(json.loads(chart.spec)["datasets"].values())


class TestCharts:
    def test_the_loss_chart_shows_all_epochs_and_marks_the_best(self, fitted: Fitted) -> None:
        epochs, result = fitted.bundle.facts.epochs, fitted.result
        lines, kept = values(loss_chart(epochs, result.best_epoch, "nats"))
        shown = [(point["epoch"], point["loss"]) for point in lines if point["of"] == "validation"]
        assert shown == [(epoch.number, epoch.validation_loss) for epoch in result.epochs]
        assert kept == [{"epoch": result.best_epoch}]

    def test_training_charts_show_rows_that_the_model_has_not_seen(
        self, fitted: Fitted, parts: tuple[pl.DataFrame, pl.DataFrame]
    ) -> None:
        validation, unseen = parts
        charts = {chart.name: chart for chart in training_charts(fitted.bundle, validation, unseen)}
        assert list(charts) == ["loss", "scores", "latents", "calibration"]
        scored = fitted.bundle.score(unseen)
        of_day, others = sorted(values(charts["latents"]), key=len)
        assert [point["score"] for point in of_day] == pytest.approx(np.round(scored.score, 2).tolist())
        assert len(others) == validation.height - fitted.bundle.score(validation).is_anomaly.sum()
        bars = values(charts["scores"])[0]
        assert sum(bar["share"] for bar in bars if bar["of"] == "the gate") == pytest.approx(1.0)
        assert f"{unseen.height:,} rows of the gate" in charts["calibration"].message

    def test_without_gate_rows_the_charts_show_validation_rows(
        self, fitted: Fitted, parts: tuple[pl.DataFrame, pl.DataFrame]
    ) -> None:
        validation = parts[0]
        charts = {chart.name: chart for chart in training_charts(fitted.bundle, validation, pl.DataFrame())}
        assert list(charts) == ["loss", "scores", "latents"]
        assert f"{validation.height:,} rows of the validation" in charts["scores"].message

    def test_a_chart_is_rendered_as_a_small_png_with_visible_marks(
        self, fitted: Fitted, parts: tuple[pl.DataFrame, pl.DataFrame]
    ) -> None:
        for chart in training_charts(fitted.bundle, *parts):
            picture = render_png(chart)
            assert picture.width > 400
            assert picture.height > 240
            pixels = np.asarray(picture.convert("L"))
            assert (pixels == 255).mean() > 0.5  # on white
            assert (pixels < 200).mean() > 0.005
            assert len(as_address(picture)) < 40_000


class TestCard:
    @pytest.fixture(scope="class")
    def results(self) -> tuple[GateResult, ...]:
        return (
            GateResult(
                rule="loss_fell", passed=True, figure=1.5, threshold=2.5, message="validation loss 1.5, 2.5 before"
            ),
            GateResult(
                rule="planted_faults_found", passed=False, figure=float("nan"), threshold=0.9, message="finds | few"
            ),
        )

    @pytest.fixture(scope="class")
    def card(self, fitted: Fitted, results: tuple[GateResult, ...]) -> str:
        links = {"The Dagster run": "http://127.0.0.1:3000/runs/abc"}
        return model_card(fitted.bundle, 7, results, "rejected: planted_faults_found: finds few", 120, links)

    def test_the_card_has_a_section_for_each_topic(self, fitted: Fitted, card: str) -> None:
        bundle, window = fitted.bundle, fitted.window
        sections = [line for line in card.splitlines() if line.startswith("## ")]
        assert sections == ["## Data", "## Columns", "## Training", "## Metrics", "## Calibration", "## Limits"]
        rows = bundle.facts.rows
        days = f"{window.train[0]} | {window.train[-1]} | {len(window.train)} | {rows['train']:,}"
        assert f"| train | {days} |" in card
        assert all(f" {name}" in card for name in bundle.columns)
        assert "| gate |  |  |  | 120 |" in card
        assert f"weights of epoch {fitted.result.best_epoch} of {len(fitted.result.epochs)} were kept" in card
        assert f"{len(bundle.calibration.scores):,} calibration rows" in card
        assert bundle.fingerprint in card

    def test_the_card_shows_result_and_threshold_of_each_rule(self, card: str) -> None:
        assert "| loss_fell | validation loss 1.5, 2.5 before | 2.5 | yes |" in card
        assert "| planted_faults_found | finds \\| few | 0.9 | no |" in card

    def test_column_names_are_escaped_in_the_card(self, fitted: Fitted, results: tuple[GateResult, ...]) -> None:
        encoder = fitted.bundle.encoder
        name = "a`![x](http://evil/x.png)`\n\n# Forged <b>heading</b>"
        odd = encoder.columns[0].model_copy(update={"name": name})
        renamed = encoder.model_copy(update={"columns": (odd, *encoder.columns[1:])})
        bundle = with_encoder(fitted.bundle, renamed)
        card = model_card(bundle, 7, results, "passed", 0, {})
        assert [line for line in card.splitlines() if line.startswith("# ")] == ["# sensors, model version 7"]
        assert "\\!\\[x\\](http:\\/\\/evil/x.png)\\`" in card
        assert "<b>" not in card.replace("\\<", "")

    def test_the_head_of_the_card_is_short_and_has_the_links(self, card: str) -> None:
        head = head_of(card)
        assert head.startswith("# sensors, model version 7\n")
        assert "- [The Dagster run](http://127.0.0.1:3000/runs/abc)" in head
        assert "rejected: planted_faults_found" in head
        assert "## " not in head
        assert len(head) < 2000

    def test_the_card_names_some_of_many_columns_and_counts_the_rest(
        self, fitted: Fitted, results: tuple[GateResult, ...]
    ) -> None:
        encoder = fitted.bundle.encoder
        many = tuple(
            column.model_copy(update={"name": f"{column.name} {index}"})
            for index in range(200)
            for column in encoder.columns
        )
        bundle = with_encoder(fitted.bundle, encoder.model_copy(update={"columns": many}))
        card = model_card(bundle, 7, results, "passed", 0, {})
        assert re.search(r"and [\d,]+ more$", card, re.MULTILINE)
        assert len(card) < 20_000
