"""Raw rows and features of a day with images are written in parts, with the rows and hashes of the whole day."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ae_pipeline.features import build
from ae_pipeline.features.build import build_features, build_features_day
from ae_pipeline.ingestion import image_days, raw
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.parquet_parts import ParquetParts
from ae_pipeline.storage.paths import ALL_ROWS
from tests.support.datasets import LandedDataset, leftovers
from tests.unit.ingestion.test_images import GRAY, encoded, image_files, image_tables, lists, table

pytestmark = pytest.mark.slow

AT_ONCE = 4


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Read at most four rows at once, and return the numbers of rows that are written at once."""
    written: list[int] = []
    add = ParquetParts.add

    def record(self: ParquetParts, rows: pa.Table) -> None:
        written.append(rows.num_rows)
        add(self, rows)

    monkeypatch.setattr(raw, "rows_at_once", lambda _: AT_ONCE)
    monkeypatch.setattr(build, "rows_at_once", lambda _: AT_ONCE * 4)  # features take a quarter of it
    monkeypatch.setattr(ParquetParts, "add", record)
    return written


def land_table(shop: LandedDataset, name: str, pixels: dict[str, int]) -> None:
    """Land a Parquet file of images with one value each, by their id."""
    images = lists(*(np.full((2, 3), value, np.uint8) for value in pixels.values()), of=pa.uint8())
    shop.land(name, table(images, key=list(pixels)))


def raw_and_features(shop: LandedDataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ingest, build raw rows and features, and return them; their content hashes are those of all rows at once."""
    ingested = shop.ingest()
    results = (build_raw_day(ALL_ROWS, ingested, shop.paths), build_features_day(ALL_ROWS, shop, ingested.contract))
    rows, features = (pl.read_parquet(path(ALL_ROWS), glob=False) for path in (shop.paths.raw, shop.paths.features))
    for frame, result in zip((rows, features), results, strict=True):
        assert (hash_table(frame.to_arrow()), frame.height) == (result.content_hash, result.rows)
    assert features.equals(build_features(rows, shop.config, ingested.contract))
    return rows, features


@pytest.mark.usefixtures("parts")
def test_rows_in_any_order_are_sorted_and_replaced(tmp_path: Path) -> None:
    shop = image_tables(tmp_path / "data [1]*?", identity=["key"], derive={"distance": "id - AVG(id)"})
    first = {f"k{number:02}": number for number in np.random.default_rng(0).permutation(30)}
    second = {f"k{number:02}": 100 + number for number in (29, 3, 7)}
    land_table(shop, "a.parquet", first)
    land_table(shop, "b.parquet", second)
    rows, features = raw_and_features(shop)
    expected = sorted({**first, **second}.items())
    assert rows.select("row_id", "image").rows() == [(key, bytes([value] * 6)) for key, value in expected]
    assert features["distance"].sum() == pytest.approx(0)
    assert features["distance"].n_unique() > 1
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("parts")
def test_rows_are_sorted_by_event_time_before_their_identity(tmp_path: Path) -> None:
    shop = image_tables(tmp_path, identity=["key"], event_time="at", start="2024-03-01", end="2024-03-02")
    days = [dt.datetime(2024, 3, day, 1, tzinfo=dt.UTC) for day in (1, 2)]
    hours = np.random.default_rng(0).permutation(20)
    images = lists(*(np.full((2, 3), number, np.uint8) for number in range(20)), of=pa.uint8())
    for name, part in {"a.parquet": slice(0, 12), "b.parquet": slice(12, 20)}.items():
        times = [days[number // 10] + dt.timedelta(minutes=int(hours[number])) for number in range(20)][part]
        keys = [f"k{number:02}" for number in range(20)][part]
        shop.land(name, table(images[part], key=keys, at=pa.array(times, pa.timestamp("us", "UTC"))))
    ingested = shop.ingest()
    for day, numbers in {"2024-03-01": range(10), "2024-03-02": range(10, 20)}.items():
        result = build_raw_day(day, ingested, shop.paths)
        rows = pl.read_parquet(shop.paths.raw(day), glob=False)
        in_time = sorted(numbers, key=lambda number: hours[number])
        assert rows["row_id"].to_list() == [f"k{number:02}" for number in in_time]
        assert rows["image"].to_list() == [bytes([number] * 6) for number in in_time]
        assert hash_table(rows.to_arrow()) == result.content_hash


@pytest.mark.usefixtures("parts")
def test_without_identity_equal_images_are_counted(tmp_path: Path) -> None:
    shop = image_tables(tmp_path, identity=[])
    for name in ("a.parquet", "b.parquet"):
        land_table(shop, name, {f"k{number}": number for number in range(9)})
    rows, _ = raw_and_features(shop)
    assert rows["row_id"].to_list() == sorted(rows["row_id"])
    assert sorted(rows["row_id"].str.slice(-2)) == ["-1"] * 9 + ["-2"] * 9
    assert sorted(rows["image"]) == sorted(bytes([number] * 6) for number in [*range(9)] * 2)


def test_images_in_order_are_not_sorted_on_disk(
    tmp_path: Path, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("rows were sorted on disk")

    monkeypatch.setattr(image_days, "sort_in_partitions", fail)
    shop = image_tables(tmp_path, identity=["key"])
    land_table(shop, "a.parquet", {f"a{number:02}": number for number in range(10)})
    land_table(shop, "b.parquet", {f"b{number:02}": number for number in range(10)})
    rows, _ = raw_and_features(shop)
    assert rows.height == 20
    assert max(parts) == AT_ONCE
    assert sum(parts) == 2 * 20  # raw rows and features


@pytest.mark.usefixtures("parts")
def test_an_image_that_landed_again_moves_no_other(tmp_path: Path) -> None:
    shop = image_files(tmp_path)
    for number in range(10):
        shop.land(f"{number}.png", encoded(GRAY + number))
    raw_and_features(shop)
    shop.land("4.png", encoded(GRAY + 90))
    rows, _ = raw_and_features(shop)
    values = [0, 1, 2, 3, 90, 5, 6, 7, 8, 9]
    assert rows["image"].to_list() == [(GRAY + value).tobytes() for value in values]
    assert rows["row_id"].to_list() == [f"{number}.png" for number in range(10)]


def test_a_label_that_reads_no_image_is_computed_on_the_whole_day(tmp_path: Path, parts: list[int]) -> None:
    shop = image_tables(tmp_path, identity=["key"], label="id > AVG(id)")
    land_table(shop, "a.parquet", {f"a{number:02}": number for number in range(10)})
    _, features = raw_and_features(shop)
    assert features["is_known_anomaly"].to_list() == [False] * 5 + [True] * 5
    assert max(parts) == AT_ONCE
