"""Formats of image files: which are read, and what a file is that has none of them."""

import io
import re
from contextlib import suppress

from PIL.TiffImagePlugin import ImageFileDirectory_v2

IMAGE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff")
"""Suffixes of image files. The content decides on the format, whatever the suffix."""

IMAGE_FORMATS = "PNG, JPEG, WebP, BMP or TIFF"
"""Formats of image files, for messages."""

_STARTS = {
    b"GIF8": "a GIF",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"\x00\x00\x01\x00": "an icon",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\xff\x0a": "a JPEG XL file",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL file",
    b"v/1\x01": "an OpenEXR file",
    b"SIMPLE  =": "a FITS file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n": "an HDF5 file",
    b"PK\x03\x04": "a zip file, or a NumPy archive",
    b"\x1f\x8b": "a gzip file",
    b"qoif": "a QOI file",
    b"MM\0+": "a BigTIFF with big-endian values",
    b"\x0a\x05\x01\x08": "a PCX file",
}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "an AVIF file"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIC file"),
    **dict.fromkeys((b"mif1", b"msf1"), "a HEIF file"),
    b"crx ": "a raw file of a camera",
}
_TEXTS = (
    (re.compile(rb"\s*<(!doctype html|html|head)", re.I), "a web page, such as that of a failed download"),
    (re.compile(rb"\s*(<\?xml|<svg|<!--)", re.I), "an SVG or XML file"),
    (re.compile(rb"P[1-7]\s"), "a Netpbm file"),
)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0")
_READ_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *_TIFF_MAGIC)
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
"""Sizes of the second header of a BMP, which start that header."""

_SAMPLE_FORMATS = {2: "signed integers", 3: "floating-point values"}
_COLORS = {0: "gray with white as 0", 1: "gray", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 339


def is_read_format(data: bytes) -> bool:
    """Return whether a file starts as one of the formats that are read.

    Args:
        data: At least the first 18 bytes.

    >>> is_read_format(b"RIFF1234WEBP"), is_read_format(b"BMW 1.0"), is_read_format(b"GIF89a")
    (True, False, False)
    """
    is_bmp = data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS
    return is_bmp or data.startswith(_READ_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def describe_format(data: bytes) -> str | None:
    """Return what a file is whose format is not read, or None if its content shows nothing.

    >>> describe_format(b"GIF89a")
    'a GIF'
    """
    if name := next((name for start, name in _STARTS.items() if data.startswith(start)), None):
        return name
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    if data[128:132] == b"DICM":
        return "a DICOM file"
    return next((name for pattern, name in _TEXTS if pattern.match(data)), None)


def why_unidentified(data: bytes) -> str:
    """Return why a file has no format that is read, with the remedy.

    >>> why_unidentified(b"")
    'it is empty (0 bytes); land it again'
    """
    if not data:
        return "it is empty (0 bytes); land it again"
    if data.startswith(b"version https://git-lfs."):
        return "it is a pointer of Git LFS, not the image; fetch the images with `git lfs pull`"
    if kind := describe_format(data):
        return f"it is {kind}; land it as {IMAGE_FORMATS}"
    if kind := _kind_of_tiff(data):
        return (
            f"it is {kind}, a combination that is not read; land it as PNG, or as a little-endian TIFF of gray 32-bit "
            "floating-point values with black as 0"
        )
    return f"it is not {IMAGE_FORMATS}, or its header is damaged; it may be truncated: land it again"


def _kind_of_tiff(data: bytes) -> str:
    """Return byte order, channels, colors and type of the values of a TIFF; empty if its header cannot be read."""
    if not data.startswith(_TIFF_MAGIC):
        return ""
    with suppress(Exception):  # damaged headers fail in any way
        file = io.BytesIO(data)
        directory = ImageFileDirectory_v2(file.read(16 if b"+" in data[2:4] else 8))
        file.seek(directory.next)
        directory.load(file)
        samples, bits = int(directory.get(_SAMPLES, 1)), int(directory[_BITS][0])
        values = _SAMPLE_FORMATS.get(directory.get(_SAMPLE_FORMAT, (1,))[0], "integers")
        order = "big" if data.startswith(b"MM") else "little"
        colors = _COLORS.get(int(directory.get(_PHOTOMETRIC, -1)), "other colors")
        return (
            f"a {order}-endian TIFF with {samples} channel{'s' if samples > 1 else ''} of {bits}-bit {values} for "
            f"{colors}"
        )
    return ""
