"""Latent spaces: comparison of spaces with a known relation, and alignment of models."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ae_pipeline.common.errors import BundleError, TrainingError
from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.alignment import Served, align
from ae_pipeline.latent_space.compatibility import (
    Array,
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
from tests.support.model_store import make_model_store
from tests.support.sensors import DATASET, NO_ENSEMBLE, Fitted, sensor_config

pytestmark = pytest.mark.slow

N = 2000


@pytest.fixture(scope="module")
def old() -> Array:
    """Latents of three axes with different standard deviations and means that are not zero."""
    return np.random.default_rng(0).normal(size=(N, 3)) * [1.0, 5.0, 0.2] + [0.0, 10.0, -3.0]


def compare(old: Array, new: Array) -> Compatibility:
    scores = np.arange(float(len(old)))
    return compare_spaces(old, new, scores, scores)


def transformed(latents: Array) -> Array:
    """Return latents of three axes after a rotation, a reflection and a shift."""
    matrix = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    moved: Array = latents @ matrix + [7.0, -2.0, 0.5]
    return moved


SHEAR = np.array([[2.0, 0.0, 0.0], [0.5, 0.1, 0.0], [-1.0, 0.3, 40.0]])


class TestExplainedVariance:
    def test_a_space_explains_itself_without_a_map(self, old: Array) -> None:
        comparison = compare(old, old)
        assert comparison.rows == N
        assert comparison.as_is == comparison.neighbors == 1
        assert comparison.orthogonal == pytest.approx(1, abs=1e-9)
        assert comparison.affine == pytest.approx(1, abs=1e-9)
        assert comparison.condition == pytest.approx(1, abs=1e-4)
        assert comparison.axes == pytest.approx((1, 1, 1))
        assert comparison.score_shift == 0

    def test_an_orthogonal_map_explains_a_rotated_space(self, old: Array) -> None:
        comparison = compare(old, transformed(old))
        assert comparison.as_is is not None
        assert comparison.as_is < 0.5
        assert comparison.orthogonal == pytest.approx(1, abs=1e-9)
        assert comparison.affine == pytest.approx(1, abs=1e-9)

    def test_only_an_affine_map_explains_a_sheared_space(self, old: Array) -> None:
        comparison = compare(old, old @ SHEAR + 3)
        assert comparison.orthogonal is not None
        assert comparison.orthogonal < 0.9
        assert comparison.affine == pytest.approx(1, abs=1e-6)

    def test_an_independent_space_explains_nothing(self, old: Array) -> None:
        independent = np.random.default_rng(5).normal(size=old.shape)
        comparison = compare(old, independent)
        assert comparison.affine == pytest.approx(0, abs=0.02)
        assert comparison.orthogonal is not None
        assert comparison.axes is not None
        assert comparison.orthogonal < 0.05
        assert comparison.neighbors == pytest.approx(10 / N, abs=0.01)
        assert max(map(abs, comparison.axes)) < 0.1

    def test_an_overfitted_map_explains_nothing_on_other_rows(self) -> None:
        rng = np.random.default_rng(0)
        old, new = rng.normal(size=(60, 4)), rng.normal(size=(60, 25))
        assert explained_variance(old, fit_affine(new, old)(new)) > 0.3
        assert compare(old, new).affine < 0

    def test_a_space_that_lost_half_of_the_variance_explains_half(self) -> None:
        old = np.random.default_rng(0).normal(size=(N, 2))
        new = np.column_stack([old[:, 0], np.random.default_rng(1).normal(size=N)])
        comparison = compare(old, new)
        assert comparison.affine == pytest.approx(0.5, abs=0.03)
        assert comparison.axes == pytest.approx((1.0, 0.0), abs=0.05)

    def test_spaces_of_different_widths_only_have_an_affine_map(self, old: Array) -> None:
        comparison = compare(old, np.column_stack([old, old[:, :1] ** 2]))
        assert (comparison.as_is, comparison.orthogonal, comparison.axes) == (None, None, None)
        assert comparison.affine == pytest.approx(1, abs=1e-3)

    def test_only_the_same_constant_explains_a_constant_space(self) -> None:
        assert explained_variance(np.ones((5, 2)), np.ones((5, 2))) == 1
        assert explained_variance(np.ones((5, 2)), np.zeros((5, 2))) == 0


class TestMaps:
    def test_fit_affine_recovers_a_known_map(self, old: Array) -> None:
        affine = fit_affine(old, old @ SHEAR + 3)
        np.testing.assert_allclose(affine(old), old @ SHEAR + 3, atol=1e-3)
        np.testing.assert_allclose(affine.matrix, SHEAR, atol=1e-3)

    def test_fit_orthogonal_returns_an_orthogonal_map(self, old: Array) -> None:
        affine = fit_orthogonal(old, old @ SHEAR + 3)
        np.testing.assert_allclose(affine.matrix @ affine.matrix.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(affine(old).mean(0), (old @ SHEAR + 3).mean(0), atol=1e-9)

    def test_the_condition_number_ignores_scale_but_not_lost_axes(self, old: Array) -> None:
        scaled = old * [1.0, 1e-4, 1e3]
        assert relative_condition(fit_affine(scaled, old), scaled, old) == pytest.approx(1, abs=1e-2)
        lost = old.copy()
        lost[:, 2] = old[:, 0]
        assert relative_condition(fit_affine(lost, old), lost, old) > 100


class TestAlignmentMap:
    def test_it_is_the_affine_map_without_noise(self, old: Array) -> None:
        target = old @ SHEAR + 3
        np.testing.assert_allclose(fit_alignment(old, target)(old), target, atol=1e-6)

    def test_it_is_close_to_the_affine_map_with_little_noise(self, old: Array) -> None:
        new = transformed(old) + np.random.default_rng(3).normal(size=old.shape) * 0.02
        one, other = fit_affine(new, old)(new), fit_alignment(new, old)(new)
        np.testing.assert_allclose(other, one, atol=0.05)

    def test_it_keeps_the_variance_of_a_lost_direction(self, old: Array) -> None:
        new = old.copy()
        new[:, 2] = np.random.default_rng(3).normal(size=N)
        assert relative_condition(fit_affine(new, old), new, old) > 30
        affine = fit_alignment(new, old)
        assert relative_condition(affine, new, old) == pytest.approx(1, abs=0.1)
        np.testing.assert_allclose(np.cov(affine(new).T), np.cov(old.T), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(affine(new)[:, :2], old[:, :2], atol=0.2)

    def test_it_is_invertible_with_a_constant_axis(self, old: Array) -> None:
        new = old * [1.0, 1.0, 0.0]
        affine = fit_alignment(new, old)
        assert np.isfinite(affine.matrix).all()
        assert np.linalg.matrix_rank(affine.matrix) == 3


class TestNeighbors:
    def test_it_is_the_mean_share_of_common_nearest_neighbors(self) -> None:
        rng = np.random.default_rng(0)
        old = rng.normal(size=(200, 3))
        new = old + 0.3 * rng.normal(size=old.shape)

        def nearest(latents: Array) -> npt.NDArray[np.intp]:
            distances = np.linalg.norm((latents[:, None] - latents) / latents.std(0), axis=2)
            np.fill_diagonal(distances, np.inf)
            return np.argsort(distances, axis=1)[:, :10]

        shares = [len(set(one) & set(other)) / 10 for one, other in zip(nearest(old), nearest(new), strict=True)]
        assert 0.2 < np.mean(shares) < 0.9
        assert compare(old, new).neighbors == pytest.approx(np.mean(shares))

    def test_it_is_estimated_on_a_subset_of_many_rows(self, monkeypatch: pytest.MonkeyPatch, old: Array) -> None:
        monkeypatch.setattr("ae_pipeline.latent_space.compatibility._MAX_NEIGHBOR_ROWS", 150)
        assert compare(old, transformed(old) * 1.0).neighbors > 0.1
        assert compare(old, old).neighbors == 1


def test_the_score_shift_is_the_ks_distance_of_the_scores(old: Array) -> None:
    scores = np.arange(float(N))
    assert compare_spaces(old, old, scores, scores + N / 4).score_shift == pytest.approx(0.25)
    assert compare_spaces(old, old, scores, scores + N).score_shift == 1


def test_too_few_rows_are_an_error(old: Array) -> None:
    assert compare(old[:50], old[:50]).affine == pytest.approx(1, abs=1e-6)
    with pytest.raises(TrainingError, match=r"at least 50 rows, .* have 49; increase training\.validation_days"):
        compare(old[:49], old[:49])


def champion_and_target(version: int, bundle: ModelBundle) -> tuple[Served, Served]:
    """Return a champion with its own axes, as the champion and as the target of the alignment."""
    return Served(version, bundle), Served(version, bundle)


class TestAlign:
    @pytest.fixture(scope="class")
    def rows(self, fitted: Fitted) -> pl.DataFrame:
        return fitted.window.rows("validation", fitted.paths)

    def test_it_changes_the_axes_and_keeps_the_scores(
        self, fitted: Fitted, other_bundle: ModelBundle, rows: pl.DataFrame
    ) -> None:
        aligned, alignment = align(
            other_bundle, *champion_and_target(7, fitted.bundle), rows, LatentsConfig(min_explained_variance=0.01)
        )
        new = fitted.window.rows("calibration", fitted.paths)
        old, previous, after = (model.encode(new).astype(float) for model in (fitted.bundle, other_bundle, aligned))
        assert alignment.is_aligned
        assert (alignment.previous, alignment.axes_of) == (7, 7)
        assert alignment.message.startswith(
            f"the best affine map explains {alignment.compatibility.affine:.1%} of the variance"
        )
        assert explained_variance(old, after) > explained_variance(old, previous)
        assert explained_variance(old, after) == pytest.approx(alignment.compatibility.affine, abs=0.2)
        assert aligned.reconstruct(new).tobytes() == other_bundle.reconstruct(new).tobytes()
        np.testing.assert_allclose(aligned.score(new).score, other_bundle.score(new).score, rtol=1e-6, atol=1e-6)

    def test_aligning_a_model_to_itself_changes_nothing(self, fitted: Fitted, rows: pl.DataFrame) -> None:
        aligned, alignment = align(fitted.bundle, *champion_and_target(1, fitted.bundle), rows, LatentsConfig())
        assert alignment.compatibility.affine == pytest.approx(1, abs=1e-6)
        assert alignment.compatibility.condition == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(aligned.encode(rows), fitted.bundle.encode(rows), atol=1e-3)

    def test_an_incompatible_model_is_aligned_too(
        self, fitted: Fitted, other_bundle: ModelBundle, rows: pl.DataFrame
    ) -> None:
        share = align(other_bundle, *champion_and_target(7, fitted.bundle), rows, LatentsConfig())[
            1
        ].compatibility.affine
        for minimum, is_compatible in ((share - 0.001, True), (share + 0.001, False)):
            transformed, alignment = align(
                other_bundle,
                *champion_and_target(7, fitted.bundle),
                rows,
                LatentsConfig(min_explained_variance=minimum),
            )
            assert (alignment.is_aligned, alignment.is_compatible) == (True, is_compatible)
            assert transformed.encode(rows).tobytes() != other_bundle.encode(rows).tobytes()
        assert alignment.message.endswith(f"; a compatible space needs {share + 0.001:.0%}")

    def test_an_ill_conditioned_map_is_not_applied(
        self, fitted: Fitted, other_bundle: ModelBundle, rows: pl.DataFrame
    ) -> None:
        new, old = (bundle.encode(rows).astype(float) for bundle in (other_bundle, fitted.bundle))
        condition = relative_condition(fit_alignment(new, old), new, old)
        for maximum, is_aligned in ((condition * 1.01, True), (max(condition * 0.99, 1.0), False)):
            strict = LatentsConfig(min_explained_variance=0.01, max_condition_number=maximum)
            kept, alignment = align(other_bundle, *champion_and_target(7, fitted.bundle), rows, strict)
            assert (alignment.is_aligned, alignment.is_compatible) == (is_aligned, is_aligned)
            assert (kept is other_bundle) is not is_aligned
        assert "the alignment is not applied, because its condition number" in alignment.message

    def test_rows_without_a_needed_column_are_an_error(
        self, fitted: Fitted, other_bundle: ModelBundle, rows: pl.DataFrame
    ) -> None:
        with pytest.raises(BundleError, match="power"):
            align(other_bundle, *champion_and_target(7, fitted.bundle), rows.drop("power"), LatentsConfig())


class TestRetraining:
    @pytest.fixture(scope="class")
    def served(self, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Tracker, Trained]:
        """The dataset, its model store and a first training, whose version is the champion."""
        tracker = Tracker(make_model_store(tmp_path_factory.mktemp("served")))
        first = train_challenger(Dataset(fitted.config, fitted.paths), tracker, {}, {})
        decide(Dataset(fitted.config, fitted.paths), tracker, "a test")
        return fitted, tracker, first

    @staticmethod
    def retrain(served: tuple[Fitted, Tracker, Trained], **changes: Any) -> Trained:
        fitted, tracker, _ = served
        training = {**fitted.config.training.model_dump(), "seed": 1}
        config = sensor_config(training=training, **{"alerts": {"budget": 0.01, "evidence": NO_ENSEMBLE}, **changes})
        return train_challenger(Dataset(config, fitted.paths), tracker, {}, {})

    def test_the_first_model_is_not_compared(self, served: tuple[Fitted, Tracker, Trained]) -> None:
        first = served[2]
        assert first.alignment is None
        assert first.compatible.passed
        assert first.compatible.message == "no version serves so far; these latents are the first"
        assert first.bundle.facts.alignment is None

    def test_the_aligned_model_is_registered_with_its_figures(self, served: tuple[Fitted, Tracker, Trained]) -> None:
        fitted, tracker, first = served
        trained = self.retrain(served, latents={"min_explained_variance": 0.01})
        folder = tracker.bundle_folder(trained.version)
        assert trained.uri == folder.as_uri()
        kept = ModelBundle.load(folder)
        rows = fitted.window.rows("calibration", fitted.paths)
        old, new = (bundle.encode(rows).astype(float) for bundle in (first.bundle, kept))
        assert trained.alignment is not None
        figures = trained.alignment.compatibility.figures()
        assert explained_variance(old, new) == pytest.approx(figures["affine"], abs=0.1)
        assert kept.facts.alignment == trained.alignment.facts()
        assert (
            kept.facts.alignment.to_json().items()
            >= {
                "before": 1,
                "axes_of": 1,
                "is_compatible": True,
                **figures,
            }.items()
        )
        metrics = tracker.client.get_run(trained.version.run_id).data.metrics
        assert {name: metrics[f"latents.{name}"] for name in figures} == pytest.approx(figures)
        assert trained.compatible.passed
        version = tracker.version_number(DATASET, trained.version.version)
        assert version.tags["latents"] == trained.compatible.message == trained.alignment.message

    def test_the_target_is_the_first_compatible_model(self, served: tuple[Fitted, Tracker, Trained]) -> None:
        fitted, tracker, first = served
        rows = first.bundle.window.rows("validation", fitted.paths)
        second = self.retrain(served, latents={"min_explained_variance": 0.01})
        tracker.set_alias(DATASET, CHAMPION, second.version.version)
        third = self.retrain(served, latents={"min_explained_variance": 0.01}, model={"latent_dim": 3, "hidden": (12,)})
        tracker.set_alias(DATASET, CHAMPION, 1)
        assert third.alignment is not None
        assert (third.alignment.previous, third.alignment.axes_of) == (second.version.version, 1)
        affine = fit_alignment(*(bundle.encode(rows).astype(float) for bundle in (third.bundle, served[2].bundle)))
        np.testing.assert_allclose(affine.matrix, np.eye(3), atol=1e-3)

    def test_an_incompatible_model_starts_new_axes(self, served: tuple[Fitted, Tracker, Trained]) -> None:
        tracker = served[1]
        second = self.retrain(served, latents={"min_explained_variance": 0.9999})
        tracker.set_alias(DATASET, CHAMPION, second.version.version)
        third = self.retrain(served, latents={"min_explained_variance": 0.01})
        tracker.set_alias(DATASET, CHAMPION, 1)
        assert third.alignment is not None
        assert third.alignment.axes_of == second.version.version

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"latents": {"min_explained_variance": 0.9999}}, "; a compatible space needs 100%"),
            ({"model": {"latent_dim": 2, "hidden": (24,)}}, "2 latents cannot be aligned to the 3 of version 1"),
        ],
        ids=["threshold", "width"],
    )
    def test_incompatible_latents_warn_and_pass_the_gate(
        self, served: tuple[Fitted, Tracker, Trained], changes: dict[str, Any], message: str
    ) -> None:
        trained = self.retrain(served, gate={"max_error_increase": 9, "max_recall_drop": 0.9}, **changes)
        assert not trained.compatible.passed
        assert message in trained.compatible.message
        assert trained.alignment is not None
        assert trained.bundle.facts.alignment is not None
        assert trained.alignment.is_compatible is trained.bundle.facts.alignment.is_compatible is False
        assert served[1].version_number(DATASET, trained.version.version).tags["gate"] == "passed"

    def test_the_gate_can_reject_incompatible_latents(self, served: tuple[Fitted, Tracker, Trained]) -> None:
        trained = self.retrain(served, gate={"compatible": True}, latents={"min_explained_variance": 0.9999})
        gate = served[1].version_number(DATASET, trained.version.version).tags["gate"]
        assert gate.startswith("rejected: latents_compatible: the best affine map explains")
        assert self.retrain(
            served, gate={"compatible": True}, latents={"min_explained_variance": 0.01}
        ).compatible.passed

    def test_an_unreadable_champion_is_named(
        self, served: tuple[Fitted, Tracker, Trained], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ae_pipeline.detector.bundle.FORMAT", 99)
        trained = self.retrain(served)
        assert trained.alignment is None
        assert not trained.compatible.passed
        assert trained.compatible.message.startswith(
            "the latents cannot be compared with those of version 1: the bundle in "
        )
