"""What Parquet files contain beside their rows."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.parquet import write_parquet, write_rows

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
