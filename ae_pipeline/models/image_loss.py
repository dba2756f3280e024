"""Losses of images: element-wise terms per pixel, and the structural similarity (SSIM)."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ae_pipeline.config.model import LossTerm
from ae_pipeline.models import convolution
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.losses import ReconstructionLoss, element_losses

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5

RESIDUAL_PATCH = 5
"""Height and width of the residual patches, pixels."""

_FIT_BATCH_ELEMENTS = 2**22
_MIN_VARIANCE = 1e-4

_FIT_PLACES = 2**20
"""Windows whose contrast and residual the tails are fitted on, evenly over all images."""

_TAIL, _USUAL_SHARE = 0.01, 0.9
_MIN_EXCESS = 0.05
"""Lowest mean excess of the smoothness, −ln of a variance, over its 99 % quantile: five percent of the variance."""

_LEVELS = 255
"""Steps between the lowest and the highest value of an image of bytes."""


def ssim(output: Tensor, x: Tensor, span: float) -> Tensor:
    """Return the structural similarity, mean over windows and channels, shape (n,) (Wang et al. 2004, §III-B and C).

    Gaussian weights (standard deviation 1.5 over 11 × 11 pixels), K₁ = 0.01, K₂ = 0.03, population variances. Windows
    beyond the edge do not count. Images smaller than 11 pixels are reflected at the edge, as in scikit-image. Then the
    windows of the next smaller odd size count that lie inside the image.

    Args:
        output: Images, shape (n, channels, height, width).
        x: Images to compare with, of the same shape.
        span: Difference between the highest and the lowest value of the scale.
    """
    channels, height, width = x.shape[1:]
    reach = SSIM_WINDOW // 2
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA).square())
    weights = weights / weights.sum()
    edge = (min(SSIM_WINDOW, height, width) - 1) // 2
    if edge < reach:
        rows, columns = (_reflected_indices(size, reach - edge, x.device) for size in (height, width))
        output, x = output[:, :, rows][..., columns], x[:, :, rows][..., columns]

    def blur(images: Tensor) -> Tensor:
        down = functional.conv2d(images, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return functional.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_o, mean_x = blur(output), blur(x)
    variance_o = blur(output.square()) - mean_o.square()
    variance_x = blur(x.square()) - mean_x.square()
    covariance = blur(output * x) - mean_o * mean_x
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    similarity = ((2 * mean_o * mean_x + c1) * (2 * covariance + c2)) / (
        (mean_o.square() + mean_x.square() + c1) * (variance_o + variance_x + c2)
    )
    return similarity.mean((1, 2, 3))


def _reflected_indices(size: int, padding: int, device: torch.device) -> Tensor:
    """Return the indices of an axis with symmetric padding at both ends (the last pixel is repeated)."""
    indices = torch.arange(-padding, size + padding, device=device) % (2 * size)
    return torch.minimum(indices, 2 * size - 1 - indices)


class ImageLoss(ReconstructionLoss):
    """Element-wise terms on images, means over pixels and channels, and 1 − SSIM. Scores rate patches.

    The score of a patch is the Mahalanobis distance of its residual pixels from the residuals of normal images. Small
    defects stand out, and so do fine ones in places where normal reconstructions only have coarse errors.

    A flat patch is easy to reconstruct, so its residual says nothing. Its flat score rates its contrast instead: the
    lower the variance of its pixels beside the patches of normal images, the higher the score.

    Args:
        shape: Channels, height and width of an image.
        span: Difference between the highest and the lowest value of the scale of the images.
        terms: Weights of mse, mae, huber, bce and ssim.
        huber_delta: Distance at which huber changes from quadratic to linear.
        levels: Number of steps between the lowest and the highest value that the images tell apart.
        rates_flatness: Whether patches have a flat score. Bundles of before format 11 have none.
    """

    residual_mean: Tensor
    whitening: Tensor
    flat_tails: Tensor
    unit = "mean over the pixels of an image"

    def __init__(
        self,
        shape: tuple[int, ...],
        span: float,
        terms: Mapping[LossTerm, float],
        huber_delta: float,
        *,
        levels: int = _LEVELS,
        rates_flatness: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.kl_weight = 1.0 / math.prod(shape)
        self._span, self._terms, self._delta = span, dict(terms), huber_delta
        self._rounding = (span / levels) ** 2 / 12
        self.window = (min(RESIDUAL_PATCH, height), min(RESIDUAL_PATCH, width))
        pixels = channels * math.prod(self.window)
        self.register_buffer("residual_mean", torch.zeros(pixels))
        self.register_buffer("whitening", torch.eye(pixels))
        self.columns: tuple[str, ...] = ("spot",)
        if rates_flatness:
            self.columns = ("spot", "flat")
            # 99 % quantile and mean excess of −ln of the variance of windows, then of their residual scores.
            self.register_buffer("flat_tails", torch.tensor([0.0, 1.0, 0.0, 1.0]))

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the loss of each image, shape (n, 1)."""
        loss = element_losses(self._terms, self._delta, output, x).mean((1, 2, 3))
        if weight := self._terms.get(LossTerm.SSIM):
            loss = loss + weight * (1 - ssim(output, x, self._span))
        return loss.unsqueeze(1)

    @torch.no_grad()
    def fit_scores(self, result: AutoEncoderOutput, x: Tensor) -> None:
        """Fit mean and covariance of the residual pixels of a patch, over all positions in the images."""
        count, total, products = 0, torch.zeros_like(self.residual_mean, dtype=torch.float64), None
        batch_size = max(1, _FIT_BATCH_ELEMENTS // (len(self.residual_mean) * x.shape[2] * x.shape[3]))
        for residual in self._strips(result.output - x, batch_size):
            pixels = functional.unfold(residual.double(), self.window).transpose(1, 2).flatten(0, 1)
            count, total = count + len(pixels), total + pixels.sum(0)
            products = pixels.T @ pixels if products is None else products + pixels.T @ pixels
        if products is None:
            return
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        floor = (_MIN_VARIANCE * variances[-1]).clamp(min=1e-12)
        self.residual_mean.copy_(mean)
        self.whitening.copy_((directions / variances.clamp(min=floor).sqrt() / len(variances) ** 0.5).T)
        if "flat" in self.columns:
            self._fit_flatness(result.output, x, batch_size)

    def _strips(self, images: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield batches of images; of large images, strips whose windows are those of the images."""
        width, overlap = images.shape[3], self.window[0] - 1
        rows = max(1, _FIT_BATCH_ELEMENTS // (len(self.residual_mean) * width))
        for batch in images.split(batch_size):
            for top in range(0, batch.shape[2] - overlap, rows):
                yield batch[:, :, top : top + rows + overlap]

    def _fit_flatness(self, output: Tensor, x: Tensor, batch_size: int) -> None:
        """Fit the tails of smoothness and residual scores over windows of the images."""
        windows = math.prod(size - side + 1 for size, side in zip(x.shape[2:], self.window, strict=True))
        step = max(1, len(x) * windows // _FIT_PLACES)
        smoothness, residual = [], []
        for batch, reconstruction in zip(x.split(batch_size), output.split(batch_size), strict=True):
            smoothness.append(-torch.log(self._variances(batch).flatten(1)[:, ::step]))
            residual.append(self.patch_scores(reconstruction, batch).flatten(1)[:, ::step])
        level, excess = _tail(torch.cat(smoothness))
        self.flat_tails.copy_(torch.tensor([level, max(excess, _MIN_EXCESS), *_tail(torch.cat(residual))]))

    def _variances(self, x: Tensor) -> Tensor:
        """Return the variance of each window inside the image, mean over channels, (n, rows, columns), float64.

        The variance of rounding to the steps of the images is added, so that its logarithm is bounded.
        """
        centered = x.double() - x.double().mean((2, 3), keepdim=True)
        mean, square = (self._window_means(values) for values in (centered, centered.square()))
        return (square - mean.square()).clamp(min=0).mean(1) + self._rounding

    def _window_means(self, values: Tensor) -> Tensor:
        """Return the mean of each window inside the image, like `functional.avg_pool2d`, which is slow in float64."""
        for dim, side in zip((2, 3), self.window, strict=True):
            shifted = [values.narrow(dim, first, values.shape[dim] - side + 1) for first in range(side)]
            values = shifted[0].clone()
            for each in shifted[1:]:
                values += each
        return values / math.prod(self.window)

    def patch_scores(self, output: Tensor, x: Tensor, to_the_edge: bool = False) -> Tensor:
        """Return the squared Mahalanobis distance of each residual patch inside the image, shape (n, rows, columns).

        The mean is 1 for images like those of `fit_scores`.

        Args:
            output: Reconstructions, shape (n, channels, height, width).
            x: Images, of the same shape.
            to_the_edge: Pad the map with the values at its edge, so that it is as large as the image.
        """
        kernels = self.whitening.unflatten(1, (x.shape[1], *self.window))
        residual = output - x
        patch_scores = x.new_empty(len(x), *convolution.output_size(x, kernels))
        for images, rows, distances in convolution.blocks(residual, kernels, -self.whitening @ self.residual_mean):
            patch_scores[images, rows] = distances.square().sum(1)
        return self._to_the_edge(patch_scores) if to_the_edge else patch_scores

    def _to_the_edge(self, patch_scores: Tensor) -> Tensor:
        height, width = self.window
        edges = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
        return functional.pad(patch_scores.unsqueeze(1), edges, mode="replicate").squeeze(1)

    def flat_scores(self, x: Tensor) -> Tensor:
        """Return the flat score of each window inside the image, shape (n, rows, columns).

        It is the patch score that is as rare among normal windows as a contrast this low, for both tails extrapolated
        exponentially beyond their 99th percentile. Windows with more contrast have lower, also negative, scores.
        """
        return self._flat_scores(self._variances(x)).to(x.dtype)

    def _flat_scores(self, variances: Tensor) -> Tensor:
        level, excess, residual, residual_excess = self.flat_tails
        scores: Tensor = residual + residual_excess * (-torch.log(variances) - level) / excess
        return scores

    def heat(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the anomaly of each pixel as a multiple of the usual residual, shape (n, height, width).

        It is the patch score around the pixel, or the highest flat score of the windows that contain it, if that is
        higher.
        """
        return self.heat_and_windows(output, x)[0]

    def heat_and_windows(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `heat`, and top and left of the window of each image with the highest score, shape (n, 2)."""
        scores = self.patch_scores(output, x)
        heat = self._to_the_edge(scores)
        if "flat" in self.columns:
            (height, width), flat = self.window, self.flat_scores(x)
            around = functional.pad(flat.unsqueeze(1), (width - 1, width - 1, height - 1, height - 1), value=-torch.inf)
            heat = torch.maximum(heat, functional.max_pool2d(around, self.window, 1).squeeze(1))
            scores = torch.maximum(scores, flat)
        index = scores.flatten(1).argmax(1)
        return heat, torch.stack([index // scores.shape[2], index % scores.shape[2]], 1)

    def highest_patch(self, scores: Tensor) -> tuple[int, int]:
        """Return row and column of the center of the highest-scoring window of one image, (1, rows, columns)."""
        top, left = divmod(int(scores.argmax()), scores.shape[2])
        return top + (self.window[0] - 1) // 2, left + (self.window[1] - 1) // 2

    def contrast_ratio(self, flat_score: float) -> float:
        """Return the contrast of a window as a share of the lowest contrast that is usual, from its flat score."""
        _, excess, residual, residual_excess = self.flat_tails.tolist()
        return math.exp((residual - flat_score) / residual_excess * excess / 2)

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the highest patch score and the highest flat score of each image, shape (n, columns)."""
        return self._highest(self.patch_scores(output, x), x)

    def parts(self, result: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Return the highest patch score, the highest flat score and the mean patch score, shape (n, columns + 1).

        They depend on residual and image only. The terms of the loss and the KL divergence matter in training only.
        """
        patch_scores = self.patch_scores(result.output, x)
        return torch.cat([self._highest(patch_scores, x), patch_scores.mean((1, 2)).unsqueeze(1)], 1)

    def _highest(self, patch_scores: Tensor, x: Tensor) -> Tensor:
        highest = [patch_scores.amax((1, 2))]
        if "flat" in self.columns:  # the window with the lowest variance has the highest flat score
            highest.append(self._flat_scores(self._variances(x).amin((1, 2))).to(x.dtype))
        return torch.stack(highest, 1)


def _tail(values: Tensor) -> tuple[float, float]:
    """Return the 99 % quantile of the values of images, shape (n, places), and the mean excess of those beyond it.

    The tenth of the images with the highest values does not count, because some of them can be anomalies.
    """
    highest = values.double().amax(1)
    values = values.double()[highest <= highest.quantile(_USUAL_SHARE)].flatten()
    level = values.sort().values[min(int(len(values) * (1 - _TAIL)), len(values) - 1)]
    over = values[values > level] - level
    return float(level), max(float(over.mean()) if len(over) else 0.0, 1e-12)
