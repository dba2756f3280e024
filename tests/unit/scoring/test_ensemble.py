"""The ensemble and its parts: against scipy and scikit-learn, by hand, and on planted anomalies of several kinds."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.scoring import denoising_ensemble as networks
from ae_pipeline.scoring import ensemble as ensembles
from ae_pipeline.scoring import neighbors
from ae_pipeline.scoring.denoising_ensemble import NETWORKS, DenoisingEnsemble, fit_denoising_ensemble
from ae_pipeline.scoring.ecod import ecod_score, skewed_up
from ae_pipeline.scoring.ensemble import MEASURES, WEIGHTS, Ensemble, fit_ensemble
from ae_pipeline.scoring.mixture import fit_mixture
from ae_pipeline.scoring.neighbors import mean_knn_distance, nearest
from ae_pipeline.scoring.scalings import Scalings, fit_scalings

WHAT = (
    "distance from the nearest training row",
    "distance from the nearest training row by ranks",
    "rarity among training rows",
    "residual of small autoencoders",
    "distance of its values from the middle, one by one",
)
STRAIGHT = np.zeros(3, dtype=bool)


def copied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays as a file gives them back: their values alone."""
    read = {name: np.frombuffer(bytearray(value.tobytes()), value.dtype) for name, value in arrays.items()}
    return {name: value.reshape(arrays[name].shape) for name, value in read.items()}


class TestStandardView:
    def test_it_is_in_units_of_winsorised_spread_also_where_numbers_were_bent(self):
        rng = np.random.default_rng(0)
        numbers = np.stack([rng.normal(5, 3, 801), rng.standard_t(3, 801), rng.lognormal(0, 1, 801)], 1)
        asinh_mask = np.array([False, True, True])
        standard = fit_scalings(np.where(asinh_mask, np.arcsinh(numbers), numbers), asinh_mask).standard
        found = standard(np.where(asinh_mask, np.arcsinh(numbers), numbers))
        inner = scipy.stats.mstats.winsorize(numbers, (4 / 801, 4 / 801), axis=0).data  # 0.005 of 800 steps
        np.testing.assert_allclose(found, (numbers - inner.mean(0)) / inner.std(0), atol=1e-10)

    def test_a_broken_value_leaves_the_others_as_they_are(self):
        rows = np.random.default_rng(0).normal(size=(3000, 3))
        broken = rows.copy()
        broken[7, 1] = 1e6
        whole, found = fit_scalings(rows, STRAIGHT).standard(rows), fit_scalings(broken, STRAIGHT).standard(broken)
        np.testing.assert_allclose(np.delete(found, 7, axis=0), np.delete(whole, 7, axis=0), atol=0.01)

    def test_a_column_that_varies_in_few_rows_has_the_spread_of_all(self):
        rows = (np.arange(3000)[:, None] < [[3]]).astype(float)
        found = fit_scalings(rows, STRAIGHT[:1]).standard(rows)
        assert found[0, 0] == pytest.approx(1 / rows.std())
        assert found[-1, 0] == 0

    def test_other_rows_are_measured_by_the_training_rows(self):
        scalings = fit_scalings(np.array([[0.0, 0.0, 1.0], [2.0, 4.0, 1.0]]), STRAIGHT)
        np.testing.assert_allclose(scalings.standard(np.array([[3.0, -2.0, 1.0]])), [[2.0, -2.0, 0.0]])

    @pytest.mark.parametrize("value", [1e6, 1e300, -1e300, np.finfo(np.float32).max])
    @pytest.mark.parametrize("is_bent", [False, True])
    def test_no_value_is_too_far_for_its_square(self, value, is_bent):
        rows = np.random.default_rng(0).normal(size=(50, 1))
        found = fit_scalings(rows, np.array([is_bent])).standard(np.array([[value]]))
        assert abs(found[0, 0]) == 1e6
        assert np.sign(found[0, 0]) == np.sign(value)

    def test_the_rows_that_are_given_stay_as_they_are(self):
        rows = np.random.default_rng(0).normal(size=(50, 3))
        previous = rows.copy()
        scalings = fit_scalings(rows, ~STRAIGHT)
        scalings.standard(rows)
        scalings.normal(rows)
        np.testing.assert_array_equal(rows, previous)


class TestMarginalTails:
    def test_the_longer_tail_is_that_of_the_skewness(self):
        rng = np.random.default_rng(0)
        rows = np.stack([rng.exponential(size=900), -rng.exponential(size=900), rng.lognormal(0, 1, 900)], 1)
        assert skewed_up((rows - rows.mean(0)) / rows.std(0)).tolist() == [True, False, True]

    def test_a_broken_value_does_not_decide_which_tail_is_longer(self):
        rows = -np.random.default_rng(0).exponential(size=(900, 1)) + 1
        rows[3] = 1e6
        assert scipy.stats.skew(rows[:, 0]) > 0
        assert skewed_up(rows).tolist() == [False]

    def test_it_is_the_highest_of_three_sums_of_tails(self):
        scores = np.array([[1.0, 2.0, 0.5], [-1.0, -2.0, -0.5], [2.0, -2.0, 0.0], [-2.0, 2.0, 0.0]])
        above, below = -scipy.stats.norm.logsf(scores), -scipy.stats.norm.logcdf(scores)
        # each row's highest sum is another one: upper tails, lower ones, the longer ones, and a tie of the first two
        longer = above[2, 0] + below[2, 1] + above[2, 2]
        expected = [above[0].sum(), below[1].sum(), longer, above[3].sum()]
        np.testing.assert_allclose(ecod_score(scores, np.array([True, False, True])), expected, rtol=1e-12)

    @pytest.mark.parametrize("far", [8.0, 40.0, 1e6])
    def test_it_stays_finite_however_far_out_a_value_is(self, far):
        found = ecod_score(np.array([[far], [-far]]), np.array([True]))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, -scipy.stats.norm.logsf(far), rtol=1e-9)

    def test_rows_far_out_in_many_columns_rank_above_those_far_out_in_few(self):
        rows = np.zeros((3, 10))
        rows[0], rows[1, :2], rows[2, ::2] = 1.5, 1.5, 1.5
        found = ecod_score(rows, np.ones(10, dtype=bool))
        assert found[0] > found[2] > found[1]


class TestNormalView:
    @pytest.mark.parametrize("n", [16, 100, 400, 1001])
    def test_training_rows_have_the_normal_quantiles_of_their_ranks_ties_in_the_middle(self, n):
        rng = np.random.default_rng(0)
        columns = [rng.lognormal(0, 2, n), rng.integers(0, 4, n), rng.random(n) < 0.9]
        rows = np.stack(columns, 1).astype(float)
        ranks = scipy.stats.rankdata(rows, axis=0) - 1  # of ties their mean
        expected = scipy.stats.norm.ppf(np.clip(ranks / (n - 1), 0.5 / n, 1 - 0.5 / n))
        np.testing.assert_allclose(fit_scalings(rows, STRAIGHT).normal(rows), expected, atol=1e-9)

    def test_of_more_rows_than_quantiles_are_kept_the_ranks_are_near(self):
        rng = np.random.default_rng(0)
        columns = [rng.lognormal(0, 2, 20_000), rng.integers(0, 4, 20_000), rng.random(20_000) < 0.9]
        rows = np.stack(columns, 1).astype(float)
        found = scipy.stats.norm.cdf(fit_scalings(rows, STRAIGHT).normal(rows))
        np.testing.assert_allclose(found, scipy.stats.rankdata(rows, axis=0) / len(rows), atol=2e-3)

    def test_scores_never_fall_as_values_rise_and_bending_makes_no_difference(self):
        rng = np.random.default_rng(0)
        for column in (
            rng.normal(size=3000),
            rng.integers(0, 4, 3000).astype(float),
            np.r_[np.zeros(2900), np.ones(100)],
        ):
            scalings = fit_scalings(column[:, None], STRAIGHT[:1])
            asked = np.sort(np.r_[np.linspace(column.min() - 2, column.max() + 2, 4001), column])[:, None]
            assert (np.diff(scalings.normal(asked)[:, 0]) >= 0).all()
            asinh_mask = fit_scalings(np.arcsinh(column)[:, None], ~STRAIGHT[:1]).normal(np.arcsinh(column)[:, None])
            tolerance = 2e-3 * len(np.unique(column)) / 3000 + 1e-9  # between quantiles lines are drawn
            np.testing.assert_allclose(asinh_mask, scalings.normal(column[:, None]), atol=50 * tolerance)

    @pytest.mark.parametrize("value", [1e3, 1e300, np.finfo(np.float64).max])
    def test_beyond_all_training_rows_a_score_is_that_of_the_last_of_them(self, value):
        scalings = fit_scalings(np.random.default_rng(0).normal(size=(200, 1)), STRAIGHT[:1])
        end = scipy.stats.norm.ppf(0.5 / 200)
        np.testing.assert_allclose(scalings.normal(np.array([[-value], [value]])), [[end], [-end]], rtol=1e-9)


@pytest.mark.parametrize("is_bent", [False, True])
@pytest.mark.parametrize("values", [np.full(40, 7.0), np.full(40, 7.0) + np.eye(40)[3] * 1e-8], ids=["one", "all but"])
def test_a_column_of_one_value_is_finite_in_either_view_and_far_from_other_values(values, is_bent):
    scalings = fit_scalings(values[:, None], np.array([is_bent]))
    asked = np.array([[7.0], [8.0], [-1e300]])
    for view in (scalings.standard, scalings.normal):
        found = view(asked)[:, 0]
        assert np.isfinite(found).all()
        assert abs(found[0]) < 0.1
        assert found[1] > 0.9
        assert found[2] < -0.9
        assert (np.diff(view(values[:, None])[np.argsort(values)], axis=0) >= 0).all()


def test_views_are_the_same_after_a_round_trip_through_arrays():
    rows = np.random.default_rng(0).normal(size=(300, 3))
    scalings = fit_scalings(rows, np.array([True, False, True]))
    back = Scalings(**copied(scalings.arrays()))
    assert back.standard(rows).tobytes() == scalings.standard(rows).tobytes()
    assert back.normal(rows).tobytes() == scalings.normal(rows).tobytes()


class TestNeighbours:
    @pytest.mark.parametrize("width", [1, 2, 30])
    def test_distances_are_those_that_scikit_learn_finds(self, width):
        rng = np.random.default_rng(width)
        references, rows = rng.normal(size=(300, width)), rng.normal(size=(200, width)) * 2
        found = NearestNeighbors(n_neighbors=25, algorithm="brute").fit(references).kneighbors(rows)[0]
        np.testing.assert_allclose(nearest(rows, references), found[:, 0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(mean_knn_distance(rows, references, 25), found.mean(1), rtol=1e-6, atol=1e-9)

    def test_fewer_references_than_are_asked_for_are_taken_but_for_one(self):
        rng = np.random.default_rng(0)
        references, rows = rng.normal(size=(10, 3)), rng.normal(size=(50, 3))
        found = np.sort(np.linalg.norm(rows[:, None] - references, axis=2), 1)
        np.testing.assert_allclose(mean_knn_distance(rows, references, 100), found[:, :9].mean(1), rtol=1e-9)

    def test_a_training_row_is_held_against_all_others_as_if_it_were_removed_by_hand(self):
        rows = np.random.default_rng(0).normal(size=(80, 4))
        without = [np.delete(rows, index, axis=0) for index in range(80)]
        expected = [nearest(rows[[index]], others)[0] for index, others in enumerate(without)]
        np.testing.assert_allclose(nearest(rows, rows), expected, rtol=1e-9)
        expected = [mean_knn_distance(rows[[index]], others, 20)[0] for index, others in enumerate(without)]
        np.testing.assert_allclose(mean_knn_distance(rows, rows, 20), expected, rtol=1e-9)

    def test_a_twin_is_at_distance_zero_itself_whatever_rounding_leaves(self):
        # whole numbers far from the origin, most of them more than once
        rng = np.random.default_rng(0)
        references = rng.integers(0, 3, (2000, 6)) / 3 + np.array([0.1, 10, 100, 1000, -7, 0])
        found = nearest(references, references)
        twins = np.unique(references, axis=0, return_counts=True, return_inverse=True)
        assert (found == 0).tolist() == (twins[2][twins[1]] > 1).tolist()
        alone = np.concatenate([nearest(row[None], references) for row in references])
        np.testing.assert_allclose(found, alone, rtol=1e-6)

    def test_of_references_that_equal_a_row_one_alone_is_left_out(self):
        references = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [6.0, 8.0]])
        rows = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [3.0, 4.1]])
        np.testing.assert_allclose(nearest(rows, references), [5, 0, 5, 0.1], atol=1e-7)
        # of (3, 4) there is another one, at 0, and two at 5
        np.testing.assert_allclose(mean_knn_distance(rows[:3], references, 2), [5, 2.5, 5], atol=1e-6)
        np.testing.assert_allclose(mean_knn_distance(rows[:3], references, 3), [20 / 3, 10 / 3, 20 / 3], atol=1e-6)

    def test_a_row_that_is_new_stands_beside_its_nearest_reference_however_near(self):
        references = np.array([[1.0, 1.0], [5.0, 5.0]])
        assert nearest(np.array([[1.001, 1.0]]), references) == pytest.approx([0.001], rel=1e-6)

    @pytest.mark.parametrize("at_once", [1, 7 * 300, 2**22])
    def test_neither_blocks_nor_the_order_of_rows_and_references_make_a_difference(self, monkeypatch, at_once):
        rng = np.random.default_rng(0)
        references = rng.normal(size=(300, 6)) * 100
        rows = np.r_[rng.normal(size=(1000, 6)) * 100, references]
        expected = nearest(rows, references), mean_knn_distance(rows, references, 40)
        monkeypatch.setattr(neighbors, "_BLOCK_DISTANCES", at_once)
        order, other = rng.permutation(len(rows)), rng.permutation(300)
        for distance, wanted in zip((nearest, lambda *given: mean_knn_distance(*given, 40)), expected, strict=True):
            np.testing.assert_allclose(distance(rows, references), wanted, rtol=1e-5)
            np.testing.assert_allclose(distance(rows[order], references[other]), wanted[order], rtol=1e-5)
            np.testing.assert_allclose(distance(rows[[1, 1299]], references), wanted[[1, 1299]], rtol=1e-5)

    def test_no_rows_have_no_distances(self):
        assert nearest(np.empty((0, 2)), np.zeros((3, 2))).shape == (0,)
        assert mean_knn_distance(np.empty((0, 2)), np.zeros((3, 2)), 2).shape == (0,)


class TestMixture:
    def test_rarity_is_minus_the_mean_log_density_but_for_a_constant(self):
        rng = np.random.default_rng(0)
        rows = np.r_[rng.normal(-2, 0.5, (300, 3)), rng.multivariate_normal([2, 2, 0], np.eye(3) + 0.8, 200)]
        mixture = fit_mixture(rows, 0)
        asked = np.r_[rows, rng.normal(0, 20, (50, 3))]
        expected = []
        for weights, means, whitenings in zip(mixture.weights, mixture.means, mixture.whitening, strict=True):
            assert len(weights) > 1
            assert weights.sum() == pytest.approx(1, rel=1e-12)
            covariances = [np.linalg.inv(whitening @ whitening.T) for whitening in whitenings]
            parts = [scipy.stats.multivariate_normal(*given) for given in zip(means, covariances, strict=True)]
            mahalanobis = np.stack([part.logpdf(asked) for part in parts], 1) + np.log(weights)
            expected.append(-scipy.special.logsumexp(mahalanobis, axis=1) - 1.5 * np.log(2 * np.pi))
        assert len({tuple(given) for given in expected}) == len(expected) == 3
        np.testing.assert_allclose(mixture(asked), np.mean(expected, axis=0), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(
        ("n", "width", "components"), [(13, 5, 1), (49, 5, 1), (75, 5, 3), (900, 5, 8), (500, 100, 2), (30, 60, 1)]
    )
    def test_few_rows_have_few_components_and_are_scored_however_far_a_row_is(self, n, width, components):
        rows = np.random.default_rng(0).normal(size=(n, width))
        mixture = fit_mixture(rows, 0)
        assert mixture.weights.shape == (3, components)
        assert mixture(np.full((1, width), 1e6))[0] > mixture(np.full((1, width), 9.0))[0] > mixture(rows).mean()
        assert np.isfinite(mixture(np.r_[rows, np.full((1, width), 1e6)])).all()

    def test_a_column_that_another_one_repeats_does_not_make_it_fail(self):
        column = np.random.default_rng(0).normal(size=(200, 1))
        mixture = fit_mixture(np.repeat(column, 4, axis=1), 0)
        normal, detach = mixture(np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, -0.5]]))
        assert np.isfinite(normal)
        assert detach > normal + 5


def trained(rows: np.ndarray, seed: int = 0) -> DenoisingEnsemble:
    return fit_denoising_ensemble(rows, torch.Generator().manual_seed(seed))


def related(n: int, seed: int = 0) -> np.ndarray:
    """Rows of six columns in units of spread, which two numbers govern but for a little noise."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(2, 6))
    rows = rng.normal(size=(n, 2)) @ mixing + 0.1 * rng.normal(size=(n, 6))
    std: np.ndarray = np.sqrt(np.square(mixing).sum(0) + 0.01)
    return rows / std


class TestMembers:
    @pytest.fixture(scope="class")
    def denoising_ensemble(self) -> DenoisingEnsemble:
        return trained(related(600))

    def test_the_same_seed_gives_the_same_bytes_whatever_the_global_ones_and_another_seed_others(
        self, denoising_ensemble
    ):
        torch.manual_seed(5)
        again, other = trained(related(600)), trained(related(600), 1)
        for name, value in denoising_ensemble.arrays().items():
            assert again.arrays()[name].tobytes() == value.tobytes(), name
            assert other.arrays()[name].tobytes() != value.tobytes(), name

    def test_a_round_trip_through_arrays_gives_the_same_bytes(self, denoising_ensemble):
        back, rows = DenoisingEnsemble.from_arrays(copied(denoising_ensemble.arrays())), related(300, 1)
        assert back(rows).tobytes() == denoising_ensemble(rows).tobytes()
        for name, value in denoising_ensemble.arrays().items():
            assert back.arrays()[name].tobytes() == value.tobytes(), name

    def test_distances_of_training_rows_are_one_on_average_and_those_of_rows_apart_far_more(self, denoising_ensemble):
        rows = related(600)
        assert denoising_ensemble(rows).mean() == pytest.approx(1, rel=0.01)
        detach = related(200, 1)
        assert denoising_ensemble(detach).mean() == pytest.approx(1, rel=0.3)
        detach[:, 0] = -detach[:, 0]
        assert np.median(denoising_ensemble(detach)) > 10

    def test_each_has_learnt_what_the_columns_have_in_common(self, denoising_ensemble):
        rows = related(300, 1)
        residuals = denoising_ensemble._residuals(torch.from_numpy(rows))
        assert residuals.shape == (NETWORKS, 300, 6)
        assert (residuals.square().mean((1, 2)) < 0.1).all()  # of 1, which the mean would leave
        assert len({round(float(value), 12) for value in residuals.square().mean((1, 2))}) == NETWORKS

    def test_neither_the_order_of_rows_nor_their_number_makes_a_difference(self, denoising_ensemble, monkeypatch):
        rows = related(500, 2)
        expected, order = denoising_ensemble(rows), np.random.default_rng(0).permutation(500)
        np.testing.assert_allclose(denoising_ensemble(rows[order]), expected[order], rtol=1e-9)
        np.testing.assert_allclose(denoising_ensemble(rows[[77]]), expected[[77]], rtol=1e-9)
        monkeypatch.setattr(networks, "_AT_ONCE", 33)
        np.testing.assert_allclose(denoising_ensemble(rows), expected, rtol=1e-9)
        assert denoising_ensemble(rows[:0]).shape == (0,)

    @pytest.mark.parametrize(("n", "width"), [(8, 1), (8, 3), (9, 40), (2, 2)])
    def test_a_handful_of_rows_is_enough_to_stop_by(self, n, width):
        rows = np.random.default_rng(0).normal(size=(n, width))
        denoising_ensemble = trained(rows)
        assert np.isfinite(denoising_ensemble(np.r_[rows, np.full((1, width), 1e6)])).all()

    def test_those_weights_are_kept_that_did_best_on_rows_held_out(self, monkeypatch):
        """Of twenty rows of noise longer training learns the rows by heart; what is held out then grows worse."""
        rows = np.random.default_rng(0).normal(size=(24, 12))
        kept, last = trained(rows), None
        monkeypatch.setattr(networks, "_LOOK_EVERY", networks._STEPS)
        last = trained(rows)
        held_out = torch.from_numpy(rows)[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:3]]
        losses = [denoising_ensemble._residuals(held_out).square().mean((1, 2)) for denoising_ensemble in (kept, last)]
        assert (losses[0] < losses[1]).all()


BENT = np.array([False, False, False, False, True, False])


def normal_rows(n: int, seed: int) -> np.ndarray:
    """Two clusters in the first two columns, two columns that belong together, one skewed and one even."""
    rng = np.random.default_rng(seed)
    side, shared = rng.choice([-3.0, 3.0], n), rng.normal(size=n)
    columns = [
        side + rng.normal(0, 0.5, n),
        -side + rng.normal(0, 0.5, n),
        shared,
        0.8 * shared + rng.normal(0, 0.1, n),
        np.arcsinh(rng.lognormal(0, 1, n)),
        rng.random(n),
    ]
    return np.stack(columns, 1).astype(np.float32)


def crowd_rows(n: int, seed: int) -> np.ndarray:
    """A crowd of its own: near to one another, and where neither cluster is."""
    rows = normal_rows(n, seed)
    rows[:, :2] = 3 + np.random.default_rng(seed).normal(0, 0.1, (n, 2))
    return rows


def far(rows: np.ndarray, rng: np.random.Generator) -> None:
    rows[:, 5] = rng.choice([-2.0, 3.0], len(rows))


def broken(rows: np.ndarray, rng: np.random.Generator) -> None:
    rows[:, 3] = 0.8 * rows[:, 2] + rng.choice([-1.0, 1.0], len(rows))


def between(rows: np.ndarray, rng: np.random.Generator) -> None:
    rows[:, :2] = rng.normal(0, 0.3, (len(rows), 2))


def mixed(rows: np.ndarray, rng: np.random.Generator) -> None:
    rows[:, 1] = rows[:, 0] + rng.normal(0, 0.5, len(rows))


PLANTED: dict[str, Callable[[np.ndarray, np.random.Generator], None]] = {
    "a value far out": far,
    "a dependency broken": broken,
    "in the gap between two clusters": between,
    "where neither cluster is": mixed,
}


@pytest.fixture(scope="module")
def contaminated() -> tuple[np.ndarray, np.ndarray]:
    """Training rows and which of them are anomalies, all of one small crowd."""
    rows = np.concatenate([normal_rows(760, 0), crowd_rows(40, 1)])
    order = np.random.default_rng(2).permutation(800)
    return rows[order], order >= 760


@pytest.fixture(scope="module")
def ensemble(contaminated) -> Ensemble:
    return fit_ensemble(contaminated[0], BENT, 0)


class TestRanking:
    @pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
    def test_planted_anomalies_rank_above_normal_rows(self, ensemble, plant):
        normal, planted = normal_rows(500, 3), normal_rows(200, 4)
        plant(planted, np.random.default_rng(5))
        scores = ensemble(np.concatenate([normal, planted]))
        assert roc_auc_score(np.arange(700) >= 500, scores) > 0.9

    def test_a_crowd_of_anomalies_in_the_training_rows_ranks_above_the_others_though_no_label_says_so(
        self, ensemble, contaminated
    ):
        rows, is_strange = contaminated
        assert roc_auc_score(is_strange, ensemble(rows)) > 0.9
        again = np.concatenate([normal_rows(500, 3), crowd_rows(100, 6)])
        assert roc_auc_score(np.arange(600) >= 500, ensemble(again)) > 0.9

    def test_normal_rows_score_like_those_of_training(self, ensemble, contaminated):
        rows, is_strange = contaminated
        own, new = ensemble(rows[~is_strange]), ensemble(normal_rows(760, 7))
        assert roc_auc_score(np.repeat([0, 1], 760), np.r_[own, new]) == pytest.approx(0.5, abs=0.06)

    def test_a_value_counts_for_more_the_farther_it_is(self, ensemble):
        rows = np.repeat(normal_rows(1, 3), 6, axis=0)
        rows[1:, 5] = [2.0, 4.0, 30.0, 1e6, np.finfo(np.float32).max]
        scores = ensemble(rows)
        assert np.isfinite(scores).all()
        assert (np.diff(scores[:5]) > 1).all()
        assert scores[5] >= scores[4]

    def test_it_is_the_weighted_sum_of_tail_probabilities_and_each_measure_is_one_at_its_median(
        self, ensemble, contaminated
    ):
        rows, _ = contaminated
        measures = ensemble.measures(rows)
        assert measures.shape == (800, len(MEASURES)) == (800, len(WEIGHTS))
        np.testing.assert_allclose(np.median(measures, axis=0), 1, rtol=1e-9)
        expected = sum(weight * part for weight, part in zip(WEIGHTS, ensemble.tails(measures).T, strict=True))
        np.testing.assert_allclose(ensemble(rows), expected, rtol=1e-12)
        # −ln of the share of training rows with as much, where a knot stands every 0.072 nats
        for measure, surprisal in zip(measures.T, ensemble.tails(measures).T, strict=True):
            share = (measure[None] >= measure[:, None]).mean(1)
            within = (share > 0.03) & (share < 0.9)
            np.testing.assert_allclose(surprisal[within], -np.log(share[within]), atol=0.12)

    def test_measures_are_those_of_the_parts_in_their_order(self, ensemble, contaminated):
        rows, asked = contaminated[0].astype(float), normal_rows(50, 3).astype(float)
        standard, normal = (getattr(ensemble.scalings, view) for view in ("standard", "normal"))
        raw = [
            nearest(asked, rows),
            nearest(normal(asked), normal(rows)),
            ensemble.mixture(standard(asked)),
            ensemble.denoising_ensemble(standard(asked)),
            ecod_score(normal(asked), skewed_up(standard(rows))),
        ]
        assert MEASURES == ("nearest, as encoded", "nearest, normal scores", "mixture", "denoising ensemble", "ecod")
        expected = (np.column_stack(raw) - ensemble.ends[0]) / ensemble.ends[1]
        np.testing.assert_allclose(ensemble.measures(asked), expected, rtol=1e-9, atol=1e-12)


class TestSameness:
    def test_the_same_seed_gives_the_same_bytes_whatever_the_global_ones(self, ensemble, contaminated):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        again = fit_ensemble(contaminated[0], BENT, 0)
        assert {name: value.tobytes() for name, value in again.arrays().items()} == {
            name: value.tobytes() for name, value in ensemble.arrays().items()
        }

    def test_another_seed_gives_other_members_and_much_the_same_order(self, ensemble, contaminated):
        other, rows = fit_ensemble(contaminated[0], BENT, 1), normal_rows(300, 3)
        assert (
            other.arrays()["denoising_ensemble.weight_0"].tobytes()
            != ensemble.arrays()["denoising_ensemble.weight_0"].tobytes()
        )
        assert scipy.stats.spearmanr(other(rows), ensemble(rows)).statistic > 0.8

    def test_a_round_trip_through_arrays_gives_the_same_bytes(self, ensemble):
        back, rows = Ensemble.from_arrays(copied(ensemble.arrays())), normal_rows(200, 3)
        assert back(rows).tobytes() == ensemble(rows).tobytes()
        assert {name: value.tobytes() for name, value in back.arrays().items()} == {
            name: value.tobytes() for name, value in ensemble.arrays().items()
        }

    def test_the_same_rows_give_the_same_bytes_in_either_width_of_number(self, ensemble):
        rows = normal_rows(200, 3)
        assert ensemble(rows).tobytes() == ensemble(rows.copy()).tobytes() == ensemble(rows.astype(float)).tobytes()

    @pytest.mark.usefixtures("quick")
    def test_neither_does_where_few_values_recur_and_most_rows_have_twins(self):
        rows = np.random.default_rng(0).integers(0, 3, (800, 5)).astype(np.float32) / 3
        found = fit_ensemble(rows, np.zeros(5, dtype=bool), 0)
        whole = found(rows)
        alone = np.concatenate([found(row[None]) for row in rows])
        np.testing.assert_allclose(alone, whole, rtol=1e-5)
        order = np.random.default_rng(1).permutation(len(rows))
        np.testing.assert_allclose(found(rows[order]), whole[order], rtol=1e-5)

    @pytest.mark.usefixtures("quick")
    def test_the_strangest_measure_is_told_with_its_figure(self):
        rows = normal_rows(400, 0)
        found = fit_ensemble(rows, BENT, 0)
        odd = np.concatenate([rows[:50], rows[:50] + 30])
        measures = found.measures(odd)
        weighed = found.tails(measures) * WEIGHTS
        message = found.governing(odd)
        for said, of_row, nats in zip(message, measures, weighed, strict=True):
            index = int(nats.argmax())
            usual = found.tails.quantiles[index, -1]
            assert said[0].startswith(f"{of_row[index]:.1f} times the usual {WHAT[index]}")
            assert said[1] == f"{usual:.1f} times at most in 99 %"
        assert len({said.split("usual ")[1] for said, _ in message}) >= 3

    def test_neither_the_order_of_rows_nor_their_number_makes_a_difference(self, ensemble, contaminated, monkeypatch):
        rows = np.concatenate([normal_rows(300, 3), contaminated[0][:100]])
        expected, order = ensemble(rows), np.random.default_rng(0).permutation(400)
        close = {"rtol": 1e-5, "atol": 1e-8}
        np.testing.assert_allclose(ensemble(rows[order]), expected[order], **close)
        for index in (0, 123, 399):
            np.testing.assert_allclose(ensemble(rows[[index]]), expected[[index]], **close)
        monkeypatch.setattr(neighbors, "_BLOCK_DISTANCES", 800 * 7)
        monkeypatch.setattr(networks, "_AT_ONCE", 9)
        np.testing.assert_allclose(ensemble(rows), expected, **close)
        assert ensemble(rows[:0]).shape == (0,)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Members that hardly learn, for tests of what stands around them."""
    monkeypatch.setattr(networks, "_STEPS", networks._LOOK_EVERY)


@pytest.mark.usefixtures("quick")
class TestSizes:
    @pytest.mark.parametrize("n", [0, 1, 15])
    def test_too_few_rows_are_an_error_with_their_number_and_the_least(self, n):
        message = (
            f"evidence ensemble needs 16 training rows or more, and there are {n}; land more, or name other evidence"
        )
        with pytest.raises(TrainingError, match=message):
            fit_ensemble(normal_rows(n, 0), BENT, 0)

    @pytest.mark.parametrize("kind", ["rows", "two values", "wide", "copies"])
    def test_the_fewest_rows_that_are_accepted_give_scores_that_are_finite(self, kind):
        rng = np.random.default_rng(0)
        rows = {
            "rows": normal_rows(16, 0),
            "two values": (np.arange(16) % 2).astype(np.float32)[:, None],
            "wide": rng.normal(size=(16, 200)).astype(np.float32),
            "copies": np.repeat(normal_rows(2, 0), 8, axis=0),
        }[kind]
        found = fit_ensemble(rows, np.zeros(rows.shape[1], dtype=bool), 0)
        assert np.isfinite(found(np.concatenate([rows, rows + 1000]))).all()
        assert found(rows + 1000).min() > found(rows).max()

    def test_columns_that_are_constant_in_training_count_by_how_many_rows_agreed_once_they_vary(self):
        rows = normal_rows(100, 0)
        constants = np.full((100, 3), [0.0, 7.5, -1.0], dtype=np.float32)
        wider = np.concatenate(
            [constants[:, :1], rows[:, :4], constants[:, 1:2], rows[:, 4:], constants[:, 2:]], axis=1
        )
        asinh_mask = np.array([True, *BENT[:4], True, *BENT[4:], False])
        found = fit_ensemble(wider, asinh_mask, 0)
        assert found.varying.tolist() == [1, 2, 3, 4, 6, 7]
        expected = fit_ensemble(rows, BENT, 0)(rows)
        assert found(wider).tobytes() == expected.tobytes()
        wider[:50, 5], wider[50:, [0, 8]] = 99, 99
        departed = np.repeat([1, 2], 50)
        np.testing.assert_allclose(found(wider), expected + departed * np.log(102), rtol=1e-14)

    @pytest.mark.parametrize(
        ("n", "width", "references"),
        [(100, 3, 100), (4200, 3, 4096), (1100, 128, 1024), (600, 280, 512)],
    )
    def test_references_are_bounded_and_fewer_of_wide_tables(self, n, width, references):
        rows = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
        found = fit_ensemble(rows, np.zeros(width, dtype=bool), 0)
        assert found.references.shape == (references, width)
        held = {row.tobytes() for row in rows}
        assert {row.tobytes() for row in np.ascontiguousarray(found.references)} <= held

    def test_no_more_rows_are_looked_at_than_a_bound_and_these_are_drawn_from_all(self, monkeypatch):
        monkeypatch.setattr(ensembles, "FITTED_ROWS", 300)
        rows = np.arange(3000, dtype=np.float32)[:, None] * [[1, -1]]
        found = fit_ensemble(rows.astype(np.float32), BENT[:2], 0)
        assert int(found.scalings.rows) == 300
        assert len(found.references) == 300
        # of evenly spaced numbers drawn at random every tenth holds some
        assert (np.histogram(found.references[:, 0], 10, (0, 3000))[0] > 10).all()

    def test_what_is_kept_does_not_grow_with_the_training_rows(self, monkeypatch):
        monkeypatch.setattr(ensembles, "FITTED_ROWS", 4200)
        sizes = []
        for n in (4300, 9000):
            rows = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
            arrays = fit_ensemble(rows, BENT[:2], 0).arrays()
            sizes.append({name: value.shape for name, value in arrays.items()})
        assert sizes[0] == sizes[1]


class TestVeryWideRows:
    @pytest.fixture(scope="class")
    def rows(self):
        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(1500, 6)) @ np.random.default_rng(9).normal(size=(6, 700))
        return (np.tanh(hidden) + 0.1 * rng.normal(size=hidden.shape)).astype(np.float32)

    @pytest.fixture(scope="class")
    def found(self, rows):
        return fit_ensemble(rows[:1000], np.zeros(700, dtype=bool), 0)

    def test_covariances_are_those_along_few_directions(self, found):
        assert found.directions.shape == (700, ensembles._MOST_DIRECTIONS)
        assert (
            found.mixture.whitening.shape[-1]
            == found.denoising_ensemble.whitening.shape[-1]
            == ensembles._MOST_DIRECTIONS
        )

    def test_directions_keep_distances_about_as_they_are(self, found, rows):
        standard = found.scalings.standard(rows.astype(np.float64))
        along = ensembles._along(found.directions, standard)
        scale = np.sqrt(ensembles._MOST_DIRECTIONS / 700)
        ratios = np.linalg.norm(along[:50] - along[50:100], axis=1) / np.linalg.norm(
            standard[:50] - standard[50:100], axis=1
        )
        assert ratios == pytest.approx(np.full(50, scale), rel=0.2)

    def test_rows_whose_columns_no_longer_belong_together_rank_above_others(self, found, rows):
        fresh = rows[1000:]
        mixed = np.stack([np.random.default_rng(k).permutation(column) for k, column in enumerate(fresh.T)], 1)
        scores = found(np.concatenate([fresh, mixed]))
        assert roc_auc_score(np.repeat([0, 1], 500), scores) > 0.95

    def test_it_is_read_back_with_its_directions(self, found, rows):
        again = Ensemble.from_arrays(copied(found.arrays()))
        assert again(rows[1000:]).tobytes() == found(rows[1000:]).tobytes()
