"""Latent spaces beside each other: figures on spaces whose relation is known, and models that are turned."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from ae_pipeline.common.errors import BundleError, TrainingError
from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.alignment import Served, align
from ae_pipeline.latent_space.compatibility import (
    Compatibility,
    compare_spaces,
    explained_variance,
    fit_affine,
    fit_alignment,
    fit_orthogonal,
    relative_condition,
)
from ae_pipeline.lifecycle.promote import decide
from ae_pipeline.lifecycle.train import Trained, train_challenger
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from tests.support.sensors import DATASET, NO_ENSEMBLE, Fitted, sensor_config

N = 2000


@pytest.fixture(scope="module")
def old() -> np.ndarray:
    """Latents of three axes, of unlike spread and not around zero."""
    return np.random.default_rng(0).normal(size=(N, 3)) * [1.0, 5.0, 0.2] + [0.0, 10.0, -3.0]


def compare(old: np.ndarray, new: np.ndarray) -> Compatibility:
    scores = np.arange(float(len(old)))
    return compare_spaces(old, new, scores, scores)


def transformed(latents: np.ndarray) -> np.ndarray:
    """A rotation, a reflection and a shift of three axes."""
    matrix = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    return latents @ matrix + [7.0, -2.0, 0.5]


SHEAR = np.array([[2.0, 0.0, 0.0], [0.5, 0.1, 0.0], [-1.0, 0.3, 40.0]])


class TestExplainedVariance:
    def test_the_same_space_is_explained_as_it_is(self, old):
        found = compare(old, old)
        assert found.rows == N
        assert found.as_is == found.neighbors == 1
        assert found.orthogonal == pytest.approx(1, abs=1e-9)
        assert found.affine == pytest.approx(1, abs=1e-9)
        assert found.condition == pytest.approx(1, abs=1e-4)
        assert found.axes == pytest.approx((1, 1, 1))
        assert found.score_shift == 0

    def test_a_turned_space_is_explained_by_an_orthogonal_map(self, old):
        found = compare(old, transformed(old))
        assert found.as_is < 0.5
        assert found.orthogonal == pytest.approx(1, abs=1e-9)
        assert found.affine == pytest.approx(1, abs=1e-9)

    def test_a_sheared_space_is_explained_by_an_affine_map_alone(self, old):
        found = compare(old, old @ SHEAR + 3)
        assert found.orthogonal < 0.9
        assert found.affine == pytest.approx(1, abs=1e-6)

    def test_a_space_that_knows_nothing_of_it_explains_nothing_on_rows_between(self, old):
        strange = np.random.default_rng(5).normal(size=old.shape)
        found = compare(old, strange)
        assert found.affine == pytest.approx(0, abs=0.02)
        assert found.orthogonal < 0.05
        assert found.neighbors == pytest.approx(10 / N, abs=0.01)
        assert max(map(abs, found.axes)) < 0.1

    def test_a_map_that_learns_its_rows_by_heart_is_held_against_others(self):
        rng = np.random.default_rng(0)
        old, new = rng.normal(size=(60, 4)), rng.normal(size=(60, 25))
        assert explained_variance(old, fit_affine(new, old)(new)) > 0.3
        assert compare(old, new).affine < 0

    def test_half_of_the_variance_lost_is_half_explained(self):
        old = np.random.default_rng(0).normal(size=(N, 2))
        new = np.column_stack([old[:, 0], np.random.default_rng(1).normal(size=N)])
        found = compare(old, new)
        assert found.affine == pytest.approx(0.5, abs=0.03)
        assert found.axes == pytest.approx((1.0, 0.0), abs=0.05)

    def test_spaces_of_unlike_width_have_no_turn_and_no_axes_in_common(self, old):
        found = compare(old, np.column_stack([old, old[:, :1] ** 2]))
        assert (found.as_is, found.orthogonal, found.axes) == (None, None, None)
        assert found.affine == pytest.approx(1, abs=1e-3)

    def test_a_space_without_variance_is_explained_by_itself_alone(self):
        assert explained_variance(np.ones((5, 2)), np.ones((5, 2))) == 1
        assert explained_variance(np.ones((5, 2)), np.zeros((5, 2))) == 0


class TestMaps:
    def test_the_affine_map_is_found(self, old):
        found = fit_affine(old, old @ SHEAR + 3)
        np.testing.assert_allclose(found(old), old @ SHEAR + 3, atol=1e-3)
        np.testing.assert_allclose(found.matrix, SHEAR, atol=1e-3)

    def test_the_orthogonal_map_is_one(self, old):
        found = fit_orthogonal(old, old @ SHEAR + 3)
        np.testing.assert_allclose(found.matrix @ found.matrix.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(found(old).mean(0), (old @ SHEAR + 3).mean(0), atol=1e-9)

    def test_mere_scale_is_no_condition_and_a_lost_axis_is(self, old):
        scaled = old * [1.0, 1e-4, 1e3]
        assert relative_condition(fit_affine(scaled, old), scaled, old) == pytest.approx(1, abs=1e-2)
        lost = old.copy()
        lost[:, 2] = old[:, 0]
        assert relative_condition(fit_affine(lost, old), lost, old) > 100


class TestAlignmentMap:
    def test_where_the_spaces_hold_the_same_it_is_the_affine_map(self, old):
        wanted = old @ SHEAR + 3
        np.testing.assert_allclose(fit_alignment(old, wanted)(old), wanted, atol=1e-6)

    def test_it_nears_the_affine_map_where_a_part_is_noise(self, old):
        new = transformed(old) + np.random.default_rng(3).normal(size=old.shape) * 0.02
        one, other = fit_affine(new, old)(new), fit_alignment(new, old)(new)
        np.testing.assert_allclose(other, one, atol=0.05)

    def test_it_keeps_the_spread_of_a_direction_that_is_lost(self, old):
        new = old.copy()
        new[:, 2] = np.random.default_rng(3).normal(size=N)
        assert relative_condition(fit_affine(new, old), new, old) > 30
        found = fit_alignment(new, old)
        assert relative_condition(found, new, old) == pytest.approx(1, abs=0.1)
        np.testing.assert_allclose(np.cov(found(new).T), np.cov(old.T), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found(new)[:, :2], old[:, :2], atol=0.2)

    def test_an_axis_that_never_varies_can_be_inverted_too(self, old):
        new = old * [1.0, 1.0, 0.0]
        found = fit_alignment(new, old)
        assert np.isfinite(found.matrix).all()
        assert np.linalg.matrix_rank(found.matrix) == 3


class TestNeighbours:
    def test_it_is_the_mean_share_of_the_ten_nearest_rows(self):
        rng = np.random.default_rng(0)
        old = rng.normal(size=(200, 3))
        new = old + 0.3 * rng.normal(size=old.shape)

        def nearest(latents: np.ndarray) -> np.ndarray:
            far = np.linalg.norm((latents[:, None] - latents) / latents.std(0), axis=2)
            np.fill_diagonal(far, np.inf)
            return np.argsort(far, axis=1)[:, :10]

        shares = [len(set(one) & set(other)) / 10 for one, other in zip(nearest(old), nearest(new), strict=True)]
        assert 0.2 < np.mean(shares) < 0.9
        assert compare(old, new).neighbors == pytest.approx(np.mean(shares))

    def test_of_many_rows_some_are_compared(self, monkeypatch, old):
        monkeypatch.setattr("ae_pipeline.latent_space.compatibility._MOST_ROWS", 150)
        assert compare(old, transformed(old) * 1.0).neighbors > 0.1
        assert compare(old, old).neighbors == 1


def test_the_shift_of_scores_is_the_gap_between_their_shares(old):
    scores = np.arange(float(N))
    assert compare_spaces(old, old, scores, scores + N / 4).score_shift == pytest.approx(0.25)
    assert compare_spaces(old, old, scores, scores + N).score_shift == 1


def test_too_few_rows_are_refused(old):
    assert compare(old[:50], old[:50]).affine == pytest.approx(1, abs=1e-6)
    with pytest.raises(TrainingError, match="over 50 rows or more, and the reference window has 49; make validation"):
        compare(old[:49], old[:49])


def twice(version: int, bundle: ModelBundle) -> tuple[Served, Served]:
    """A model that serves, with axes of its own."""
    return Served(version, bundle), Served(version, bundle)


class TestAlign:
    @pytest.fixture(scope="class")
    def rows(self, fitted: Fitted) -> pl.DataFrame:
        return fitted.window.rows("validation", fitted.paths)

    def test_the_new_model_speaks_in_the_old_axes_and_scores_as_it_did(self, fitted, other_bundle, rows):
        aligned, found = align(other_bundle, *twice(7, fitted.bundle), rows, LatentsConfig(min_explained_variance=0.01))
        new = fitted.window.rows("calibration", fitted.paths)
        old, previous, after = (model.encode(new).astype(float) for model in (fitted.bundle, other_bundle, aligned))
        assert found.is_aligned
        assert (found.previous, found.axes_of) == (7, 7)
        assert found.message.startswith(
            f"the best affine map explains {found.compatibility.affine:.1%} of the variance"
        )
        assert explained_variance(old, after) > explained_variance(old, previous)
        assert explained_variance(old, after) == pytest.approx(found.compatibility.affine, abs=0.1)
        assert aligned.reconstruct(new).tobytes() == other_bundle.reconstruct(new).tobytes()
        np.testing.assert_allclose(aligned.score(new).score, other_bundle.score(new).score, rtol=1e-6, atol=1e-6)

    def test_the_same_model_is_aligned_to_itself_and_stays(self, fitted, rows):
        aligned, found = align(fitted.bundle, *twice(1, fitted.bundle), rows, LatentsConfig())
        assert found.compatibility.affine == pytest.approx(1, abs=1e-6)
        assert found.compatibility.condition == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(aligned.encode(rows), fitted.bundle.encode(rows), atol=1e-3)

    def test_below_the_threshold_it_is_aligned_as_near_as_it_comes_and_not_called_compatible(
        self, fitted, other_bundle, rows
    ):
        share = align(other_bundle, *twice(7, fitted.bundle), rows, LatentsConfig())[1].compatibility.affine
        for least, is_compatible in ((share - 0.001, True), (share + 0.001, False)):
            transformed, found = align(
                other_bundle, *twice(7, fitted.bundle), rows, LatentsConfig(min_explained_variance=least)
            )
            assert (found.is_aligned, found.is_compatible) == (True, is_compatible)
            assert transformed.encode(rows).tobytes() != other_bundle.encode(rows).tobytes()
        assert found.message.endswith(f"; compatible from {share + 0.001:.0%} on")

    def test_a_map_that_is_conditioned_too_badly_is_not_applied(self, fitted, other_bundle, rows):
        new, old = (bundle.encode(rows).astype(float) for bundle in (other_bundle, fitted.bundle))
        condition = relative_condition(fit_alignment(new, old), new, old)
        for most, is_aligned in ((condition * 1.01, True), (max(condition * 0.99, 1.0), False)):
            strict = LatentsConfig(min_explained_variance=0.01, max_condition_number=most)
            kept, found = align(other_bundle, *twice(7, fitted.bundle), rows, strict)
            assert (found.is_aligned, found.is_compatible) == (is_aligned, is_aligned)
            assert (kept is other_bundle) is not is_aligned
        assert "and applied up to" in found.message

    def test_rows_that_lack_a_column_are_refused(self, fitted, other_bundle, rows):
        with pytest.raises(BundleError, match="power"):
            align(other_bundle, *twice(7, fitted.bundle), rows.drop("power"), LatentsConfig())


class TestRetraining:
    @pytest.fixture(scope="class")
    def served(self, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Tracker, Trained]:
        """A first training, which serves."""
        tracker = Tracker(tmp_path_factory.mktemp("served"))
        first = train_challenger(Dataset(fitted.config, fitted.paths), tracker, {}, {})
        decide(Dataset(fitted.config, fitted.paths), tracker, "a test")
        return fitted, tracker, first

    @staticmethod
    def retrain(served: tuple[Fitted, Tracker, Trained], **changes: Any) -> Trained:
        fitted, tracker, _ = served
        training = {**fitted.config.training.model_dump(), "seed": 1}
        config = sensor_config(training=training, **{"alerts": {"budget": 0.01, "evidence": NO_ENSEMBLE}, **changes})
        return train_challenger(Dataset(config, fitted.paths), tracker, {}, {})

    def test_the_first_model_is_compared_with_none(self, served):
        first = served[2]
        assert first.alignment is None
        assert first.compatible.passed
        assert first.compatible.message == "0 versions serve so far; these latents are the first"
        assert "alignment" not in first.bundle.facts

    def test_the_registered_model_is_the_aligned_one_and_its_figures_are_kept(self, served):
        fitted, tracker, first = served
        trained = self.retrain(served, latents={"least_explained": 0.01})
        kept = ModelBundle.load(trained.folder)
        rows = fitted.window.rows("calibration", fitted.paths)
        old, new = (bundle.encode(rows).astype(float) for bundle in (first.bundle, kept))
        figures = trained.alignment.compatibility.figures()
        assert explained_variance(old, new) == pytest.approx(figures["affine"], abs=0.1)
        assert kept.facts["alignment"] == trained.alignment.facts()
        assert kept.facts["alignment"].items() >= {"before": 1, "axes_of": 1, "is_compatible": True, **figures}.items()
        metrics = tracker.client.get_run(trained.version.run_id).data.metrics
        assert {name: metrics[f"latents.{name}"] for name in figures} == pytest.approx(figures)
        assert trained.compatible.passed
        version = tracker.version_number(DATASET, trained.version.version)
        assert version.tags["latents"] == trained.compatible.message == trained.alignment.message

    def test_axes_are_those_of_the_first_compatible_model_and_not_of_the_last(self, served):
        fitted, tracker, first = served
        rows = first.bundle.window.rows("validation", fitted.paths)
        second = self.retrain(served, latents={"least_explained": 0.01})
        tracker.set_alias(DATASET, CHAMPION, second.version.version)
        third = self.retrain(served, latents={"least_explained": 0.01}, model={"latent_dim": 3, "hidden": (12,)})
        tracker.set_alias(DATASET, CHAMPION, 1)
        assert (third.alignment.previous, third.alignment.axes_of) == (second.version.version, 1)
        wanted = fit_alignment(*(bundle.encode(rows).astype(float) for bundle in (third.bundle, served[2].bundle)))
        np.testing.assert_allclose(wanted.matrix, np.eye(3), atol=1e-3)

    def test_a_model_that_is_not_compatible_is_the_first_with_its_axes(self, served):
        tracker = served[1]
        second = self.retrain(served, latents={"least_explained": 0.9999})
        tracker.set_alias(DATASET, CHAMPION, second.version.version)
        third = self.retrain(served, latents={"least_explained": 0.01})
        tracker.set_alias(DATASET, CHAMPION, 1)
        assert third.alignment.axes_of == second.version.version

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"latents": {"least_explained": 0.9999}}, "; compatible from 100% on"),
            ({"model": {"latent_dim": 2, "hidden": (24,)}}, "2 latents cannot be aligned to the 3 of version 1"),
        ],
        ids=["threshold", "width"],
    )
    def test_latents_that_are_not_compatible_warn_and_keep_no_model_from_serving(self, served, changes, message):
        trained = self.retrain(served, gate={"most_worse": 9, "most_lost": 0.9}, **changes)
        assert not trained.compatible.passed
        assert message in trained.compatible.message
        assert trained.alignment.is_compatible is trained.bundle.facts["alignment"]["is_compatible"] is False
        assert served[1].version_number(DATASET, trained.version.version).tags["gate"] == "passed"

    def test_they_do_where_the_gate_asks_for_compatible_ones(self, served):
        trained = self.retrain(served, gate={"compatible": True}, latents={"least_explained": 0.9999})
        gate = served[1].version_number(DATASET, trained.version.version).tags["gate"]
        assert gate.startswith("rejected: latents_compatible: the best affine map explains")
        assert self.retrain(served, gate={"compatible": True}, latents={"least_explained": 0.01}).compatible.passed

    def test_a_model_that_cannot_be_read_any_more_is_named(self, served, monkeypatch):
        monkeypatch.setattr("ae_pipeline.detector.bundle.FORMAT", 99)
        trained = self.retrain(served)
        assert trained.alignment is None
        assert not trained.compatible.passed
        assert trained.compatible.message.startswith("latents of version 1 cannot be compared with: the bundle in ")
