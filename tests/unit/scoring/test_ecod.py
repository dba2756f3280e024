"""ECOD against the tails of the normal distribution by scipy."""

import numpy as np
import pytest
import scipy.stats
import torch

from ae_pipeline.scoring.ecod import ecod_score, skewed_up
from tests.support.arrays import apply


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
        ranks, upwards = scipy.stats.norm.cdf(scores), torch.tensor([True, False, True])
        above, below = -scipy.stats.norm.logsf(scores), -scipy.stats.norm.logcdf(scores)
        # The highest sum of the rows: upper tails, lower tails, longer tails, and a tie of the first two.
        longer = above[2, 0] + below[2, 1] + above[2, 2]
        expected = [above[0].sum(), below[1].sum(), longer, above[3].sum()]
        np.testing.assert_allclose(apply(lambda ranks: ecod_score(ranks, upwards), ranks), expected, rtol=1e-12)

    @pytest.mark.parametrize("lowest", [1e-3, 2.5e-5, 1e-12])
    def test_lowest_and_highest_rank_score_the_same(self, lowest: float) -> None:
        scores = ecod_score(torch.tensor([[lowest], [1 - lowest]], dtype=torch.float64), torch.tensor([True]))
        np.testing.assert_allclose(scores, -np.log(lowest), rtol=1e-5)

    def test_extreme_values_in_many_columns_rank_above_few(self) -> None:
        rows = np.full((3, 10), 0.5)
        rows[0], rows[1, :2], rows[2, ::2] = 0.9, 0.9, 0.9
        scores = apply(lambda ranks: ecod_score(ranks, torch.ones(10, dtype=torch.bool)), rows)
        assert scores[0] > scores[2] > scores[1]
