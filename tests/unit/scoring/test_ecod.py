"""ECOD against the tails of the normal distribution by scipy."""

import numpy as np
import pytest
import scipy.stats

from ae_pipeline.scoring.ecod import ecod_score, skewed_up


class TestEcod:
    def test_longer_tail_has_the_sign_of_the_skewness(self) -> None:
        rng = np.random.default_rng(0)
        rows = np.stack([rng.exponential(size=900), -rng.exponential(size=900), rng.lognormal(0, 1, 900)], 1)
        assert skewed_up((rows - rows.mean(0)) / rows.std(0)).tolist() == [True, False, True]

    def test_broken_value_does_not_decide_the_longer_tail(self) -> None:
        rows = -np.random.default_rng(0).exponential(size=(900, 1)) + 1
        rows[3] = 1e6
        assert scipy.stats.skew(rows[:, 0]) > 0
        assert skewed_up(rows).tolist() == [False]

    def test_score_is_the_highest_of_three_tail_sums(self) -> None:
        scores = np.array([[1.0, 2.0, 0.5], [-1.0, -2.0, -0.5], [2.0, -2.0, 0.0], [-2.0, 2.0, 0.0]])
        above, below = -scipy.stats.norm.logsf(scores), -scipy.stats.norm.logcdf(scores)
        # The highest sum of the rows: upper tails, lower tails, longer tails, and a tie of the first two.
        longer = above[2, 0] + below[2, 1] + above[2, 2]
        expected = [above[0].sum(), below[1].sum(), longer, above[3].sum()]
        np.testing.assert_allclose(ecod_score(scores, np.array([True, False, True])), expected, rtol=1e-12)

    @pytest.mark.parametrize("far", [8.0, 40.0, 1e6])
    def test_score_is_finite_for_extreme_values(self, far: float) -> None:
        scores = ecod_score(np.array([[far], [-far]]), np.array([True]))
        assert np.isfinite(scores).all()
        np.testing.assert_allclose(scores, -scipy.stats.norm.logsf(far), rtol=1e-9)

    def test_extreme_values_in_many_columns_rank_above_few(self) -> None:
        rows = np.zeros((3, 10))
        rows[0], rows[1, :2], rows[2, ::2] = 1.5, 1.5, 1.5
        scores = ecod_score(rows, np.ones(10, dtype=bool))
        assert scores[0] > scores[2] > scores[1]
