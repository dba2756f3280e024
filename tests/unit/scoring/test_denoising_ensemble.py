"""The denoising autoencoders: determinism, whitened residuals and early stopping."""

import numpy as np
import pytest
import torch

from ae_pipeline.scoring import blocks
from ae_pipeline.scoring import denoising_ensemble as networks
from ae_pipeline.scoring.denoising_ensemble import NETWORKS, DenoisingEnsemble, fit_denoising_ensemble
from tests.support.arrays import Array, apply, copied


def train(rows: Array, seed: int = 0) -> DenoisingEnsemble:
    return fit_denoising_ensemble(rows, torch.Generator().manual_seed(seed))


def related(n: int, seed: int = 0) -> Array:
    """Return z-scores of six columns that depend on two hidden numbers and a little noise."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(2, 6))
    rows = rng.normal(size=(n, 2)) @ mixing + 0.1 * rng.normal(size=(n, 6))
    std: Array = np.sqrt(np.square(mixing).sum(0) + 0.01)
    return rows / std


class TestDenoisingEnsemble:
    @pytest.fixture(scope="class")
    def denoising_ensemble(self) -> DenoisingEnsemble:
        return train(related(600))

    def test_result_depends_only_on_the_generator(self, denoising_ensemble: DenoisingEnsemble) -> None:
        torch.manual_seed(5)
        again, other = train(related(600)), train(related(600), 1)
        for name, value in denoising_ensemble.arrays().items():
            assert again.arrays()[name].tobytes() == value.tobytes(), name
            assert other.arrays()[name].tobytes() != value.tobytes(), name

    def test_round_trip_through_arrays_gives_the_same_bytes(self, denoising_ensemble: DenoisingEnsemble) -> None:
        back, rows = DenoisingEnsemble.from_arrays(copied(denoising_ensemble.arrays())), related(300, 1)
        assert apply(back, rows).tobytes() == apply(denoising_ensemble, rows).tobytes()
        for name, value in denoising_ensemble.arrays().items():
            assert back.arrays()[name].tobytes() == value.tobytes(), name

    def test_mean_distance_is_one_and_outliers_are_far(self, denoising_ensemble: DenoisingEnsemble) -> None:
        rows = related(600)
        assert apply(denoising_ensemble, rows).mean() == pytest.approx(1, rel=0.01)
        other = related(200, 1)
        assert apply(denoising_ensemble, other).mean() == pytest.approx(1, rel=0.3)
        other[:, 0] = -other[:, 0]
        assert np.median(apply(denoising_ensemble, other)) > 10

    def test_each_network_learns_the_dependent_columns(self, denoising_ensemble: DenoisingEnsemble) -> None:
        rows = related(300, 1)
        residuals = denoising_ensemble._residuals(torch.from_numpy(rows))
        assert residuals.shape == (NETWORKS, 300, 6)
        assert (residuals.square().mean((1, 2)) < 0.1).all()  # the mean as a reconstruction would leave 1
        assert len({round(float(value), 12) for value in residuals.square().mean((1, 2))}) == NETWORKS

    def test_distances_do_not_depend_on_order_or_batches(
        self, denoising_ensemble: DenoisingEnsemble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = related(500, 2)
        expected, order = apply(denoising_ensemble, rows), np.random.default_rng(0).permutation(500)
        np.testing.assert_allclose(apply(denoising_ensemble, rows[order]), expected[order], rtol=1e-9)
        np.testing.assert_allclose(apply(denoising_ensemble, rows[[77]]), expected[[77]], rtol=1e-9)
        monkeypatch.setattr(blocks, "_CPU_CELLS", 1000)
        np.testing.assert_allclose(apply(denoising_ensemble, rows), expected, rtol=1e-9)
        assert apply(denoising_ensemble, rows[:0]).shape == (0,)

    @pytest.mark.parametrize(("n", "width"), [(8, 1), (8, 3), (9, 40), (2, 2)])
    def test_few_rows_are_enough_for_early_stopping(self, n: int, width: int) -> None:
        rows = np.random.default_rng(0).normal(size=(n, width))
        denoising_ensemble = train(rows)
        assert np.isfinite(apply(denoising_ensemble, np.r_[rows, np.full((1, width), 1e6)])).all()

    def test_weights_with_the_best_validation_loss_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Longer training overfits to few rows of noise, and the loss of the held-out rows increases."""
        rows = np.random.default_rng(0).normal(size=(24, 12))
        best = train(rows)
        monkeypatch.setattr(networks, "_VALIDATION_STEPS", networks._STEPS)
        last = train(rows)
        held_out = torch.from_numpy(rows)[torch.randperm(24, generator=torch.Generator().manual_seed(0))[:3]]
        losses = [trained._residuals(held_out).square().mean((1, 2)) for trained in (best, last)]
        assert (losses[0] < losses[1]).all()
