"""Bring images to one mode and size: mode, then resize, crop and pad."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.source import ImagesConfig, ImageSize
from ae_pipeline.ingestion.images import Pixels, UnreadableImageError

_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in gray, ITU-R BT.601."""


def shape_image(pixels: Pixels, images: ImagesConfig, max_pixels: int | None = None) -> Pixels:
    """Return an image with the mode and the size that the settings ask for.

    Args:
        pixels: Image of shape (height, width, channels), uint8, uint16 or float32.
        images: Settings; `mode`, `resize`, `crop` and `pad` are applied in this order.
        max_pixels: Number of pixels up to which an image is enlarged; by default that of `LimitsConfig`.

    Returns:
        Image of the same type.

    Raises:
        UnreadableImageError: The image has other channels than a mode, is smaller than the crop, or becomes too large.

    >>> shape_image(np.zeros((30, 40, 1), np.uint8), ImagesConfig(mode="rgb", resize=15, crop=15)).shape
    (15, 15, 3)
    """
    if images.mode:
        pixels = _with_mode(pixels, images.mode)
    if images.resize:
        pixels = _resized(pixels, images.resize, LimitsConfig().pixels if max_pixels is None else max_pixels)
    if images.crop:
        pixels = _cropped(pixels, images.crop)
    return _padded(pixels, images.pad) if images.pad else pixels


def _with_mode(pixels: Pixels, mode: str) -> Pixels:
    channels = pixels.shape[2]
    if channels > 4:
        raise UnreadableImageError(
            f"it has {channels} channels, which are no gray or color; leave out images.mode, or land it with 1 to 4"
        )
    colors = pixels[:, :, : 1 if channels <= 2 else 3]
    if mode == "grey":
        return colors if channels <= 2 else _as_type((colors @ _LUMA)[:, :, np.newaxis], pixels)
    colors = np.repeat(colors, 3, axis=2) if channels <= 2 else colors
    if mode == "rgb":
        return np.ascontiguousarray(colors)
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    alpha = pixels[:, :, -1:] if channels in {2, 4} else np.full((*pixels.shape[:2], 1), top, pixels.dtype)
    return np.concatenate([colors, alpha], axis=2)


def _resized(pixels: Pixels, size: int | ImageSize, max_pixels: int) -> Pixels:
    """Return an image of another size, averaged over the pixels that one pixel replaces."""
    height, width = pixels.shape[:2]
    if isinstance(size, int):
        scale = size / min(height, width)
        longer = max(1, round(max(height, width) * scale))
        if size * longer > max(max_pixels, height * width):
            raise UnreadableImageError(
                f"it has {height:,}×{width:,} pixels, and images.resize={size} for its shorter side makes them "
                f"{size * longer:,}, but source.limits.pixels is {max_pixels:,}; land it in parts, or set "
                "images.resize to a height and a width"
            )
        size = (size, longer) if height <= width else (longer, size)
    if size == (height, width):
        return pixels
    planes = [
        np.asarray(
            Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32)).resize(
                (size[1], size[0]), Image.Resampling.BILINEAR
            )
        )
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return _as_type(np.stack(planes, axis=2), pixels)


def _cropped(pixels: Pixels, crop: int | ImageSize) -> Pixels:
    height, width = pixels.shape[:2]
    high, wide = (crop, crop) if isinstance(crop, int) else crop
    if height < high or width < wide:
        raise UnreadableImageError(
            f"it has {height}×{width} pixels, fewer than images.crop of {high}×{wide}; land a larger image, or set "
            "images.resize"
        )
    top, left = (height - high) // 2, (width - wide) // 2
    return pixels[top : top + high, left : left + wide]


def _padded(pixels: Pixels, pad: int | ImageSize) -> Pixels:
    """Return an image with black margins, so that it has at least a size."""
    high, wide = (pad, pad) if isinstance(pad, int) else pad
    margins = [max(0, size - side) for size, side in zip((high, wide), pixels.shape[:2], strict=True)]
    return np.pad(pixels, [*((margin // 2, margin - margin // 2) for margin in margins), (0, 0)])


def _as_type(values: npt.NDArray[np.floating] | Pixels, like: Pixels) -> Pixels:
    if like.dtype.kind == "f" or values.dtype == like.dtype:
        return values.astype(like.dtype, copy=False)
    return np.clip(np.rint(values), 0, np.iinfo(like.dtype).max).astype(like.dtype)
