"""Noise removal from brick: PSNR of ae_pipeline's denoising autoencoder and of classical methods of scikit-image.

Each method is trained or tuned for one noise level, on the upper rows of the photograph only. It restores the whole
held-out strip, which is then cut into patches. ae_pipeline denoises overlapping patches of the strip and averages them
where they overlap, as patch-based methods do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from ae_pipeline.detector.bundle import ModelBundle
from benchmarks.frames import fit_images, image_frame, images_of
from benchmarks.measures import Measure
from benchmarks.textures import TEST, TRAINING, TUNING, cut_side_by_side, cut_tiles, photograph

Strip = npt.NDArray[np.float32]

MODEL: Mapping[str, Any] = {
    "architecture": "conv",
    "up": "upsample",
    "activation": "gelu",
    "scaling": "standard",
}
TRAIN: Mapping[str, Any] = {"batch_size": 128, "learning_rate": 4e-3, "patience": 6, "corruption": "gaussian"}


@dataclass(frozen=True)
class Level:
    """Settings for one level of noise.

    Attributes:
        patch: Side length of the network's patches, pixels.
        stride: Distance from one training patch to the next, pixels.
        channels: Channels of the single convolution level.
        hidden: Width of the dense layer after it.
        latent_dim: Width of the latent space.
        epochs: Number of passes over the training patches.
    """

    patch: int
    stride: int
    channels: int
    hidden: int
    latent_dim: int
    epochs: int


LEVELS: Mapping[float, Level] = {
    0.05: Level(8, 2, 32, 256, 128, 16),
    0.1: Level(16, 3, 16, 512, 256, 16),
    0.2: Level(16, 3, 16, 512, 256, 10),
}
"""Settings by standard deviation of the noise, on the scale 0 to 1."""


def brick(rows: slice) -> Strip:
    """Return rows of the photograph on the scale 0 to 1."""
    return photograph("brick")[rows].astype(np.float32) / np.float32(255)


def add_noise(strip: Strip, sigma: float, seed: int) -> Strip:
    """Add Gaussian noise, without clipping to the scale."""
    noise = np.random.default_rng(seed).standard_normal(strip.shape)
    return (strip + sigma * noise).astype(np.float32)


def psnr(restored: npt.NDArray[np.floating], clean: Strip) -> float:
    """Return the mean PSNR of the patches of 32×32 pixels, in dB. Restored pixels are clipped to the scale first."""
    pairs = (cut_side_by_side(strip.astype(np.float64), 32) for strip in (np.clip(restored, 0, 1), clean))
    errors = np.square(np.subtract(*pairs)).mean(axis=(1, 2))
    return float(np.mean(-10 * np.log10(errors)))


def fit_ours(sigma: float, level: Level, seed: int, rows: slice = TRAINING) -> ModelBundle:
    """Fit a denoising autoencoder for one level of noise. Training noise is added on the standardized scale."""
    patches, tiles = cut_tiles(brick(rows), level.stride, level.patch)
    model = {**MODEL, "channels": [level.channels], "hidden": [level.hidden], "latent_dim": level.latent_dim}
    training = {**TRAIN, "epochs": level.epochs, "corruption_level": sigma / float(patches.std())}
    return fit_images(patches, seed, model, training, tiles)


def denoise(bundle: ModelBundle, strip: Strip, patch: int, stride: int) -> npt.NDArray[np.float64]:
    """Denoise patches of a strip and average them where they overlap."""
    height, width = strip.shape
    tops, lefts = ([*range(0, size - patch, stride), size - patch] for size in (height, width))
    corners = list(product(tops, lefts))
    patches = np.stack([strip[top : top + patch, left : left + patch] for top, left in corners])
    restored = images_of(bundle.denoise(image_frame(patches)), "float32", (patch, patch))
    total, count = np.zeros(strip.shape), np.zeros(strip.shape)
    for (top, left), part in zip(corners, restored, strict=True):
        total[top : top + patch, left : left + patch] += part
        count[top : top + patch, left : left + patch] += 1
    mean: npt.NDArray[np.float64] = total / count
    return mean


Restore = Callable[[Strip], npt.NDArray[np.floating]]


def tune(candidates: Sequence[Restore], sigma: float) -> Restore:
    """Return the candidate with the best PSNR on the lowest rows of the training region."""
    clean = brick(TUNING)
    noisy = add_noise(clean, sigma, seed=1000)
    return max(candidates, key=lambda restore: psnr(restore(noisy), clean))


def nl_means(sigma: float) -> list[Restore]:
    """Return the candidate settings of non-local means; σ is known to the method."""

    def candidate(size: int, distance: int, strength: float, fast: bool) -> Restore:
        return lambda strip: denoise_nl_means(
            strip, patch_size=size, patch_distance=distance, h=strength * sigma, sigma=sigma, fast_mode=fast
        )

    fast = product((5, 7, 9, 11, 13, 15), (6, 11, 17), (0.3, 0.4, 0.5, 0.6, 0.8, 1.0), (True,))
    slow = product((5, 7, 9, 11), (6,), (0.6, 0.8, 1.0, 1.2), (False,))
    return [candidate(*settings) for settings in (*fast, *slow)]


def total_variation(sigma: float) -> list[Restore]:
    """Return the candidate weights of Chambolle's total variation."""

    def candidate(weight: float) -> Restore:
        restore: Restore = partial(denoise_tv_chambolle, weight=weight * sigma)
        return restore

    return [candidate(weight) for weight in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.6, 2.0, 2.5)]


def measure(seeds: Sequence[int]) -> Iterator[Measure]:
    """Restore the held-out strip by every method, with every seed and level."""
    clean = brick(TEST)
    for sigma, level in LEVELS.items():
        peers = {"non-local means": nl_means(sigma), "total variation": total_variation(sigma)}
        tuned = {name: tune(candidates, sigma) for name, candidates in peers.items()}
        for seed in seeds:
            noisy = add_noise(clean, sigma, seed)
            bundle = fit_ours(sigma, level, seed)
            restored = {
                "ae_pipeline denoising ConvAE": denoise(bundle, noisy, level.patch, max(1, level.patch // 8)),
                "ae_pipeline denoising ConvAE, no overlap": denoise(bundle, noisy, level.patch, level.patch),
                **{f"skimage {name}": restore(noisy) for name, restore in tuned.items()},
                "noisy input": noisy,
            }
            for method, strip in restored.items():
                yield Measure(f"brick, noise σ = {sigma:g}", method, "PSNR, dB", psnr(strip, clean), seed)
