"""Images of five materials with planted defects and masks, and how scores and heat maps on them are measured.

Each material is a photograph that scikit-image includes. Training images come from its upper rows, and test images from
the rows below, which no method has seen. Each test image has one defect of one kind, or none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
from PIL import Image
from sklearn.metrics import roc_auc_score

from ae_pipeline.scoring.pixels import PixelMeter
from benchmarks.measures import Measure

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
Scored = tuple[Values, list[Values] | None]
"""Score of each image, and its heat map, if the method gives one."""

MATERIALS = ("brick.png", "grass.png", "gravel.png", "ihc.png", "hubble_deep_field.jpg")
DEFECTS = ("foreign material", "scratch", "blur", "stain", "dead block")
ENLARGED, SIZE = 1.5, 256
"""Factor by which photographs are enlarged for images of the usual side, and that side."""
TRAINING_ROWS, TRAINING_IMAGES, GOOD, BAD = 320, 24, 16, 5
"""Rows of a photograph for training; training images, normal test images, and test images of each kind of defect.

The rows for training are those on which `benchmarks.image_evidence` chose the evidence.
"""


@dataclass(frozen=True)
class Sheet:
    """Images of a material: for training, and for the test with their masks and kinds of defects."""

    training: list[Pixels]
    test: list[Pixels]
    masks: list[npt.NDArray[np.bool_]]
    kinds: list[str]


def photograph(name: str) -> Pixels:
    """Return the middle of a photograph that scikit-image includes, in gray, (512, 512)."""
    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        gray = np.asarray(image.convert("L"), dtype=np.uint8)
    top, left = ((side - 512) // 2 for side in gray.shape)
    return gray[top : top + 512, left : left + 512]


def enlarge(region: Pixels, size: int = SIZE) -> Pixels:
    """Return a region with more pixels, so that images of a side fit into few rows."""
    width, height = (round(side * ENLARGED * size / SIZE) for side in reversed(region.shape))
    return np.asarray(Image.fromarray(region).resize((width, height), Image.Resampling.BICUBIC))


def crop(region: Pixels, rng: np.random.Generator, size: int = SIZE) -> Pixels:
    """Return a random square of a region."""
    top, left = (int(rng.integers(side - size + 1)) for side in region.shape)
    return region[top : top + size, left : left + size].copy()


def plant(image: Pixels, kind: str, foreign: Pixels, rng: np.random.Generator) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Return an image with a defect of 1/16 to 1/8 of its side, and its mask."""
    size = len(image)
    scale = size // SIZE
    side = int(rng.integers(16 * scale, 32 * scale + 1))
    top, left = rng.integers(0, size - side, 2)
    mask = np.zeros(image.shape, np.bool_)
    if kind == "scratch":
        steps = np.arange(2 * side) / 2
        slope = rng.uniform(-1, 1)
        rows = np.clip(np.rint(top + slope * steps), 0, size - 2 * scale).astype(int)
        columns = np.clip(np.rint(left + steps), 0, size - 1).astype(int)
        for thickness in range(2 * scale):
            mask[rows + thickness, columns] = True
    else:
        y, x = np.ogrid[:size, :size]
        middle_y, middle_x, radius = top + side / 2, left + side / 2, side / 2
        mask = (y - middle_y) ** 2 + (x - middle_x) ** 2 <= radius**2
    values, std = image.astype(np.float64), max(float(image.std()), 5.0)
    if kind == "foreign material":
        other = foreign.astype(np.float64)
        changed = (other - other.mean()) / max(other.std(), 1e-9) * std + values.mean()
    elif kind == "blur":
        window = np.lib.stride_tricks.sliding_window_view(np.pad(values, 3 * scale, mode="edge"), (6 * scale + 1,) * 2)
        changed = window.mean((2, 3))
    else:
        shift = {"scratch": rng.choice([-2.5, 2.5]) * std, "stain": -1.0 * std, "dead block": 0.0}[kind]
        changed = np.full_like(values, values[mask].mean()) if kind == "dead block" else values + shift
    result = np.where(mask, changed, values)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8), mask


def prepare(material: str, seed: int, images: int = TRAINING_IMAGES, size: int = SIZE) -> Sheet:
    """Return the images of a material.

    Args:
        material: File name of the photograph.
        seed: Seed of the places and the defects. It gives the same test images for any number of training images.
        images: Number of training images.
        size: Side of all images, a multiple of `SIZE`. The photograph and the defects grow with it.
    """
    rng = np.random.default_rng([seed, MATERIALS.index(material)])
    picture = photograph(material)
    other = enlarge(photograph(MATERIALS[(MATERIALS.index(material) + 1) % len(MATERIALS)]), size)
    upper, lower = enlarge(picture[:TRAINING_ROWS], size), enlarge(picture[TRAINING_ROWS:], size)
    test, masks, kinds = [], [], []
    for kind in ("good",) * GOOD + tuple(kind for kind in DEFECTS for _ in range(BAD)):
        image = crop(lower, rng, size)
        mask = np.zeros(image.shape, np.bool_)
        if kind != "good":
            image, mask = plant(image, kind, crop(other, rng, size), rng)
        test.append(image)
        masks.append(mask)
        kinds.append(kind)
    return Sheet([crop(upper, rng, size) for _ in range(images)], test, masks, kinds)


def task_name(material: str, images: int, size: int) -> str:
    """Return the name of a material in tables, with its number and side of images unless they are usual.

    >>> task_name("brick.png", TRAINING_IMAGES, SIZE), task_name("brick.png", 50, 256)
    ('brick', 'brick, 50 images of 256×256')
    """
    name = material.partition(".")[0]
    return name if (images, size) == (TRAINING_IMAGES, SIZE) else f"{name}, {images} images of {size}×{size}"


def measure(sheet: Sheet, scored: Scored, task: str, method: str, seed: int) -> Iterator[Measure]:
    """Yield AUROC of images, over all defects and by kind, and pixel AUROC and AUPRO of heat maps."""
    scores, maps = scored
    kinds = np.array(sheet.kinds)
    yield Measure(task, method, "image AUROC", float(roc_auc_score(kinds != "good", scores)), seed)
    for kind in DEFECTS:
        chosen = (kinds == "good") | (kinds == kind)
        value = float(roc_auc_score(kinds[chosen] == kind, scores[chosen]))
        yield Measure(f"{task}, {kind}", method, "image AUROC", value, seed)
    meter = PixelMeter()
    for heat, mask in zip(maps or (), sheet.masks if maps else (), strict=True):
        meter.add(heat * 1e3, mask)  # the bins of the meter begin at 0.0001
    if pixels := meter.measure():
        yield Measure(task, method, "pixel AUROC", pixels.auroc, seed)
        yield Measure(task, method, "AUPRO", pixels.aupro, seed)
