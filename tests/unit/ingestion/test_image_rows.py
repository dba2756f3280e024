"""Image files that are read without a frame each are the rows that `read_file` returns."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from ae_pipeline.config.source import ImagesConfig, SourceConfig
from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.images import Pixels
from ae_pipeline.ingestion.readers import image_rows, pictures
from ae_pipeline.ingestion.readers.files import ReadOptions, read_file
from ae_pipeline.ingestion.readers.image_metadata import ImageMetadata
from ae_pipeline.ingestion.readers.image_rows import ImageRow, binary_of, frame_of, read_image_row
from ae_pipeline.ingestion.rows import FileRows
from tests.unit.ingestion.test_images import GRAY, encoded

METADATA = ImageMetadata(
    ("shift", "weight"), {"a_1.png": ("day", None)}, {"a_9.png": "it is described twice"}, {"a_1.png": "metadata.csv"}
)
RGB = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
FILES = {
    "a_1.png": encoded(GRAY),
    "b_2.jpg": encoded(RGB, "JPEG"),
    "b_3.png": encoded(GRAY.astype(np.uint16) * 999),
    "a_4.png": encoded(np.dstack([RGB, GRAY])),
    "a_5.tif": encoded(GRAY.astype(np.float32) / 7, "TIFF"),
}


def options(metadata: ImageMetadata = METADATA, **images: Any) -> ReadOptions:
    """Return options for images with a part in their name."""
    return ReadOptions(images=ImagesConfig(path=r"(?P<part>[ab])_", **images), metadata=metadata)


@pytest.mark.parametrize("settings", [{}, {"mode": "grey", "resize": 4}, {"crop": 3, "pad": 8}], ids=str)
@pytest.mark.parametrize("metadata", [METADATA, ImageMetadata()], ids=["metadata", "none"])
def test_rows_are_those_of_read_file(settings: dict[str, Any], metadata: ImageMetadata) -> None:
    chosen = options(metadata, **settings)
    rows = [read_image_row(name, data, chosen) for name, data in FILES.items()]
    images = [row for row in rows if isinstance(row, ImageRow)]
    expected = pl.concat([read_file(name, data, chosen).rows for name, data in FILES.items()])
    assert frame_of(images).equals(expected)
    assert images[0].schema == tuple(expected.schema.items())
    assert frame_of(images)["image"].struct.field("dtype").n_unique() == 3


@pytest.mark.parametrize(
    ("name", "data", "chosen"),
    [
        ("c_1.png", FILES["a_1.png"], options()),
        ("a_9.png", FILES["a_1.png"], options()),
        ("line=1/a_1.png", FILES["a_1.png"], options()),
        ("a_1.png", FILES["a_1.png"], options(patch=4)),
        ("a_1.parquet", FILES["a_1.png"], options()),
        ("a_1.png", FILES["a_1.png"], ReadOptions()),
        (
            "a_1.png",
            FILES["a_1.png"],
            ReadOptions(images=ImagesConfig(), source=SourceConfig(path_columns="(?P<kind>[ab])")),
        ),
        ("a_1.png", FILES["a_1.png"], ReadOptions(images=ImagesConfig(path="(?P<x>a)"), left_out=frozenset({"x"}))),
    ],
    ids=[
        "other path",
        "conflict",
        "folder",
        "patches",
        "no image",
        "no images",
        "path columns",
        "left out",
    ],
)
def test_other_files_are_left_to_read_file(name: str, data: bytes, chosen: ReadOptions) -> None:
    assert read_image_row(name, data, chosen) is None


@pytest.mark.parametrize("metadata", [METADATA, ImageMetadata()], ids=["metadata", "none"])
@pytest.mark.parametrize(
    ("data", "chosen", "reason"),
    [
        (FILES["a_1.png"][:60], {}, "truncated"),
        (FILES["a_1.png"], {"crop": 50}, "fewer than images.crop"),
        (FILES["a_1.png"], {"crop": 50, "mode": "rgb"}, "fewer than images.crop"),
    ],
    ids=["truncated", "too small", "too small after a change of mode"],
)
def test_rejected_images_are_those_of_read_file_and_are_decoded_once(
    data: bytes, chosen: dict[str, Any], reason: str, metadata: ImageMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_file("a_1.png", data, options(metadata, **chosen))
    decoded: list[bytes] = []

    def decode(content: bytes, max_pixels: int | None = None) -> Pixels:
        decoded.append(content)
        return decode_image(content, max_pixels)

    for module in (image_rows, pictures):
        monkeypatch.setattr(module, "decode_image", decode)
    rejected = read_image_row("a_1.png", data, options(metadata, **chosen))
    assert isinstance(rejected, FileRows)
    assert rejected.rejected.height == 1
    assert reason in rejected.rejected["reason"][0]
    assert rejected.rejected.equals(expected.rejected)
    assert rejected.rows.equals(expected.rows)
    assert rejected.rows.schema == expected.rows.schema
    assert decoded == [data]


@pytest.mark.parametrize("settings", [{"crop": 3}, {"mode": "grey"}, {}], ids=str)
def test_an_image_keeps_no_larger_one_in_memory(settings: dict[str, Any]) -> None:
    for name, data in FILES.items():
        row = read_image_row(name, data, options(**settings))
        assert isinstance(row, ImageRow)
        root = row.pixels
        while isinstance(root.base, np.ndarray):
            root = root.base
        assert root.nbytes == row.pixels.nbytes


def test_large_arrays_are_chunks_of_their_own_without_a_copy() -> None:
    rng = np.random.default_rng(0)
    sides = (4, 8, 300, 200, 2, 0, 1)
    arrays = [rng.integers(0, 256, (side, side, 1)).astype(np.uint8) for side in sides]
    arrays.append(arrays[2][::-1])
    result = binary_of(arrays)
    assert [len(chunk) for chunk in result.chunks] == [2, 1, 1, 3, 1]
    assert result.to_pylist() == [array.tobytes() for array in arrays]
    addresses = [chunk.buffers()[2].address for chunk in result.chunks]
    assert addresses[1:3] == [array.ctypes.data for array in arrays[2:4]]
    assert binary_of([]).to_pylist() == []
