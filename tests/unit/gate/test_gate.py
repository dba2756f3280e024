"""The gate: each rule on both sides of its threshold, and challengers compared with a champion."""

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import GateConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import GATE, PARTS, Window, cut_window
from ae_pipeline.gate.blindness import BLINDNESS_RULES
from ae_pipeline.gate.evaluation import GateMetrics, column_scales, evaluate_model, gate_rows, reconstruction_errors
from ae_pipeline.gate.planted_faults import plant_faults
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import (
    calibration_no_worse,
    compare,
    finite_weights,
    is_promoted,
    latents_not_collapsed,
    loss_fell,
    planted_faults_found,
    reconstruction_no_worse,
)
from ae_pipeline.scoring.drift import Part, describe_numbers
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.loop import TrainingResult
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config, with_model

COMPARED = ("reconstruction_no_worse", "calibration_no_worse", "planted_faults_found", *BLINDNESS_RULES)


def metrics(ks_distance: float = 0.05, recall: float = 0.6, fault_count: int = 100) -> GateMetrics:
    """Return metrics of a model."""
    return GateMetrics(
        errors={}, ks_distance=ks_distance, ks_critical_value=0.02, recall=recall, fault_count=fault_count
    )


def day_strings(rows: pl.DataFrame) -> set[str]:
    """Return the days of some rows."""
    return set(rows["event_time"].dt.date().cast(pl.String))


def undated_config(split_by: str | None = None) -> PipelineConfig:
    """Return the configuration of a dataset without event time."""
    settings: dict[str, Any] = {"dataset": "d", "identity": ("id",)}
    if split_by is not None:
        settings["training"] = {"split_by": (split_by,)}
    return PipelineConfig.model_validate(settings)


@pytest.fixture(scope="module")
def rivals(fitted: Fitted) -> tuple[ModelBundle, ModelBundle]:
    """A champion of the first 30 days, and a challenger of the first 34; the newest six days belong to the gate."""
    training = {**fitted.config.training.model_dump(), "validation_days": 4, "calibration_days": 6}
    config = sensor_config(training=training, alerts={"budget": 0.01, "evidence": NO_ENSEMBLE})
    champion, challenger = (
        fit_bundle(
            Dataset(config, fitted.paths), fitted.columns, cut_window(dict.fromkeys(fitted.days[:last], "x"), config, 6)
        )[0]
        for last in (30, 40)
    )
    return champion, challenger


class TestRules:
    @pytest.mark.parametrize(("quotient", "passes"), [(1.0, True), (1.09, True), (1.11, False), (3.0, False)])
    def test_reconstruction_is_compared_with_the_champion(self, quotient: float, passes: bool) -> None:
        champion = {"load": 20.0, "mode": 0.4}
        challenger = {name: error * quotient for name, error in champion.items()}
        result = reconstruction_no_worse(challenger, champion, {"load": 0.0}, 0.1)
        assert result.passed == passes
        assert result.figure == pytest.approx(quotient, rel=0.02)
        assert result.threshold == pytest.approx(1.1)

    def test_reconstruction_does_not_depend_on_units(self) -> None:
        errors = [{"load": 2.0, "mode": 0.4}, {"load": 2.4, "mode": 0.3}]
        errors_in_grams = [{**each, "load": each["load"] * 1000} for each in errors]
        in_kilograms = reconstruction_no_worse(errors[1], errors[0], {"load": 5.0}, 0.1)
        in_grams = reconstruction_no_worse(errors_in_grams[1], errors_in_grams[0], {"load": 5000.0}, 0.1)
        assert in_grams.figure == pytest.approx(in_kilograms.figure)

    def test_an_error_that_is_not_a_number_is_rejected(self) -> None:
        assert not reconstruction_no_worse({"load": math.nan}, {"load": 1.0}, {}, 0.1).passed

    def test_negligible_errors_do_not_reject_a_challenger(self) -> None:
        assert reconstruction_no_worse({"load": 1e-4}, {"load": 1e-6}, {"load": 10.0}, 0.1).passed
        assert not reconstruction_no_worse({"load": 1.0}, {"load": 1e-6}, {"load": 10.0}, 0.1).passed

    @pytest.mark.parametrize(
        ("challenger", "champion", "passes"),
        [(0.11, 0.05, True), (0.13, 0.05, False), (0.31, 0.3, True), (0.33, 0.3, False), (math.nan, 0.3, False)],
    )
    def test_the_distance_may_reach_the_threshold_or_the_champions(
        self, challenger: float, champion: float, passes: bool
    ) -> None:
        result = calibration_no_worse(metrics(challenger), metrics(champion), 0.1)
        assert result.passed == passes
        assert result.threshold == pytest.approx(max(0.1, champion) + 0.02)

    @pytest.mark.parametrize(("recall", "passes"), [(0.9, True), (0.51, True), (0.49, False), (0.0, False)])
    def test_the_recall_of_planted_faults_may_drop_a_little(self, recall: float, passes: bool) -> None:
        result = planted_faults_found(metrics(recall=recall), metrics(recall=0.6), 0.1)
        assert result.passed == passes
        assert result.threshold == pytest.approx(0.5)

    def test_without_planted_faults_the_rule_passes_with_a_reason(self) -> None:
        result = planted_faults_found(metrics(recall=math.nan, fault_count=0), metrics(fault_count=0), 0.1)
        assert result.passed
        assert result.message == "not compared: no fault can be planted because no column has two values"

    @pytest.mark.parametrize(("active", "min_share", "passes"), [(2, 0.5, True), (1, 0.5, False), (3, 0.9, False)])
    def test_enough_latents_must_vary(self, active: int, min_share: float, passes: bool) -> None:
        latents = np.zeros((50, 4), np.float32)
        latents[:, :active] = np.random.default_rng(0).normal(size=(50, active))
        result = latents_not_collapsed(latents, min_share)
        assert (result.passed, result.figure, result.threshold) == (passes, active / 4, min_share)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_one_latent_that_is_not_finite_is_rejected(self, wrong: float) -> None:
        latents = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        assert latents_not_collapsed(latents).passed
        latents[7, 2] = wrong
        result = latents_not_collapsed(latents)
        assert (result.passed, result.message) == (False, "1 latents are not finite; none may be")

    def test_a_constant_column_has_the_deviation_of_the_window(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        rows = gate_rows(rivals[1].window, rivals[0].window, fitted.paths).with_columns(load=pl.lit(3.0))
        with_reference = dataclasses.replace(
            rivals[0], reference=(describe_numbers(Part.COLUMN, "load", np.linspace(0, 100, 500)),)
        )
        assert column_scales(rows, rivals[0])["load"] == 0
        assert column_scales(rows, with_reference)["load"] == pytest.approx(29, abs=2)
        assert column_scales(rows, with_reference)["power"] == column_scales(rows, rivals[0])["power"] > 0

    @pytest.mark.parametrize(("best", "passes"), [(11.9, True), (12.0, False)])
    def test_the_loss_must_have_fallen(self, best: float, passes: bool) -> None:
        assert loss_fell(TrainingResult(epochs=(), best_epoch=1, first_loss=12.0, best_loss=best)).passed == passes

    def test_weights_must_be_finite(self, rivals: tuple[ModelBundle, ModelBundle]) -> None:
        champion, _ = rivals
        assert finite_weights(champion).passed
        broken = copy.deepcopy(champion.model)
        next(broken.parameters()).data[0, 0] = math.inf
        assert not finite_weights(with_model(champion, broken)).passed


class TestRows:
    def test_they_are_later_than_the_days_of_both_models(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        champion, challenger = rivals
        assert challenger.window.gate == fitted.days[34:]
        rows = gate_rows(challenger.window, champion.window, fitted.paths)
        days = day_strings(rows)
        assert days == set(fitted.days[34:])
        assert min(days) > max(*champion.window.days, *challenger.window.days)

    def test_days_of_the_champion_are_left_out(self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]) -> None:
        window = rivals[1].window
        newer = dataclasses.replace(rivals[0].window, calibration=fitted.days[30:37])
        assert day_strings(gate_rows(window, newer, fitted.paths)) == set(fitted.days[37:])

    def test_there_are_none_if_the_champion_was_fitted_on_all(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        everything = dataclasses.replace(rivals[0].window, calibration=fitted.days)
        assert gate_rows(rivals[1].window, everything, fitted.paths).is_empty()

    def test_at_most_twenty_thousand_rows_are_sampled(self, tmp_path: Path) -> None:
        paths = DatasetPaths(tmp_path, "d")
        table = pl.DataFrame({"row_id": [f"row {index}" for index in range(25_000)]}).to_arrow()
        write_parquet(paths.features("2024-01-09"), table)
        window = Window(
            train=("2024-01-01",),
            validation=("2024-01-02",),
            calibration=("2024-01-03",),
            fingerprint="",
            gate=("2024-01-09",),
        )
        rows = gate_rows(window, None, paths)
        assert rows.height == 20_000
        assert rows.equals(gate_rows(window, None, paths))

    def test_without_event_time_they_are_an_unseen_twentieth(self, tmp_path: Path) -> None:
        paths, config = DatasetPaths(tmp_path, "d"), undated_config()
        names = pl.DataFrame({"row_id": [f"row {index}" for index in range(4000)]})
        write_parquet(paths.features(ALL_ROWS), names.to_arrow())
        previous = cut_window({ALL_ROWS: "half"}, config)
        seen = {*previous.rows("train", paths)["row_id"], *previous.rows("calibration", paths)["row_id"]}
        gate = gate_rows(cut_window({ALL_ROWS: "all"}, config), previous, paths)
        assert 140 < gate.height < 260
        assert seen.isdisjoint(gate["row_id"])

    def test_rows_that_the_champion_was_fitted_on_are_left_out(self, tmp_path: Path) -> None:
        paths = DatasetPaths(tmp_path, "d")
        by_site, by_shift = (cut_window({ALL_ROWS: "x"}, undated_config(name)) for name in ("site", "shift"))
        groups = np.random.default_rng(0).integers(0, 40, (2, 4000))
        rows = {"row_id": [f"row {index}" for index in range(4000)], "site": groups[0], "shift": groups[1]}
        write_parquet(paths.features(ALL_ROWS), pl.DataFrame(rows).to_arrow())
        seen = {row for part in PARTS for row in by_site.rows(part, paths)["row_id"]}
        all_gate_rows, unseen = gate_rows(by_shift, None, paths), gate_rows(by_shift, by_site, paths)
        assert not seen.isdisjoint(all_gate_rows["row_id"])
        assert seen.isdisjoint(unseen["row_id"])
        assert set(unseen["row_id"]) == set(all_gate_rows["row_id"]) - seen != set()

    def test_groups_of_the_gate_were_never_in_the_training_part(self, tmp_path: Path) -> None:
        paths = DatasetPaths(tmp_path, "d")
        window = cut_window({ALL_ROWS: "x"}, undated_config("site"))
        trained: set[str] = set()
        for sites in range(10, 60):
            names = [f"site {index}" for index in range(sites)]
            rows = pl.DataFrame({"row_id": [f"{name} row" for name in names], "site": names})
            write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
            assert trained.isdisjoint(window.rows(GATE, paths)["site"])
            trained |= set(window.rows("train", paths)["site"])

    @pytest.mark.parametrize("count", [12, 16])
    def test_too_few_days_for_the_gate_are_an_error_with_the_counts(self, fitted: Fitted, count: int) -> None:
        message = (
            f"has {count} days .* validation_days=6 plus calibration_days=8 plus the gate's 7 leave none to train on"
        )
        with pytest.raises(TrainingError, match=message):
            cut_window(dict.fromkeys(fitted.days[:count], "x"), fitted.config, 7)


class TestFaults:
    def test_each_row_differs_in_one_column_of_the_model(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        faulty = plant_faults(rows, [rivals[0].encoder])
        assert 250 < faulty.height <= rows.height
        names = [name for name in rivals[0].columns if name != "event_time"]
        joined = faulty.join(rows, on="row_id", suffix="_before")
        changed = joined.select(pl.col(name).ne_missing(pl.col(f"{name}_before")) for name in names)
        assert changed.sum_horizontal().to_list() == [1] * faulty.height
        assert all(changed[name].any() for name in ("load", "power", "mode", "temperature"))

    def test_the_same_faults_are_planted_each_time(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        assert plant_faults(rows, [rivals[0].encoder]).equals(plant_faults(rows, [rivals[0].encoder]))

    def test_equal_rows_get_none(self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]) -> None:
        rows = fitted.features(fitted.days[-1]).head(1)
        assert plant_faults(pl.concat([rows] * 5), [rivals[0].encoder]).is_empty()

    def test_a_fitted_model_finds_many_of_them(self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]) -> None:
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        result = evaluate_model(rivals[1], rows, plant_faults(rows, [rivals[1].encoder]))
        assert 0.3 < result.recall < 1
        assert result.ks_distance < 0.2


class TestComparison:
    def results_of(self, challenger: ModelBundle, champion: ModelBundle, rows: pl.DataFrame) -> dict[str, GateResult]:
        return {result.rule: result for result in compare(challenger, champion, rows, "", GateConfig())}

    def test_a_good_challenger_meets_every_rule(self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]) -> None:
        champion, challenger = rivals
        rows = gate_rows(challenger.window, champion.window, fitted.paths)
        results = self.results_of(challenger, champion, rows)
        assert tuple(results) == COMPARED
        assert is_promoted(tuple(results.values())), results

    def test_a_challenger_of_shuffled_columns_is_rejected(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle], tmp_path: Path
    ) -> None:
        """Independently shuffled columns say nothing about each other."""
        champion, challenger = rivals
        damaged = fitted.at(tmp_path)
        for day in challenger.window.days:
            rows = fitted.features(day)
            shuffled = [rows[name].shuffle(seed=len(name)) for name in ("power", "temperature", "scheduled")]
            write_parquet(damaged.paths.features(day), rows.with_columns(shuffled).to_arrow())
        poisoned, _ = fit_bundle(Dataset(challenger.config, damaged.paths), fitted.columns, challenger.window)
        rows = gate_rows(challenger.window, champion.window, fitted.paths)
        results = self.results_of(poisoned, champion, rows)
        assert not is_promoted(tuple(results.values()))
        assert not results["reconstruction_no_worse"].passed
        planted = results["planted_faults_found"]
        assert planted.figure < planted.threshold + GateConfig().max_recall_drop  # fewer than the champion finds

    def test_errors_have_the_units_of_the_columns(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        errors = reconstruction_errors(rivals[1].network, rows)
        in_grams = rows.with_columns(pl.col("load") * 1000)
        assert 0 < errors["load"] < 1  # loads are about 3
        assert 0 <= errors["mode"] < 1  # a share of the rows
        assert 0 < errors["scheduled"] <= 720  # minutes, the short way round
        assert reconstruction_errors(rivals[1].network, in_grams)["load"] > 100 * errors["load"]

    def test_without_a_champion_or_rows_nothing_is_compared(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        without_champion = compare(rivals[1], None, rows, "no version serves so far", GateConfig())
        assert [(result.rule, result.passed, result.message) for result in without_champion] == [
            (rule, True, "not compared: no version serves so far") for rule in COMPARED
        ]
        without_rows = compare(rivals[1], rivals[0], pl.DataFrame(), "", GateConfig())
        assert [(result.rule, result.passed, result.message) for result in without_rows] == [
            (rule, True, "not compared: no row is later than the windows of both models") for rule in COMPARED
        ]

    def test_a_champion_that_needs_a_removed_column_is_not_compared(
        self, fitted: Fitted, rivals: tuple[ModelBundle, ModelBundle]
    ) -> None:
        rows = gate_rows(rivals[1].window, None, fitted.paths).drop("mode")
        (first, *_) = compare(rivals[1], rivals[0], rows, "", GateConfig())
        assert first.passed
        assert "lack column 'mode'" in first.message
