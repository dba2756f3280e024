"""Losses of images: terms of the textbook by pixel, and the structural similarity."""

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
"""Height and width of the window that residuals are looked at through, pixels."""

_FITTED_AT_ONCE = 2**22
_LEAST_VARIANCE = 1e-4


def ssim(output: Tensor, x: Tensor, span: float) -> Tensor:
    """Structural similarity of images, mean over windows and channels, (n,) (Wang et al. 2004, §III-B and C).

    Gaussian weights (deviation 1.5 over 11 × 11 pixels), K₁ = 0.01, K₂ = 0.03, population variances. Windows that reach
    over the edge do not count; images smaller than 11 pixels are reflected there, and the windows count whose next
    smaller odd size fits, as in scikit-image.

    Args:
        output: Images, (n, channels, height, width).
        x: The others, of the same shape.
        span: Distance between the ends of their scale.
    """
    channels, height, width = x.shape[1:]
    reach = SSIM_WINDOW // 2
    places = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (places / SSIM_SIGMA).square())
    weights = weights / weights.sum()
    edge = (min(SSIM_WINDOW, height, width) - 1) // 2
    if edge < reach:
        rows, columns = (_reflected(size, reach - edge, x.device) for size in (height, width))
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


def _reflected(size: int, beyond: int, device: torch.device) -> Tensor:
    """Places of an axis and some beyond either end, where it is reflected with its last pixel doubled."""
    places = torch.arange(-beyond, size + beyond, device=device) % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


class ImageLoss(ReconstructionLoss):
    """Terms of the textbook on images, means over pixels and channels, and 1 − SSIM; scores by spots of the residual.

    What is left of an image after its reconstruction is looked at through a window: the Mahalanobis distance of the
    residual's pixels in it from those of images like the training's. So a spot stands out that is small, or fine
    where reconstructions are only ever coarsely wrong.

    Args:
        shape: Channels, height and width of an image.
        span: Distance between the ends of the images' scale.
        terms: Weights of mse, mae, huber, bce and ssim.
        huber_delta: Where huber turns from squares to distances.
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
        self.kl_share = 1.0 / math.prod(shape)
        self._span, self._terms, self._delta = span, dict(terms), huber_delta
        self.window = (min(RESIDUAL_PATCH, height), min(RESIDUAL_PATCH, width))
        pixels = channels * math.prod(self.window)
        self.register_buffer("residual_mean", torch.zeros(pixels))
        self.register_buffer("whitening", torch.eye(pixels))

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the loss of each image, (n, 1)."""
        loss = element_losses(self._terms, self._delta, output, x).mean((1, 2, 3))
        if weight := self._terms.get(LossTerm.SSIM):
            loss = loss + weight * (1 - ssim(output, x, self._span))
        return loss.unsqueeze(1)

    @torch.no_grad()
    def fit_scores(self, passed: AutoEncoderOutput, x: Tensor) -> None:
        """Fits mean and covariance of the residual's pixels in a window, wherever in the image it lies."""
        count, total, products = 0, torch.zeros_like(self.residual_mean, dtype=torch.float64), None
        at_once = max(1, _FITTED_AT_ONCE // (len(self.residual_mean) * x.shape[2] * x.shape[3]))
        for residual in (passed.output - x).split(at_once):
            pixels = functional.unfold(residual.double(), self.window).transpose(1, 2).flatten(0, 1)
            count, total = count + len(pixels), total + pixels.sum(0)
            products = pixels.T @ pixels if products is None else products + pixels.T @ pixels
        if products is None:
            return
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        floor = (_LEAST_VARIANCE * variances[-1]).clamp(min=1e-12)
        self.residual_mean.copy_(mean)
        self.whitening.copy_((directions / variances.clamp(min=floor).sqrt() / len(variances) ** 0.5).T)

    def patch_scores(self, output: Tensor, x: Tensor, to_the_edge: bool = False) -> Tensor:
        """Gives the squared distance of the residual in each window that lies in the image, (n, rows, columns).

        It is 1 on average where images are like those that it was fitted on.

        Args:
            output: Reconstructions, (n, channels, height, width).
            x: The images, of the same shape.
            to_the_edge: Repeat the distances at the edge, so that the map is as large as the image.
        """
        kernels = self.whitening.unflatten(1, (x.shape[1], *self.window))
        patch_scores = functional.conv2d(output - x, kernels, -self.whitening @ self.residual_mean).square().sum(1)
        if not to_the_edge:
            return patch_scores
        height, width = self.window
        edges = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
        return functional.pad(patch_scores.unsqueeze(1), edges, mode="replicate").squeeze(1)

    def highest_patch(self, output: Tensor, x: Tensor) -> tuple[int, int]:
        """Gives row and column of the middle of one image's strangest window; both tensors hold that image alone."""
        patch_scores = self.patch_scores(output, x)
        top, left = divmod(int(patch_scores.argmax()), patch_scores.shape[2])
        return top + (self.window[0] - 1) // 2, left + (self.window[1] - 1) // 2

    def by_column(self, output: Tensor, x: Tensor) -> Tensor:
        """Gives the distance of each image's strangest window, (n, 1)."""
        return self.patch_scores(output, x).amax((1, 2)).unsqueeze(1)

    def parts(self, passed: AutoEncoderOutput, x: Tensor) -> Tensor:
        """Gives the distance of each image's strangest window and the mean over all of them, (n, 2).

        Both go by the residual alone: the terms of the loss, and the divergence of a variational form, say how it is
        trained.
        """
        patch_scores = self.patch_scores(passed.output, x)
        return torch.stack([patch_scores.amax((1, 2)), patch_scores.mean((1, 2))], 1)
