"""p-values and tails by hand, against the empirical survival function and the beta-binomial distribution."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.gate.rules import calibration_holds
from ae_pipeline.scoring.calibration import benjamini_hochberg, calibrate, ks_distance
from ae_pipeline.scoring.tails import TailCalibrator, fit_tails
from tests.support.arrays import apply

Array = npt.NDArray[Any]


class TestPValues:
    @pytest.mark.parametrize(
        ("score", "p_value"),
        [(0, 1), (1, 1), (1.5, 4 / 5), (2, 4 / 5), (2.5, 2 / 5), (3, 2 / 5), (3.1, 1 / 5), (99, 1 / 5)],
    )
    def test_p_value_counts_calibration_rows_that_score_as_high(self, score: float, p_value: float) -> None:
        calibration = calibrate(np.array([3.0, 2.0, 1.0, 2.0]), 0.5, 1)
        assert calibration.p_values(np.array([score])) == [p_value]

    def test_only_higher_scores_are_flagged_if_all_scores_tie(self) -> None:
        calibration = calibrate(np.full(99, 2.0), 0.01, 1)
        p_values = calibration.p_values(np.array([2.0, 2.00001]))
        assert p_values.tolist() == [1.0, 0.01]
        assert calibration.flags(p_values).tolist() == [False, True]

    @pytest.mark.parametrize("budget", [0.3, 0.05, 0.01])
    def test_flagged_share_follows_the_beta_binomial_distribution(self, budget: float) -> None:
        n, m, seeds = 250, 400, 300
        distribution = scipy.stats.betabinom(m, k := int(budget * (n + 1)), n + 1 - k)
        counts = []
        for seed in range(seeds):
            scores = np.random.default_rng(seed).normal(size=n + m)
            calibration = calibrate(scores[:n], budget, 1)
            counts.append(int(calibration.flags(calibration.p_values(scores[n:])).sum()))
        low, high = distribution.interval(0.9)
        within = sum(low <= count <= high for count in counts)
        share = distribution.cdf(high) - distribution.cdf(low - 1)
        assert scipy.stats.binom.cdf(within, seeds, share) > 1e-3
        assert np.mean(counts) == pytest.approx(distribution.mean(), abs=4 * distribution.std() / seeds**0.5)
        assert distribution.mean() / m <= budget

    @pytest.mark.parametrize(
        ("rows", "budget", "days", "needed", "enough"),
        [(50, 0.001, 5, 999, 100), (98, 0.01, 7, 99, 8), (0, 0.1, 2, 9, 18)],
    )
    def test_too_small_budget_is_an_error_with_the_days_needed(
        self, rows: int, budget: float, days: int, needed: int, enough: int
    ) -> None:
        message = (
            f"alerts.budget={budget} needs {needed} calibration rows, and the {days} calibration days hold {rows}; "
            f"set calibration_days to about {enough}, or the budget to "
        )
        with pytest.raises(TrainingError, match=re.escape(message)):
            calibrate(np.arange(rows, dtype=float), budget, days)

    @pytest.mark.parametrize("budget", [0.001, 0.01, 0.07, 0.1, 0.29, 1 / 3, 0.5, 0.9])
    def test_minimum_rows_can_flag_and_one_fewer_could_not(self, budget: float) -> None:
        rows = next(n for n in range(2000) if 1 / (n + 1) <= budget * (1 + 1e-12))
        calibration = calibrate(np.arange(rows, dtype=float), budget, 1)
        assert calibration.flags(calibration.p_values(np.array([1e9]))).all()
        assert 1 / rows > budget
        with pytest.raises(TrainingError):
            calibrate(np.arange(rows - 1, dtype=float), budget, 1)

    def test_budget_proposed_by_the_error_is_accepted(self) -> None:
        scores = np.arange(50, dtype=float)
        with pytest.raises(TrainingError) as caught:
            calibrate(scores, 0.001, 5)
        match = re.search(r"the budget to (\S+) or more", str(caught.value))
        assert match
        proposed = float(match[1])
        assert len(calibrate(scores, proposed, 5).scores) == 50


class TestThreshold:
    @pytest.mark.parametrize("score", [3.7, -3.7, 1e-3])
    def test_scores_within_rounding_tie_and_others_do_not(self, score: float) -> None:
        calibration = calibrate(np.full(99, score), 0.01, 1)
        near = score + abs(score) * np.array([-1e-9, 0, 1e-9, 1e-6])
        assert calibration.p_values(near).tolist() == [1.0, 1.0, 1.0, 0.01]

    @pytest.mark.parametrize("budget", [0.01, 0.05, 0.07, 0.14, 0.29, 0.57, 0.58])
    @pytest.mark.parametrize("n", [99, 100, 137, 199, 1499])
    @pytest.mark.parametrize("ties", [False, True])
    def test_row_is_flagged_if_and_only_if_above_the_threshold(self, budget: float, n: int, ties: bool) -> None:
        rng = np.random.default_rng(n)
        scores = rng.integers(0, 20, n).astype(float) if ties else rng.normal(size=n)
        calibration = calibrate(scores, budget, 1)
        values = np.r_[scores, rng.normal(5, 10, 500), scores + 1e-5, scores - 1e-5]
        np.testing.assert_array_equal(calibration.flags(calibration.p_values(values)), values > calibration.threshold)


def surprisal_of(tails: TailCalibrator, values: Array) -> Array:
    return apply(tails, np.asarray(values, float)[:, None])[:, 0]


SAMPLES: dict[str, Callable[[np.random.Generator], Array]] = {
    "normal": lambda rng: rng.normal(size=20_000),
    "exponential": lambda rng: rng.exponential(size=20_000),
    "heavy": lambda rng: rng.standard_t(2, size=20_000),
    "discrete": lambda rng: rng.integers(0, 4, 20_000).astype(float),
    "mostly one value": lambda rng: np.where(rng.random(20_000) < 0.9, -1.0, rng.normal(size=20_000)),
    "one value": lambda rng: np.full(20_000, 0.7),
    "two values, one of them rare": lambda rng: (rng.random(20_000) < 0.002).astype(float),
}


@pytest.fixture(params=list(SAMPLES.values()), ids=list(SAMPLES))
def sample(request: pytest.FixtureRequest) -> Array:
    """Return losses of one distribution."""
    losses: Array = request.param(np.random.default_rng(0))
    return losses


class TestTails:
    def test_surprisal_does_not_decrease_with_the_loss(self, sample: Array) -> None:
        values = np.linspace(sample.min() - 3, sample.max() + 30, 4001)
        surprisal = surprisal_of(fit_tails(sample[:, None]), values)
        assert (np.diff(surprisal) >= 0).all()
        assert surprisal[0] == 0
        assert np.isfinite(surprisal).all()

    @pytest.mark.parametrize("name", ["normal", "exponential", "heavy"])
    def test_surprisal_is_log_of_empirical_survival(self, name: str) -> None:
        losses = SAMPLES[name](np.random.default_rng(0))
        values = np.quantile(losses, np.linspace(0, 0.99, 200))
        survival = (losses[None] >= values[:, None]).mean(1)
        surprisal = surprisal_of(fit_tails(losses[:, None]), values)
        # Quantiles are 0.072 nats apart. Interpolation errors show only before the first, where a tail may be long.
        np.testing.assert_allclose(surprisal, -np.log(survival), atol=0.072)
        np.testing.assert_allclose(surprisal[survival < 0.9], -np.log(survival[survival < 0.9]), atol=0.01)

    def test_tied_value_has_the_share_of_rows_that_reach_it(self) -> None:
        losses = SAMPLES["discrete"](np.random.default_rng(0))
        survival = [(losses >= value).mean() for value in range(4)]
        # Quantiles are 0.072 nats apart.
        np.testing.assert_allclose(
            surprisal_of(fit_tails(losses[:, None]), np.arange(4)), -np.log(survival), atol=0.075
        )

    def test_constant_loss_has_no_surprisal(self) -> None:
        assert surprisal_of(fit_tails(np.full((500, 1), 0.7)), np.array([0.7, 0.6])).tolist() == [0, 0]

    def test_rare_value_has_high_surprisal(self) -> None:
        losses = SAMPLES["two values, one of them rare"](np.random.default_rng(0))
        assert surprisal_of(fit_tails(losses[:, None]), np.array([1.0]))[0] >= -np.log(0.01)

    def test_surprisal_beyond_p99_rises_by_one_per_mean_excess(self) -> None:
        losses = SAMPLES["exponential"](np.random.default_rng(0)) * 3
        earlier, last = np.quantile(losses, [0.9, 0.99])
        beyond = losses[losses > last] - last
        # The slope before the 99th percentile has the weight of ten rows.
        excess = (beyond.sum() + 10 * (last - earlier) / np.log(10)) / (len(beyond) + 10)
        assert excess == pytest.approx(beyond.mean(), rel=0.02)
        values = last + excess * np.array([0, 1, 2, 10, 100])
        expected = -np.log(0.01) + np.array([0, 1, 2, 10, 100])
        np.testing.assert_allclose(surprisal_of(fit_tails(losses[:, None]), values), expected, rtol=2e-6)
        np.testing.assert_allclose(expected, values / 3, rtol=0.15)  # −ln P of the distribution of the sample

    def test_columns_are_fitted_independently(self) -> None:
        rng = np.random.default_rng(1)
        losses = np.stack([sample(rng) for sample in SAMPLES.values()], 1)
        together = apply(fit_tails(losses), losses[:500])
        for index in range(losses.shape[1]):
            single = surprisal_of(fit_tails(losses[:, [index]]), losses[:500, index])
            np.testing.assert_allclose(together[:, index], single, rtol=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_few_rows_give_finite_tails(self, n: int) -> None:
        tails = fit_tails(np.arange(n, dtype=float)[:, None])
        assert np.isfinite(surprisal_of(tails, np.array([-1.0, 0.0, 0.5, 100.0]))).all()

    def test_no_rows_have_no_surprisal(self) -> None:
        tails = fit_tails(np.random.default_rng(0).normal(size=(50, 3)))
        assert apply(tails, np.empty((0, 3))).shape == (0, 3)


class TestBenjaminiHochberg:
    @pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
    @pytest.mark.parametrize("n", [1, 2, 19, 99, 999])
    def test_marks_equal_those_of_exact_arithmetic(self, n: int, rate: float) -> None:
        rng, exact = np.random.default_rng(n), Fraction(str(rate))
        marked = 0
        for rows in (1, 2, 5, 30, 200):
            ranks = np.minimum(rng.geometric(0.4, rows), n + 1)
            ascending = sorted(ranks.tolist())
            last = max(
                (k for k in range(1, rows + 1) if Fraction(ascending[k - 1], n + 1) <= exact * k / rows), default=0
            )
            marks = benjamini_hochberg(ranks / (n + 1), rate)
            assert marks.tolist() == [bool(last) and rank <= ascending[last - 1] for rank in ranks]
            marked += int(marks.sum())
        assert marked or n + 1 <= 1 / rate

    def test_p_values_equal_to_the_rate_are_marked(self) -> None:
        assert benjamini_hochberg(np.full(10, 0.1), 0.1).all()
        assert benjamini_hochberg(np.array([0.1, 0.9]), 0.1).tolist() == [False, False]
        assert benjamini_hochberg(np.array([0.05, 0.9]), 0.1).tolist() == [True, False]
        assert benjamini_hochberg(np.empty(0), 0.1).shape == (0,)

    def test_false_discovery_rate_holds_for_conformal_p_values(self) -> None:
        shares = []
        for seed in range(400):
            scores = np.random.default_rng(seed).normal(size=2000 + 190 + 10)
            scores[-10:] += 4.5
            p_values = calibrate(scores[:2000], 0.01, None).p_values(scores[2000:])
            marked = benjamini_hochberg(p_values, 0.2)
            shares.append(marked[:190].sum() / max(marked.sum(), 1))
        assert 0.13 < np.mean(shares) < 0.2 + 3 * np.std(shares) / len(shares) ** 0.5


class TestKsDistance:
    @pytest.mark.parametrize("decimals", [0, 1, 9])
    def test_distance_is_the_two_sample_statistic_even_with_ties(self, decimals: int) -> None:
        rng = np.random.default_rng(decimals)
        scores, others = rng.normal(size=300).round(decimals), rng.normal(0.3, 2, size=170).round(decimals)
        expected = scipy.stats.ks_2samp(scores, others, method="asymp").statistic
        assert ks_distance(scores, others) == pytest.approx(expected, abs=1e-15)
        assert ks_distance(scores, rng.permutation(scores)) == 0
        assert ks_distance(scores, others + 100) == 1


class TestCalibrationHolds:
    @pytest.mark.parametrize(("n", "calibrated"), [(50, 50), (1000, 50), (10_000, 100), (3000, 3000)])
    @pytest.mark.parametrize("values", [0, 1, 3, 1000])
    def test_exchangeable_rows_pass_the_check_even_with_ties(self, n: int, calibrated: int, values: int) -> None:
        for seed in range(50):
            scores = np.random.default_rng(seed).normal(size=n + calibrated)
            scores = np.floor(values * scipy.stats.norm.cdf(scores)) if values else scores
            assert calibration_holds(scores[:n], scores[n:]).passed

    def test_shifted_scores_fail_the_check_with_the_distance(self) -> None:
        rng = np.random.default_rng(0)
        verdict = calibration_holds(rng.normal(0.7, 1, 5000), rng.normal(size=5000))
        assert not verdict.passed
        assert verdict.figure == pytest.approx(2 * scipy.stats.norm.cdf(0.35) - 1, abs=0.03)
        assert verdict.threshold == pytest.approx(0.1 + 1.63 * (2 / 5000) ** 0.5)
        assert verdict.message.endswith(
            f"by up to {verdict.figure:.3f}; the limit is {verdict.threshold:.3f}; "
            "train a new model to calibrate on newer days"
        )

    def test_check_passes_without_new_rows(self) -> None:
        verdict = calibration_holds(np.empty(0), np.arange(10.0))
        assert (verdict.passed, verdict.message) == (True, "0 rows lie after the calibration days")


class TestLeastSurprisal:
    def test_surprisal_up_to_least_is_skipped_and_rest_is_equal(self) -> None:
        rng = np.random.default_rng(0)
        tails = fit_tails(rng.exponential(size=(4000, 3)))
        losses = np.vstack([rng.exponential(size=(2000, 3)) * 2, tails.quantiles.T[:20]])
        least = np.array([0.0, 1.5, np.inf])
        whole, part = apply(tails, losses), apply(lambda each: tails(each, least), losses)
        np.testing.assert_array_equal(part[:, 0], whole[:, 0])
        above = whole[:, 1] > 1.5
        np.testing.assert_array_equal(part[above, 1], whole[above, 1])
        assert (part[~above, 1] <= whole[~above, 1]).all()
        assert (part[:, 1] == 0).mean() > 0.5

    def test_nan_loss_has_nan_surprisal(self) -> None:
        tails = fit_tails(np.random.default_rng(0).exponential(size=(4000, 1)))
        assert np.isnan(apply(lambda each: tails(each, np.array([2.0])), np.array([[np.nan]]))).all()
