"""Write a Parquet file part by part, with the bytes and the facts of `write_rows`, so that memory stays bounded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ae_pipeline.storage.hashing import RowGroups, TableHash
from ae_pipeline.storage.integrity import SEAL, UNSEALED, seal
from ae_pipeline.storage.parquet import METADATA_PREFIX, encoding_of, rows_per_group

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class ParquetParts:
    """A Parquet file that is written part by part. Its first part with rows decides its schema and its encoding.

    Args:
        path: File to write, such as a temporary one.
        fast: Whether the file is written in half the time and is larger, because few processes read it.
        hashed: Whether the content hash and the number of rows are facts of the file, as `write_parquet` has them.
    """

    def __init__(self, path: Path, *, fast: bool = False, hashed: bool = False) -> None:
        self.path, self.rows, self.content_hash = path, 0, ""
        self._fast, self._is_hashed = fast, hashed
        self._writer: pq.ParquetWriter | None = None
        self._empty: pa.Table | None = None
        self._groups: RowGroups | None = None
        self._hash: TableHash | None = None

    def add(self, table: "pa.Table") -> None:
        """Add the next rows; there may be none, but the schema must be that of the first part."""
        table = table.replace_schema_metadata(None)
        if not table.num_rows:
            self._empty = table
            return
        self._write(table)

    def _write(self, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        if self._writer is None or self._groups is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, **encoding_of(table, fast=self._fast))
            self._groups = RowGroups(rows_per_group(table), self._writer.write_table)
            self._hash = TableHash(table.schema) if self._is_hashed else None
        self._groups.add(table)
        if self._hash:
            self._hash.add(table)
        self.rows += table.num_rows

    def finish(self, facts: Mapping[str, str]) -> None:
        """Write the last rows, facts and a seal. At least one part must have been added."""
        import pyarrow as pa

        if self._writer is None and self._empty is not None:
            self._write(self._empty)
        assert self._writer is not None
        assert self._groups is not None
        self._groups.finish()
        if self._hash:
            self.content_hash = self._hash.hexdigest()
            facts = {"content_hash": self.content_hash, "rows": str(self.rows), **facts}
        footer: dict[str | bytes, str | bytes] = {SEAL: UNSEALED}
        footer |= {METADATA_PREFIX + key.encode(): value.encode() for key, value in facts.items()}
        self._writer.add_key_value_metadata(footer)
        self.close()
        seal(self.path)
        pa.default_memory_pool().release_unused()  # it would keep the buffers of all row groups

    def close(self) -> None:
        """Close the file. Without `finish`, it is incomplete."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
