"""Parquet files and content hashes that are written part by part."""

import hashlib
import io
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ae_pipeline.storage import hashing
from ae_pipeline.storage.hashing import TableHash, hash_table
from ae_pipeline.storage.parquet import damage_of, read_facts, write_parquet
from ae_pipeline.storage.parquet_parts import ParquetParts

ROWS = pl.DataFrame({"id": [f"r{n}" if n % 7 else None for n in range(1000)], "x": [n / 3 for n in range(1000)]})


def parts_of(table: pa.Table, rows: int) -> list[pa.Table]:
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


@pytest.mark.parametrize("rows", [1, 64, 99, 100, 101, 1000])
def test_the_hash_of_parts_is_that_of_the_bytes_of_the_table(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_HASHED_ROWS", 100)
    table, content = ROWS.to_arrow(), io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, content, row_group_size=100, **options)
    digest = TableHash(table.schema)
    for part in parts_of(table, rows):
        digest.add(part)
    assert digest.hexdigest() == hash_table(table) == hashlib.sha256(content.getvalue()).hexdigest()[:32]


@pytest.mark.parametrize("rows", [1, 64, 99, 100, 101, 1000])
def test_the_first_image_says_how_many_rows_are_hashed_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_HASHED_BYTES", 100 * 8 + 7)  # a hundred images of 8 bytes, and a rest
    images = pl.Series("image", [number.to_bytes(8, "little") for number in range(1000)])
    table, content = ROWS.with_columns(images).to_arrow(), io.BytesIO()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, content, row_group_size=100, **options)
    digest = TableHash(table.schema)
    digest.add(table.slice(0, 0))  # a part without rows says nothing
    for part in parts_of(table, rows):
        digest.add(part)
    assert digest.hexdigest() == hash_table(table) == hashlib.sha256(content.getvalue()).hexdigest()[:32]
    earlier = io.BytesIO()
    pq.write_table(table, earlier, **options)
    assert hash_table(table, is_earlier=True) == hashlib.sha256(earlier.getvalue()).hexdigest()[:32]


def test_a_file_of_parts_has_the_rows_groups_and_facts_of_a_whole_one(tmp_path: Path) -> None:
    table = pl.concat([ROWS] * 200).to_arrow()  # more rows than a row group has
    whole, path = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    write_parquet(whole, table, {"of": "me"})
    parts = ParquetParts(path, hashed=True)
    for part in parts_of(table, 30_011):
        parts.add(part)
    parts.finish({"of": "me"})
    assert damage_of(path) is None
    assert {**read_facts(path), "sha256": ""} == {**read_facts(whole), "sha256": ""}
    groups = [[pq.read_metadata(each).row_group(index).num_rows for index in range(2)] for each in (path, whole)]
    assert groups[0] == groups[1] == [122_880, 77_120]
    assert pl.read_parquet(path).equals(pl.read_parquet(whole))


def test_parts_without_rows_decide_nothing(tmp_path: Path) -> None:
    images = pl.DataFrame({"image": [bytes(200_000)] * 200}).cast({"image": pl.Binary}).to_arrow()
    files = {name: tmp_path / f"{name}.parquet" for name in ("with", "without", "only")}
    for name, path in files.items():
        parts = ParquetParts(path, hashed=True)
        for part in {"with": [images[:0], images, images[:0]], "without": [images], "only": [images[:0]]}[name]:
            parts.add(part)
        parts.finish({})
    assert files["with"].read_bytes() == files["without"].read_bytes()
    assert pq.ParquetFile(files["with"]).num_row_groups > 1
    assert pq.read_table(files["only"]).equals(images[:0])


def test_row_groups_of_images_are_small_whether_written_whole_or_in_parts(tmp_path: Path) -> None:
    images = pl.DataFrame({"id": range(40), "image": [bytes([number]) * 2**20 for number in range(40)]}).to_arrow()
    whole, path = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    content_hash = write_parquet(whole, images)
    parts = ParquetParts(path, hashed=True)
    for part in parts_of(images, 3):
        parts.add(part)
    parts.finish({})
    for file in (whole, path):
        metadata = pq.read_metadata(file)
        assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [7, 7, 7, 7, 7, 5]
        assert pl.read_parquet(file, glob=False).equals(pl.DataFrame(images))
    assert parts.content_hash == content_hash
