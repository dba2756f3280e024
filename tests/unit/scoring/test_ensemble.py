"""The ensemble: its parts, planted anomalies of several kinds, determinism and sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.scoring import blocks
from ae_pipeline.scoring import denoising_ensemble as networks
from ae_pipeline.scoring import ensemble as ensembles
from ae_pipeline.scoring.ecod import ecod_score, skewed_up
from ae_pipeline.scoring.ensemble import MEASURES, Ensemble, fit_ensemble
from ae_pipeline.scoring.forest import fit_forest
from tests.support.arrays import Array, apply, copied, nearest

pytestmark = pytest.mark.slow

DESCRIPTIONS = (
    "distance from the nearest training row",
    "distance from the nearest training row by ranks",
    "rarity among training rows",
    "residual of the denoising autoencoders",
    "sum of the distances of its values from the median",
    "distance from the nearest typical training row by ranks",
    "ease of isolation by random splits",
)


ASINH_MASK = np.array([False, False, False, False, True, False])


def normal_rows(n: int, seed: int) -> Array:
    """Return rows with two clusters in two columns, two dependent columns, a skewed and a uniform one."""
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


def cluster_rows(n: int, seed: int) -> Array:
    """Return a small cluster of anomalies, outside the two clusters of normal rows."""
    rows = normal_rows(n, seed)
    rows[:, :2] = 3 + np.random.default_rng(seed).normal(0, 0.1, (n, 2))
    return rows


def plant_extreme_value(rows: Array, rng: np.random.Generator) -> None:
    rows[:, 5] = rng.choice([-2.0, 3.0], len(rows))


def plant_broken_dependency(rows: Array, rng: np.random.Generator) -> None:
    rows[:, 3] = 0.8 * rows[:, 2] + rng.choice([-1.0, 1.0], len(rows))


def plant_between_clusters(rows: Array, rng: np.random.Generator) -> None:
    rows[:, :2] = rng.normal(0, 0.3, (len(rows), 2))


def plant_outside_clusters(rows: Array, rng: np.random.Generator) -> None:
    rows[:, 1] = rows[:, 0] + rng.normal(0, 0.5, len(rows))


PLANTED: dict[str, Callable[[Array, np.random.Generator], None]] = {
    "an extreme value": plant_extreme_value,
    "a broken dependency": plant_broken_dependency,
    "between two clusters": plant_between_clusters,
    "outside both clusters": plant_outside_clusters,
}


@pytest.fixture(scope="module")
def contaminated() -> tuple[Array, Array]:
    """Return training rows and which of them are anomalies, all in one small cluster."""
    rows = np.concatenate([normal_rows(760, 0), cluster_rows(40, 1)])
    order = np.random.default_rng(2).permutation(800)
    return rows[order], order >= 760


@pytest.fixture(scope="module")
def ensemble(contaminated: tuple[Array, Array]) -> Ensemble:
    return fit_ensemble(contaminated[0], ASINH_MASK, 0)


class TestRanking:
    @pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
    def test_planted_anomalies_rank_above_normal_rows(
        self, ensemble: Ensemble, plant: Callable[[Array, np.random.Generator], None]
    ) -> None:
        normal, planted = normal_rows(500, 3), normal_rows(200, 4)
        plant(planted, np.random.default_rng(5))
        scores = apply(ensemble, np.concatenate([normal, planted]))
        assert roc_auc_score(np.arange(700) >= 500, scores) > 0.9

    def test_cluster_of_anomalies_in_the_training_rows_ranks_high(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array]
    ) -> None:
        rows, is_anomaly = contaminated
        assert roc_auc_score(is_anomaly, apply(ensemble, rows)) > 0.9
        again = np.concatenate([normal_rows(500, 3), cluster_rows(100, 6)])
        assert roc_auc_score(np.arange(600) >= 500, apply(ensemble, again)) > 0.9

    def test_new_normal_rows_score_like_training_rows(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array]
    ) -> None:
        rows, is_anomaly = contaminated
        known, new = apply(ensemble, rows[~is_anomaly]), apply(ensemble, normal_rows(760, 7))
        assert roc_auc_score(np.repeat([0, 1], 760), np.r_[known, new]) == pytest.approx(0.5, abs=0.06)

    def test_score_increases_with_the_distance_of_a_value(self, ensemble: Ensemble) -> None:
        rows = np.repeat(normal_rows(1, 3), 6, axis=0)
        rows[1:, 5] = [2.0, 4.0, 30.0, 1e6, np.finfo(np.float32).max]
        scores = apply(ensemble, rows)
        assert np.isfinite(scores).all()
        assert (np.diff(scores[:5]) > 1).all()
        assert scores[5] >= scores[4]

    def test_score_combines_the_surprisals_of_scaled_measures(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array]
    ) -> None:
        rows, _ = contaminated
        measures = apply(ensemble.measures, rows)
        assert measures.shape == (800, len(MEASURES))
        np.testing.assert_allclose(np.median(measures, axis=0), 1, rtol=1e-9)
        np.testing.assert_allclose(
            apply(ensemble, rows), apply(lambda each: ensemble.combination(ensemble.tails(each)), measures), rtol=1e-12
        )
        # −ln of the share of training rows that score as high; the quantiles are 0.072 nats apart.
        for measure, surprisal in zip(measures.T, apply(ensemble.tails, measures).T, strict=True):
            share = (measure[None] >= measure[:, None]).mean(1)
            within = (share > 0.03) & (share < 0.9)
            np.testing.assert_allclose(surprisal[within], -np.log(share[within]), atol=0.12)

    def test_measures_are_those_of_the_parts_in_order(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array]
    ) -> None:
        rows, other = contaminated[0].astype(float), normal_rows(50, 3).astype(float)
        standard, normal = (ensemble.scalings.standard, ensemble.scalings.normal)
        core = ensemble.references[: int(ensemble.core_count)].astype(float)
        sample = torch.randperm(800, generator=torch.Generator().manual_seed(0)).numpy()
        longer = torch.from_numpy(skewed_up(apply(standard, rows)))
        raw = [
            nearest(other, rows),
            nearest(apply(normal, other), apply(normal, rows)),
            apply(ensemble.mixture, apply(standard, other)),
            apply(ensemble.denoising_ensemble, apply(standard, other)),
            apply(lambda ranks: ecod_score(ranks, longer), apply(ensemble.scalings.ranks, other)),
            nearest(apply(normal, other), apply(normal, core)),
            apply(fit_forest(rows[sample], 0), other),
        ]
        names = ["nearest, as encoded", "nearest, normal scores", "mixture", "denoising ensemble", "ecod"]
        assert list(MEASURES) == [*names, "nearest in the core", "isolation forest"]
        expected = (np.column_stack(raw) - ensemble.ends[0]) / ensemble.ends[1]
        np.testing.assert_allclose(apply(ensemble.measures, other), expected, rtol=1e-9, atol=1e-12)

    def test_the_core_is_four_fifths_and_leaves_the_cluster_out(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array]
    ) -> None:
        rows, is_anomaly = contaminated
        core = ensemble.references[: int(ensemble.core_count)]
        assert len(core) == 640
        assert {row.tobytes() for row in ensemble.references} == {row.tobytes() for row in rows}
        assert not {row.tobytes() for row in core} & {row.tobytes() for row in rows[is_anomaly]}


class TestSameness:
    def test_result_depends_only_on_the_seed(self, ensemble: Ensemble, contaminated: tuple[Array, Array]) -> None:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        again = fit_ensemble(contaminated[0], ASINH_MASK, 0)
        assert {name: value.tobytes() for name, value in again.arrays().items()} == {
            name: value.tobytes() for name, value in ensemble.arrays().items()
        }

    def test_another_seed_gives_other_weights_and_similar_ranks(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array]
    ) -> None:
        other, rows = fit_ensemble(contaminated[0], ASINH_MASK, 1), normal_rows(300, 3)
        assert (
            other.arrays()["denoising_ensemble.weight_0"].tobytes()
            != ensemble.arrays()["denoising_ensemble.weight_0"].tobytes()
        )
        assert scipy.stats.spearmanr(apply(other, rows), apply(ensemble, rows)).statistic > 0.8

    def test_round_trip_through_arrays_gives_the_same_bytes(self, ensemble: Ensemble) -> None:
        back, rows = Ensemble.from_arrays(copied(ensemble.arrays())), normal_rows(200, 3)
        assert apply(back, rows).tobytes() == apply(ensemble, rows).tobytes()
        assert {name: value.tobytes() for name, value in back.arrays().items()} == {
            name: value.tobytes() for name, value in ensemble.arrays().items()
        }

    def test_scores_do_not_depend_on_the_width_of_floats(self, ensemble: Ensemble) -> None:
        rows = normal_rows(200, 3)
        assert (
            apply(ensemble, rows).tobytes()
            == apply(ensemble, rows.copy()).tobytes()
            == apply(ensemble, rows.astype(float)).tobytes()
        )

    @pytest.mark.usefixtures("quick")
    def test_duplicate_rows_score_the_same_in_any_batch(self) -> None:
        rows: Array = np.random.default_rng(0).integers(0, 3, (800, 5)).astype(np.float32) / 3
        fitted = fit_ensemble(rows, np.zeros(5, dtype=bool), 0)
        whole = apply(fitted, rows)
        single = np.concatenate([apply(fitted, row[None]) for row in rows])
        np.testing.assert_allclose(single, whole, rtol=1e-5)
        order = np.random.default_rng(1).permutation(len(rows))
        np.testing.assert_allclose(apply(fitted, rows[order]), whole[order], rtol=1e-5)

    @pytest.mark.usefixtures("quick")
    def test_highest_measure_beyond_its_limit_is_described_with_its_value(self) -> None:
        rows = normal_rows(400, 0)
        fitted = fit_ensemble(rows, ASINH_MASK, 0)
        outliers = np.concatenate([rows[:50], rows[:50] + 30])
        measures, usual = apply(fitted.measures, outliers), fitted.tails.quantiles[:, -1]
        weighted = np.where(measures > usual, apply(fitted.tails, measures) * fitted.combination.weights[0], -1)
        totals, messages = apply(fitted, outliers), fitted.governing(torch.from_numpy(outliers), usual_total=12.34)
        of_measures = [message for message, nats in zip(messages, weighted, strict=True) if nats.max() > 0]
        assert 50 <= len(of_measures) < 100
        for message, values, nats, total in zip(messages, measures, weighted, totals, strict=True):
            index = int(nats.argmax())
            if nats[index] > 0:
                assert message[0].startswith(f"{values[index]:,.1f} times the usual {DESCRIPTIONS[index]}")
                assert message[1] == f"{usual[index]:.1f} times at most in 99 %"
            else:
                assert message[0] == f"{total:.1f} nats over all measures of the row as a whole"
                assert message[1] == "12.3 nats at most in 99 %"
        assert len({text.split("usual ")[1] for text, _ in of_measures}) >= 2

    @pytest.mark.usefixtures("quick")
    def test_a_measure_without_weight_is_never_named(self) -> None:
        rows = normal_rows(400, 0)
        fitted = fit_ensemble(rows, ASINH_MASK, 0)
        outliers = rows[:50] + 30
        named = fitted.governing(torch.from_numpy(outliers), usual_total=1.0)[0][0]
        weights = np.where([text in named for text in DESCRIPTIONS], 0.0, fitted.combination.weights)
        assert (weights[0] == 0).any()
        unweighted = replace(fitted, combination=replace(fitted.combination, weights=weights))
        texts = [text for text, _ in unweighted.governing(torch.from_numpy(outliers), usual_total=1.0)]
        gone = [text for text, weight in zip(DESCRIPTIONS, weights[0], strict=True) if weight == 0]
        assert not any(text.endswith(f"usual {each}") for text in texts for each in gone)
        silent = replace(fitted, combination=replace(fitted.combination, weights=weights * 0))
        texts = [text for text, _ in silent.governing(torch.from_numpy(outliers), usual_total=1.0)]
        assert all("over all measures" in text for text in texts)

    def test_scores_do_not_depend_on_order_or_batches(
        self, ensemble: Ensemble, contaminated: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = np.concatenate([normal_rows(300, 3), contaminated[0][:100]])
        expected, order = apply(ensemble, rows), np.random.default_rng(0).permutation(400)
        close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-8}
        np.testing.assert_allclose(apply(ensemble, rows[order]), expected[order], **close)
        for index in (0, 123, 399):
            np.testing.assert_allclose(apply(ensemble, rows[[index]]), expected[[index]], **close)
        monkeypatch.setattr(blocks, "_CPU_CELLS", 5000)
        np.testing.assert_allclose(apply(ensemble, rows), expected, **close)
        assert apply(ensemble, rows[:0]).shape == (0,)


def test_scores_on_a_device_are_repeatable_and_those_of_the_cpu(
    ensemble: Ensemble, contaminated: tuple[Array, Array], device: str
) -> None:
    rows = np.concatenate([normal_rows(300, 3), contaminated[0][:100]])
    scores = apply(ensemble, rows, device)
    assert apply(ensemble, rows, device).tobytes() == scores.tobytes()
    np.testing.assert_allclose(scores, apply(ensemble, rows), rtol=1e-9)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the training of the denoising autoencoders, for tests of other parts."""
    monkeypatch.setattr(networks, "_STEPS", networks._VALIDATION_STEPS)


@pytest.mark.usefixtures("quick")
class TestSizes:
    @pytest.mark.parametrize("n", [0, 1, 15])
    def test_too_few_rows_are_an_error_with_the_minimum(self, n: int) -> None:
        message = (
            f"evidence ensemble needs 16 training rows or more, but there are {n}; land more, or choose other evidence"
        )
        with pytest.raises(TrainingError, match=message):
            fit_ensemble(normal_rows(n, 0), ASINH_MASK, 0)

    def test_equal_rows_are_an_error(self) -> None:
        rows = np.repeat(normal_rows(1, 0), 40, axis=0)
        with pytest.raises(TrainingError, match="all 40 training rows are equal; land other rows, or choose other"):
            fit_ensemble(rows, ASINH_MASK, 0)

    @pytest.mark.parametrize("kind", ["rows", "two values", "wide", "copies"])
    def test_minimum_number_of_rows_gives_finite_scores(self, kind: str) -> None:
        rng = np.random.default_rng(0)
        rows = {
            "rows": normal_rows(16, 0),
            "two values": (np.arange(16) % 2).astype(np.float32)[:, None],
            "wide": rng.normal(size=(16, 200)).astype(np.float32),
            "copies": np.repeat(normal_rows(2, 0), 8, axis=0),
        }[kind]
        fitted = fit_ensemble(rows, np.zeros(rows.shape[1], dtype=bool), 0)
        assert np.isfinite(apply(fitted, np.concatenate([rows, rows + 1000]))).all()
        assert apply(fitted, rows + 1000).min() > apply(fitted, rows).max()

    def test_change_of_a_constant_column_adds_log_of_rows(self) -> None:
        rows = normal_rows(100, 0)
        constants = np.full((100, 3), [0.0, 7.5, -1.0], dtype=np.float32)
        wider = np.concatenate(
            [constants[:, :1], rows[:, :4], constants[:, 1:2], rows[:, 4:], constants[:, 2:]], axis=1
        )
        asinh_mask = np.array([True, *ASINH_MASK[:4], True, *ASINH_MASK[4:], False])
        fitted = fit_ensemble(wider, asinh_mask, 0)
        assert fitted.varying.tolist() == [1, 2, 3, 4, 6, 7]
        expected = apply(fit_ensemble(rows, ASINH_MASK, 0), rows)
        assert apply(fitted, wider).tobytes() == expected.tobytes()
        wider[:50, 5], wider[50:, [0, 8]] = 99, 99
        changed = np.repeat([1, 2], 50)
        np.testing.assert_allclose(apply(fitted, wider), expected + changed * np.log(102) * fitted.nat, rtol=1e-14)

    @pytest.mark.parametrize(
        ("n", "width", "references"),
        [(100, 3, 100), (4200, 3, 4096), (1100, 128, 1024), (600, 280, 512)],
    )
    def test_references_are_bounded_and_fewer_for_wide_tables(self, n: int, width: int, references: int) -> None:
        rows = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
        fitted = fit_ensemble(rows, np.zeros(width, dtype=bool), 0)
        assert fitted.references.shape == (references, width)
        training = {row.tobytes() for row in rows}
        assert {row.tobytes() for row in np.ascontiguousarray(fitted.references)} <= training

    def test_fit_uses_a_bounded_random_sample_of_the_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ensembles, "FITTED_ROWS", 300)
        rows = np.arange(3000, dtype=np.float32)[:, None] * [[1, -1]]
        fitted = fit_ensemble(rows.astype(np.float32), ASINH_MASK[:2], 0)
        assert int(fitted.scalings.rows) == 300
        assert len(fitted.references) == 300
        # A random sample of evenly spaced numbers has some in every tenth of the range.
        assert (np.histogram(fitted.references[:, 0], 10, (0, 3000))[0] > 10).all()

    def test_size_does_not_grow_with_the_training_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ensembles, "FITTED_ROWS", 4200)
        sizes = []
        for n in (4300, 9000):
            rows = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
            arrays = fit_ensemble(rows, ASINH_MASK[:2], 0).arrays()
            sizes.append({name: value.shape for name, value in arrays.items()})
        assert sizes[0] == sizes[1]


class TestVeryWideRows:
    @pytest.fixture(scope="class")
    def rows(self) -> Array:
        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(1500, 6)) @ np.random.default_rng(9).normal(size=(6, 700))
        return (np.tanh(hidden) + 0.1 * rng.normal(size=hidden.shape)).astype(np.float32)

    @pytest.fixture(scope="class")
    def wide_ensemble(self, rows: Array) -> Ensemble:
        return fit_ensemble(rows[:1000], np.zeros(700, dtype=bool), 0)

    def test_covariances_use_the_random_projection(self, wide_ensemble: Ensemble) -> None:
        assert wide_ensemble.directions is not None
        assert wide_ensemble.directions.shape == (700, ensembles._MAX_DIRECTIONS)
        assert (
            wide_ensemble.mixture.whitening.shape[-1]
            == wide_ensemble.denoising_ensemble.whitening.shape[-1]
            == ensembles._MAX_DIRECTIONS
        )

    def test_projection_approximately_preserves_distances(self, wide_ensemble: Ensemble, rows: Array) -> None:
        standard = apply(wide_ensemble.scalings.standard, rows.astype(np.float64))
        assert wide_ensemble.directions is not None
        projected = standard @ wide_ensemble.directions.astype(np.float64)
        scale = np.sqrt(ensembles._MAX_DIRECTIONS / 700)
        ratios = np.linalg.norm(projected[:50] - projected[50:100], axis=1) / np.linalg.norm(
            standard[:50] - standard[50:100], axis=1
        )
        assert ratios == pytest.approx(np.full(50, scale), rel=0.2)

    def test_rows_with_broken_dependencies_rank_above_others(self, wide_ensemble: Ensemble, rows: Array) -> None:
        fresh = rows[1000:]
        shuffled = np.stack([np.random.default_rng(k).permutation(column) for k, column in enumerate(fresh.T)], 1)
        scores = apply(wide_ensemble, np.concatenate([fresh, shuffled]))
        assert roc_auc_score(np.repeat([0, 1], 500), scores) > 0.95

    def test_wide_ensemble_survives_a_round_trip_through_arrays(self, wide_ensemble: Ensemble, rows: Array) -> None:
        loaded = Ensemble.from_arrays(copied(wide_ensemble.arrays()))
        assert apply(loaded, rows[1000:]).tobytes() == apply(wide_ensemble, rows[1000:]).tobytes()
