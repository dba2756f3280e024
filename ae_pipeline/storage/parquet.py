"""Paths of what a dataset owns, files that appear whole or not at all, and Parquet files that know their content."""

from collections.abc import Collection
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.hashing import hash_table

ROW_GROUP = 122_880
"""Rows of a row group at most: many enough for the codec, few enough to be read in pieces."""

_LEAST_TOGETHER, _CELLS_TOGETHER, _BYTES_TOGETHER = 1024, 2**22, 2**25

_METADATA_PREFIX = b"ae_pipeline."


def rows_together(columns: int, row_bytes: float = 0.0) -> int:
    """Says how many rows are read, written and held together: fewer of wide ones, and of images.

    Args:
        columns: How many they have.
        row_bytes: What one takes, where that is known.
    """
    by_columns = max(_LEAST_TOGETHER, min(ROW_GROUP, _CELLS_TOGETHER // max(columns, 1)))
    return max(1, min(by_columns, int(_BYTES_TOGETHER / max(row_bytes, 1.0))))


def bytes_of_row(metadata: pq.FileMetaData, columns: Collection[str] | None = None) -> float:
    """Says what a row of a Parquet file takes as it was written, before it was compressed; texts that repeat take more.

    Args:
        metadata: Of the file.
        columns: Of which columns, all when left out.
    """
    chunks = (
        metadata.row_group(group).column(index)
        for group in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
    )
    wanted = (c for c in chunks if columns is None or c.path_in_schema.split(".")[0] in columns)
    held: int = sum(chunk.total_uncompressed_size for chunk in wanted)
    return held / max(int(metadata.num_rows), 1)


def detach(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies rows that were chosen among many: texts are views, and few would keep the bytes of all others."""
    return pl.DataFrame(rows.to_arrow(compat_level=pl.CompatLevel.oldest()), schema=rows.schema)


def write_parquet(path: Path, table: pa.Table, facts: dict[str, str] | None = None) -> str:
    """Writes a table in one step, with the hash of its content and further facts in the footer.

    Args:
        path: Where to.
        table: What.
        facts: Short texts to keep in the footer, read again by `read_facts`.

    Returns:
        The content hash: the same rows in the same order give the same hash.
    """
    content_hash = hash_table(table)
    footer = {"content_hash": content_hash, "rows": str(table.num_rows), **(facts or {})}
    table = table.replace_schema_metadata({_METADATA_PREFIX + k.encode(): v.encode() for k, v in footer.items()})
    together = rows_together(table.num_columns, table.nbytes / max(table.num_rows, 1))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=together)
    return content_hash


def read_facts(path: Path) -> dict[str, str]:
    """Gives the facts in the footer of a file that `write_parquet` wrote, or none where there is no such file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        return {}
    prefix = len(_METADATA_PREFIX)
    return {k[prefix:].decode(): v.decode() for k, v in metadata.items() if k.startswith(_METADATA_PREFIX)}
