"""Which evidence finds small defects in images: brick and gravel with nine kinds of synthetic defects.

The models learn from the upper rows of a photograph and are tried on the rows below, all within the region that
`benchmarks.defects` trains on. Its test rows and its seeds take no part. The parts of the score are those of the
package. These were tried and are not in the package: the distance from the nearest of 2,048 training places, by
features of the trained encoder as in PatchCore (Roth et al. 2022) or by pixels; the structural similarity over three
scales (Wang et al. 2004); training with blobs of other patches, shifted or flat pixels on the inputs as in CutPaste (Li
et al. 2021) and DRAEM (Zavrtanik et al. 2021), and a network of three scales. Augmentation by turns and an encoder
that was trained on another material are settings of the package (`training.augmentation`, `training.encoder_weights`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle_files import WEIGHTS
from ae_pipeline.detector.detector import Detector
from ae_pipeline.models.factory import ARCHITECTURES, Architecture
from ae_pipeline.scoring.tails import fit_tails
from benchmarks.defects import ALERTS, MODEL, TRAIN
from benchmarks.frames import fit_images, image_frame
from benchmarks.measures import Measure
from benchmarks.textures import LEARNING, TUNING, Pixels, Values, cut, cut_tiles, photograph, plant

MATERIALS = ("brick", "gravel")
FOREIGN = {"brick": ("grass", "gravel"), "gravel": ("brick", "grass")}
SYNTHETIC = ("blur", "stain", "noise", "turned", "nearly flat")
SHIPPED, TRAINED_WITH_BLOBS = "residual and contrast, as shipped", "as shipped, trained with blobs"
AUGMENTED, LONGER = "as shipped, trained with augmentation: turns", "as shipped, trained for twice the passes"
AUGMENTED_LONGER, MULTI_SCALE = "as shipped, with both", "as shipped, network of three scales"
PRETRAINED = "as shipped, encoder of another material to start from"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "residual": ("spot", "row"),
    SHIPPED: ("spot", "row", "flat"),
    "the same and features of the encoder": ("spot", "row", "flat", "encoder"),
    "the same and windows of pixels": ("spot", "row", "flat", "pixels"),
    "the same and structural similarity": ("spot", "row", "flat", "ssim"),
    "features of the encoder alone": ("encoder",),
    "windows of pixels alone": ("pixels",),
    "structural similarity alone": ("ssim",),
}
PLACES, TAIL_STEP, BLOB_SHARE = 2048, 8, 0.15


def defective(clean: Pixels, material: str, seed: int) -> dict[str, Pixels]:
    """Return copies of clean patches with one defect each, by kind."""
    kinds = {}
    for other, kind in zip(FOREIGN[material], ("grass square", "gravel square"), strict=True):
        kinds[f"{other} square"] = plant(clean, kind, photograph(other)[TUNING], seed)
    kinds |= {kind: plant(clean, kind, None, seed) for kind in ("scratch", "dead block")}
    return kinds | {kind: _alter(clean, kind, seed) for kind in SYNTHETIC}


def _alter(patches: Pixels, kind: str, seed: int) -> Pixels:
    """Return copies of patches with one square of 6 to 10 pixels changed."""
    rng = np.random.default_rng([seed, SYNTHETIC.index(kind)])
    altered = patches.astype(np.float64)
    for image in altered:
        side = int(rng.integers(6, 11))
        top, left, from_top, from_left = rng.integers(0, image.shape[0] - side + 1, 4)
        square, std = image[top : top + side, left : left + side], image.std()
        if kind == "blur":
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, 2, mode="reflect"), (5, 5))
            square[:] = windows.mean((2, 3))[top : top + side, left : left + side]
        elif kind == "stain":
            square += rng.choice([-1.0, 1.0]) * std
        elif kind == "noise":
            square += rng.normal(0, 0.7 * std, square.shape)
        elif kind == "turned":
            square[:] = np.rot90(image[from_top : from_top + side, from_left : from_left + side].copy())
        else:
            square[:] = square.mean() + 0.15 * (square - square.mean())
    return np.clip(np.rint(altered), 0, 255).astype(np.uint8)


def blobs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Put blobs of turned pixels of another patch, shifted or flat pixels on seven patches in ten."""
    rows, (height, width) = len(x), x.shape[2:]

    def numbers(make: Callable[..., Tensor], *shape: int) -> Tensor:
        return make((rows, 1, *shape), generator=generator, dtype=x.dtype)

    coarse = numbers(torch.randn, height // 4, width // 4)
    smooth = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    is_blob = smooth / smooth.std((2, 3), keepdim=True) > torch.special.ndtri(torch.tensor(1 - BLOB_SHARE))
    is_blob &= numbers(torch.rand, 1, 1) < 0.7
    kind, shift = numbers(torch.rand, 1, 1), numbers(torch.randn, 1, 1)
    other, flat = torch.rot90(x.roll(1, 0), 1, (2, 3)), x.mean((2, 3), keepdim=True) + 0.5 * shift
    return torch.where(is_blob, torch.where(kind < 0.4, other, torch.where(kind < 0.7, x + shift, flat)), x)


class NearestPlace:
    """Distance of the strangest place of an image from the nearest training place, by whitened features.

    Args:
        features: Function from encoded images to features of places, (n, features, rows, columns).
        x: Encoded training images.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._features = features
        places = features(x).permute(0, 2, 3, 1).flatten(0, 2)
        places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))]
        self._mean = places.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((places - self._mean).T))
        self._whitening = directions / variances.clamp(min=1e-3 * float(variances[-1])).sqrt()
        self._places = (places[:PLACES] - self._mean) @ self._whitening

    def __call__(self, x: Tensor) -> Values:
        """Return the highest distance of each image, (n,)."""
        features = self._features(x).permute(0, 2, 3, 1)
        rows = (features.flatten(0, 2) - self._mean) @ self._whitening
        distances = torch.cat([torch.cdist(block, self._places).amin(1) for block in rows.split(4096)])
        highest: Values = distances.view(len(x), -1).amax(1).double().numpy()
        return highest


def dissimilarity(output: Tensor, x: Tensor) -> Tensor:
    """Return 1 − SSIM of the most dissimilar place of each image, mean over scales 1, 2 and 4, (n,)."""
    c1, c2 = 0.01**2, 0.03**2
    maps = torch.zeros_like(x)
    for scale in (1, 2, 4):
        images = [functional.avg_pool2d(values, scale) for values in (output, x)]

        def mean(values: Tensor) -> Tensor:
            return functional.avg_pool2d(functional.pad(values, (3, 3, 3, 3), mode="reflect"), 7, 1)

        mean_o, mean_x = map(mean, images)
        variance_o, variance_x = (mean(each.square()) - mean(each).square() for each in images)
        covariance = mean(images[0] * images[1]) - mean_o * mean_x
        similarity = ((2 * mean_o * mean_x + c1) * (2 * covariance + c2)) / (
            (mean_o.square() + mean_x.square() + c1) * (variance_o + variance_x + c2)
        )
        maps += (1 - functional.interpolate(similarity, x.shape[2:], mode="nearest")) / 3
    highest: Tensor = maps.amax((1, 2, 3))
    return highest


def _parts(detector: Detector, train: Pixels, names: Collection[str]) -> Callable[[Pixels], dict[str, Values]]:
    """Return a function from patches to the value of some parts of the score, (n,)."""

    def encoded(patches: Pixels) -> Tensor:
        return torch.from_numpy(detector.encoder.encode(image_frame(patches)))

    def dissimilar(x: Tensor) -> Values:
        to_unit = detector.encoder.to_unit  # type: ignore[union-attr]
        images = (torch.from_numpy(to_unit(values.numpy())) for values in (detector.model(x).output, x))
        highest: Values = dissimilarity(*(each.permute(0, 3, 1, 2).double() for each in images)).numpy()
        return highest

    x = encoded(train[::TAIL_STEP])
    tried: dict[str, Callable[[], Callable[[Tensor], Values]]] = {
        "encoder": lambda: NearestPlace(detector.model.encoder[:2], x),  # type: ignore[index]
        "pixels": lambda: NearestPlace(lambda x: functional.unfold(x, 5, stride=2).unflatten(2, (14, 14)), x),
        "ssim": lambda: dissimilar,
    }
    banks = {name: make() for name, make in tried.items() if name in names}

    def measured(patches: Pixels) -> dict[str, Values]:
        losses = detector.latents_and_losses(image_frame(patches))[1]
        parts: dict[str, Values] = {name: losses[:, index] for index, name in enumerate(detector.loss.columns)}
        parts["row"] = losses[:, detector.part_index(Evidence.ROW)]
        return parts | {name: bank(encoded(patches)) for name, bank in banks.items()}

    return measured


def _scores(
    parts: Mapping[str, Values], tails: Mapping[str, Callable[[Tensor], Tensor]], names: Sequence[str]
) -> Values:
    surprisal = [tails[name](torch.from_numpy(parts[name]).unsqueeze(1))[:, 0].numpy() for name in names]
    highest: Values = np.max(surprisal, axis=0)
    return highest


@torch.inference_mode()
def _aurocs(
    detector: Detector, train: Pixels, clean: Pixels, kinds: Mapping[str, Pixels], variants: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, float]]:
    """Yield kind of defect, variant and AUROC."""
    measured = _parts(detector, train, {name for names in variants.values() for name in names})
    tails = {name: fit_tails(values[:, np.newaxis]) for name, values in measured(train[3::TAIL_STEP]).items()}
    of_clean = measured(clean)
    for kind, patches in kinds.items():
        parts = measured(patches)
        for variant, names in variants.items():
            scores = np.concatenate([_scores(each, tails, names) for each in (of_clean, parts)])
            yield kind, variant, float(roc_auc_score(np.repeat([0, 1], [len(clean), len(patches)]), scores))


NETWORKS = (
    (ARCHITECTURES["conv"], None, SHIPPED),
    (ARCHITECTURES["conv"], blobs, TRAINED_WITH_BLOBS),
    (ARCHITECTURES["conv"], None, AUGMENTED),
    (ARCHITECTURES["conv"], None, LONGER),
    (ARCHITECTURES["conv"], None, AUGMENTED_LONGER),
    (Architecture("benchmarks.multi_scale", takes_tables=False), None, MULTI_SCALE),
    (ARCHITECTURES["conv"], None, PRETRAINED),
)
"""Architecture, corruption of the inputs, and variant of each trained network."""


def measure(seed: int) -> Iterator[Measure]:
    """Measure every variant of the evidence on both materials."""
    for material in MATERIALS:
        picture = photograph(material)
        train, tiles = cut_tiles(picture[LEARNING], 4)
        clean = cut(picture[TUNING], 16)
        kinds = defective(clean, material, seed)
        for network, corruption, variant in NETWORKS:
            variants = VARIANTS if variant == SHIPPED else {variant: VARIANTS[SHIPPED]}
            training = dict(TRAIN)
            training |= {"augmentation": "turns"} if variant in {AUGMENTED, AUGMENTED_LONGER} else {}
            training |= {"epochs": 2 * TRAIN["epochs"]} if variant in {LONGER, AUGMENTED_LONGER} else {}
            with (
                patch("ae_pipeline.training.fit.build_corruption", return_value=corruption),
                patch.dict("ae_pipeline.models.factory.ARCHITECTURES", {"conv": network}),
                TemporaryDirectory() as folder,
            ):
                if variant == PRETRAINED:
                    others, of_tiles = cut_tiles(photograph(FOREIGN[material][0])[LEARNING], 4)
                    fit_images(others, seed, MODEL, TRAIN, of_tiles, ALERTS).save(Path(folder))
                    training["encoder_weights"] = str(Path(folder, WEIGHTS))
                bundle = fit_images(train, seed, MODEL, training, tiles, ALERTS)
            for kind, name, value in _aurocs(bundle.detector, train, clean, kinds, variants):
                yield Measure(f"{material}, {kind}", name, "AUROC", value, seed)
