"""What was read for the first schema contract is not read again, unless it has changed or is too large."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from ae_pipeline.ingestion import first_contract, landing
from ae_pipeline.ingestion.already_read import AlreadyRead
from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.images import Pixels
from ae_pipeline.ingestion.readers import image_rows, pictures
from ae_pipeline.storage.dataset import Dataset
from tests.support.datasets import LandedDataset, make_dataset
from tests.unit.ingestion.test_images import UNDATED, encoded, image_files

COUNT = 12


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count how often each image is decoded."""
    times: Counter[bytes] = Counter()

    def decode(content: bytes, max_pixels: int | None = None) -> Pixels:
        times[content] += 1
        return decode_image(content, max_pixels)

    for module in (image_rows, pictures):
        monkeypatch.setattr(module, "decode_image", decode)
    return times


def gray(value: int) -> bytes:
    """Return a file of an image with one value."""
    return encoded(np.full((8, 8), value, np.uint8))


def land(shop: LandedDataset) -> None:
    for number in range(COUNT):
        shop.land(f"{number:02d}.png", gray(number))


@pytest.mark.parametrize("patch", [None, 4], ids=["images", "patches"])
def test_images_of_the_first_contract_are_decoded_once(
    tmp_path: Path, decoded: Counter[bytes], patch: int | None
) -> None:
    settings = {"patch": patch} if patch else {}
    shop = image_files(tmp_path, images=settings, identity=["file", "top", "left"] if patch else ["file"])
    land(shop)
    shop.land("broken.png", gray(1)[:40])
    ledger = shop.ingest().ledger
    assert len(ledger.files) == COUNT + 1
    assert [name for name, entry in ledger.files.items() if entry.refused] == ["broken.png"]
    assert [decoded[gray(number)] for number in range(COUNT)] == [1] * COUNT


def test_images_beyond_the_limit_are_decoded_again(
    tmp_path: Path, decoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_contract, "_KEPT_IMAGE_BYTES", 5 * 64)
    shop = image_files(tmp_path)
    land(shop)
    shop.ingest()
    assert [decoded[gray(number)] for number in range(COUNT)] == [1] * 5 + [2] * (COUNT - 5)


def meanwhile(monkeypatch: pytest.MonkeyPatch, land_more: Callable[[], object]) -> None:
    """Let files land while the first schema contract is inferred."""
    infer = first_contract.infer_and_save_contract

    def infer_and_land(dataset: Dataset, landed: Mapping[str, Path]) -> dict[str, AlreadyRead]:
        already_read = infer(dataset, landed)
        land_more()
        return already_read

    monkeypatch.setattr(landing, "infer_and_save_contract", infer_and_land)


def test_a_file_that_lands_while_the_contract_is_inferred_gets_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = image_files(tmp_path)
    land(shop)
    meanwhile(monkeypatch, lambda: shop.land("03.png", gray(200)))
    rows = sorted(shop.rows("file", "image"))
    assert [pixels[0] for _, pixels in rows] == [0, 1, 2, 200, *range(4, COUNT)]


def test_a_file_that_changes_with_equal_size_and_time_gets_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = image_files(tmp_path)
    files = {f"{value}.bmp": encoded(np.full((8, 8), value, np.uint8), "BMP") for value in (1, 2)}
    for name, content in files.items():
        shop.land(name, content, at=1_700_000_000)
    changed = encoded(np.full((8, 8), 200, np.uint8), "BMP")
    assert len(changed) == len(files["2.bmp"])
    meanwhile(monkeypatch, lambda: shop.land("2.bmp", changed, at=1_700_000_000))
    rows = sorted(shop.rows("file", "image"))
    assert [pixels[0] for _, pixels in rows] == [1, 200]


def test_a_table_that_changes_with_equal_size_and_time_gets_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_dataset(tmp_path, **UNDATED)
    shop.land("a.csv", "id,price\n1,10\n2,20\n", at=1_700_000_000)
    meanwhile(monkeypatch, lambda: shop.land("a.csv", "id,price\n1,10\n2,99\n", at=1_700_000_000))
    assert sorted(shop.rows("id", "price")) == [(1, 10), (2, 99)]


@pytest.mark.parametrize("patch", [None, 4], ids=["images", "patches"])
def test_metadata_that_land_while_the_contract_is_inferred_count(
    tmp_path: Path, decoded: Counter[bytes], monkeypatch: pytest.MonkeyPatch, patch: int | None
) -> None:
    settings = {"metadata": "metadata.csv"} | ({"patch": patch} if patch else {})
    shop = image_files(tmp_path, images=settings, identity=["file", "top", "left"] if patch else ["file"])
    land(shop)
    lines = [f"{number:02d}.png,{'old' if number < 2 else 'new'}" for number in range(COUNT)]
    shop.land("metadata.csv", "\n".join(["file_name,label", *lines[:2]]))
    meanwhile(monkeypatch, lambda: shop.land("metadata.csv", "\n".join(["file_name,label", *lines])))
    labels = dict(shop.rows("file", "label"))
    assert labels == {f"{number:02d}.png": "old" if number < 2 else "new" for number in range(COUNT)}
    assert [decoded[gray(number)] for number in range(COUNT)] == [1, 1] + [2] * (COUNT - 2)
