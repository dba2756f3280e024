"""Images: from PNG, JPEG and Parquet files to the bytes in raw rows and features, or to quarantine."""

import datetime as dt
import importlib.util
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from ae_pipeline.cli import demo
from ae_pipeline.common.errors import ConfigError, SchemaError, StorageError
from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.features.build import build_features_day, feature_columns
from ae_pipeline.ingestion import batch, patches
from ae_pipeline.ingestion.contract import ColumnRule, load_contract
from ae_pipeline.ingestion.copy_writer import Copy, CopyWriter
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.ingestion.readers.files import ReadOptions, read_file
from tests.support.datasets import REMEDY, LandedDataset, assert_says, leftovers, make_dataset

pytestmark = pytest.mark.slow

UNDATED: dict[str, Any] = {"event_time": None, "start": None, "end": None}
GRAY = np.arange(30, dtype=np.uint8).reshape(5, 6)
"""An image of five rows and six columns with different values."""


def image_files(root: Path, **settings: Any) -> LandedDataset:
    """Return a dataset of image files without event time."""
    return make_dataset(root, **{**UNDATED, "identity": ["file"], "images": {}, **settings})


def image_tables(root: Path, **settings: Any) -> LandedDataset:
    """Return a dataset of Parquet files with images, without event time."""
    return make_dataset(root, **{**UNDATED, "images": {}, **settings})


def encoded(pixels: npt.NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an encoded image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def table(images: pa.Array | list[Any], **columns: Any) -> bytes:
    """Return a Parquet file of images with ids from 1."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": range(1, len(images) + 1), "image": images, **columns}), buffer)
    return buffer.getvalue()


def lists(*images: Any, of: pa.DataType, depth: int = 2) -> pa.Array:
    """Return nested lists with numbers of a type."""
    kind = of
    for _ in range(depth):
        kind = pa.list_(kind)
    return pa.array([image.tolist() if isinstance(image, np.ndarray) else image for image in images], kind)


def shapes(dataset: LandedDataset) -> str:
    """Ingest the landed files, and return the shape of images in the contract."""
    return str(dataset.ingest().contract.columns["image"].shape)


def images_of(dataset: LandedDataset) -> list[npt.NDArray[Any]]:
    """Ingest the landed files, and return the images of all rows in the shape of the contract."""
    shape = dataset.ingest().contract.columns["image"].shape
    assert shape is not None
    kind = np.dtype(shape.dtype).newbyteorder("<")
    return [
        np.frombuffer(row[0], kind).reshape(shape.height, shape.width, shape.channels) for row in dataset.rows("image")
    ]


# PNG and JPEG


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["gray", "gray and alpha", "RGB", "RGBA"])
def test_a_png_gives_its_original_values(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(channels).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(pixels.squeeze()))
    assert shapes(shop) == f"5×6×{channels} uint8"
    np.testing.assert_array_equal(images_of(shop), [pixels])


def test_a_palette_is_replaced_by_its_colors(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (30, 3), dtype=np.uint8)
    image = Image.fromarray(GRAY).convert("L")
    image.putpalette(colors.tobytes())
    opaque, clear = image_files(tmp_path / "opaque"), image_files(tmp_path / "clear")
    opaque.land("a.png", encoded(image))
    clear.land("a.png", encoded(image, transparency=7))
    alpha = np.where(GRAY == 7, 0, 255)[:, :, np.newaxis]
    np.testing.assert_array_equal(images_of(opaque), [colors[GRAY]])
    np.testing.assert_array_equal(images_of(clear), [np.concatenate([colors[GRAY], alpha], axis=2)])


def test_black_and_white_becomes_0_and_255(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY % 3 == 0))
    np.testing.assert_array_equal(images_of(shop), [np.where(GRAY % 3 == 0, 255, 0)[:, :, np.newaxis]])


def test_gray_with_16_bits_keeps_16_bits(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 255], [256, 4660, 65535]], dtype=np.uint16)
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(pixels))
    assert shapes(shop) == "2×3×1 uint16"
    assert shop.rows("image") == [(struct.pack("<6H", *pixels.ravel().tolist()),)]


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    shop = image_files(tmp_path)
    shop.land("a.jpg", data)
    (image,) = images_of(shop)
    assert image.shape == (8, 8, 3)
    np.testing.assert_allclose(image.reshape(-1, 3).mean(axis=0), [255, 0, 0], atol=5)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda image: image),
        (2, np.fliplr),
        (3, lambda image: np.rot90(image, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (8, np.rot90),
    ],
    ids=["upright", "mirrored", "upside down", "rotated left", "rotated right"],
)
@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png"])
def test_an_image_is_rotated_by_its_exif_orientation(
    tmp_path: Path, orientation: int, upright: Any, ending: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind = "PNG" if ending == "png" else "JPEG"
    pixels = np.repeat(np.repeat(GRAY * 8, 8, axis=0), 8, axis=1)
    shop = image_files(tmp_path)
    shop.land(f"a.{ending}", encoded(pixels, kind, exif=exif))
    stored = np.asarray(Image.open(io.BytesIO(encoded(pixels, kind))))
    np.testing.assert_array_equal(images_of(shop), [upright(stored)[:, :, np.newaxis]])


def test_path_and_its_named_groups_become_columns(tmp_path: Path) -> None:
    shop = image_files(tmp_path, images={"path": r"(?P<kind>[a-z]+)/(?P<number>\d+)"})
    shop.land("new/brick/7.png", encoded(GRAY))
    shop.land("grass/12.png", encoded(GRAY))
    assert shop.rows("file", "kind", "number") == [("grass/12.png", "grass", 12), ("new/brick/7.png", "brick", 7)]
    assert list(shop.ingest().contract.columns) == ["file", "kind", "number", "image"]


def test_an_image_whose_path_does_not_match_is_quarantined(tmp_path: Path) -> None:
    shop = image_files(tmp_path, images={"path": r"(?P<kind>[a-z]+)/"})
    shop.land("brick/7.png", encoded(GRAY))
    shop.land("8.png", encoded(GRAY))
    assert shop.rows("file") == [("brick/7.png",)]
    ((*index, reason),) = shop.quarantine()
    assert index == ["8.png", 1, "file: path"]
    assert_says(reason, r"file = 8\.png does not match images\.path='\(\?P<kind>\[a-z\]\+\)/'", REMEDY)
    shop.land("grass/8.png", encoded(GRAY))
    (shop.paths.landing / "8.png").unlink()
    assert (shop.rows("kind"), shop.quarantine()) == ([("brick",), ("grass",)], [])


def oversized() -> bytes:
    """Return a PNG of a few bytes whose header declares 100,000 × 100,000 pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))]
    framed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


BROKEN = [
    pytest.param(b"", "it is empty", id="empty"),
    pytest.param(b"not an image", "it is not PNG, JPEG, WebP, BMP or TIFF", id="text"),
    pytest.param(encoded(GRAY, "GIF"), "it is a GIF; land it as PNG", id="GIF"),
    pytest.param(encoded(GRAY)[:-30], "truncated", id="truncated"),
    pytest.param(oversized(), "it has 100,000×100,000 pixels", id="oversized"),
]


@pytest.mark.parametrize("name", ["b.png", "b.jpg"])
@pytest.mark.parametrize(("data", "problem"), BROKEN)
def test_a_broken_image_is_quarantined_until_it_is_corrected(
    tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY))
    shop.land(name, data)
    assert_says(shop.ingest().ledger.refused[name], "it does not satisfy the schema contract: ", problem)
    assert shop.rows("file") == [("a.png",)]
    ((*index, reason),) = shop.quarantine()
    assert index == [name, 1, "image: readable"]
    assert_says(reason, problem, REMEDY)
    shop.land(name, encoded(GRAY + 1))
    np.testing.assert_array_equal(images_of(shop), [GRAY[:, :, np.newaxis], GRAY[:, :, np.newaxis] + 1])
    assert (shop.quarantine(), shop.ingest().ledger.refused) == ([], {})


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_truncated_at_any_byte_is_refused(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    whole = encoded(noise, kind)
    shop = image_files(tmp_path)
    shop.land("whole.png", whole)
    ends = list(range(0, len(whole) - 40, len(whole) // 40))
    for end in ends:
        shop.land(f"{end}.jpg", whole[:end])
    assert shop.rows("file") == [("whole.png",)]
    assert {rule for *_, rule, _ in shop.quarantine()} == {"image: readable"}
    assert len(shop.quarantine()) == len(ends)


def test_a_row_remains_while_its_image_is_broken(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY))
    shop.land("b.png", encoded(GRAY + 1))
    assert len(images_of(shop)) == 2
    shop.land("b.png", encoded(GRAY + 2)[:-30])
    np.testing.assert_array_equal(images_of(shop), [GRAY[:, :, np.newaxis], GRAY[:, :, np.newaxis] + 1])
    assert leftovers(tmp_path) == []


def test_a_first_broken_image_is_explained(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", b"not an image")
    with pytest.raises(SchemaError, match=r"none of the 1 landed files .*a\.png: image: it is not PNG.*; land a file"):
        shop.ingest()
    assert not shop.paths.contract.exists()


def test_image_files_are_read_only_with_images_configured(tmp_path: Path) -> None:
    shop = make_dataset(tmp_path, **UNDATED)
    shop.land("a.png", encoded(GRAY))
    with pytest.raises(StorageError, match=r"1 file not read \(a\.png: its suffix '\.png' is not .*; put CSV"):
        shop.ingest()
    with pytest.raises(
        StorageError,
        match=r"landing/shop/a\.png: it does not match '\*\.txt'\); put PNG, JPEG, WebP, BMP or TIFF files",
    ):
        image_files(tmp_path / "b", source={"path": str(tmp_path), "pattern": "*.txt"}).ingest()
    with pytest.raises(StorageError, match=r"does not exist; put PNG, JPEG, WebP, BMP or TIFF files there"):
        image_files(tmp_path / "c").ingest()


# Images against the contract


def test_images_with_a_rare_shape_are_quarantined(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("0.png", encoded(GRAY[:4]))
    shop.land("1.png", encoded(GRAY))
    shop.land("2.png", encoded(GRAY))
    shop.land("3.png", encoded(np.stack([GRAY] * 3, axis=2)))
    shop.land("4.png", encoded(GRAY.astype(np.uint16)))
    assert shop.rows("file") == [("1.png",), ("2.png",)]
    end = "correct it at the source, or change the rule in the schema contract"
    contract = "but the contract says 5×6×1 uint8;"
    assert shop.quarantine() == [
        (
            "0.png",
            1,
            "image: shape",
            f"image is 4×6×1 uint8, {contract} set images.resize in the YAML to a height and a width, {end}",
        ),
        ("3.png", 1, "image: shape", f"image is 5×6×3 uint8, {contract} set images.mode in the YAML, {end}"),
        ("4.png", 1, "image: shape", f"image is 5×6×1 uint16, {contract} {end}"),
    ]
    text = shop.paths.contract.read_text(encoding="utf-8")
    assert "    shape: {height: 5, width: 6, channels: 1, dtype: uint8}\n" in text
    assert "An image needs shape: {height, width, channels, dtype}" in text
    assert load_contract(shop.paths.contract) == shop.ingest().contract


def test_quarantine_has_the_shape_of_an_image_not_its_bytes(tmp_path: Path) -> None:
    shop = image_files(tmp_path, images={"path": "(?P<kind>[a-z]+)"})
    shop.land("a.png", encoded(GRAY))
    shop.land("b.png", encoded(GRAY[:4]))
    copy = shop.entry("b.png").rejected_copy
    assert copy is not None
    record = pl.read_parquet(shop.paths.quarantined(copy))["record"].to_list()
    assert record == ['{"file":"b.png","kind":"b","image":"4×6×1 uint8"}']


def test_after_an_edit_of_the_shape_images_are_read_again(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY))
    shop.land("b.png", encoded(GRAY[:4]))
    assert shop.rows("file") == [("a.png",)]
    shop.edit_contract("height: 5", "height: 4")
    assert shop.ingest().read == ("a.png", "b.png")
    np.testing.assert_array_equal(images_of(shop), [GRAY[:4, :, np.newaxis]])
    assert [(name, rule) for name, _, rule, _ in shop.quarantine()] == [("a.png", "image: shape")]


def test_staged_images_of_another_shape_are_an_error(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    gone = shop.land("a.png", encoded(GRAY))
    assert len(images_of(shop)) == 1
    gone.unlink()
    shop.land("b.png", encoded(GRAY.reshape(6, 5)))
    shop.edit_contract("height: 5, width: 6", "height: 6, width: 5")
    ingested = shop.ingest()
    with pytest.raises(SchemaError, match=r"'image' from a\.png .* are 5×6×1 uint8, .* 6×5×1 uint8; land a\.png"):
        build_raw_day("all", ingested, shop.paths)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"type": "image"}, "type image needs shape; give 'shape"),
        (
            {"type": "text", "shape": {"height": 1, "width": 1, "channels": 1, "dtype": "uint8"}},
            "1×1×1 uint8 is for type image, got type text; remove it",
        ),
        ({"type": "image", "shape": {"height": 0, "width": 1, "channels": 1, "dtype": "uint8"}}, "height"),
        ({"type": "image", "shape": {"height": 1, "width": 1, "channels": 1, "dtype": "int8"}}, "'uint8', 'uint16' or"),
        (
            {"type": "image", "shape": {"height": 1, "width": 1, "channels": 1, "dtype": "uint8"}, "allowed": ["a"]},
            "null_values, format and allowed are not for type image; remove them",
        ),
    ],
)
def test_an_invalid_rule_for_images_is_explained(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ColumnRule.model_validate(rule)


def test_images_are_required_even_if_the_contract_says_no(tmp_path: Path) -> None:
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(GRAY, of=pa.uint8())))
    shop.ingest()
    shop.edit_contract("required: true\n    shape", "optional: true\n    shape")
    shop.land("b.csv", "id\n2\n")
    assert_says(shop.ingest().ledger.refused["b.csv"], r"b\.csv lacks 'image'", REMEDY)
    assert shop.ids() == [1]


def test_text_in_an_image_column_is_quarantined(tmp_path: Path) -> None:
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(GRAY, of=pa.uint8())))
    shop.land("b.csv", "id,image\n2,a.png\n")
    assert shop.ids() == [1]
    ((*index, reason),) = shop.quarantine()
    assert index == ["b.csv", 2, "image: image"]
    assert_says(reason, r"image = a\.png is not an image", REMEDY)


def test_an_image_column_without_images_is_explained(tmp_path: Path) -> None:
    shop = image_tables(tmp_path)
    shop.land("b.csv", "id,image\n2,a.png\n")
    with pytest.raises(
        SchemaError, match=r"'image' of 'shop' should hold images, but no landed file has a .*; land image files"
    ):
        shop.ingest()
    assert not shop.paths.contract.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"images": {"column": "id"}},
            "images.column='id' of 'shop' has type integer in the schema contract, not image; move",
        ),
        (
            {"images": None},
            "column 'image' is an image in the schema contract of 'shop', but images.column .* is not set; set it",
        ),
        ({"images": {"patch": 4}, "identity": ["id", "top", "left"]}, "names column 'left', which no landed file has"),
    ],
)
def test_settings_that_contradict_the_contract_are_explained(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    shop = image_tables(tmp_path, identity=["key"])
    shop.land("a.parquet", table(lists(GRAY, of=pa.uint8()), key=["a"]))
    shop.ingest()
    changed = image_tables(tmp_path, **{"identity": ["key"], **settings})
    with pytest.raises(SchemaError, match=message):
        changed.ingest()


def test_a_patch_size_that_contradicts_the_contract_is_explained(tmp_path: Path) -> None:
    identity = ["file", "top", "left"]
    shop = image_files(tmp_path, identity=identity, images={"patch": 5})
    shop.land("a.png", encoded(GRAY))
    shop.ingest()
    with pytest.raises(SchemaError, match=r"images.patch=4 gives 'shop' rows of 4×4 .* 5×5×1 uint8; change one of"):
        image_files(tmp_path, identity=identity, images={"patch": 4}).ingest()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": [8, 9]}, r"images.resize=\(8, 9\) gives 'shop' rows of 8×9 pixels with 1 channel, but"),
        ({"resize": 10}, r"images.resize=10 gives 'shop' rows of 10×10 pixels, or more on one side, with 1 channel"),
        ({"resize": 4, "pad": 6}, r"images.resize=4, images.pad=6 gives 'shop' rows of 6×6 pixels, or more on one"),
        ({"resize": 10, "crop": 4}, r"images.resize=10, images.crop=4 gives 'shop' rows of 4×4 pixels"),
        ({"pad": [4, 9]}, r"images.pad=\(4, 9\) gives 'shop' rows of 5×9 pixels"),
        ({"mode": "rgb"}, r"images.mode=rgb gives 'shop' rows of 5×6 pixels with 3 channels, but"),
    ],
)
def test_a_shape_that_contradicts_the_contract_is_explained(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY))
    shop.ingest()
    with pytest.raises(SchemaError, match=message + ".* the schema contract says 5×6×1 uint8; change one of them"):
        image_files(tmp_path, images=settings).ingest()
    shop.paths.contract.unlink()
    changed = image_files(tmp_path, images=settings)
    changed.ingest_accepted()
    assert changed.rows("file") == [("a.png",)]


@pytest.mark.parametrize(
    "settings",
    [{"resize": 5}, {"resize": [5, 6]}, {"crop": [5, 6]}, {"pad": 5}, {"mode": "grey"}],
)
def test_settings_that_give_the_shape_of_the_contract_can_be_added(settings: dict[str, Any], tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY))
    shop.ingest()
    assert image_files(tmp_path, images=settings).rows("file") == [("a.png",)]


def test_images_can_be_padded_on_their_shorter_side(tmp_path: Path) -> None:
    shop = image_files(tmp_path, images={"resize": 12, "pad": 16})
    shop.land("a.png", encoded(np.zeros((24, 40), np.uint8)))
    assert shapes(shop) == "16×20×1 uint8"
    assert shop.rows("file") == [("a.png",)]


def test_after_a_change_of_images_files_are_read_again(tmp_path: Path) -> None:
    identity = ["file", "top", "left"]
    shop = image_files(tmp_path, identity=identity, images={"patch": 4, "edge": "ignore"})
    shop.land("a.png", encoded(GRAY))
    assert shop.rows("top", "left") == [(0, 0)]
    closer = image_files(tmp_path, identity=identity, images={"patch": 4, "stride": 1})
    assert closer.ingest().read == ("a.png",)
    assert closer.rows("top", "left") == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": {"patch": 8}}, "patch=8 makes many rows of one image; add top and left to identity"),
        ({"identity": ["image"]}, "column 'image' holds images, which cannot be identity"),
        ({"columns": {"photo": "image"}}, "columns gives 'photo' the type image"),
        ({"columns": {"image": "text"}}, "columns gives 'image' the type text"),
        ({"images": {"path": "(?P<file>.*)"}}, "the group 'file' has a reserved name; choose another"),
        ({"images": {"path": "(?P<score>.*)"}}, "the group 'score' has a reserved name; choose another"),
        ({"images": {"column": "top"}}, "column='top' is a reserved name; choose another"),
    ],
)
def test_contradictory_settings_of_images_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PipelineConfig.model_validate({"dataset": "shop", "identity": ["file"], "images": {}, **settings})


# Parquet


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.uint8(), "uint8"),
        (pa.uint16(), "uint16"),
        (pa.float32(), "float32"),
        (pa.float64(), "float32"),
        (pa.float16(), "float32"),
        (pa.int64(), "uint8"),
        (pa.int8(), "uint8"),
        (pa.uint32(), "uint8"),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [0, 1, 3], ids=["height × width", "one channel", "three channels"])
def test_nested_lists_of_numbers_are_images(tmp_path: Path, kind: pa.DataType, dtype: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 100, (4, 5, 6, channels) if channels else (4, 5, 6)).astype(kind.to_pandas_dtype())
    shop = image_tables(tmp_path)
    values = pa.array(images.ravel())
    for size in images.shape[:0:-1]:
        values = pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, size), pa.int32()), values)
    shop.land("a.parquet", table(values))
    assert shapes(shop) == f"5×6×{channels or 1} {dtype}"
    np.testing.assert_array_equal(images_of(shop), images.reshape(4, 5, 6, -1).astype(dtype))


@pytest.mark.parametrize("form", ["fixed", "tensor", "polars"])
def test_arrays_of_a_fixed_size_are_images(tmp_path: Path, form: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    shop = image_tables(tmp_path)
    if form == "tensor":
        shop.land("a.parquet", table(pa.FixedShapeTensorArray.from_numpy_ndarray(images)))
    elif form == "polars":
        buffer = io.BytesIO()
        pl.DataFrame({"id": [1, 2, 3, 4], "image": pl.Series(images)}).write_parquet(buffer)
        shop.land("a.parquet", buffer.getvalue())
    else:
        kind = pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 6), 5)
        shop.land("a.parquet", table(pa.array(images.tolist(), kind)))
    np.testing.assert_array_equal(images_of(shop), images)


def test_a_missing_array_of_fixed_size_rejects_only_its_row(tmp_path: Path) -> None:
    kind = pa.list_(pa.list_(pa.uint8(), 6), 5)
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(pa.array([GRAY.tolist(), None, (GRAY + 1).tolist()], kind)))
    np.testing.assert_array_equal(images_of(shop), [GRAY[:, :, np.newaxis], GRAY[:, :, np.newaxis] + 1])
    assert [row[:3] for row in shop.quarantine()] == [("a.parquet", 2, "image: readable")]


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_encoded_bytes_in_a_column_are_images(tmp_path: Path, form: str) -> None:
    data = [encoded(GRAY), encoded(GRAY)[:-30], encoded(GRAY + 1), None, b""]
    shop = image_tables(tmp_path)
    values: list[Any] = data if form == "bytes" else [{"bytes": entry, "path": "x.png"} for entry in data]
    shop.land("a.parquet", table(values))
    assert shop.rows("id") == [(1,), (3,)]
    np.testing.assert_array_equal(images_of(shop), [GRAY[:, :, np.newaxis], GRAY[:, :, np.newaxis] + 1])
    assert [row[:3] for row in shop.quarantine()] == [("a.parquet", row, "image: readable") for row in (2, 4, 5)]
    for *_, reason in shop.quarantine():
        assert_says(reason, "image: it (cannot be read as an image|is missing)", REMEDY)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (None, "missing"),
        ([[1, 2], None, [3, 4]], "missing"),
        ([[1, 2], [3, None]], "missing"),
        ([[1, 2], [3]], "its lists differ in length"),
        ([[1], [2, 3]], "its lists differ in length"),
        ([[], [1]], "its lists differ in length"),
        ([], "has no pixels"),
        ([[], []], "has no pixels"),
    ],
)
@pytest.mark.parametrize("index", [0, 1, 3])
def test_an_invalid_array_rejects_only_its_own_row(tmp_path: Path, bad: Any, problem: str, index: int) -> None:
    good = [GRAY, GRAY + 1, GRAY + 2]
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(*good[:index], bad, *good[index:], of=pa.int16())))
    np.testing.assert_array_equal(images_of(shop), [image[:, :, np.newaxis] for image in good])
    assert shop.ids() == [row for row in range(1, 5) if row != index + 1]
    ((*origin, reason),) = shop.quarantine()
    assert origin == ["a.parquet", index + 1, "image: readable"]
    assert_says(reason, problem, REMEDY)


def test_pixels_with_different_channels_are_rejected(tmp_path: Path) -> None:
    shop = image_tables(tmp_path, images={"channels": "last"})
    ragged = [[[1, 2], [3, 4]], [[5, 6], [7]]]
    shop.land("a.parquet", table(lists([[[1, 2]] * 2] * 2, ragged, of=pa.uint8(), depth=3)))
    assert (shop.ids(), shapes(shop)) == ([1], "2×2×2 uint8")
    assert_says(shop.quarantine()[0][3], "its lists differ in length", REMEDY)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_an_image_with_values_that_are_not_finite_is_rejected(tmp_path: Path, bad: float) -> None:
    wrong = GRAY.astype(np.float64)
    wrong[2, 3] = bad
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(GRAY / 7, wrong, of=pa.float64())))
    np.testing.assert_array_equal(images_of(shop), [(GRAY / 7).astype(np.float32)[:, :, np.newaxis]])
    assert_says(shop.quarantine()[0][3], "a value in it is not finite", REMEDY)


@pytest.mark.parametrize(
    ("tops", "dtype", "kept"),
    [
        ([255, 255, 256], "uint8", [1, 2]),
        ([300, 300, 255], "uint16", [1, 2, 3]),
        ([65535, 65536, 4000], "uint16", [1, 3]),
        ([9, -1, 9], "uint8", [1, 3]),
    ],
)
def test_wide_integers_become_the_type_that_most_images_fit(
    tmp_path: Path, tops: list[int], dtype: str, kept: list[int]
) -> None:
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(*([[0, top]] for top in tops), of=pa.int64())))
    assert (shop.ids(), shapes(shop)) == (kept, f"1×2×1 {dtype}")
    assert [image.ravel().tolist() for image in images_of(shop)] == [[0, tops[number - 1]] for number in kept]
    assert [rule for *_, rule, _ in shop.quarantine()] == ["image: readable"] * (3 - len(kept))


def test_wide_integers_become_the_type_in_the_contract(tmp_path: Path) -> None:
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists([[0, 4000]], [[5, 6]], [[1000, 9]], of=pa.int32())))
    assert shapes(shop) == "1×2×1 uint16"
    shop.land("night.parquet", table(lists([[1, 2]], of=pa.int32())))
    assert shop.quarantine() == []
    assert shop.entry("night.parquet").rows == 1


def test_images_are_read_from_all_row_groups(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 2), dtype=np.uint8)
    rows = pa.table({"id": range(50), "image": lists(*images, of=pa.uint8())})
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, row_group_size=7)
    shop = image_tables(tmp_path)
    shop.land("a.parquet", buffer.getvalue())
    by_id = dict(zip((row[0] for row in shop.rows("id")), images_of(shop), strict=True))
    np.testing.assert_array_equal([by_id[index] for index in range(50)], images[:, :, :, np.newaxis])


@pytest.mark.parametrize(
    "values",
    [["a.png"], [1.5], [[1, 2]], [[[[[1]]]]], [[["a"]]], [{"path": "a.png"}]],
    ids=["text", "number", "flat", "four levels", "lists of text", "struct"],
)
def test_a_file_whose_image_column_has_another_type_is_refused(tmp_path: Path, values: list[Any]) -> None:
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(GRAY, of=pa.uint8())))
    shop.land("b.parquet", table(pa.array(values)))
    assert_says(shop.ingest().ledger.refused["b.parquet"], "column 'image' has type", REMEDY)
    assert shop.ids() == [1]


def test_another_column_of_lists_is_skipped(tmp_path: Path) -> None:
    shop = image_tables(tmp_path)
    shop.land("a.parquet", table(lists(GRAY, of=pa.uint8())))
    shop.land("b.parquet", table(lists(GRAY, of=pa.uint8()), id=[2], more=[[1, 2]]))
    ingested = shop.ingest()
    assert ingested.contract.skipped == ("more",)
    assert ingested.ledger.refused == {}
    assert shop.ids() == [1, 2]


# Patches


@pytest.mark.parametrize("stride", [None, 1, 3, 9])
def test_patches_are_slices_of_their_image(tmp_path: Path, stride: int | None) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (11, 14), dtype=np.uint16)
    shop = image_files(
        tmp_path, identity=["file", "top", "left"], images={"patch": 4, "stride": stride, "edge": "ignore"}
    )
    shop.land("a.png", encoded(image))
    step = stride or 4
    expected = {
        (top, left): image[top : top + 4, left : left + 4].astype("<u2").tobytes()
        for top in range(0, 11 - 4 + 1, step)
        for left in range(0, 14 - 4 + 1, step)
    }
    assert {(top, left): data for top, left, data in shop.rows("top", "left", "image")} == expected
    assert shapes(shop) == "4×4×1 uint16"
    assert len(expected) == shop.entry("a.png").rows


def test_patches_keep_the_other_columns_of_their_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((6, 5, 3), (4, 9, 3), (6, 5, 3), (3, 8, 3))]
    shop = image_tables(tmp_path, identity=["id", "top", "left"], images={"patch": 4, "stride": 2, "edge": "ignore"})
    shop.land("a.parquet", table(lists(*images, of=pa.uint8(), depth=3), name=["a", "b", "c", "d"]))
    expected = {
        (str(number), name, top, left): image[top : top + 4, left : left + 4].tobytes()
        for number, (name, image) in enumerate(zip("abc", images, strict=False), start=1)
        for top in range(0, image.shape[0] - 3, 2)
        for left in range(0, image.shape[1] - 3, 2)
    }
    assert {row[:-1]: row[-1] for row in shop.rows("id", "name", "top", "left", "image")} == expected
    ((*index, reason),) = shop.quarantine()
    assert index == ["a.parquet", 4, "image: patches"]
    assert_says(reason, "image: it has 3×8 pixels, fewer than a patch of 4×4", REMEDY)


def test_patches_are_in_the_order_of_their_images(tmp_path: Path) -> None:
    images = [np.zeros((4 + n % 3, 4), np.uint8) for n in range(30)]
    rows = read_file(
        "a.parquet", table(lists(*images, of=pa.uint8())), ReadOptions(images=ImagesConfig(patch=4, stride=1))
    ).rows
    assert rows.select("id", "top").rows() == [(n + 1, top) for n in range(30) for top in range(n % 3 + 1)]


def test_an_image_with_too_many_patches_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_MAX_PATCH_BYTES", 6 * 16)
    shop = image_files(tmp_path, identity=["file", "top", "left"], images={"patch": 4, "stride": 1})
    shop.land("a.png", encoded(GRAY))
    shop.land("b.png", encoded(np.zeros((5, 7), np.uint8)))
    assert {row[0] for row in shop.rows("file")} == {"a.png"}
    assert_says(shop.quarantine()[0][3], "its 8 patches take more than", REMEDY)


def test_a_column_with_the_name_of_a_patch_position_is_refused(tmp_path: Path) -> None:
    shop = image_tables(tmp_path, identity=["id", "top", "left"], images={"patch": 5})
    shop.land("a.parquet", table(lists(GRAY, of=pa.uint8())))
    shop.land("b.parquet", table(lists(GRAY, of=pa.uint8()), top=[1]))
    assert_says(shop.ingest().ledger.refused["b.parquet"], "column 'top' has a reserved name", REMEDY)


# From files to features


def test_images_reach_the_features_of_the_day_in_their_path(tmp_path: Path) -> None:
    path = r"(?P<line>[a-z]+)/(?P<taken_on>\d{4}-\d\d-\d\d)_"
    shop = make_dataset(tmp_path, identity=["file"], event_time="taken_on", images={"path": path})
    shop.land("north/2024-03-01_1.png", encoded(GRAY))
    shop.land("north/2024-03-02_1.png", encoded(GRAY + 1))
    shop.land("south/2024-03-02_2.jpg", encoded(np.full((5, 6), 77, np.uint8), "JPEG"))
    shop.land("south/2023-03-02_3.png", encoded(GRAY + 3))
    ingested = shop.ingest()
    assert ingested.ledger.days == ["2024-03-01", "2024-03-02"]
    assert [(name, rule) for name, _, rule, _ in shop.quarantine()] == [
        ("south/2023-03-02_3.png", "taken_on: before start")
    ]
    features = {}
    for day in ingested.ledger.days:
        shop.raw(ingested, day)
        assert build_features_day(day, shop, ingested.contract).built
        features[day] = pl.read_parquet(shop.paths.features(day))
    columns = ["row_id", "event_time", "file", "line", "image"]
    assert [rows.columns for rows in features.values()] == [columns, columns]
    second = dt.datetime(2024, 3, 2, tzinfo=dt.UTC)
    assert features["2024-03-02"].drop("row_id").rows() == [
        (second, "north/2024-03-02_1.png", "north", (GRAY + 1).tobytes()),
        (second, "south/2024-03-02_2.jpg", "south", bytes([77] * 30)),
    ]
    image = next(column for column in feature_columns(shop.config, ingested.contract) if column.name == "image")
    assert image == FeatureColumn("image", ingested.contract.columns["image"].type, ingested.contract.images["image"])
    assert leftovers(tmp_path) == []


def test_images_are_staged_in_batches_of_limited_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged: list[dict[str, LandedFile]] = []
    start = CopyWriter.start

    def record(self: CopyWriter, entries: dict[str, LandedFile], copies: list[Copy]) -> dict[str, LandedFile]:
        staged.append(entries)
        return start(self, entries, copies)

    monkeypatch.setattr(batch, "_BATCH_IMAGE_BYTES", 3 * GRAY.nbytes)
    monkeypatch.setattr(CopyWriter, "start", record)
    shop = image_files(tmp_path)
    for number in range(8):
        shop.land(f"{number}.png", encoded(GRAY + number))
    np.testing.assert_array_equal(images_of(shop), [GRAY[:, :, np.newaxis] + number for number in range(8)])
    assert [len(entries) for entries in staged if entries] == [3, 3, 2]


def test_an_image_landed_again_replaces_its_row(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    shop.land("a.png", encoded(GRAY))
    shop.land("b.png", encoded(GRAY + 1))
    assert shop.ingest().read == ("a.png", "b.png")
    assert shop.ingest().read == ()
    shop.land("b.png", encoded(GRAY + 2))
    assert shop.ingest().read == ("b.png",)
    np.testing.assert_array_equal(images_of(shop), [GRAY[:, :, np.newaxis], GRAY[:, :, np.newaxis] + 2])


# The data of the demo pipelines


def test_the_tiles_of_a_texture_make_up_the_photograph(tmp_path: Path) -> None:
    from skimage import data

    landing = tmp_path / "landing" / "textures"
    assert demo.land_textures(landing) == 192
    assert sum(path.is_file() for path in landing.rglob("*")) == 192
    for texture in ("brick", "grass", "gravel"):
        tiles = [
            [np.asarray(Image.open(landing / texture / f"r{row}_c{column}.png")) for column in range(8)]
            for row in range(8)
        ]
        np.testing.assert_array_equal(np.block(tiles), getattr(data, texture)())
    assert leftovers(tmp_path) == []


def test_shuttle_readings_land_with_labels_and_row_numbers(tmp_path: Path) -> None:
    assert demo.land_shuttle(tmp_path / "shuttle") == 1
    rows = pl.read_csv(tmp_path / "shuttle" / "shuttle.csv")
    assert rows.columns == ["row", *(f"f{number}" for number in range(1, 10)), "anomaly"]
    assert rows["row"].to_list() == list(range(49_097))
    assert rows["anomaly"].value_counts().sort("anomaly").rows() == [(0, 49_097 - 3_511), (1, 3_511)]


@pytest.mark.parametrize(("dataset", "package"), [("textures", "scikit-image"), ("shuttle", "river")])
def test_a_missing_package_is_named_and_nothing_lands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, package: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = f"come from the package {package}, which is not installed; install the extra 'demo'"
    with pytest.raises(ConfigError, match=message):
        demo.DEMOS[dataset](tmp_path / dataset)
    assert list(tmp_path.iterdir()) == []
