"""Photographs of brick, grass and gravel: regions for training and test, patches, and planted defects."""

from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import skimage
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)

TEXTURES = ("brick", "grass", "gravel")
PATCH, TILE = 32, 64

TRAINING, TEST = slice(0, 320), slice(320, 512)
"""Rows of the photographs that methods may learn from, and rows that nobody looks at before the test."""

LEARNING, TUNING = slice(0, 256), slice(256, 320)
"""Rows of the training region that settings are tried out on: learnt from, and judged by."""

RESIDUAL_PATCH = 8
"""Pixels of a side of a planted defect, and of the length of a scratch."""

SCRATCH = 2.0
"""How far a scratch deviates, in standard deviations of its patch."""

DEFECTS = ("grass square", "gravel square", "scratch", "dead block")


def photograph(texture: str) -> Pixels:
    """Reads a photograph that scikit-image brings along, (512, 512)."""
    with Image.open(Path(skimage.__file__).parent / "data" / f"{texture}.png") as image:
        return np.asarray(image.convert("L"), dtype=np.uint8)


def cut(region: npt.NDArray[Kind], stride: int, patch: int = PATCH) -> npt.NDArray[Kind]:
    """Cuts all patches out of a region, row by row, (n, patch, patch)."""
    windows = np.lib.stride_tricks.sliding_window_view(region, (patch, patch))[::stride, ::stride]
    return np.ascontiguousarray(windows.reshape(-1, patch, patch))


def cut_tiles(region: npt.NDArray[Kind], stride: int, patch: int = PATCH) -> tuple[npt.NDArray[Kind], list[str]]:
    """Cuts patches out of each tile of 64×64 pixels, so that patches of two tiles share no pixel.

    Returns:
        Patches, (n, patch, patch), and the name of the tile of each.
    """
    tiles = cut_side_by_side(region, TILE)
    found = [cut(tile, stride, patch) for tile in tiles]
    names = [f"tile {index}" for index, patches in enumerate(found) for _ in patches]
    return np.concatenate(found), names


def cut_side_by_side(region: npt.NDArray[Kind], size: int) -> npt.NDArray[Kind]:
    """Cuts squares that neither overlap nor leave a gap, (n, size, size)."""
    return cut(region, size, size)


def plant(patches: Pixels, kind: str, material: Pixels | None, seed: int) -> Pixels:
    """Plants one defect into each patch, at a random place.

    - grass square, gravel square: 8×8 pixels of the material, with mean and standard deviation of the patch.
    - scratch: a line of 8 pixels, level, upright or aslant, 2 standard deviations of the patch brighter or darker.
    - dead block: 8×8 pixels of the patch's mean.

    Args:
        patches: Clean ones, (n, height, width); they stay as they are.
        kind: One of `DEFECTS`.
        material: Region that squares are taken from.
        seed: Chooses places and material.
    """
    generator = np.random.default_rng([seed, DEFECTS.index(kind)])
    planted = patches.astype(np.float64)
    for patch in planted:
        top, left = (int(generator.integers(size - RESIDUAL_PATCH + 1)) for size in patch.shape)
        spot = patch[top : top + RESIDUAL_PATCH, left : left + RESIDUAL_PATCH]
        mean, deviation = patch.mean(), patch.std()
        if kind == "scratch":
            spot[_line(generator)] += generator.choice([-1.0, 1.0]) * SCRATCH * deviation
        elif material is None or kind == "dead block":
            spot[:] = mean
        else:
            spot[:] = mean + deviation * _square(material, generator)
    return np.clip(np.rint(planted), 0, 255).astype(np.uint8)


def _square(material: Pixels, generator: np.random.Generator) -> Values:
    """Takes a square of the material, of mean 0 and deviation 1."""
    top, left = (int(generator.integers(size - RESIDUAL_PATCH + 1)) for size in material.shape)
    square = material[top : top + RESIDUAL_PATCH, left : left + RESIDUAL_PATCH].astype(np.float64)
    scaled: Values = (square - square.mean()) / max(square.std(), 1e-9)
    return scaled


def _line(generator: np.random.Generator) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places of a line in a spot: level, upright, or along one of its diagonals."""
    along, across = np.arange(RESIDUAL_PATCH), np.full(RESIDUAL_PATCH, RESIDUAL_PATCH // 2)
    lines = ((across, along), (along, across), (along, along), (along, along[::-1]))
    return lines[int(generator.integers(len(lines)))]
