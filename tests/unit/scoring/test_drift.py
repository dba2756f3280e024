"""Drift: effect sizes on both sides of their thresholds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.service import DriftConfig
from ae_pipeline.scoring.drift import (
    Distribution,
    Effect,
    Part,
    describe_columns,
    describe_numbers,
    measure_columns,
    measure_numbers,
    with_usual,
)
from ae_pipeline.training.reference import with_reference
from tests.support.sensors import Fitted

Array = npt.NDArray[Any]

CONFIG = DriftConfig(psi=0.5, wasserstein=0.75, new_categories=0.02, missing=0.2, min_rows=30)


def numbers(seed: int, size: int, shift: float = 0.0, std: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(shift, std, size)


def effect_of(known: Array, values: Array) -> Effect:
    return measure_numbers(describe_numbers(Part.SCORE, "score", known), values, len(values), CONFIG)


def column(window: pl.Series, day: pl.Series, kind: ColumnType = ColumnType.NUMBER) -> Effect:
    known = describe_columns(window.to_frame("c"), [FeatureColumn("c", kind)])
    (effect,) = measure_columns(day.to_frame("c"), known, CONFIG)
    return effect


class TestNumbers:
    @pytest.mark.parametrize("largest", [1e155, 1e300, np.finfo(np.float64).max])
    def test_huge_and_tiny_numbers_have_finite_effects(self, largest: float) -> None:
        window = np.append(numbers(0, 500), [largest, -largest, 5e-324])
        known = describe_numbers(Part.COLUMN, "c", window)
        assert np.isfinite([known.std, known.deviation, *known.quantiles, *known.edges]).all()
        effect = effect_of(window, np.append(numbers(1, 50), [largest]))
        assert effect.wasserstein is not None
        assert 0 <= effect.wasserstein <= 1e9
        tiny = effect_of(np.array([0.0] * 50 + [5e-324] * 50), np.array([largest] * 50))
        assert tiny.wasserstein == 1e9

    @pytest.mark.parametrize("size", [30, 100, 1000, 50_000])
    def test_equal_distributions_have_no_drift_at_any_size(self, size: int) -> None:
        drifts = [effect_of(numbers(0, 50_000), numbers(seed, size)).is_drift for seed in range(1, 41)]
        assert sum(drifts) <= 1

    def test_distance_is_in_standard_deviations(self) -> None:
        for unit in (1e-6, 1.0, 1e6):
            effect = effect_of(numbers(0, 50_000) * unit, numbers(1, 50_000, 0.5) * unit)
            assert effect.wasserstein == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize(("shift", "drifts"), [(0.3, False), (0.65, False), (0.85, True), (3.0, True)])
    def test_distance_above_its_threshold_is_drift(self, shift: float, drifts: bool) -> None:
        effect = effect_of(numbers(0, 50_000), numbers(1, 50_000, shift))
        assert effect.wasserstein is not None
        assert (effect.wasserstein > 0.75) == drifts
        assert effect.is_drift == (drifts or effect.psi > 0.5)

    def test_stability_index_follows_its_definition(self) -> None:
        """The index is the sum over bins of (a − e) ln (a / e) for shares a and e."""
        known, rows = np.repeat(np.arange(10.0), 1000), np.repeat(np.arange(10.0), [1900, 100, *[1000] * 8])
        expected = 0.09 * np.log(0.19 / 0.1) + 0.09 * np.log(0.1 / 0.01)
        assert effect_of(known, rows).psi == pytest.approx(expected, abs=0.01)

    @pytest.mark.parametrize(("std", "drifts"), [(1.2, False), (3.0, True)])
    def test_index_detects_a_change_of_standard_deviation(self, std: float, drifts: bool) -> None:
        effect = effect_of(numbers(0, 50_000), numbers(1, 50_000, 0, std))
        assert (effect.psi > 0.5) == effect.is_drift == drifts

    def test_single_outlier_is_no_drift(self) -> None:
        with_outlier = np.append(numbers(1, 500), 1e12)
        assert not effect_of(numbers(0, 50_000), with_outlier).is_drift

    def test_other_value_in_a_constant_column_is_drift(self) -> None:
        assert not effect_of(np.full(1000, 3.0), np.full(100, 3.0)).is_drift
        assert effect_of(np.full(1000, 3.0), np.full(100, 4.0)).is_drift

    @pytest.mark.parametrize("share", [0.002, 0.005, 0.008])
    def test_sampling_noise_of_a_rare_flag_is_no_drift(self, share: float) -> None:
        rng = np.random.default_rng(0)
        window = (rng.random(50_000) < share).astype(float)
        days = [(rng.random(rows) < share).astype(float) for rows in (100, 300, 900) for _ in range(200)]
        assert not any(effect_of(window, day).is_drift for day in days)
        assert effect_of(window, (rng.random(300) < 0.5).astype(float)).is_drift

    def test_change_of_missing_share_above_threshold_is_drift(self) -> None:
        window = pl.Series("c", [1.0, 2.0, None, 4.0] * 250)
        assert not column(window, pl.Series("c", [1.0, None, 2.0, 4.0] * 25)).is_drift
        more = column(window, pl.Series("c", [1.0, None, None, None, 4.0, 2.0] * 25))
        assert more.missing == pytest.approx(0.25)
        assert more.message == "25.0% more values missing, at most 20.0%"
        assert column(window, pl.Series("c", [None] * 100, pl.Float64)).message.startswith("75.0% more values missing")

    def test_empty_or_absent_column_has_an_effect(self) -> None:
        empty = pl.Series("c", [None] * 100, pl.Float64)
        effect = column(empty, pl.Series("c", [1.0] * 100))
        assert effect.message == "100.0% fewer values missing, at most 20.0%"
        known = describe_columns(pl.DataFrame({"c": [1.0, 2.0] * 50}), [FeatureColumn("c", ColumnType.NUMBER)])
        (absent,) = measure_columns(pl.DataFrame({"d": [1.0] * 50}), known, CONFIG)
        assert absent.message.startswith("100.0% more values missing")

    def test_infinite_values_are_ignored(self) -> None:
        day = pl.Series("c", [float("inf"), float("nan"), *numbers(1, 500).tolist()])
        assert not column(pl.Series("c", numbers(0, 5000)), day).is_drift


class TestDailyVariation:
    """The days of the window differ by weekday, so that no single day is like the whole window."""

    DAYS = tuple(numbers(seed, 400, shift=seed % 7) for seed in range(42))

    def known(self) -> Distribution:
        window = describe_numbers(Part.LATENT, "z_000", np.concatenate(self.DAYS))
        return with_usual(window, [measure_numbers(window, day, len(day), DriftConfig()) for day in self.DAYS])

    def test_day_like_one_of_the_window_is_no_drift(self) -> None:
        known = self.known()
        without_days = known.model_copy(update={"usual_psi": 0.0, "usual_distance": 0.0})
        for index in range(7):
            day = numbers(100 + index, 400, shift=index)
            assert not measure_numbers(known, day, 400, DriftConfig()).is_drift
        assert measure_numbers(without_days, numbers(100, 400, shift=0), 400, DriftConfig()).is_drift

    def test_day_unlike_all_days_of_the_window_is_drift(self) -> None:
        assert measure_numbers(self.known(), numbers(100, 400, shift=12), 400, DriftConfig()).is_drift

    def test_one_outlier_day_in_the_window_hides_no_drift(self) -> None:
        outlier = numbers(1, 400, shift=30)
        window = describe_numbers(Part.LATENT, "z_000", np.concatenate([*self.DAYS, outlier]))
        days = [measure_numbers(window, day, len(day), DriftConfig()) for day in (*self.DAYS, outlier)]
        assert measure_numbers(with_usual(window, days), numbers(2, 400, shift=30), 400, DriftConfig()).is_drift

    def test_without_days_the_distribution_is_unchanged(self) -> None:
        window = describe_numbers(Part.LATENT, "z_000", np.concatenate(self.DAYS))
        assert with_usual(window, []) == window

    def test_daily_variation_is_measured_for_columns_and_latents(self, fitted: Fitted) -> None:
        distributions = {
            (known.part, known.name): known
            for known in with_reference(fitted.bundle, fitted.columns, fitted.paths).reference
        }
        assert distributions[Part.LATENT, "z_000"].usual_psi > 0
        assert distributions[Part.COLUMN, "load"].usual_distance >= 0
        assert distributions[Part.SCORE, "score"].usual_psi == 0


class TestCategories:
    WINDOW = pl.Series("c", ["a"] * 500 + ["b"] * 400 + ["rare"] * 2 + [f"x{n}" for n in range(98)])

    def effect_of(self, *values: str | None) -> Effect:
        return column(self.WINDOW, pl.Series("c", values, pl.String), ColumnType.CATEGORY)

    def test_equal_shares_are_no_drift(self) -> None:
        day = ["a"] * 50 + ["b"] * 40 + [f"x{n}" for n in range(10)]
        effect = self.effect_of(*day)
        assert (effect.is_drift, effect.new_categories) == (False, 0.0)

    @pytest.mark.parametrize(("new", "drifts"), [(1, False), (3, True)])
    def test_new_categories_above_threshold_are_drift(self, new: int, drifts: bool) -> None:
        day = ["a"] * 50 + ["b"] * 40 + [f"x{n}" for n in range(10 - new)] + ["unheard of"] * new
        effect = self.effect_of(*day)
        assert effect.new_categories == pytest.approx(new / 100)
        assert effect.is_drift == drifts

    def test_usual_share_of_new_categories_is_subtracted(self) -> None:
        names = pl.Series("c", ["a"] * 800 + [f"new {n}" if n % 5 == 0 else "a" for n in range(200)])
        known = describe_columns(names.to_frame(), [FeatureColumn("c", ColumnType.CATEGORY)], newest=200)
        assert known[0].novelty == pytest.approx(0.2)
        day = pl.DataFrame({"c": ["a"] * 79 + [f"newer {n}" for n in range(21)]})
        (effect,) = measure_columns(day, known, CONFIG)
        assert effect.new_categories == pytest.approx(0.01)

    def test_rare_category_of_the_window_is_not_new(self) -> None:
        assert self.effect_of(*["a"] * 50, *["b"] * 40, *["rare"] * 10).new_categories == 0.0

    def test_different_shares_are_drift(self) -> None:
        effect = self.effect_of(*["a"] * 5, *["b"] * 90, *["rare"] * 5)
        assert effect.psi > 0.5
        assert effect.message.startswith("stability index")

    def test_a_value_above_the_limit_never_reads_as_the_limit(self) -> None:
        known = describe_numbers(Part.SCORE, "score", numbers(0, 3000))
        days = [numbers(1, 1000, shift) for shift in np.linspace(1, 2, 40)]
        indexes = [measure_numbers(known, day, 1000, CONFIG).psi for day in days]
        psi, day = next(pair for pair in zip(indexes, days, strict=True) if 0.001 < pair[0] - round(pair[0], 2) < 0.004)
        limit = round(psi, 2)
        message = measure_numbers(known, day, 1000, CONFIG.model_copy(update={"psi": limit})).message
        assert message.startswith(
            f"stability index {psi:.3f}: 0 is like the training window, above {limit:g} is a shift"
        )

    def test_booleans_are_categories(self) -> None:
        window = pl.Series("c", [True, False] * 500)
        assert not column(window, pl.Series("c", [True, False] * 50), ColumnType.BOOLEAN).is_drift
        assert column(window, pl.Series("c", [True] * 100), ColumnType.BOOLEAN).is_drift

    def test_new_categories_are_not_measured_above_the_limit(self) -> None:
        names = pl.Series("c", [f"n{n}" for n in range(50_001)])
        assert column(names, pl.Series("c", ["other"] * 50), ColumnType.CATEGORY).new_categories is None

    def test_distribution_survives_a_json_round_trip(self) -> None:
        (known,) = describe_columns(self.WINDOW.to_frame("c"), [FeatureColumn("c", ColumnType.CATEGORY)])
        assert Distribution.model_validate_json(known.model_dump_json()) == known
