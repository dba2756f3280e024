"""Noise removal from brick: PSNR of ae_pipeline's denoising autoencoder beside classical methods of scikit-image.

Each learns or is tuned for one level at a time, on the upper rows of the photograph alone, and works on the whole
held-out strip, which is then cut into patches. Ours denoises overlapping patches of the strip and takes the mean where
they overlap, as patch-based methods do.
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
    """What is learnt for one level of noise.

    Attributes:
        patch: Pixels of a side of the patches that the network sees.
        stride: From one training patch to the next.
        channels: Of its one level of convolution.
        hidden: Width of the dense layer behind it.
        latent_dim: Width of its latent space.
        epochs: Passes over the training patches.
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
"""By standard deviation of the noise, on the scale 0 to 1."""


def brick(rows: slice) -> Strip:
    """Reads rows of the photograph on the scale 0 to 1."""
    return photograph("brick")[rows].astype(np.float32) / np.float32(255)


def add_noise(strip: Strip, sigma: float, seed: int) -> Strip:
    """Adds normal noise, which is not cut to the scale."""
    noise = np.random.default_rng(seed).standard_normal(strip.shape)
    return (strip + sigma * noise).astype(np.float32)


def psnr(restored: npt.NDArray[np.floating], clean: Strip) -> float:
    """Gives the mean of the PSNR, dB, of the patches of 32×32 pixels; what is restored is cut to the scale first."""
    pairs = (cut_side_by_side(strip.astype(np.float64), 32) for strip in (np.clip(restored, 0, 1), clean))
    errors = np.square(np.subtract(*pairs)).mean(axis=(1, 2))
    return float(np.mean(-10 * np.log10(errors)))


def fit_ours(sigma: float, level: Level, seed: int, rows: slice = TRAINING) -> ModelBundle:
    """Fits a denoising autoencoder for one level of noise, which is drawn on the inputs' own, standardised scale."""
    patches, tiles = cut_tiles(brick(rows), level.stride, level.patch)
    model = {**MODEL, "channels": [level.channels], "hidden": [level.hidden], "latent_dim": level.latent_dim}
    training = {**TRAIN, "epochs": level.epochs, "corruption_level": sigma / float(patches.std())}
    return fit_images(patches, seed, model, training, tiles)


def denoise(bundle: ModelBundle, strip: Strip, patch: int, stride: int) -> npt.NDArray[np.float64]:
    """Denoises patches of a strip; where they overlap it takes their mean."""
    height, width = strip.shape
    tops, lefts = ([*range(0, size - patch, stride), size - patch] for size in (height, width))
    places = list(product(tops, lefts))
    patches = np.stack([strip[top : top + patch, left : left + patch] for top, left in places])
    restored = images_of(bundle.denoise(image_frame(patches)), "float32", (patch, patch))
    total, count = np.zeros(strip.shape), np.zeros(strip.shape)
    for (top, left), part in zip(places, restored, strict=True):
        total[top : top + patch, left : left + patch] += part
        count[top : top + patch, left : left + patch] += 1
    mean: npt.NDArray[np.float64] = total / count
    return mean


Restore = Callable[[Strip], npt.NDArray[np.floating]]


def tune(candidates: Sequence[Restore], sigma: float) -> Restore:
    """Chooses the candidate that does best on the lowest rows of the training region."""
    clean = brick(TUNING)
    noisy = add_noise(clean, sigma, seed=1000)
    return max(candidates, key=lambda restore: psnr(restore(noisy), clean))


def nl_means(sigma: float) -> list[Restore]:
    """Lists settings of non-local means that are tried; σ is known to it."""

    def candidate(size: int, distance: int, strength: float, fast: bool) -> Restore:
        return lambda strip: denoise_nl_means(
            strip, patch_size=size, patch_distance=distance, h=strength * sigma, sigma=sigma, fast_mode=fast
        )

    fast = product((5, 7, 9, 11, 13, 15), (6, 11, 17), (0.3, 0.4, 0.5, 0.6, 0.8, 1.0), (True,))
    slow = product((5, 7, 9, 11), (6,), (0.6, 0.8, 1.0, 1.2), (False,))
    return [candidate(*settings) for settings in (*fast, *slow)]


def total_variation(sigma: float) -> list[Restore]:
    """Lists weights of Chambolle's total variation that are tried."""

    def candidate(weight: float) -> Restore:
        restore: Restore = partial(denoise_tv_chambolle, weight=weight * sigma)
        return restore

    return [candidate(weight) for weight in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.6, 2.0, 2.5)]


def measure(seeds: Sequence[int]) -> Iterator[Measure]:
    """Restores the held-out strip by every method, with every seed and level."""
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
