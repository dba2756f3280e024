"""What Parquet files contain beside their rows."""

import datetime as dt
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.parquet import damage_of, read_facts, write_parquet, write_rows

ROWS = pl.DataFrame(
    {
        "name": [f"n{number % 5}" for number in range(3000)],
        "distinct": [number / 7 for number in range(3000)],
        "few": [float(number % 3) for number in range(3000)],
        "gaps": [None if number % 2 else number for number in range(3000)],
    }
)


@pytest.mark.parametrize(
    ("fast", "compression", "with_dictionary"),
    [(False, "ZSTD", ["name", "few", "gaps"]), (True, "LZ4", [])],
)
def test_columns_of_distinct_floats_have_no_dictionary(
    tmp_path: Path, fast: bool, compression: str, with_dictionary: list[str]
) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, ROWS.to_arrow(), fast=fast)
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(index) for index in range(4)]
    assert {column.compression for column in columns} == {compression}
    assert [column.path_in_schema for column in columns if column.has_dictionary_page] == with_dictionary
    assert pl.read_parquet(path).equals(ROWS)


def test_the_content_hash_is_that_of_earlier_versions(tmp_path: Path) -> None:
    table = ROWS.to_arrow()
    assert hash_table(table) == write_parquet(tmp_path / "a.parquet", table) == "22e91bebaf85a139fa3e83e8e21413eb"
    assert hash_table(ROWS.slice(1).to_arrow()) == hash_table(ROWS.to_arrow().slice(1)) != hash_table(table)


def test_a_fast_file_has_facts_seal_and_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = ROWS.with_columns(
        decimal=pl.lit("1.50").cast(pl.Decimal(38, 2)),
        moment=pl.lit(dt.datetime(2024, 1, 1)).dt.cast_time_unit("ns").dt.replace_time_zone("UTC"),
        day=dt.date(1, 1, 1),
        image=pl.lit(b"\0\xff"),
        missing=pl.lit(None, pl.Boolean),
    )
    write_rows(path, rows.to_arrow(), {"fact": "ä\n"}, fast=True)
    assert {"fact": "ä\n"}.items() < read_facts(path).items()
    assert pl.read_parquet(path).equals(rows)
    assert pl.read_parquet(path).schema == rows.schema
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert damage_of(path) == "its bytes are not those that were written: their SHA-256 is another one"


@pytest.mark.parametrize("fast", [False, True])
def test_a_file_made_in_memory_has_the_bytes_of_one_made_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    write_rows(tmp_path / "memory.parquet", ROWS.to_arrow(), {"fact": "a"}, fast=fast)
    monkeypatch.setattr("ae_pipeline.storage.parquet._SMALL_BYTES", 0)
    write_rows(tmp_path / "disk.parquet", ROWS.to_arrow(), {"fact": "a"}, fast=fast)
    assert (tmp_path / "memory.parquet").read_bytes() == (tmp_path / "disk.parquet").read_bytes()
    assert damage_of(tmp_path / "memory.parquet") is None
