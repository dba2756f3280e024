"""Photographs of brick, grass and gravel: regions for training and for the test, and planted defects."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

PATCH, TILE = 32, 64
SPOT = 8
"""Pixels of a side of a planted defect."""

SCRATCH_DEVIATIONS = 2.0

Defect = Callable[[Pixels, Pixels, np.random.Generator], None]
"""Changes the spot of a patch that the first array shows; the second one is the patch as it was, with a foreign spot."""


def photograph(texture: str) -> Pixels:
    """Reads the photograph of brick, grass or gravel that scikit-image brings along, (512, 512)."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the textures come with scikit-image; install the extra 'demo'")
    with Image.open(Path(spec.submodule_search_locations[0]) / "data" / f"{texture}.png") as image:
        return np.asarray(image.convert("L"), dtype=np.uint8)


def cut(region: npt.NDArray[np.generic], stride: int, patch: int = PATCH) -> npt.NDArray[np.generic]:
    """Cuts all patches out of a region, row by row, (n, patch, patch)."""
    windows = np.lib.stride_tricks.sliding_window_view(region, (patch, patch))[::stride, ::stride]
    return np.ascontiguousarray(windows.reshape(-1, patch, patch))


def cut_tiles(region, stride, patch=PATCH, tile=TILE):
    patches, names = [], []
    for top in range(0, region.shape[0] - tile + 1, tile):
        for left in range(0, region.shape[1] - tile + 1, tile):
            found = cut(region[top : top + tile, left : left + tile], stride, patch)
            patches.append(found)
            names += [f"r{top}_c{left}"] * len(found)
    return np.concatenate(patches), names


def matched(values, patch):
    spread = values.std()
    scaled = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return patch.mean() + scaled * patch.std()


def plant(patches, kind, foreign, seed):
    """Plants one defect into each patch."""
    rng = np.random.default_rng([seed, ["grass", "gravel", "scratch", "dead"].index(kind)])
    out = patches.astype(np.float64)
    for patch in out:
        size = patch.shape[0]
        top, left = rng.integers(0, size - SPOT + 1, 2)
        spot = patch[top : top + SPOT, left : left + SPOT]
        mean, std = patch.mean(), patch.std()
        if kind in ("grass", "gravel"):
            t, l = rng.integers(0, foreign[kind].shape[0] - SPOT + 1), rng.integers(0, foreign[kind].shape[1] - SPOT + 1)
            spot[:] = matched(foreign[kind][t : t + SPOT, l : l + SPOT].astype(float), patch)
        elif kind == "scratch":
            line = np.arange(SPOT)
            rows, cols = [(np.full(SPOT, 3), line), (line, np.full(SPOT, 3)), (line, line), (line, line[::-1])][rng.integers(4)]
            spot[rows, cols] += rng.choice([-1, 1]) * SCRATCH_DEVIATIONS * std
        else:
            spot[:] = mean
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
