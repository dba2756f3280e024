"""Parquet files with a content hash in their footer, and batch sizes that bound memory."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.files import atomic_write, write_bytes
from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.integrity import SEAL, UNSEALED, parquet_damage, seal, sealed

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP = 122_880
"""Maximum number of rows of a row group. Large groups compress well; readers read a file group by group."""

_MIN_BATCH_ROWS, _BATCH_CELLS, _BATCH_BYTES = 1024, 2**22, 2**25

_IMAGE_GROUP_BYTES = 2**23
"""Size of a row group of images. Several groups are in memory while a file is written, and pixels compress alone."""

_FAST: Mapping[str, Any] = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}

_HEAD_ROWS = 1000
"""Rows that tell whether the values of a column repeat."""

_SMALL_BYTES = 2**20
"""Size up to which a file is made in memory, so that it is opened and written once."""

METADATA_PREFIX = b"ae_pipeline."
"""Prefix of the keys of facts in a footer."""

logger = logging.getLogger(__name__)


def rows_per_batch(columns: int, bytes_per_row: float = 0.0) -> int:
    """Return how many rows to read, write or hold at once. Wide rows and images give a smaller number.

    Args:
        columns: Number of columns.
        bytes_per_row: Size of a row in bytes, if known.

    >>> rows_per_batch(columns=10), rows_per_batch(columns=1000), rows_per_batch(columns=2, bytes_per_row=1e6)
    (122880, 4194, 33)
    """
    by_columns = max(_MIN_BATCH_ROWS, min(ROW_GROUP, _BATCH_CELLS // max(columns, 1)))
    return max(1, min(by_columns, int(_BATCH_BYTES / max(bytes_per_row, 1.0))))


def footer_of(path: Path) -> "pq.FileMetaData":
    """Return the metadata in the footer of a Parquet file: rows, columns and row groups."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path)


def row_bytes(metadata: "pq.FileMetaData", columns: Collection[str] | None = None) -> float:
    """Return the mean size of a row in a Parquet file before compression, in bytes.

    Dictionary encoding counts a repeated text once, so rows with such texts need more memory than this.

    Args:
        metadata: Metadata of the file.
        columns: Columns to count; all by default.
    """
    chunks = (
        metadata.row_group(group).column(index)
        for group in range(metadata.num_row_groups)
        for index in range(metadata.num_columns)
    )
    selected = (chunk for chunk in chunks if columns is None or chunk.path_in_schema.split(".")[0] in columns)
    size: int = sum(chunk.total_uncompressed_size for chunk in selected)
    return size / max(int(metadata.num_rows), 1)


def detach(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a copy of selected rows that does not share memory with the frame they come from.

    Texts in polars are views. Without the copy, a few selected rows would keep the bytes of all rows in memory.
    """
    return pl.DataFrame(rows.to_arrow(compat_level=pl.CompatLevel.oldest()), schema=rows.schema)


def write_parquet(path: Path, table: "pa.Table", facts: dict[str, str] | None = None) -> str:
    """Write a table atomically, with a seal, its content hash, its number of rows and further facts in the footer.

    Args:
        path: File to write.
        table: Rows to write.
        facts: Short texts for the footer, which `read_facts` returns.

    Returns:
        The content hash. The same rows in the same order give the same hash.
    """
    content_hash = hash_table(table)
    write_rows(path, table, {"content_hash": content_hash, "rows": str(table.num_rows), **(facts or {})})
    return content_hash


def write_rows(path: Path, table: "pa.Table", facts: dict[str, str] | None = None, *, fast: bool = False) -> None:
    """Write a table atomically, with facts in the footer.

    Args:
        path: File to write.
        table: Rows to write.
        facts: Short texts for the footer, which `read_facts` returns.
        fast: Whether the file is written in half the time and is larger, because few processes read it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = {METADATA_PREFIX + key.encode(): value.encode() for key, value in (facts or {}).items()}
    table = table.replace_schema_metadata(footer)

    def write(target: "Path | pa.NativeFile") -> None:
        with pq.ParquetWriter(target, table.schema, **encoding_of(table, fast=fast)) as writer:
            writer.write_table(table, row_group_size=rows_per_group(table))
            writer.add_key_value_metadata({SEAL: UNSEALED})

    if table.nbytes <= _SMALL_BYTES:
        write(buffer := pa.BufferOutputStream())
        write_bytes(path, sealed(buffer.getvalue().to_pybytes()))
        return
    with atomic_write(path) as temporary:
        write(temporary)
        seal(temporary)


def encoding_of(table: "pa.Table", *, fast: bool) -> Mapping[str, Any]:
    """Return the settings of the writer for a table, or for its first rows; see `write_rows`."""
    return _FAST if fast else {"compression": "zstd", "use_dictionary": _repeating_columns(table)}


def rows_per_group(table: "pa.Table") -> int:
    """Return the number of rows of the row groups in which a table is written. Those of images are smaller."""
    import pyarrow as pa

    bytes_per_row = table.nbytes / max(table.num_rows, 1)
    rows = rows_per_batch(table.num_columns, bytes_per_row)
    has_images = any(pa.types.is_large_binary(field.type) for field in table.schema)
    return max(1, min(rows, int(_IMAGE_GROUP_BYTES / max(bytes_per_row, 1.0)))) if has_images else rows


def _repeating_columns(table: "pa.Table") -> list[str]:
    """Return the columns whose values repeat. A dictionary of distinct floats costs time and makes a file larger."""
    import pyarrow as pa
    import pyarrow.compute as pc

    head = table.slice(0, _HEAD_ROWS)

    def repeats(name: str) -> bool:
        is_float = pa.types.is_floating(head.schema.field(name).type)
        return not is_float or pc.count_distinct(head[name]).as_py() <= head.num_rows / 2

    return [name for name in table.column_names if repeats(name)]


def read_facts(path: Path) -> dict[str, str]:
    """Return the facts in the footer of a file of `write_parquet`, or an empty dictionary if the file is missing.

    A file whose bytes are not those that were written counts as missing, so that it is built again. The whole file is
    read to find this out: once in a process, and again after a change.
    """
    return dict(_checked(path)[0])


def whole(path: Path) -> Path:
    """Return the path of a file of `write_parquet` that is about to be read.

    Raises:
        StorageError: The file is damaged.
    """
    if damage := damage_of(path):
        raise StorageError(f"{path} is damaged: {damage}; `ae-pipeline run {path.parent.name}` builds it again")
    return path


def damage_of(path: Path) -> str | None:
    """Return how a file of `write_parquet` is damaged, or None if it is whole or missing."""
    return _checked(path)[1]


def _checked(path: Path) -> tuple[dict[str, str], str | None]:
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}, None
    return _check(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=1 << 16)
def _check(path: Path, *_state: int) -> tuple[dict[str, str], str | None]:
    """Return facts and damage of a file in a state."""
    if damage := parquet_damage(path):
        logger.warning(f"{path} is damaged and not used: {damage}; `ae-pipeline run` builds it again")
        return {}, damage
    metadata, prefix = footer_of(path).metadata or {}, len(METADATA_PREFIX)  # with the seal
    return {k[prefix:].decode(): v.decode() for k, v in metadata.items() if k.startswith(METADATA_PREFIX)}, None


def scans(files: Sequence[Path], at_once: int | None) -> Iterator[pl.LazyFrame]:
    """Yield scans of files in their order. Small files are combined, and large files are divided."""
    combined: list[pl.LazyFrame] = []
    rows = 0
    for file in files:
        scan = pl.scan_parquet(file, glob=False)
        height = footer_of(file).num_rows if at_once is not None else 0
        if at_once is not None and combined and rows + height > at_once:
            yield pl.concat(combined, how="diagonal")
            combined, rows = [], 0
        if at_once is not None and height > at_once:
            yield from (scan.slice(start, at_once) for start in range(0, height, at_once))
        else:
            combined.append(scan)
            rows += height
    if combined:
        yield pl.concat(combined, how="diagonal")
