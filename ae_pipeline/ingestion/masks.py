"""Masks of images: which landed files are masks, and which one belongs to an image."""

import re
import string
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.image_shape import shape_image
from ae_pipeline.ingestion.images import Pixels, UnreadableImageError

_MAX_CLASSES = 64
"""Highest value of a mask whose values are numbers of classes, not shades of gray."""

_MAX_NOISE = 1 / 8
"""Share of the highest value up to which a shade is black. JPEG leaves noise around the edges of a mask."""


def is_mask(name: str, images: ImagesConfig | None) -> bool:
    """Return whether a landed file is a mask by its path below the landing folder.

    >>> is_mask("truth/7_mask.png", ImagesConfig(masks="truth/{stem}_mask.png"))
    True
    """
    return bool(images and images.masks and _expression(images.masks).fullmatch(name))


@lru_cache
def _expression(masks: str) -> re.Pattern[str]:
    parts = string.Formatter().parse(masks)
    return re.compile("".join(re.escape(text) + (".+" if name is not None else "") for text, name, _, _ in parts))


def mask_path(name: str, images: ImagesConfig) -> str | None:
    """Return the path of the mask of an image, which need not exist; None without `images.masks`.

    Args:
        name: Path of the image below the landing folder.
        images: Settings for images.

    >>> mask_path("test/hole/7.jpg", ImagesConfig(path="test/(?P<kind>[a-z]+)/", masks="truth/{kind}/{stem}.png"))
    'truth/hole/7.png'
    """
    match = re.search(images.path or "", name)
    if images.masks is None or match is None:
        return None
    return images.masks.format(**{"stem": PurePosixPath(name).stem, **match.groupdict("")})


def read_mask(path: Path, images: ImagesConfig, max_pixels: int | None = None) -> npt.NDArray[np.bool_]:
    """Return which pixels of an image are anomalous, (height, width), with the size and crop of the image.

    A mask may number several classes, or give each a color: all but black is anomalous.

    Args:
        path: File of the mask.
        images: Settings for images.
        max_pixels: Maximum number of pixels; see `decode_image`.

    Raises:
        StorageError: The mask cannot be read.
    """
    try:
        mask = decode_image(path.read_bytes(), max_pixels)
        shaped = shape_image(_binary(mask), images.model_copy(update={"mode": "grey"}), max_pixels)
    except (OSError, UnreadableImageError) as error:
        raise StorageError(
            f"the mask {path} cannot be used: {error}; land it again, or correct images.masks"
        ) from error
    result: npt.NDArray[np.bool_] = shaped[:, :, 0] > shaped.max() / 2
    return result


def _binary(mask: Pixels) -> Pixels:
    """Return a mask of one channel that is 255 where a color is not black, and 0 elsewhere.

    It is made before the mask is resized, which would average the numbers of classes.
    """
    colors = mask[:, :, : 1 if mask.shape[2] <= 2 else 3]
    top = colors.max(initial=0)
    is_numbered = mask.dtype.kind == "u" and top <= _MAX_CLASSES
    noise = 0 if is_numbered else top * _MAX_NOISE
    return np.where((colors > noise).any(axis=2, keepdims=True), 255, 0).astype(np.uint8)


def require_size(size: tuple[int, int], of_map: tuple[int, int], path: Path, images: ImagesConfig) -> None:
    """Raise an error unless a mask has the size of its image.

    Args:
        size: Height and width of the mask.
        of_map: Those of the heat map, which patches that leave out or pad an edge make smaller or larger.
        path: File of the mask.
        images: Settings for images.

    Raises:
        StorageError: The sizes differ by more than patches explain.
    """
    less = (images.stride or images.patch or 1) if images.edge == "ignore" else 1
    more = (images.patch or 1) if images.edge == "pad" else 1
    if not all(-more < side - other < less for side, other in zip(size, of_map, strict=True)):
        raise StorageError(
            f"the mask {path} has {size[0]}×{size[1]} pixels, but its image {of_map[0]}×{of_map[1]}; land it with the "
            "size of the image"
        )
