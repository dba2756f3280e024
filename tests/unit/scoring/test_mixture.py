"""Gaussian mixtures against the densities of scipy."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from ae_pipeline.scoring.mixture import fit_mixture
from tests.support.arrays import apply


class TestMixture:
    def test_value_is_mean_negative_log_density_up_to_a_constant(self) -> None:
        rng = np.random.default_rng(0)
        rows = np.r_[rng.normal(-2, 0.5, (300, 3)), rng.multivariate_normal([2, 2, 0], np.eye(3) + 0.8, 200)]
        mixture = fit_mixture(rows, 0)
        values = np.r_[rows, rng.normal(0, 20, (50, 3))]
        expected = []
        for weights, means, whitenings in zip(mixture.weights, mixture.means, mixture.whitening, strict=True):
            assert len(weights) > 1
            assert weights.sum() == pytest.approx(1, rel=1e-12)
            covariances = [np.linalg.inv(whitening @ whitening.T) for whitening in whitenings]
            parts = [
                scipy.stats.multivariate_normal(*parameters) for parameters in zip(means, covariances, strict=True)
            ]
            log_densities = np.stack([part.logpdf(values) for part in parts], 1) + np.log(weights)
            expected.append(-scipy.special.logsumexp(log_densities, axis=1) - 1.5 * np.log(2 * np.pi))
        assert len({tuple(densities) for densities in expected}) == len(expected) == 3
        np.testing.assert_allclose(apply(mixture, values), np.mean(expected, axis=0), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(
        ("n", "width", "components"), [(13, 5, 1), (49, 5, 1), (75, 5, 3), (900, 5, 8), (500, 100, 2), (30, 60, 1)]
    )
    def test_few_rows_give_few_components_and_finite_values(self, n: int, width: int, components: int) -> None:
        rows = np.random.default_rng(0).normal(size=(n, width))
        mixture = fit_mixture(rows, 0)
        assert mixture.weights.shape == (3, components)
        assert (
            apply(mixture, np.full((1, width), 1e6))[0]
            > apply(mixture, np.full((1, width), 9.0))[0]
            > apply(mixture, rows).mean()
        )
        assert np.isfinite(apply(mixture, np.r_[rows, np.full((1, width), 1e6)])).all()

    def test_duplicate_columns_do_not_make_the_fit_fail(self) -> None:
        column = np.random.default_rng(0).normal(size=(200, 1))
        mixture = fit_mixture(np.repeat(column, 4, axis=1), 0)
        normal, outlier = apply(mixture, np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, -0.5]]))
        assert np.isfinite(normal)
        assert outlier > normal + 5
