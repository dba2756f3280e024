"""z-scores and normal scores against scipy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch

from ae_pipeline.scoring.scalings import Scalings, fit_scalings, normal_scores
from tests.support.arrays import apply, copied

NO_ASINH = np.zeros(3, dtype=bool)


class TestZScores:
    def test_z_scores_are_winsorized_and_without_asinh(self) -> None:
        rng = np.random.default_rng(0)
        numbers = np.stack([rng.normal(5, 3, 801), rng.standard_t(3, 801), rng.lognormal(0, 1, 801)], 1)
        asinh_mask = np.array([False, True, True])
        standard = fit_scalings(np.where(asinh_mask, np.arcsinh(numbers), numbers), asinh_mask).standard
        z_scores = apply(standard, np.where(asinh_mask, np.arcsinh(numbers), numbers))
        winsorized = scipy.stats.mstats.winsorize(numbers, (4 / 801, 4 / 801), axis=0).data  # 0.005 of 800 steps
        np.testing.assert_allclose(z_scores, (numbers - winsorized.mean(0)) / winsorized.std(0), atol=1e-10)

    def test_broken_value_does_not_change_other_z_scores(self) -> None:
        rows = np.random.default_rng(0).normal(size=(3000, 3))
        broken = rows.copy()
        broken[7, 1] = 1e6
        clean = apply(fit_scalings(rows, NO_ASINH).standard, rows)
        z_scores = apply(fit_scalings(broken, NO_ASINH).standard, broken)
        np.testing.assert_allclose(np.delete(z_scores, 7, axis=0), np.delete(clean, 7, axis=0), atol=0.01)

    def test_column_that_varies_in_few_rows_has_std_of_all_rows(self) -> None:
        rows = (np.arange(3000)[:, None] < [[3]]).astype(float)
        z_scores = apply(fit_scalings(rows, NO_ASINH[:1]).standard, rows)
        assert z_scores[0, 0] == pytest.approx(1 / rows.std())
        assert z_scores[-1, 0] == 0

    def test_new_rows_are_scaled_by_the_training_rows(self) -> None:
        scalings = fit_scalings(np.array([[0.0, 0.0, 1.0], [2.0, 4.0, 1.0]]), NO_ASINH)
        np.testing.assert_allclose(apply(scalings.standard, np.array([[3.0, -2.0, 1.0]])), [[2.0, -2.0, 0.0]])

    @pytest.mark.parametrize("value", [1e6, 1e300, -1e300, np.finfo(np.float32).max])
    @pytest.mark.parametrize("is_asinh", [False, True])
    def test_z_scores_are_clipped_to_a_finite_range(self, value: float, is_asinh: bool) -> None:
        rows = np.random.default_rng(0).normal(size=(50, 1))
        z_scores = apply(fit_scalings(rows, np.array([is_asinh])).standard, np.array([[value]]))
        assert abs(z_scores[0, 0]) == 1e6
        assert np.sign(z_scores[0, 0]) == np.sign(value)

    def test_scaling_does_not_modify_its_input(self) -> None:
        rows = np.random.default_rng(0).normal(size=(50, 3))
        previous = rows.copy()
        scalings = fit_scalings(rows, ~NO_ASINH)
        apply(scalings.standard, rows)
        apply(scalings.normal, rows)
        np.testing.assert_array_equal(rows, previous)


class TestNormalScores:
    @pytest.mark.parametrize("n", [16, 100, 400, 1001])
    def test_training_rows_have_normal_quantiles_of_mean_ranks(self, n: int) -> None:
        rng = np.random.default_rng(0)
        columns = [rng.lognormal(0, 2, n), rng.integers(0, 4, n), rng.random(n) < 0.9]
        rows = np.stack(columns, 1).astype(float)
        ranks = scipy.stats.rankdata(rows, axis=0) - 1  # ties have their mean rank
        expected = scipy.stats.norm.ppf(np.clip(ranks / (n - 1), 0.5 / n, 1 - 0.5 / n))
        np.testing.assert_allclose(apply(fit_scalings(rows, NO_ASINH).normal, rows), expected, atol=1e-9)

    def test_quantiles_are_those_of_scipy_up_to_the_ends(self) -> None:
        ranks = np.r_[0.5 / 20_000, np.linspace(0.001, 0.999, 999), 1 - 0.5 / 20_000]
        np.testing.assert_allclose(normal_scores(torch.from_numpy(ranks)), scipy.stats.norm.ppf(ranks), rtol=1e-11)

    def test_more_rows_than_quantiles_have_approximate_ranks(self) -> None:
        rng = np.random.default_rng(0)
        columns = [rng.lognormal(0, 2, 20_000), rng.integers(0, 4, 20_000), rng.random(20_000) < 0.9]
        rows = np.stack(columns, 1).astype(float)
        levels = scipy.stats.norm.cdf(apply(fit_scalings(rows, NO_ASINH).normal, rows))
        np.testing.assert_allclose(levels, scipy.stats.rankdata(rows, axis=0) / len(rows), atol=2e-3)

    def test_scores_are_monotonic_and_independent_of_asinh(self) -> None:
        rng = np.random.default_rng(0)
        for column in (
            rng.normal(size=3000),
            rng.integers(0, 4, 3000).astype(float),
            np.r_[np.zeros(2900), np.ones(100)],
        ):
            scalings = fit_scalings(column[:, None], NO_ASINH[:1])
            values = np.sort(np.r_[np.linspace(column.min() - 2, column.max() + 2, 4001), column])[:, None]
            assert (np.diff(apply(scalings.normal, values)[:, 0]) >= 0).all()
            with_asinh = apply(
                fit_scalings(np.arcsinh(column)[:, None], ~NO_ASINH[:1]).normal, np.arcsinh(column)[:, None]
            )
            tolerance = 2e-3 * len(np.unique(column)) / 3000 + 1e-9  # linear interpolation between quantiles
            np.testing.assert_allclose(with_asinh, apply(scalings.normal, column[:, None]), atol=50 * tolerance)

    @pytest.mark.parametrize("value", [1e3, 1e300, np.finfo(np.float64).max])
    def test_extreme_value_has_score_of_the_last_training_row(self, value: float) -> None:
        scalings = fit_scalings(np.random.default_rng(0).normal(size=(200, 1)), NO_ASINH[:1])
        end = scipy.stats.norm.ppf(0.5 / 200)
        np.testing.assert_allclose(apply(scalings.normal, np.array([[-value], [value]])), [[end], [-end]], rtol=1e-9)


@pytest.mark.parametrize("is_asinh", [False, True])
@pytest.mark.parametrize("column", [np.full(40, 7.0), np.full(40, 7.0) + np.eye(40)[3] * 1e-8], ids=["one", "all but"])
def test_constant_column_is_finite_and_far_from_other_values(column: npt.NDArray[Any], is_asinh: bool) -> None:
    scalings = fit_scalings(column[:, None], np.array([is_asinh]))
    values = np.array([[7.0], [8.0], [-1e300]])
    for scale in (scalings.standard, scalings.normal):
        scaled = apply(scale, values)[:, 0]
        assert np.isfinite(scaled).all()
        assert abs(scaled[0]) < 0.1
        assert scaled[1] > 0.9
        assert scaled[2] < -0.9
        assert (np.diff(apply(scale, column[:, None])[np.argsort(column)], axis=0) >= 0).all()


def test_scalings_survive_a_round_trip_through_arrays() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 3))
    scalings = fit_scalings(rows, np.array([True, False, True]))
    back = Scalings(**copied(scalings.arrays()))
    assert apply(back.standard, rows).tobytes() == apply(scalings.standard, rows).tobytes()
    assert apply(back.normal, rows).tobytes() == apply(scalings.normal, rows).tobytes()
