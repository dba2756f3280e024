"""Losses of images: element-wise terms per pixel, and the structural similarity (SSIM)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ae_pipeline.config.model import LossTerm
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.losses import ReconstructionLoss, element_losses

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5

RESIDUAL_PATCH = 5
"""Height and width of the residual patches, pixels."""

_FIT_BATCH_ELEMENTS = 2**22
_MIN_VARIANCE = 1e-4


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
    """Element-wise terms on images, means over pixels and channels, and 1 − SSIM. Scores rate patches of the residual.

    The score of a patch is the Mahalanobis distance of its residual pixels from the residuals of normal images. Small
    defects stand out, and so do fine ones in places where normal reconstructions only have coarse errors.

    Args:
        shape: Channels, height and width of an image.
        span: Difference between the highest and the lowest value of the scale of the images.
        terms: Weights of mse, mae, huber, bce and ssim.
        huber_delta: Distance at which huber changes from quadratic to linear.
    """

    residual_mean: Tensor
    whitening: Tensor
    unit = "mean over the pixels of an image"
    columns = ("spot",)

    def __init__(
        self, shape: tuple[int, ...], span: float, terms: Mapping[LossTerm, float], huber_delta: float
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.kl_weight = 1.0 / math.prod(shape)
        self._span, self._terms, self._delta = span, dict(terms), huber_delta
        self.window = (min(RESIDUAL_PATCH, height), min(RESIDUAL_PATCH, width))
        pixels = channels * math.prod(self.window)
        self.register_buffer("residual_mean", torch.zeros(pixels))
        self.register_buffer("whitening", torch.eye(pixels))

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
        for residual in (result.output - x).split(batch_size):
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

    def patch_scores(self, output: Tensor, x: Tensor, to_the_edge: bool = False) -> Tensor:
        """Return the squared Mahalanobis distance of each residual patch inside the image, shape (n, rows, columns).

        The mean is 1 for images like those of `fit_scores`.

        Args:
            output: Reconstructions, shape (n, channels, height, width).
            x: Images, of the same shape.
            to_the_edge: Pad the map with the values at its edge, so that it is as large as the image.
        """
        kernels = self.whitening.unflatten(1, (x.shape[1], *self.window))
        patch_scores = functional.conv2d(output - x, kernels, -self.whitening @ self.residual_mean).square().sum(1)
        if not to_the_edge:
            return patch_scores
        height, width = self.window
        edges = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
        return functional.pad(patch_scores.unsqueeze(1), edges, mode="replicate").squeeze(1)

    def highest_patch(self, output: Tensor, x: Tensor) -> tuple[int, int]:
        """Return row and column of the center of the highest-scoring patch. Both tensors must contain one image."""
        patch_scores = self.patch_scores(output, x)
        top, left = divmod(int(patch_scores.argmax()), patch_scores.shape[2])
        return top + (self.window[0] - 1) // 2, left + (self.window[1] - 1) // 2

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Return the score of the highest-scoring patch of each image, shape (n, 1)."""
        return self.patch_scores(output, x).amax((1, 2)).unsqueeze(1)

    def parts(self, result: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Return the highest and the mean patch score of each image, shape (n, 2).

        Both depend on the residual only. The terms of the loss and the KL divergence matter in training only.
        """
        patch_scores = self.patch_scores(result.output, x)
        return torch.stack([patch_scores.amax((1, 2)), patch_scores.mean((1, 2))], 1)
