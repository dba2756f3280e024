"""Masks of images: their paths, and which pixels are anomalous."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion.masks import mask_path, read_mask


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
