"""Masks of images: their paths, and which pixels are anomalous."""

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ae_pipeline.common.errors import StorageError
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion.masks import mask_path, read_mask, require_size


def written(folder: Path, pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> Path:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    path = folder / f"mask.{kind.lower()}"
    path.write_bytes(buffer.getvalue())
    return path


def regions() -> npt.NDArray[np.uint8]:
    """Return a mask with three classes, each a square of 8 pixels."""
    mask = np.zeros((32, 48), np.uint8)
    for number in (1, 2, 3):
        mask[8:16, 12 * number : 12 * number + 8] = number
    return mask


@pytest.mark.parametrize("factor", [1, 16, 60, 80])
def test_all_classes_are_anomalous(tmp_path: Path, factor: int) -> None:
    mask = regions()
    path = written(tmp_path, mask * np.uint8(factor))
    np.testing.assert_array_equal(read_mask(path, ImagesConfig()), mask > 0)
    np.testing.assert_array_equal(read_mask(path, ImagesConfig(resize=16)), (mask > 0)[::2, ::2])


def test_all_colors_but_black_are_anomalous_whatever_the_alpha(tmp_path: Path) -> None:
    mask = regions()
    colors = np.array([[0, 0, 0, 255], [255, 0, 0, 255], [0, 0, 200, 255], [0, 90, 0, 255]], np.uint8)[mask]
    np.testing.assert_array_equal(read_mask(written(tmp_path, colors), ImagesConfig()), mask > 0)


def test_the_noise_of_jpeg_is_black(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :64]
    mask = (rows - 30) ** 2 + (columns - 35) ** 2 < 225
    path = written(tmp_path, np.where(mask, 255, 0).astype(np.uint8), "JPEG")
    noisy = np.asarray(Image.open(path))
    assert ((noisy > 0) & ~mask).sum() > 100
    np.testing.assert_array_equal(read_mask(path, ImagesConfig()), mask)


def test_an_empty_mask_has_no_anomalous_pixel(tmp_path: Path) -> None:
    assert not read_mask(written(tmp_path, np.zeros((4, 4), np.uint8)), ImagesConfig()).any()


def test_a_group_of_the_path_may_be_named_stem() -> None:
    images = ImagesConfig(path="test/(?P<stem>[0-9]+)_", masks="truth/{stem}.png")
    assert mask_path("test/7_left.jpg", images) == "truth/7.png"


@pytest.mark.parametrize(
    ("edge", "size", "fits"),
    [
        ("flush", (30, 40), True),
        ("flush", (29, 40), False),
        ("ignore", (33, 40), True),
        ("ignore", (34, 40), False),
        ("ignore", (29, 40), False),
        ("pad", (23, 40), True),
        ("pad", (22, 40), False),
        ("pad", (31, 40), False),
    ],
)
def test_a_mask_has_the_size_of_its_image(edge: Any, size: tuple[int, int], *, fits: bool) -> None:
    images = ImagesConfig(patch=8, stride=4, edge=edge)
    with nullcontext() if fits else pytest.raises(StorageError, match=r"but its image 30×40; land it with the size"):
        require_size(size, (30, 40), Path("mask.png"), images)


def test_a_mask_of_more_pixels_than_the_limit_cannot_be_used(tmp_path: Path) -> None:
    path = written(tmp_path, regions())
    with pytest.raises(StorageError, match=r"32×48 pixels, but source\.limits\.pixels is 100"):
        read_mask(path, ImagesConfig(), 100)
