"""Image files of all kinds: what is decoded, what is refused and why, and the size that images get."""

import io
import pickle
import re
import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from ae_pipeline.config.columns import ImageShape
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.source import ImagesConfig, SourceConfig
from ae_pipeline.ingestion import image_files
from ae_pipeline.ingestion.contract import _check_shape
from ae_pipeline.ingestion.image_files import decode_image, quiet
from ae_pipeline.ingestion.image_shape import shape_image
from ae_pipeline.ingestion.images import UnreadableImageError, pixels_of
from ae_pipeline.ingestion.readers.files import ReadOptions, read_file
from ae_pipeline.ingestion.readers.image_rows import read_image_row
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def encoded(pixels: npt.NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an encoded image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: bytes, width: int, height: int, depth: int, color: int, *others: bytes) -> bytes:
    """Return a PNG of raw rows, each with its filter byte, with further chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + data + chunk(b"IEND", b"")


def tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    """Return a TIFF that another library wrote."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def interlaced(pixels: npt.NDArray[Any]) -> bytes:
    """Return an interlaced PNG in color."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    stored = pixels.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(stored).tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8 * pixels.dtype.itemsize, 2, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def read(name: str, data: bytes, **images: Any) -> FileRows:
    """Read a file with settings for images."""
    return read_file(name, data, ReadOptions(images=ImagesConfig(**images)))


def arrays(rows: FileRows) -> list[npt.NDArray[Any]]:
    """Return the images of rows."""
    return [pixels_of(image) for image in rows.rows["image"]]


class TestFormats:
    @pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.tif"])
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
    def test_the_content_decides_and_not_the_name(self, kind: str, name: str) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        (image,) = arrays(read(name, encoded(NOISE, kind, **options)))
        np.testing.assert_array_equal(image, NOISE)

    @pytest.mark.parametrize("dtype", [np.uint16, np.float32])
    def test_a_tiff_keeps_the_values_of_measurements(self, dtype: type) -> None:
        values: npt.NDArray[Any] = (np.arange(30).reshape(5, 6) * 2000.5).astype(dtype)
        (image,) = arrays(read("a.tiff", encoded(values, "TIFF")))
        assert image.dtype == dtype
        np.testing.assert_array_equal(image[:, :, 0], values)

    def test_big_endian_16_bit_values_are_right(self) -> None:
        values = np.array([[1, 256, 65535]], np.uint16)
        data = png(b"\x00" + values.astype(">u2").tobytes(), 3, 1, 16, 0)
        (decoded,) = arrays(read("a.png", data))
        np.testing.assert_array_equal(decoded[:, :, 0], values)

    def test_integers_of_32_bits_stay_exact_or_are_refused(self) -> None:
        exact = np.array([[0, -5, 2**24]], np.int32)
        (image,) = arrays(read("a.tiff", encoded(exact, "TIFF")))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image[:, :, 0], exact)
        with pytest.raises(UnreadableImageError, match="exceeds 16,777,216; land it with 16 bits"):
            decode_image(encoded(exact + 1, "TIFF"))

    def test_a_value_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(UnreadableImageError, match="not finite; correct it"):
            decode_image(encoded(np.array([[0, np.nan]], np.float32), "TIFF"))

    @pytest.mark.parametrize("depth", [8, 16])
    def test_gray_with_alpha_has_two_channels(self, depth: int) -> None:
        pixels = b"\x00" + (b"\x40\x80" if depth == 8 else b"\x40\x00\x80\x00")
        (image,) = arrays(read("a.png", png(pixels, 1, 1, depth, 4)))
        assert image.tolist() == [[[0x40, 0x80]]]

    def test_a_tiff_of_several_pages_is_refused(self) -> None:
        pages = [Image.fromarray(NOISE), Image.fromarray(NOISE[::-1].copy())]
        with pytest.raises(UnreadableImageError, match="it has 2 pages; land each page as a file"):
            decode_image(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))

    def test_smaller_pages_of_a_tiff_are_previews(self) -> None:
        preview = Image.fromarray(NOISE[::4, ::4].copy())
        data = encoded(Image.fromarray(NOISE), "TIFF", save_all=True, append_images=[preview])
        np.testing.assert_array_equal(decode_image(data), NOISE)

    @pytest.mark.parametrize("others", [[NOISE[:10, :20]], [NOISE[:9], NOISE[:9]]], ids=["other page", "three pages"])
    def test_pages_of_other_proportions_are_no_previews(self, others: list[npt.NDArray[Any]]) -> None:
        pages = [Image.fromarray(other.copy()) for other in others]
        with pytest.raises(UnreadableImageError, match=f"it has {len(pages) + 1} pages; land each page as a file"):
            decode_image(encoded(Image.fromarray(NOISE), "TIFF", save_all=True, append_images=pages))

    def test_a_preview_may_be_the_first_page(self) -> None:
        preview = Image.fromarray(NOISE[::4, ::4].copy())
        data = encoded(preview, "TIFF", save_all=True, append_images=[Image.fromarray(NOISE)])
        np.testing.assert_array_equal(decode_image(data), NOISE)
        with pytest.raises(UnreadableImageError, match="16×24 pixels, but"):  # not the size of the preview
            decode_image(data, 16 * 24 - 1)

    def test_a_page_that_says_it_is_a_preview_is_one(self) -> None:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as writer:
            writer.write(NOISE, photometric="rgb")
            writer.write(NOISE[:9], photometric="rgb", subfiletype=1)
        np.testing.assert_array_equal(decode_image(buffer.getvalue()), NOISE)

    @pytest.mark.parametrize(
        ("byteorder", "dtype"),
        [
            *(("<", dtype) for dtype in ("int8", "int16", "uint16", "uint32", "int32", "float32")),
            *((">", dtype) for dtype in ("int8", "int16", "uint16", "int32", "float32")),
        ],
    )
    def test_a_tiff_has_the_values_that_other_readers_find(self, dtype: Any, byteorder: Any) -> None:
        top = 2**24 if dtype.endswith("32") else np.iinfo(dtype).max
        values = np.array([[0, 1, top - 1], [top, -1 if dtype[0] == "i" else 2, 7]]).astype(dtype)
        for bigtiff in (False, True) if byteorder == "<" else (False,):
            decoded = decode_image(tiff(values, byteorder=byteorder, bigtiff=bigtiff))
            np.testing.assert_array_equal(decoded[:, :, 0], values)
            assert decoded.dtype == (dtype if dtype == "uint16" else np.float32)

    def test_large_integers_without_a_sign_are_refused_and_not_negative(self) -> None:
        with pytest.raises(UnreadableImageError, match="exceeds 16,777,216"):
            decode_image(tiff(np.full((4, 4), 2**32 - 1, np.uint32)))

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_white_is_the_highest_value_even_if_it_is_stored_as_0(self, dtype: Any) -> None:
        values = np.array([[0, 1, 200]], dtype)
        decoded = decode_image(tiff(values, photometric="miniswhite"))
        np.testing.assert_array_equal(decoded[:, :, 0], np.iinfo(dtype).max - values)

    @pytest.mark.parametrize("dtype", ["uint16", "uint8"])
    def test_color_of_16_bits_and_interlaced_color_keep_the_upper_bits(self, dtype: Any) -> None:
        values = (NOISE.astype(np.uint16) * 257 if dtype == "uint16" else NOISE).astype(dtype)
        np.testing.assert_array_equal(decode_image(interlaced(values)), NOISE)
        np.testing.assert_array_equal(decode_image(tiff(values, photometric="rgb")), NOISE)

    @pytest.mark.parametrize(
        ("shape", "dtype", "kind"),
        [
            ((6, 7), "float64", "1 channel of 64-bit floating-point values for gray"),
            ((6, 7), "float16", "1 channel of 16-bit floating-point values for gray"),
            ((6, 7, 3), "float32", "3 channels of 32-bit floating-point values for RGB"),
            ((6, 7, 5), "uint8", "5 channels of 8-bit integers for gray"),
            ((6, 7), "int64", "1 channel of 64-bit signed integers for gray"),
            ((6, 7, 2), "uint16", "2 channels of 16-bit integers for gray"),
        ],
    )
    def test_the_kind_of_a_tiff_that_is_not_read_is_named(self, shape: tuple[int, ...], dtype: Any, kind: str) -> None:
        photometric = "rgb" if shape[2:] == (3,) else "minisblack"
        data = tiff(np.zeros(shape, dtype), photometric=photometric, planarconfig="contig" if shape[2:] else None)
        with pytest.raises(
            UnreadableImageError, match=f"it is a little-endian TIFF with {kind}, a comb.*; land it as PNG"
        ):
            decode_image(data)

    @pytest.mark.parametrize(
        ("byteorder", "dtype", "kind"),
        [
            (">", "uint16", "a big-endian TIFF with 1 channel of 16-bit integers for gray with white as 0"),
            ("<", "int8", "a little-endian TIFF with 1 channel of 8-bit signed integers for gray with white as 0"),
        ],
    )
    def test_byte_order_and_colors_that_are_not_read_are_named(self, byteorder: Any, dtype: Any, kind: str) -> None:
        data = tiff(np.zeros((6, 7), dtype), photometric="miniswhite", byteorder=byteorder)
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(data)
        assert str(caught.value) == (
            f"it is {kind}, a combination that is not read; land it as PNG, or as a little-endian TIFF of gray 32-bit "
            "floating-point values with black as 0"
        )

    def test_a_thumbnail_with_margins_is_no_page(self) -> None:
        image = np.zeros((700, 900), np.uint8)
        for side, is_read in ((120, True), (180, False)):
            thumbnail = Image.new("L", (160, side))
            for first, second in ((Image.fromarray(image), thumbnail), (thumbnail, Image.fromarray(image))):
                data = encoded(first, "TIFF", save_all=True, append_images=[second])
                if is_read:
                    np.testing.assert_array_equal(decode_image(data)[:, :, 0], image)
                    continue
                with pytest.raises(UnreadableImageError, match="it has 2 pages"):
                    decode_image(data)

    def test_a_small_page_of_a_large_image_is_no_thumbnail_above_512_pixels(self) -> None:
        pages = [Image.new("L", (2400, 2400)), Image.new("L", (513, 400))]
        with pytest.raises(UnreadableImageError, match="it has 2 pages"):
            decode_image(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))

    @pytest.mark.parametrize(
        ("kind", "more"), [("WEBP", {"lossless": True}), ("PNG", {}), ("MPO", {"quality": 100, "subsampling": 0})]
    )
    def test_of_several_pictures_in_a_file_the_first_is_read(self, kind: str, more: dict[str, Any]) -> None:
        flat = np.full_like(NOISE, 90)
        data = encoded(flat, kind, save_all=True, append_images=[Image.fromarray(NOISE)], **more)
        np.testing.assert_array_equal(decode_image(data), flat)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_format_is_rotated_by_its_orientation(self, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        more = {"lossless": True} if kind == "WEBP" else {}
        stored = decode_image(encoded(NOISE, kind, **more))
        flipped = stored[:, ::-1] if orientation in {2, 4, 5, 7} else stored
        turns = {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}.get(orientation, 0)
        expected = np.rot90(flipped, turns)
        np.testing.assert_array_equal(decode_image(encoded(NOISE, kind, exif=exif, **more)), expected)

    @pytest.mark.parametrize(
        ("start", "found"),
        [
            (b"GIF89a", "it is a GIF"),
            (b"\x00\x00\x00\x1cftypheic", "it is a HEIC file"),
            (b"\x00\x00\x00\x1cftyphevc", "it is a HEIC file"),
            (b"\x00\x00\x00\x1cftypavif", "it is an AVIF file"),
            (b"\x00\x00\x00\x1cftypisom", "it is a video"),
            (b"8BPS", "it is a Photoshop file"),
            (b"MM\0+\0\x08", "it is a BigTIFF with big-endian values"),
            (b"%PDF-1.7", "it is a PDF"),
            (b"\xff\x4f\xff\x51", "it is a JPEG 2000 file"),
            (b"\x00\x00\x00\x0cJXL \r\n", "it is a JPEG XL file"),
            (b"\x93NUMPY\x01", "it is a NumPy array"),
            (bytes(128) + b"DICM", "it is a DICOM file"),
            (b"P5\n2 2\n255\n", "it is a Netpbm file"),
            (b"\n<!DOCTYPE HTML><html>", "it is a web page, such as that of a failed download"),
            (b"<?xml version='1.0'?><svg>", "it is an SVG or XML file"),
        ],
    )
    def test_other_formats_are_named(self, start: bytes, found: str) -> None:
        rejected = read("a.png", start + bytes(100)).rejected
        assert rejected["reason"].to_list() == [f"image: {found}; land it as PNG, JPEG, WebP, BMP or TIFF"]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "it is empty (0 bytes); land it again"),
            (b"version https://git-lfs.github.com/spec/v1\n", "not the image; fetch the images with `git lfs pull`"),
            (bytes(99), "or its header is damaged; it may be truncated: land it again"),
            (b"II*\0" + bytes(99), "or its header is damaged; it may be truncated: land it again"),
        ],
    )
    def test_what_is_no_image_has_a_remedy_of_its_own(self, data: bytes, reason: str) -> None:
        with pytest.raises(UnreadableImageError, match=re.escape(reason) + "$"):
            decode_image(data)

    def test_only_the_limit_of_the_yaml_bounds_the_pixels(self) -> None:
        row = b"\0" + bytes(10_000)
        large = png(row * 9_500, 10_000, 9_500, 8, 0)  # 95 million, more than Pillow opens by default
        reason = "it has 9,500×10,000 pixels, but source.limits.pixels is 50,000,000; land a smaller"
        with pytest.raises(UnreadableImageError, match=reason):
            decode_image(large)
        assert decode_image(large, 95_000_000).shape == (9_500, 10_000, 1)
        with pytest.raises(UnreadableImageError, match=r"60,000×60,000 pixels, but source\.limits\.pixels is 95,"):
            decode_image(png(row, 60_000, 60_000, 8, 2), 95_000_000)


class TestDamagedMetadata:
    @pytest.mark.parametrize(
        "others",
        [
            pytest.param([chunk(b"eXIf", b"garbage")], id="EXIF"),
            pytest.param([chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20)))], id="large profile"),
            pytest.param([chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20)))], id="large text"),
            pytest.param([chunk(b"tEXt", b"k\0v")[:-4] + b"\0\0\0\0"], id="checksum"),
            pytest.param([chunk(b"pHYs", b"\0")], id="short chunk"),
            pytest.param([chunk(b"iCCP", b"p\0\7x")], id="unknown compression"),
        ],
    )
    def test_the_pixels_of_a_png_are_read(self, others: list[bytes]) -> None:
        (image,) = arrays(read("a.png", png(b"\x00\x01\x02\x00\x03\x04", 2, 2, 8, 0, *others)))
        assert image[:, :, 0].tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize(
        "segments",
        [
            pytest.param(segment(0xE1, b"Exif\0\0garbage"), id="EXIF"),
            pytest.param(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"), id="EXIF cut off"),
            pytest.param(segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"), id="MPF"),
            pytest.param(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x \xff"), id="XMP"),
            pytest.param(segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff"), id="IPTC"),
            pytest.param(segment(0xE2, b"ICC_PROFILE\0\x02\x01x"), id="profile"),
        ],
    )
    def test_the_pixels_of_a_jpeg_are_read(self, segments: bytes) -> None:
        plain = encoded(NOISE, "JPEG")
        (image,) = arrays(read("a.jpg", plain[:2] + segments + plain[2:]))
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(plain))))

    def test_the_orientation_is_kept_beside_damaged_metadata(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        plain = encoded(NOISE, "JPEG", exif=exif)
        data = plain[:2] + segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff") + plain[2:]
        stored = np.asarray(Image.open(io.BytesIO(encoded(NOISE, "JPEG"))))
        np.testing.assert_array_equal(decode_image(data), np.rot90(stored, -1))

    def test_damaged_pixels_are_no_metadata(self) -> None:
        data = png(b"\x00\x01\x02\x00\x03", 2, 2, 8, 0)  # a pixel is missing
        with pytest.raises(UnreadableImageError, match="land it again"):
            decode_image(data)


class TestShape:
    @pytest.mark.parametrize(
        ("channels", "mode", "expected"),
        [
            (1, "rgb", [100, 100, 100]),
            (2, "grey", [100]),
            (2, "rgba", [100, 100, 100, 50]),
            (3, "grey", [round(0.299 * 100 + 0.587 * 50 + 0.114 * 30)]),
            (3, "rgba", [100, 50, 30, 255]),
            (4, "rgb", [100, 50, 30]),
            (4, "grey", [round(0.299 * 100 + 0.587 * 50 + 0.114 * 30)]),
        ],
    )
    def test_every_image_gets_the_mode(self, channels: int, mode: Any, expected: list[int]) -> None:
        pixel = {1: [100], 2: [100, 50], 3: [100, 50, 30], 4: [100, 50, 30, 7]}[channels]
        image = np.full((2, 2, channels), pixel, np.uint8)
        shaped = shape_image(image, ImagesConfig(mode=mode))
        assert shaped.dtype == np.uint8
        assert shaped[1, 1].tolist() == expected

    def test_gray_of_16_bits_and_floats_get_an_opaque_alpha_of_their_range(self) -> None:
        assert shape_image(np.ones((1, 1, 1), np.uint16), ImagesConfig(mode="rgba"))[0, 0].tolist() == [1, 1, 1, 65535]
        assert shape_image(np.ones((1, 1, 1), np.float32), ImagesConfig(mode="rgba"))[0, 0].tolist() == [1, 1, 1, 1]

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"resize": 8}, (8, 12)),
            ({"resize": [5, 7]}, (5, 7)),
            ({"crop": 10}, (10, 10)),
            ({"crop": [4, 20]}, (4, 20)),
            ({"pad": [20, 10]}, (20, 24)),
            ({"resize": 8, "crop": 8, "pad": [8, 9]}, (8, 9)),
        ],
    )
    def test_every_image_gets_the_size(self, dtype: type, settings: dict[str, Any], expected: tuple[int, int]) -> None:
        image: npt.NDArray[Any] = np.full((16, 24, 3), 200, dtype)
        shaped = shape_image(image, ImagesConfig(**settings))
        assert shaped.shape == (*expected, 3)
        assert shaped.dtype == dtype
        assert set(np.unique(shaped)) <= {0, 200}

    def test_resizing_averages_what_a_pixel_replaces(self) -> None:
        image = np.tile(np.array([[0, 1000], [3000, 4000]], np.uint16), (8, 8))[:, :, None]
        shaped = shape_image(image, ImagesConfig(resize=4))
        assert abs(shaped.astype(float) - 2000).max() < 200

    def test_the_crop_is_the_middle_and_the_margins_are_black(self) -> None:
        image = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
        assert shape_image(image, ImagesConfig(crop=3))[:, :, 0].tolist() == image[1:4, 1:4, 0].tolist()
        padded = shape_image(image, ImagesConfig(pad=7))[:, :, 0]
        assert padded[1:6, 1:6].tolist() == image[:, :, 0].tolist()
        assert padded[[0, -1]].sum() == padded[:, [0, -1]].sum() == 0

    @pytest.mark.parametrize("shape", [(1, 2000, 1), (2000, 1, 1)])
    def test_a_narrow_image_is_not_enlarged_without_a_bound(self, shape: tuple[int, int, int]) -> None:
        image = np.zeros(shape, np.uint8)
        longer = 2000 * 64
        expected = (64, longer, 1) if shape[0] == 1 else (longer, 64, 1)
        assert shape_image(image, ImagesConfig(resize=64)).shape == expected
        with pytest.raises(
            UnreadableImageError,
            match=r"images\.resize=256 .* them 131,072,000, but source\.limits\.pixels is 50,000,000; land",
        ):
            shape_image(image, ImagesConfig(resize=256))

    def test_an_image_may_become_smaller_whatever_the_limit_and_larger_up_to_it(self) -> None:
        image = np.zeros((15, 15, 1), np.uint8)
        assert shape_image(image, ImagesConfig(resize=14), 50).shape == (14, 14, 1)
        assert shape_image(image, ImagesConfig(resize=20), 400).shape == (20, 20, 1)
        with pytest.raises(UnreadableImageError, match=r"them 400, but source\.limits\.pixels is 399; land"):
            shape_image(image, ImagesConfig(resize=20), 399)

    def test_a_large_image_within_a_raised_limit_becomes_smaller(self) -> None:
        assert shape_image(np.zeros((7200, 8000, 1), np.uint8), ImagesConfig(resize=7100)).shape == (7100, 7889, 1)

    def test_the_limit_of_the_yaml_bounds_enlarged_images(self) -> None:
        options = ReadOptions(source=SourceConfig(limits=LimitsConfig(pixels=500)), images=ImagesConfig(resize=20))
        assert "source.limits.pixels is 500" in read_file("a.png", encoded(NOISE), options).rejected["reason"][0]
        row = read_image_row("a.png", encoded(NOISE), options)
        assert isinstance(row, FileRows)
        assert "source.limits.pixels is 500" in row.rejected["reason"][0]

    def test_every_shape_that_settings_give_fits_them(self) -> None:
        random = np.random.default_rng(0)
        checked = 0

        def side() -> Any:
            sides = random.integers(4, 40, 2).tolist()
            return [None, None, sides[0], sides][random.integers(4)]

        while checked < 500:
            patch = [None, None, None, 4][random.integers(4)]
            mode: Any = [None, "grey", "rgb", "rgba"][random.integers(4)]
            images = ImagesConfig(resize=side(), crop=side(), pad=side(), patch=patch, mode=mode)
            image = np.zeros((*random.integers(4, 60, 2), random.integers(1, 5)), np.uint8)
            try:
                shaped = shape_image(image, images)
            except UnreadableImageError:  # smaller than the crop
                continue
            height, width = (patch, patch) if patch else shaped.shape[:2]
            shape = ImageShape(height=height, width=width, channels=shaped.shape[2], dtype="uint8")
            _check_shape(shape, images, "shop", "move it away")
            checked += 1

    def test_an_image_smaller_than_the_crop_is_rejected_alone(self) -> None:
        images = [np.zeros((size, size, 3), np.uint8).tolist() for size in (8, 3)]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"id": [1, 2], "image": images}), buffer)
        file = read("a.parquet", buffer.getvalue(), crop=4)
        assert file.rows["id"].to_list() == [1]
        assert file.rejected.select("row_number", "rule", "reason").rows() == [
            (
                2,
                "image: size",
                "image: it has 3×3 pixels, fewer than images.crop of 4×4; land a larger image, or set images.resize",
            )
        ]

    def test_mixed_sizes_and_channels_become_one_shape(self) -> None:
        files = [encoded(NOISE), encoded(NOISE[:, :, 0].copy()), encoded(NOISE[:9].copy(), "JPEG")]
        shaped = [arrays(read("a.png", data, mode="grey", resize=[8, 8]))[0].shape for data in files]
        assert shaped == [(8, 8, 1)] * 3

    def test_many_channels_have_no_mode(self) -> None:
        with pytest.raises(UnreadableImageError, match=r"it has 5 channels.*; leave out images\.mode"):
            shape_image(np.zeros((2, 2, 5), np.uint8), ImagesConfig(mode="rgb"))

    def test_a_size_of_zero_is_an_error(self) -> None:
        with pytest.raises(ValidationError, match="resize"):
            ImagesConfig(resize=0)


class TestChannelAxis:
    @staticmethod
    def column(*shape: int) -> bytes:
        """Return a Parquet file with one array of a shape."""
        values = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
        buffer = io.BytesIO()
        pq.write_table(pa.table({"id": [1], "image": pa.array([values.tolist()], _lists(3))}), buffer)
        return buffer.getvalue()

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_channels_on_the_first_axis_are_found(self, channels: int) -> None:
        (image,) = arrays(read("a.parquet", self.column(channels, 16, 20)))
        expected = np.arange(channels * 320).reshape(channels, 16, 20).astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(image, expected)

    @pytest.mark.parametrize("shape", [(16, 20, 3), (16, 20, 1), (3, 20, 1), (1, 1, 1)])
    def test_channels_on_the_last_axis_stay(self, shape: tuple[int, int, int]) -> None:
        (image,) = arrays(read("a.parquet", self.column(*shape)))
        assert image.shape == shape

    def test_a_contract_of_an_earlier_version_has_channels_last(self) -> None:
        options = ReadOptions(images=ImagesConfig(), image_dtype="uint8")
        assert arrays(read_file("a.parquet", self.column(16, 16, 16), options))[0].shape == (16, 16, 16)

    @pytest.mark.parametrize("shape", [(16, 16, 16), (3, 16, 4), (1, 16, 3), (3, 20, 3)])
    def test_an_unclear_axis_is_asked_for(self, shape: tuple[int, int, int]) -> None:
        with pytest.raises(
            UnreadableFileError, match=r"channels can be the first or the last axis; set images\.channels"
        ):
            read("a.parquet", self.column(*shape))
        (last,) = arrays(read("a.parquet", self.column(*shape), channels="last"))
        (first,) = arrays(read("a.parquet", self.column(*shape), channels="first"))
        assert (last.shape, first.shape) == (shape, (shape[1], shape[2], shape[0]))

    def test_two_orders_of_axes_in_one_file_are_named(self) -> None:
        images = [np.zeros(shape, np.uint8).tolist() for shape in ((3, 8, 9), (8, 9, 3), (3, 9, 3))]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"id": [1, 2, 3], "image": pa.array(images, _lists(3))}), buffer)
        message = "arrays of 3×8×9, with the channels first, and of 8×9×3, with the channels last; land all"
        with pytest.raises(UnreadableFileError, match=message):
            read("a.parquet", buffer.getvalue())

    def test_bytes_of_an_object_are_never_unpickled(self) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return pytest.fail, ("unpickled",)

        arrays = io.BytesIO()
        np.save(arrays, np.array([Bomb()], dtype=object))
        buffer = io.BytesIO()
        pq.write_table(pa.table({"id": [1, 2], "image": [arrays.getvalue(), pickle.dumps(Bomb())]}), buffer)
        reasons = read("a.parquet", buffer.getvalue()).rejected["reason"].to_list()
        assert reasons[0].startswith("image: it is a NumPy array; land it as PNG")
        assert reasons[1].startswith("image: it is not PNG")


def _lists(depth: int) -> pa.DataType:
    kind: pa.DataType = pa.uint8()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


class TestEdge:
    @pytest.mark.parametrize(
        ("edge", "tops", "lefts"),
        [("ignore", [0, 4], [0, 4, 8]), ("flush", [0, 4, 7], [0, 4, 8, 10]), ("pad", [0, 4, 8], [0, 4, 8, 12])],
    )
    def test_patches_cover_what_the_setting_says(self, edge: Any, tops: list[int], lefts: list[int]) -> None:
        image = NOISE[:11, :14]
        file = read("a.png", encoded(image.copy()), patch=4, edge=edge)
        assert file.rows.select("top", "left").rows() == [(top, left) for top in tops for left in lefts]
        padded = np.pad(image, ((0, 4), (0, 4), (0, 0)), mode="edge")
        for patch, (top, left) in zip(arrays(file), file.rows.select("top", "left").iter_rows(), strict=True):
            np.testing.assert_array_equal(patch, padded[top : top + 4, left : left + 4])

    def test_an_image_smaller_than_a_patch_is_padded_or_refused(self) -> None:
        data = encoded(NOISE[:3].copy())
        assert read("a.png", data, patch=4, edge="pad").rows.height == 6
        flush = read("a.png", data, patch=4)
        assert (flush.rows.height, flush.rejected.height) == (0, 1)
        assert "fewer than a patch of 4×4" in flush.rejected["reason"][0]


def outcome(data: bytes, max_pixels: int | None = None) -> str | tuple[tuple[int, ...], str, bytes]:
    """Return shape, type and bytes of a decoded image, or why it is refused."""
    try:
        pixels = decode_image(data, max_pixels)
    except UnreadableImageError as error:
        return str(error)
    return pixels.shape, pixels.dtype.name, pixels.tobytes()


def plain_kinds() -> dict[str, bytes]:
    """Return PNG files of the most frequent kinds, and of kinds that are almost like them."""
    rng = np.random.default_rng(1)
    large = rng.integers(0, 256, (200, 250, 3), dtype=np.uint8)
    gray, rgba = Image.fromarray(NOISE[:, :, 0]), Image.fromarray(NOISE).convert("RGBA")
    rows = b"".join(b"\4" + row.tobytes() for row in NOISE)
    pixels = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 0)
    start, end = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header), chunk(b"IEND", b"")
    first, second = chunk(b"IDAT", pixels[:300]), chunk(b"IDAT", pixels[300:])
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "gray": encoded(gray),
        "RGB": encoded(NOISE),
        "RGBA": encoded(rgba),
        "gray with alpha": encoded(gray.convert("LA")),
        "several chunks": encoded(large),
        "chunks of other writers": png(rows, 24, 16, 8, 2, chunk(b"gAMA", bytes(4)), chunk(b"pHYs", bytes(9))),
        "short chunk": png(rows, 24, 16, 8, 2, chunk(b"pHYs", b"1")),
        "palette": encoded(Image.fromarray(NOISE).quantize(7)),
        "black and white": encoded(gray.convert("1")),
        "16 bits": encoded(NOISE[:, :, 0].astype(np.uint16) * 257),
        "transparent color": encoded(gray, transparency=7),
        "rotated": encoded(NOISE, exif=exif),
        "text": encoded(NOISE, pnginfo=_text("Raw profile type exif", "x")),
        "interlaced": png(rows, 24, 16, 8, 2).replace(chunk(b"IHDR", header), chunk(b"IHDR", header[:-1] + b"\1")),
        "split pixels": start + first + chunk(b"tIME", bytes(7)) + second + end,
        "damaged header": start[:-1] + b"x" + first + second + end,
        "damaged chunk": start + first[:-1] + b"x" + second + end,
        "no end": start + first + second,
        "more behind the end": start + first + second + end + b"more",
        "empty chunk": start + chunk(b"IDAT", b"") + first + second + end,
        "no pixels": start + end,
        "missing rows": start + chunk(b"IDAT", zlib.compress(rows[:500])) + end,
        "too many rows": start + chunk(b"IDAT", zlib.compress(rows + rows)) + end,
        "damaged pixels": start + first + chunk(b"IDAT", pixels[300:600] + bytes(40) + pixels[640:]) + end,
        "damaged checksum": start + first + chunk(b"IDAT", pixels[300:-4] + bytes(4)) + end,
        "missing checksum": start + first + chunk(b"IDAT", pixels[300:-4]) + end,
        "unknown filter": png(b"\x09" + rows[1:], 24, 16, 8, 2),
        "no width": png(rows, 0, 16, 8, 2),
    }


def _text(key: str, text: str) -> PngInfo:
    info = PngInfo()
    info.add_text(key, text)
    return info


class TestPlainPng:
    @pytest.mark.parametrize("kind", plain_kinds())
    @pytest.mark.parametrize("max_pixels", [None, 300])
    def test_the_result_is_that_of_opening_the_file(
        self, kind: str, max_pixels: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = plain_kinds()[kind]
        direct = outcome(data, max_pixels)
        monkeypatch.setattr(image_files, "_decode_plain_png", lambda *_: None)
        assert outcome(data, max_pixels) == direct

    @pytest.mark.parametrize("kind", ["gray", "chunks of other writers"])
    def test_a_file_cut_anywhere_gives_the_same_reason(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = plain_kinds()[kind]
        cuts = range(0, len(data), 3)
        direct = [outcome(data[:cut]) for cut in cuts]
        monkeypatch.setattr(image_files, "_decode_plain_png", lambda *_: None)
        assert [outcome(data[:cut]) for cut in cuts] == direct

    @pytest.mark.parametrize("kind", list(plain_kinds())[:6])
    def test_the_file_is_not_opened_by_pillow(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = plain_kinds()[kind]
        with Image.open(io.BytesIO(data)) as image:
            expected = np.atleast_3d(np.asarray(image))
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
        assert np.array_equal(decode_image(data), expected)


def test_threads_that_decode_at_once_leave_the_filters_of_warnings_as_they_were() -> None:
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    first, second = threading.Event(), threading.Event()

    def inside(mine: threading.Event, other: threading.Event) -> None:
        with quiet:
            mine.set()
            assert other.wait(10)

    threads = [threading.Thread(target=inside, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    assert limit is not None
    assert limit == Image.MAX_IMAGE_PIXELS
