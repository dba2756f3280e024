"""Decode image files: PNG, JPEG, WebP, BMP and TIFF, recognized by their content."""

import io
import struct
import threading
import warnings
import zlib
from contextlib import ExitStack, suppress

import numpy as np
from PIL import Image, UnidentifiedImageError

from ae_pipeline.common.text import first_line
from ae_pipeline.ingestion.images import Pixels, UnreadableImageError

IMAGE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff")
"""Suffixes of image files. The content decides on the format, whatever the suffix."""

IMAGE_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
"""Formats of image files, for messages."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF")
_OTHER_FORMATS = {
    b"GIF8": "a GIF",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"\x00\x00\x01\x00": "an icon",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x0a": "a JPEG XL file",
    b"v/1\x01": "an OpenEXR file",
    b"SIMPLE  =": "a FITS file",
}
_BRANDS = {b"avif": "an AVIF file", b"heic": "a HEIC file", b"heix": "a HEIC file", b"mif1": "a HEIF file"}
# Errors that Pillow is known to raise for incomplete or invalid files.
_DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, AttributeError, OverflowError, EOFError),
    *(ZeroDivisionError, NotImplementedError, RuntimeError, struct.error, zlib.error),
)
_SIZE_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
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
    gray with alpha to the upper 8 bits.

    Args:
        data: Content of the file.
        max_pixels: Maximum number of pixels, checked before they are decoded.

    Returns:
        Array of uint8, uint16 or float32 with shape (height, width, channels).

    Raises:
        UnreadableImageError: The bytes are an image of none of the formats, are truncated, have too many pixels, or
            hold several pages.
    """
    if (plain := _decode_plain_png(data, max_pixels)) is not None:
        return plain
    try:
        return _decode(data, max_pixels)
    except _SIZE_ERRORS as error:
        raise UnreadableImageError(
            f"it has too many pixels to be opened safely ({first_line(error)}); land a smaller image, or parts of it"
        ) from error
    except _DECODING_ERRORS as error:
        # Pillow refuses some files whose metadata is damaged or large, although their pixels are whole.
        if (bare := _without_metadata(data)) is not None:
            with suppress(*_DECODING_ERRORS, *_SIZE_ERRORS):
                return _decode(bare, max_pixels, _orientation_of(data))
        if isinstance(error, UnidentifiedImageError):
            raise UnreadableImageError(_unknown_format(data)) from error
        raise UnreadableImageError(
            f"it cannot be read as an image ({first_line(error)}); it may be truncated: land it again"
        ) from error


def _decode(data: bytes, max_pixels: int | None, orientation: int | None = None) -> Pixels:
    with quiet, Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        if max_pixels is not None and opened.width * opened.height > max_pixels:
            raise UnreadableImageError(
                f"it has {opened.width:,}×{opened.height:,} pixels, but source.limits.pixels is {max_pixels:,}; land a "
                "smaller image, or parts of it, or raise source.limits.pixels in the YAML"
            )
        _check_pages(opened)
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
        pixels = _as_supported_type(np.asarray(image), opened.format or "")
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def _decode_plain_png(data: bytes, max_pixels: int | None) -> Pixels | None:
    """Return the pixels that `_decode` would return, of a PNG of the most frequent kinds; None for all other files.

    Pillow's decoder gets the pixels directly, because Pillow takes as long to open a file as to decode a small image.
    """
    mode = _PLAIN_MODES.get(data[24:29]) if data.startswith(_PLAIN_PNG) else None
    if mode is None or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not 0 < width * height <= (_PLAIN_PIXELS if max_pixels is None else min(max_pixels, _PLAIN_PIXELS)):
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
    if pixels.dtype.itemsize == 2 or file_format == "PNG":  # mode I;16, or mode I before Pillow 11
        return pixels.astype(np.uint16)
    if np.abs(pixels.astype(np.int64)).max(initial=0) > _LARGEST_EXACT_FLOAT32:
        raise UnreadableImageError("a value in it exceeds 16,777,216; land it with 16 bits or floating-point values")
    return pixels.astype(np.float32)


def _check_pages(image: Image.Image) -> None:
    """Refuse a TIFF with several images. Smaller pages are previews."""
    if image.format != "TIFF" or (pages := getattr(image, "n_frames", 1)) == 1:
        return
    first = image.size
    for page in range(1, pages):
        image.seek(page)
        if image.size == first:
            raise UnreadableImageError(f"it has {pages} pages; land each page as a file")
    image.seek(0)


def _orientation(image: Image.Image) -> int:
    with suppress(*_DECODING_ERRORS):
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _orientation_of(data: bytes) -> int:
    """Return the orientation of a file that cannot be decoded as it is; 1 if its metadata cannot be read either."""
    with (
        suppress(*_DECODING_ERRORS, *_SIZE_ERRORS),
        quiet,
        Image.open(io.BytesIO(data), formats=_FORMATS) as image,
    ):
        return _orientation(image)
    return 1


class _Quiet:
    """Make too many pixels an error, and be silent about metadata, while at least one thread is inside.

    The first thread sets the filters of warnings, which are those of the process, and the last one restores them.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._filters = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
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


def _unknown_format(data: bytes) -> str:
    kind = next((name for start, name in _OTHER_FORMATS.items() if data.startswith(start)), None)
    kind = kind or (_BRANDS.get(data[8:12]) if data[4:8] == b"ftyp" else None)
    if kind:
        return f"it is {kind}; land it as {IMAGE_FORMATS}"
    return f"it is not {IMAGE_FORMATS}, or its header is damaged; it may be truncated: land it again"
