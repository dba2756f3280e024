"""The gate: each rule with figures on both sides of its threshold, and the challenger beside the champion."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.service import GateConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import GATE, PARTS, Window, cut_window
from ae_pipeline.gate.evaluation import GateMetrics, column_scales, gate_rows, reconstruction_errors, show
from ae_pipeline.gate.planted_faults import plant_faults
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
from tests.support.sensors import NO_ENSEMBLE, Fitted, sensor_config

COMPARED = ("reconstruction_no_worse", "calibration_no_worse", "planted_faults_found")


def shown(ks_distance=0.05, found=0.6, faults=100, ks_critical_value=0.02):
    return GateMetrics({}, ks_distance, ks_critical_value, found, faults)


@pytest.fixture(scope="module")
def rivals(fitted: Fitted) -> tuple[ModelBundle, ModelBundle]:
    """A champion of the first 30 days, and a challenger of the first 34 with the newest six left to the gate."""
    training = {**fitted.config.training.model_dump(), "validation_days": 4, "calibration_days": 6}
    config = sensor_config(training=training, alerts={"budget": 0.01, "evidence": NO_ENSEMBLE})
    champion, challenger = (
        fit_bundle(
            Dataset(config, fitted.paths), fitted.columns, cut_window(dict.fromkeys(fitted.days[:last], "x"), config, 6)
        )
        for last in (30, 40)
    )
    return champion[0], challenger[0]


class TestRules:
    @pytest.mark.parametrize(("quotient", "passes"), [(1.0, True), (1.09, True), (1.11, False), (3.0, False)])
    def test_reconstruction_is_held_against_that_of_the_champion(self, quotient, passes):
        previous = {"load": 20.0, "mode": 0.4}
        now = {name: error * quotient for name, error in previous.items()}
        result = reconstruction_no_worse(now, previous, {"load": 0.0}, 0.1)
        assert result.passed == passes
        assert result.figure == pytest.approx(quotient, rel=0.02)
        assert result.threshold == pytest.approx(1.1)

    def test_reconstruction_does_not_depend_on_units(self):
        errors = [{"load": 2.0, "mode": 0.4}, {"load": 2.4, "mode": 0.3}]
        grams = [{**each, "load": each["load"] * 1000} for each in errors]
        kilos = reconstruction_no_worse(errors[1], errors[0], {"load": 5.0}, 0.1)
        assert reconstruction_no_worse(grams[1], grams[0], {"load": 5000.0}, 0.1).figure == pytest.approx(kilos.figure)

    def test_an_error_that_is_no_number_is_no_better_one(self):
        assert not reconstruction_no_worse({"load": math.nan}, {"load": 1.0}, {}, 0.1).passed

    def test_errors_too_small_to_matter_do_not_bar_a_challenger(self):
        assert reconstruction_no_worse({"load": 1e-4}, {"load": 1e-6}, {"load": 10.0}, 0.1).passed
        assert not reconstruction_no_worse({"load": 1.0}, {"load": 1e-6}, {"load": 10.0}, 0.1).passed

    @pytest.mark.parametrize(
        ("challenger", "champion", "passes"),
        [(0.11, 0.05, True), (0.13, 0.05, False), (0.31, 0.3, True), (0.33, 0.3, False), (math.nan, 0.3, False)],
    )
    def test_the_calibration_may_be_off_by_the_threshold_or_as_much_as_the_champions(
        self, challenger, champion, passes
    ):
        result = calibration_no_worse(shown(challenger), shown(champion), 0.1)
        assert result.passed == passes
        assert result.threshold == pytest.approx(max(0.1, champion) + 0.02)

    @pytest.mark.parametrize(("found", "passes"), [(0.9, True), (0.51, True), (0.49, False), (0.0, False)])
    def test_planted_faults_must_be_found_about_as_often(self, found, passes):
        result = planted_faults_found(shown(found=found), shown(found=0.6), 0.1)
        assert (result.passed, result.threshold) == (passes, pytest.approx(0.5))

    def test_where_no_fault_can_be_planted_the_rule_says_so(self):
        result = planted_faults_found(shown(found=math.nan, faults=0), shown(faults=0), 0.1)
        assert result.passed
        assert result.message.startswith("not compared: no column has two values")

    @pytest.mark.parametrize(("alive", "least", "passes"), [(2, 0.5, True), (1, 0.5, False), (3, 0.9, False)])
    def test_latents_must_vary(self, alive, least, passes):
        latents = np.zeros((50, 4), np.float32)
        latents[:, :alive] = np.random.default_rng(0).normal(size=(50, alive))
        result = latents_not_collapsed(latents, least)
        assert (result.passed, result.figure, result.threshold) == (passes, alive / 4, least)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_one_latent_that_is_no_number_is_one_too_many(self, wrong):
        latents = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        assert latents_not_collapsed(latents).passed
        latents[7, 2] = wrong
        result = latents_not_collapsed(latents)
        assert (result.passed, result.message) == (False, "1 latents are not finite; none may be")

    def test_a_column_that_stays_the_same_over_the_gates_days_has_the_spread_of_the_window(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, rivals[0].window, fitted.paths).with_columns(load=pl.lit(3.0))
        with_reference = dataclasses.replace(
            rivals[0], reference=(describe_numbers(Part.COLUMN, "load", np.linspace(0, 100, 500)),)
        )
        assert column_scales(rows, rivals[0])["load"] == 0
        assert column_scales(rows, with_reference)["load"] == pytest.approx(29, abs=2)
        assert column_scales(rows, with_reference)["power"] == column_scales(rows, rivals[0])["power"] > 0

    @pytest.mark.parametrize(("best", "passes"), [(11.9, True), (12.0, False)])
    def test_the_loss_must_have_fallen(self, best, passes):
        assert loss_fell(TrainingResult((), 1, 12.0, best)).passed == passes

    def test_weights_must_be_finite(self, rivals):
        champion, _ = rivals
        assert finite_weights(champion).passed
        import copy

        broken = copy.deepcopy(champion.model)
        next(broken.parameters()).data[0, 0] = math.inf
        assert not finite_weights(dataclasses.replace(champion, model=broken)).passed


class TestRows:
    def test_they_follow_all_days_of_both_models(self, fitted, rivals):
        champion, challenger = rivals
        assert challenger.window.gate == fitted.days[34:]
        rows = gate_rows(challenger.window, champion.window, fitted.paths)
        days = set(rows["event_time"].dt.date().cast(pl.String))
        assert days == set(fitted.days[34:])
        assert min(days) > max(*champion.window.days, *challenger.window.days)

    def test_days_that_the_champion_was_fitted_on_are_left_out(self, fitted, rivals):
        window = rivals[1].window
        newer = dataclasses.replace(rivals[0].window, calibration=fitted.days[30:37])
        days = gate_rows(window, newer, fitted.paths)["event_time"].dt.date().cast(pl.String)
        assert set(days) == set(fitted.days[37:])

    def test_there_are_none_where_the_champion_was_fitted_on_all_of_them(self, fitted, rivals):
        everything = dataclasses.replace(rivals[0].window, calibration=fitted.days)
        assert gate_rows(rivals[1].window, everything, fitted.paths).is_empty()

    def test_of_many_rows_the_same_twenty_thousand_are_taken(self, tmp_path):
        paths = DatasetPaths(tmp_path, "d")
        table = pl.DataFrame({"row_id": [f"row {index}" for index in range(25_000)]}).to_arrow()
        write_parquet(paths.features("2024-01-09"), table)
        window = Window(("2024-01-01",), ("2024-01-02",), ("2024-01-03",), "", gate=("2024-01-09",))
        rows = gate_rows(window, None, paths)
        assert rows.height == 20_000
        assert rows.equals(gate_rows(window, None, paths))

    def test_without_event_time_they_are_a_twentieth_that_no_model_saw(self, tmp_path):
        from ae_pipeline.config.pipeline import PipelineConfig

        paths, config = DatasetPaths(tmp_path, "d"), PipelineConfig(dataset="d", identity=("id",))
        names = pl.DataFrame({"row_id": [f"row {index}" for index in range(4000)]})
        write_parquet(paths.features(ALL_ROWS), names.to_arrow())
        previous = cut_window({ALL_ROWS: "half"}, config)
        seen = {*previous.rows("train", paths)["row_id"], *previous.rows("calibration", paths)["row_id"]}
        gate = gate_rows(cut_window({ALL_ROWS: "all"}, config), previous, paths)
        assert 140 < gate.height < 260
        assert seen.isdisjoint(gate["row_id"])

    def test_where_other_columns_cut_the_rows_those_that_the_champion_saw_are_left_out(self, tmp_path):
        from ae_pipeline.config.pipeline import PipelineConfig

        paths = DatasetPaths(tmp_path, "d")
        by_site, by_shift = (
            cut_window({ALL_ROWS: "x"}, PipelineConfig(dataset="d", identity=("id",), training={"split_by": (name,)}))
            for name in ("site", "shift")
        )
        number = np.random.default_rng(0).integers(0, 40, (2, 4000))
        rows = {"row_id": [f"row {n}" for n in range(4000)], "site": number[0], "shift": number[1]}
        write_parquet(paths.features(ALL_ROWS), pl.DataFrame(rows).to_arrow())
        seen = {row for part in PARTS for row in by_site.rows(part, paths)["row_id"]}
        whole, left = gate_rows(by_shift, None, paths), gate_rows(by_shift, by_site, paths)
        assert not seen.isdisjoint(whole["row_id"])
        assert seen.isdisjoint(left["row_id"])
        assert set(left["row_id"]) == set(whole["row_id"]) - seen != set()

    def test_groups_of_the_gate_stay_out_of_the_training_part_as_others_land(self, tmp_path):
        from ae_pipeline.config.pipeline import PipelineConfig

        paths = DatasetPaths(tmp_path, "d")
        config = PipelineConfig(dataset="d", identity=("id",), training={"split_by": ("site",)})
        window = cut_window({ALL_ROWS: "x"}, config)
        trained: set[str] = set()
        for sites in range(10, 60):
            names = [f"site {index}" for index in range(sites)]
            rows = pl.DataFrame({"row_id": [f"{name} row" for name in names], "site": names})
            write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
            assert trained.isdisjoint(window.rows(GATE, paths)["site"])
            trained |= set(window.rows("train", paths)["site"])

    @pytest.mark.parametrize("count", [12, 16])
    def test_too_few_days_for_the_gate_are_an_error_with_the_figures(self, fitted, count):
        message = (
            f"has {count} days .* validation_days=6 plus calibration_days=8 plus the gate's 7 leave none to train on"
        )
        with pytest.raises(TrainingError, match=message):
            cut_window(dict.fromkeys(fitted.days[:count], "x"), fitted.config, 7)


class TestFaults:
    def test_each_row_differs_in_one_column_that_the_model_sees(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        faulty = plant_faults(rows, rivals[0].encoder)
        assert 250 < faulty.height <= rows.height
        seen = [column.name for column in rivals[0].encoder.columns]
        beside = faulty.join(rows, on="row_id", suffix="_before")
        changed = beside.select(
            pl.col(name).ne_missing(pl.col(f"{name}_before")) for name in seen if name != "event_time"
        )
        assert changed.sum_horizontal().to_list() == [1] * faulty.height
        assert all(column.any() for column in changed if column.name in {"load", "power", "mode", "temperature"})

    def test_the_same_faults_are_planted_each_time(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        assert plant_faults(rows, rivals[0].encoder).equals(plant_faults(rows, rivals[0].encoder))

    def test_rows_that_are_all_alike_take_none(self, fitted, rivals):
        rows = fitted.features(fitted.days[-1]).head(1)
        assert plant_faults(pl.concat([rows] * 5), rivals[0].encoder).is_empty()

    def test_a_fitted_model_finds_most_of_them(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        found = show(rivals[1], rows, plant_faults(rows, rivals[1].encoder))
        assert 0.3 < found.found < 1
        assert found.ks_distance < 0.2


class TestJudge:
    def judged(self, challenger, champion, rows, **config):
        return {result.rule: result for result in compare(challenger, champion, rows, "", GateConfig(**config))}

    def test_a_challenger_of_a_good_training_keeps_every_rule(self, fitted, rivals):
        champion, challenger = rivals
        rows = gate_rows(challenger.window, champion.window, fitted.paths)
        results = self.judged(challenger, champion, rows)
        assert tuple(results) == COMPARED
        assert is_promoted(tuple(results.values())), results

    def test_a_challenger_of_corrupted_rows_is_found_out(self, fitted, rivals, tmp_path):
        """Of rows whose columns were drawn apart, nothing of one column can be learnt for another."""
        champion, challenger = rivals
        spoilt = fitted.at(tmp_path)
        for day in challenger.window.days:
            rows = fitted.features(day)
            mixed = [rows[name].shuffle(seed=len(name)) for name in ("power", "temperature", "scheduled")]
            write_parquet(spoilt.paths.features(day), rows.with_columns(mixed).to_arrow())
        poisoned, _ = fit_bundle(Dataset(challenger.config, spoilt.paths), fitted.columns, challenger.window)
        rows = gate_rows(challenger.window, champion.window, fitted.paths)
        results = self.judged(poisoned, champion, rows)
        assert not is_promoted(tuple(results.values()))
        assert not results["reconstruction_no_worse"].passed
        assert not results["planted_faults_found"].passed

    def test_errors_are_told_in_the_columns_own_units(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        errors = reconstruction_errors(rivals[1], rows)
        grams = rows.with_columns(pl.col("load") * 1000)
        assert 0 < errors["load"] < 1  # loads are about 3
        assert 0 <= errors["mode"] < 1  # a share of the rows
        assert 0 < errors["scheduled"] <= 720  # minutes, the short way round
        assert reconstruction_errors(rivals[1], grams)["load"] > 100 * errors["load"]

    def test_without_a_champion_or_rows_nothing_is_compared_and_the_verdicts_say_so(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, None, fitted.paths)
        for result in compare(rivals[1], None, rows, "0 versions serve so far", GateConfig()):
            assert (result.passed, result.message) == (True, "not compared: 0 versions serve so far")
        for result in compare(rivals[1], rivals[0], pl.DataFrame(), "", GateConfig()):
            assert (result.passed, result.message) == (
                True,
                "not compared: no row lies after the days that both were fitted on",
            )

    def test_a_champion_that_needs_a_column_that_is_gone_cannot_be_compared_with(self, fitted, rivals):
        rows = gate_rows(rivals[1].window, None, fitted.paths).drop("mode")
        (first, *_) = compare(rivals[1], rivals[0], rows, "", GateConfig())
        assert first.passed
        assert "lack column 'mode'" in first.message
