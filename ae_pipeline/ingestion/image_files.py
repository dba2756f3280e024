"""Decode image files: PNG, JPEG, WebP, BMP and TIFF, recognized by their content."""

import io
import math
import struct
import threading
import warnings
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ae_pipeline.common.text import first_line
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.ingestion.image_formats import why_unidentified
from ae_pipeline.ingestion.images import Pixels, UnreadableImageError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF")
# Errors that Pillow is known to raise for incomplete or invalid files.
_DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError),
    *(ZeroDivisionError, NotImplementedError, RuntimeError, struct.error, zlib.error),
)
_CONVERTED_MODES = {
    "1": "L",
    "PA": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "RGBX": "RGB",
    "La": "LA",
    "RGBa": "RGBA",
}
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset({5, 6, 7, 8})
"""Orientations in which width and height change places."""

_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339
"""Tags of a TIFF."""

_REDUCED, _MASK, _SIGNED = 1, 4, 2
"""Their values: what a page is, and integers with a sign."""

_THUMBNAIL = 512
"""Largest side of a thumbnail."""

_LARGEST_EXACT_FLOAT32 = 2**24
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PLAIN_PNG = _PNG_MAGIC + b"\0\0\0\rIHDR"
_PLAIN_MODES = {b"\x08\0\0\0\0": "L", b"\x08\2\0\0\0": "RGB", b"\x08\4\0\0\0": "LA", b"\x08\6\0\0\0": "RGBA"}
"""Mode of Pillow by depth, color, compression, filter and interlacing of a PNG."""

_PLAIN_CHUNKS = {b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD", b"pHYs", b"tIME"}
_PLAIN_PIXELS = 1 << 20
"""Number of pixels up to which it matters how long Pillow takes to open a file."""


def decode_image(data: bytes, max_pixels: int | None = None) -> Pixels:
    """Decode an image file, and rotate it as its EXIF orientation says. Metadata that cannot be read is ignored.

    Gray, gray with alpha, RGB and RGBA are kept. A palette is replaced by its colors, black and white becomes gray, and
    CMYK becomes RGB. Gray with 16 bits or with floating-point values keeps them; Pillow reduces 16-bit color and 16-bit
    gray with alpha to the upper 8 bits. Of an animation, the first picture is read.

    Args:
        data: Content of the file.
        max_pixels: Maximum number of pixels, checked before they are decoded; by default that of `LimitsConfig`.

    Returns:
        Array of uint8, uint16 or float32 with shape (height, width, channels).

    Raises:
        UnreadableImageError: The bytes are an image of none of the formats, are truncated, have too many pixels, or
            hold several pages.
    """
    max_pixels = LimitsConfig().pixels if max_pixels is None else max_pixels
    if (plain := _decode_plain_png(data, max_pixels)) is not None:
        return plain
    try:
        return _decode(data, max_pixels)
    except _DECODING_ERRORS as error:
        # Pillow refuses some files whose metadata is damaged or large, although their pixels are whole.
        if (bare := _without_metadata(data)) is not None:
            with suppress(*_DECODING_ERRORS):
                return _decode(bare, max_pixels, _orientation_of(data))
        if isinstance(error, UnidentifiedImageError):
            raise UnreadableImageError(why_unidentified(data)) from error
        raise UnreadableImageError(
            f"it cannot be read as an image ({first_line(error)}); it may be truncated: land it again"
        ) from error


def look_at_image(path: Path) -> tuple[int, int, str] | None:
    """Return height and width of an image file, upright, and its mode in Pillow; None if it cannot be read.

    The pixels are not decoded.

    Args:
        path: Path of the file.
    """
    with (
        suppress(UnreadableImageError, *_DECODING_ERRORS),
        quiet,
        Image.open(path, formats=_FORMATS) as image,
    ):
        if image.format == "TIFF":
            _choose_page(image)
        exif = Image.Image.getexif(image)  # that of a PNG would decode the pixels
        is_turned = exif.get(_ORIENTATION) in _TURNED
        mode = "RGBA" if image.mode == "P" and "transparency" in image.info else image.mode
        height, width = image.size if is_turned else image.size[::-1]
        return height, width, mode
    return None


def _decode(data: bytes, max_pixels: int, orientation: int | None = None) -> Pixels:
    with quiet, Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        if opened.format == "TIFF":
            _choose_page(opened)
        if opened.width * opened.height > max_pixels:
            raise UnreadableImageError(
                f"it has {opened.height:,}×{opened.width:,} pixels, but source.limits.pixels is {max_pixels:,}; land a "
                "smaller image, or parts of it, or raise source.limits.pixels in the YAML"
            )
        is_gray_with_alpha = opened.format == "PNG" and data[25:26] == b"\x04"  # Pillow opens 16 bits of it as RGBA
        opened.load()
        orientation = orientation or _orientation(opened)
        image: Image.Image = opened
        if orientation in _UPRIGHT:
            image = opened.transpose(_UPRIGHT[orientation])
        if is_gray_with_alpha and image.mode == "RGBA":
            image = image.convert("LA")
        elif image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode in _CONVERTED_MODES:
            image = image.convert(_CONVERTED_MODES[image.mode])
        pixels = _tiff_values(np.asarray(image), opened) if opened.format == "TIFF" else np.asarray(image)
        pixels = _as_supported_type(pixels, opened.format or "")
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def _decode_plain_png(data: bytes, max_pixels: int) -> Pixels | None:
    """Return the pixels that `_decode` would return, of a PNG of the most frequent kinds; None for all other files.

    Pillow's decoder gets the pixels directly, because Pillow takes as long to open a file as to decode a small image.
    """
    mode = _PLAIN_MODES.get(data[24:29]) if data.startswith(_PLAIN_PNG) else None
    if mode is None or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not 0 < width * height <= min(max_pixels, _PLAIN_PIXELS):
        return None
    parts: list[bytes] = []
    start, kind = 33, b""
    while kind != b"IEND":
        end, kind = start + 12 + int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if end > len(data) or kind not in _PLAIN_CHUNKS or (parts and kind not in {b"IDAT", b"IEND"}):
            return None
        if kind == b"IDAT":
            parts.append(data[start + 8 : end - 4])
        start = end
    try:
        image = Image.frombytes(mode, (width, height), b"".join(parts), "zip", mode)
    except _DECODING_ERRORS:  # `_decode` says what is wrong
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, len(mode))


def _as_supported_type(pixels: Pixels, file_format: str) -> Pixels:
    """Return pixels as uint8, uint16 or float32 without a loss."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise UnreadableImageError("a value in it is not finite; correct it at the source")
        return pixels.astype(np.float32)
    if pixels.dtype.str[1:] == "u2" or file_format == "PNG":  # mode I;16, or mode I before Pillow 11
        return pixels.astype(np.uint16)
    if np.abs(pixels.astype(np.int64)).max(initial=0) > _LARGEST_EXACT_FLOAT32:
        raise UnreadableImageError("a value in it exceeds 16,777,216; land it with 16 bits or floating-point values")
    return pixels.astype(np.float32)


def _choose_page(image: Image.Image) -> None:
    """Go to the page of a TIFF that is the image. Others are previews of it, or the file is refused."""
    if (pages := getattr(image, "n_frames", 1)) == 1:
        return
    sizes: dict[int, tuple[int, int]] = {}
    for page in range(pages):
        image.seek(page)
        if not _tag(image, _SUBFILE_TYPE) & (_REDUCED | _MASK):
            sizes[page] = image.size
    best = max(sizes, key=lambda page: math.prod(sizes[page]), default=0)
    if any(page != best and not _is_preview(size, sizes[best]) for page, size in sizes.items()):
        raise UnreadableImageError(f"it has {pages} pages; land each page as a file")
    image.seek(best)


def _is_preview(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """Return whether an image can be another one at a smaller scale: with its proportions, or as a thumbnail.

    Thumbnails of a fixed size have margins where the image has other proportions.
    """
    is_thumbnail = all(4 * side <= full and side <= _THUMBNAIL for side, full in zip(size, of, strict=True))
    has_proportions = abs(size[0] * of[1] - size[1] * of[0]) <= max(of)
    return is_thumbnail or (size[0] < of[0] and size[1] < of[1] and has_proportions)


def _tag(image: Image.Image, tag: int) -> int:
    """Return the first value of a tag of a TIFF; 0 if it has none."""
    value = getattr(image, "tag_v2", {}).get(tag, 0)
    return int(value[0] if isinstance(value, tuple) else value)


def _tiff_values(pixels: Pixels, image: Image.Image) -> Pixels:
    """Return the values of a TIFF that Pillow gives without their sign, or with white as 0."""
    is_signed = _tag(image, _SAMPLE_FORMAT) == _SIGNED
    if is_signed and image.mode == "L":
        return pixels.view(np.int8)
    if not is_signed and image.mode == "I" and _tag(image, _BITS) == 32:
        return pixels.view(np.uint32)
    if image.mode.startswith("I;16") and _PHOTOMETRIC in getattr(image, "tag_v2", {}) and not _tag(image, _PHOTOMETRIC):
        return np.iinfo(np.uint16).max - pixels
    return pixels


def _orientation(image: Image.Image) -> int:
    with suppress(*_DECODING_ERRORS):
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _orientation_of(data: bytes) -> int:
    """Return the orientation of a file that cannot be decoded as it is; 1 if its metadata cannot be read either."""
    with (
        suppress(*_DECODING_ERRORS),
        quiet,
        Image.open(io.BytesIO(data), formats=_FORMATS) as image,
    ):
        return _orientation(image)
    return 1


class _Quiet:
    """Be silent about metadata, and leave the number of pixels to us, while at least one thread is inside.

    The first thread sets filters of warnings and a limit of Pillow, which are those of the process, and the last one
    restores them.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._filters = threading.Lock(), 0, ExitStack()
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", UserWarning)
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._filters.close()


quiet = _Quiet()
"""Context of all that decodes images. Around many of them, it saves the time to change the filters for each."""


def _without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG without the parts that do not shape its pixels; None for other formats and damaged files."""
    if data.startswith(_PNG_MAGIC):
        return _bare_png(data)
    return _bare_jpeg(data) if data.startswith(b"\xff\xd8") else None


def _bare_png(data: bytes) -> bytes | None:
    parts, start = [data[:8]], 8
    while start + 12 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 12 + length
        if end > len(data):
            return None
        if kind in {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}:
            parts.append(data[start:end])
        start = end
        if kind == b"IEND":
            return b"".join(parts)
    return None


def _bare_jpeg(data: bytes) -> bytes | None:
    """Return a JPEG without its application segments and comments. Segment 14 tells how colors are coded."""
    parts, start = [data[:2]], 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker == 0xDA:  # the pixels follow
            return b"".join([*parts, data[start:]])
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if not (marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE)):
            parts.append(data[start:end])
        start = end
    return None
