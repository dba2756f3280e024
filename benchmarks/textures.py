"""Photographs of brick, grass and gravel: training and test regions, patches, and planted defects."""

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
"""Rows of the photographs for training, and rows that only the test uses."""

LEARNING, TUNING = slice(0, 256), slice(256, 320)
"""Rows of the training region for choosing settings: rows to learn from, and rows to evaluate on."""

DEFECT_SIZE = 8
"""Side length of a planted defect and length of a scratch, pixels."""

SCRATCH = 2.0
"""Deviation of a scratch, in standard deviations of its patch."""

DEFECTS = ("grass square", "gravel square", "scratch", "dead block")


def photograph(texture: str) -> Pixels:
    """Return a photograph that scikit-image includes, (512, 512)."""
    with Image.open(Path(skimage.__file__).parent / "data" / f"{texture}.png") as image:
        return np.asarray(image.convert("L"), dtype=np.uint8)


def cut(region: npt.NDArray[Kind], stride: int, patch: int = PATCH) -> npt.NDArray[Kind]:
    """Return all patches of a region, row by row, (n, patch, patch)."""
    windows = np.lib.stride_tricks.sliding_window_view(region, (patch, patch))[::stride, ::stride]
    return np.ascontiguousarray(windows.reshape(-1, patch, patch))


def cut_tiles(region: npt.NDArray[Kind], stride: int, patch: int = PATCH) -> tuple[npt.NDArray[Kind], list[str]]:
    """Cut patches out of each tile of 64×64 pixels. Patches of different tiles share no pixel.

    Returns:
        Patches, (n, patch, patch), and the name of the tile of each patch.
    """
    tiles = cut_side_by_side(region, TILE)
    patches_by_tile = [cut(tile, stride, patch) for tile in tiles]
    names = [f"tile {index}" for index, patches in enumerate(patches_by_tile) for _ in patches]
    return np.concatenate(patches_by_tile), names


def cut_side_by_side(region: npt.NDArray[Kind], size: int) -> npt.NDArray[Kind]:
    """Return adjacent squares without overlap or gap, (n, size, size)."""
    return cut(region, size, size)


def plant(patches: Pixels, kind: str, material: Pixels | None, seed: int) -> Pixels:
    """Plant one defect into each patch, at a random position.

    - grass square, gravel square: 8×8 pixels of the material, with the mean and standard deviation of the patch.
    - scratch: a horizontal, vertical or diagonal line of 8 pixels, 2 standard deviations of the patch brighter or
      darker.
    - dead block: 8×8 pixels with the mean of the patch.

    Args:
        patches: Clean patches, (n, height, width); not modified.
        kind: One of `DEFECTS`.
        material: Region that provides the squares.
        seed: Seed for the positions and the material.
    """
    generator = np.random.default_rng([seed, DEFECTS.index(kind)])
    planted = patches.astype(np.float64)
    for patch in planted:
        top, left = (int(generator.integers(size - DEFECT_SIZE + 1)) for size in patch.shape)
        square = patch[top : top + DEFECT_SIZE, left : left + DEFECT_SIZE]
        mean, deviation = patch.mean(), patch.std()
        if kind == "scratch":
            square[_line(generator)] += generator.choice([-1.0, 1.0]) * SCRATCH * deviation
        elif material is None or kind == "dead block":
            square[:] = mean
        else:
            square[:] = mean + deviation * _square(material, generator)
    return np.clip(np.rint(planted), 0, 255).astype(np.uint8)


def _square(material: Pixels, generator: np.random.Generator) -> Values:
    """Return a random square of the material, scaled to mean 0 and standard deviation 1."""
    top, left = (int(generator.integers(size - DEFECT_SIZE + 1)) for size in material.shape)
    square = material[top : top + DEFECT_SIZE, left : left + DEFECT_SIZE].astype(np.float64)
    scaled: Values = (square - square.mean()) / max(square.std(), 1e-9)
    return scaled


def _line(generator: np.random.Generator) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the indices of a random line in a square: horizontal, vertical or diagonal."""
    along, across = np.arange(DEFECT_SIZE), np.full(DEFECT_SIZE, DEFECT_SIZE // 2)
    lines = ((across, along), (along, across), (along, along), (along, along[::-1]))
    return lines[int(generator.integers(len(lines)))]
