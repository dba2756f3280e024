"""The losses of images against closed forms, scikit-image, and Mahalanobis distances of scipy."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import skimage.metrics
import torch
from torch.distributions import Bernoulli

from ae_pipeline.config.model import LossTerm
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.image_loss import ImageLoss, ssim
from ae_pipeline.models.losses import minimum_losses
from tests.support.arrays import Array
from tests.support.losses import DELTA, WEIGHTED, by_term, closed_form, generator, named, uniform

Patches = tuple[ImageLoss, torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("terms", WEIGHTED, ids=named)
def test_image_loss_is_mean_over_pixels_and_channels(terms: dict[str, float]) -> None:
    x, output = uniform(5, 3, 7, 9) * 1.4 - 0.2, uniform(5, 3, 7, 9, seed=1)
    loss = ImageLoss((3, 7, 9), 1.0, by_term(terms), DELTA)
    np.testing.assert_allclose(loss(output, x)[:, 0], closed_form(terms, output, x).mean((1, 2, 3)), rtol=2e-6)


def test_ssim_is_weighted_with_the_other_terms() -> None:
    x, output = uniform(4, 1, 16, 13), uniform(4, 1, 16, 13, seed=1)
    loss = ImageLoss((1, 16, 13), 1.0, {LossTerm.MSE: 0.8, LossTerm.SSIM: 0.3}, 1.0)
    expected = 0.8 * closed_form({"mse": 1.0}, output, x).mean((1, 2, 3)) + 0.3 * (1 - scikit_ssim(output, x, 1.0))
    np.testing.assert_allclose(loss(output, x)[:, 0], expected, rtol=1e-4)


class TestCrossEntropy:
    def test_bce_between_0_and_1_is_bernoulli_likelihood(self) -> None:
        x, output = (uniform(6, 1, 4, 4) > 0.5).float(), uniform(6, 1, 4, 4, seed=1)
        expected = -Bernoulli(probs=output).log_prob(x).mean((1, 2, 3))
        torch.testing.assert_close(ImageLoss((1, 4, 4), 1.0, {LossTerm.BCE: 1.0}, 1.0)(output, x)[:, 0], expected)

    @pytest.mark.parametrize("target", [-3.0, -1e-6, 1 + 1e-6, 2.5, 40.0])
    def test_bce_beyond_0_and_1_is_lowest_at_clipped_target(self, target: float) -> None:
        loss = ImageLoss((1, 1, 1001), 1.0, {LossTerm.BCE: 1.0}, 1.0)
        outputs = torch.linspace(0, 1, 1001)
        cost = torch.stack([loss(one.expand(1, 1, 1, 1001), torch.full((1, 1, 1, 1001), target)) for one in outputs])
        nearest = float(np.clip(target, 0, 1))
        assert outputs[cost.argmin()] == nearest
        assert cost.min().item() == pytest.approx((target - nearest) ** 2, rel=1e-5)

    @pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.9, 1.0])
    def test_minimum_bce_is_entropy_of_target(self, target: float) -> None:
        minimum = minimum_losses({LossTerm.BCE: 2.0}, torch.tensor([target]))
        assert float(minimum) == pytest.approx(2 * scipy.stats.entropy([target, 1 - target]), abs=1e-6)


def scikit_ssim(output: torch.Tensor, x: torch.Tensor, span: float) -> Array:
    """Return the structural similarity of each pair by scikit-image."""
    size = min(11, *x.shape[2:])
    return np.array(
        [
            skimage.metrics.structural_similarity(  # type: ignore[no-untyped-call]
                one.double().numpy(),
                other.double().numpy(),
                data_range=span,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                win_size=size - 1 + size % 2,
            )
            for one, other in zip(output, x, strict=True)
        ]
    )


class TestStructuralSimilarity:
    SIZES = ((8, 8), (10, 12), (7, 20), (9, 13), (11, 11), (12, 31), (33, 47), (64, 64), (3, 5))

    @pytest.mark.parametrize("span", [1.0, 2.0])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
    def test_ssim_equals_scikit_image(self, size: tuple[int, int], channels: int, span: float) -> None:
        x = uniform(6, channels, *size)
        noise = uniform(6, channels, *size, seed=1)
        share = torch.linspace(0, 1, 6).view(-1, 1, 1, 1)  # from the image itself to pure noise
        output = (1 - share) * x + share * noise
        x, output = ((image - 0.5) * span + 0.5 for image in (x, output))
        expected = scikit_ssim(output, x, span)
        assert expected[0] == pytest.approx(1)
        assert expected[-1] < 0.4
        np.testing.assert_allclose(ssim(output, x, span), expected, atol=1e-4)

    @pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
    def test_ssim_is_one_for_equal_images_and_symmetric(self, size: tuple[int, int]) -> None:
        x = uniform(3, 2, *size)
        torch.testing.assert_close(ssim(x, x, 1.0), torch.ones(3))
        assert (ssim(1 - x, x, 1.0) < 0.9).all()
        torch.testing.assert_close(ssim(1 - x, x, 1.0), ssim(x, 1 - x, 1.0))

    @pytest.mark.parametrize("size", [(3, 5), (8, 8), (13, 12)])
    def test_ssim_gradients_match_finite_differences(self, size: tuple[int, int]) -> None:
        x, output = (uniform(1, 2, *size, seed=seed, dtype=torch.float64) for seed in (0, 1))
        assert torch.autograd.gradcheck(lambda o: ssim(o, x, 1.0), output.requires_grad_())


class TestPatchScores:
    """Residual patches of images, against Mahalanobis distances by scipy."""

    @pytest.fixture(scope="class", params=[(1, 12, 10), (3, 9, 9), (2, 4, 7)], ids=str)
    def patches(self, request: pytest.FixtureRequest) -> Patches:
        """Return a loss fitted on smooth residuals with a bias, with outputs and images."""
        channels, height, width = request.param
        loss = ImageLoss(request.param, 1.0, {LossTerm.MSE: 1.0}, 1.0).double()
        x = uniform(400, *request.param, dtype=torch.float64)
        noise = torch.randn(400, channels, height + 1, width + 1, dtype=torch.float64, generator=generator(1))
        smooth = 0.1 * (noise[..., 1:, 1:] + 0.5 * noise[..., :-1, 1:] + 0.3 * noise[..., 1:, :-1])
        output = x + smooth + 0.02 * torch.arange(1, channels + 1).view(-1, 1, 1)
        loss.fit_scores(AutoEncoderOutput(output, output, output.new_zeros(len(x))), x)
        return loss, output, x

    @staticmethod
    def windows(loss: ImageLoss, residual: torch.Tensor) -> Array:
        """Return all windows inside the images, shape (n, rows, columns, pixels)."""
        windows = np.lib.stride_tricks.sliding_window_view(residual.numpy(), loss.window, (2, 3))
        return np.moveaxis(windows, 1, 3).reshape(*np.take(windows.shape, (0, 2, 3)), -1)

    def test_patch_score_is_mahalanobis_distance_per_pixel(self, patches: Patches) -> None:
        loss, output, x = patches
        windows = self.windows(loss, output - x)
        pixels = windows.reshape(-1, windows.shape[-1])
        inverse = np.linalg.inv(np.cov(pixels, rowvar=False, bias=True))
        scores = loss.patch_scores(output[:3], x[:3]).numpy()
        assert scores.shape == (3, *windows.shape[1:3])
        for index in [(0, 0, 0), (1, scores.shape[1] - 1, 1), (2, 0, scores.shape[2] - 1)]:
            distance = scipy.spatial.distance.mahalanobis(windows[index], pixels.mean(0), inverse)
            assert scores[index] == pytest.approx(distance**2 / pixels.shape[1], rel=1e-6)

    def test_mean_patch_score_of_fitted_residuals_is_one(self, patches: Patches) -> None:
        loss, output, x = patches
        assert loss.patch_scores(output, x).mean().item() == pytest.approx(1, rel=1e-6)

    def test_highest_patch_is_at_the_planted_residual(self, patches: Patches) -> None:
        loss, output, x = patches
        rows, columns = x.shape[2] - loss.window[0] + 1, x.shape[3] - loss.window[1] + 1
        for top, left in [(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)]:
            odd, window = output[:1].clone(), (slice(top, top + loss.window[0]), slice(left, left + loss.window[1]))
            checkerboard = torch.from_numpy(np.indices(loss.window).sum(0) % 2 * 2.0 - 1)
            odd[0, :, *window] += checkerboard  # fills one window, so every other window contains less of it
            scores = loss.patch_scores(odd, x[:1])
            center = loss.highest_patch(scores)
            assert center == (top + (loss.window[0] - 1) // 2, left + (loss.window[1] - 1) // 2)
            assert loss.by_column(odd, x[:1])[0, 0].item() == scores[0, top, left].item() == scores.max().item()

    def test_map_to_the_edge_pads_with_edge_values(self, patches: Patches) -> None:
        loss, output, x = patches
        inside, whole = loss.patch_scores(output[:2], x[:2]), loss.patch_scores(output[:2], x[:2], to_the_edge=True)
        assert whole.shape == (2, *x.shape[2:])
        top, left = ((size - 1) // 2 for size in loss.window)
        expected = np.pad(
            inside.numpy(),
            [(0, 0), *((edge, size - 1 - edge) for edge, size in zip((top, left), loss.window, strict=True))],
            mode="edge",
        )
        np.testing.assert_array_equal(whole.numpy(), expected)

    def test_constant_residuals_have_finite_patch_scores(self) -> None:
        loss = ImageLoss((1, 8, 8), 1.0, {LossTerm.MSE: 1.0}, 1.0)
        x = uniform(10, 1, 8, 8)
        loss.fit_scores(AutoEncoderOutput(x, x, x.new_zeros(len(x))), x)
        assert (loss.patch_scores(x, x) == 0).all()
        assert torch.isfinite(loss.patch_scores(x + 1, x)).all()
        assert (loss.patch_scores(x + 1, x) > 1).all()


class TestFlatScores:
    """Patches without contrast, against variances of numpy."""

    @pytest.fixture(scope="class", params=[(1, 12, 10), (3, 9, 9), (2, 4, 7)], ids=str)
    def fitted(self, request: pytest.FixtureRequest) -> Patches:
        """Return a loss fitted on images of bytes, with reconstructions and images."""
        x = torch.round(uniform(300, *request.param, dtype=torch.float64) * 255) / 255
        output = x + 0.1 * torch.randn(x.shape, dtype=torch.float64, generator=generator(1))
        loss = ImageLoss(request.param, 1.0, {LossTerm.MSE: 1.0}, 1.0).double()
        loss.fit_scores(AutoEncoderOutput(output, output, output.new_zeros(len(x))), x)
        return loss, output, x

    @staticmethod
    def smoothness(loss: ImageLoss, x: torch.Tensor) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(x.numpy(), loss.window, (2, 3))
        smoothness: Array = -np.log(windows.var((4, 5)).mean(1) + 1 / 255**2 / 12)
        return smoothness

    def test_flat_scores_follow_the_log_of_the_variance(self, fitted: Patches) -> None:
        loss, _, x = fitted
        scores, smoothness = loss.flat_scores(x).numpy(), self.smoothness(loss, x)
        slope, offset = np.polyfit(smoothness.ravel(), scores.ravel(), 1)
        np.testing.assert_allclose(scores, slope * smoothness + offset, rtol=1e-7, atol=1e-7)
        assert slope > 0

    def test_one_window_in_a_hundred_is_as_rare_as_its_residual_score(self, fitted: Patches) -> None:
        loss, output, x = fitted
        maps = [loss.flat_scores(x).flatten(1).numpy(), loss.patch_scores(output, x).flatten(1).numpy()]
        # The tenth of the images with the highest values does not count.
        scores, residual = (each[each.max(1) <= np.quantile(each.max(1), 0.9)].ravel() for each in maps)
        level = np.quantile(residual, 0.99)
        assert np.quantile(scores, 0.99) == pytest.approx(level, rel=2e-2)
        assert scores[scores > level].mean() == pytest.approx(residual[residual > level].mean(), rel=5e-2)

    def test_a_few_anomalous_images_do_not_set_the_tails(self, fitted: Patches) -> None:
        _, output, x = fitted
        odd = output.clone()
        odd[:15] += 3 * torch.randn(odd[:15].shape, dtype=torch.float64, generator=generator(2))
        other = ImageLoss(tuple(x.shape[1:]), 1.0, {LossTerm.MSE: 1.0}, 1.0).double()
        other.fit_scores(AutoEncoderOutput(odd, odd, odd.new_zeros(len(x))), x)
        usual = other.patch_scores(output[15:], x[15:])
        assert float(other.flat_tails[2]) == pytest.approx(float(usual.quantile(0.99)), rel=0.2)

    def test_a_flat_block_is_the_strangest_place_and_hot(self, fitted: Patches) -> None:
        loss, output, x = fitted
        flat, (height, width) = x[:1].clone(), loss.window
        flat[:, :, -height:, 1 : 1 + width] = 0.5
        scores = loss.flat_scores(flat)
        assert scores.argmax() == scores[0].numel() - scores.shape[2] + 1
        assert scores.max() > loss.flat_scores(x).max()
        heat = loss.heat(flat, flat)
        assert (heat[0, -height:, 1 : 1 + width] == scores.max()).all()
        assert loss.parts(AutoEncoderOutput(output, flat, x.new_zeros(1)), flat)[0, 1] == scores.max()
        assert loss.contrast_ratio(float(scores.max())) == pytest.approx(
            np.exp((loss.flat_tails[0].item() - self.smoothness(loss, flat).max()) / 2)
        )

    def test_heat_is_never_below_the_patch_score(self, fitted: Patches) -> None:
        loss, output, x = fitted
        heat, residual = (make(output[:5], x[:5]) for make in (loss.heat, self.to_the_edge(loss)))
        assert (heat >= residual).all()
        assert (heat > residual).any()

    @staticmethod
    def to_the_edge(loss: ImageLoss) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda output, x: loss.patch_scores(output, x, to_the_edge=True)

    def test_black_backgrounds_are_usual_where_training_has_them(self) -> None:
        loss, x = ImageLoss((1, 16, 16), 1.0, {LossTerm.MSE: 1.0}, 1.0), uniform(50, 1, 16, 16)
        x[:, :, :, :8] = 0
        output = x + 0.1 * torch.randn(x.shape, generator=generator(0))
        loss.fit_scores(AutoEncoderOutput(output, output, output.new_zeros(len(x))), x)
        odd = x[:1].clone()
        odd[:, :, 4:12, 8:] = 0.5
        assert loss.by_column(odd, odd)[0, 1] == loss.by_column(x[:1], x[:1])[0, 1]

    def test_without_flatness_the_scores_are_those_of_earlier_formats(self, fitted: Patches) -> None:
        loss, output, x = fitted
        earlier = ImageLoss(tuple(x.shape[1:]), 1.0, {LossTerm.MSE: 1.0}, 1.0, rates_flatness=False).double()
        earlier.fit_scores(AutoEncoderOutput(output, output, output.new_zeros(len(x))), x)
        assert earlier.columns == ("spot",)
        assert earlier.state_dict().keys() == loss.state_dict().keys() - {"flat_tails"}
        result = AutoEncoderOutput(output, output, x.new_zeros(len(x)))
        torch.testing.assert_close(earlier.parts(result, x), loss.parts(result, x)[:, [0, 2]])
        torch.testing.assert_close(earlier.heat(output, x), loss.patch_scores(output, x, to_the_edge=True))


def test_image_scores_are_highest_and_mean_patch_score() -> None:
    loss, x = ImageLoss((1, 9, 9), 1.0, {LossTerm.MSE: 1.0}, 1.0), uniform(20, 1, 9, 9)
    output = x + 0.1 * torch.randn(x.shape, generator=generator(0))
    loss.fit_scores(AutoEncoderOutput(output, output, output.new_zeros(len(x))), x)
    parts = loss.parts(AutoEncoderOutput(torch.zeros(20, 2), output, torch.zeros(20)), x)
    patch_scores = loss.patch_scores(output, x).flatten(1)
    torch.testing.assert_close(parts[:, [0, 2]], torch.stack([patch_scores.max(1).values, patch_scores.mean(1)], 1))
    torch.testing.assert_close(parts[:, 1], loss.flat_scores(x).amax((1, 2)))
