"""Content hashes of tables and of JSON values."""

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_HASHED_ROWS = 1 << 20
"""Rows of a row group of the file whose bytes are hashed. Another number would change all hashes."""


class _HashingFile:
    """A file that keeps only the digest of what is written, so that no copy of a table is in memory."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Add bytes to the digest."""
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: each write is hashed at once."""

    def close(self) -> None:
        """Keep the digest."""


class TableHash:
    """The hash of a table that is added part by part, so that it need not be in memory.

    The hash does not depend on parts, chunks, metadata, or the bytes behind missing values.

    Args:
        schema: Schema of all parts.
    """

    def __init__(self, schema: "pa.Schema") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = _HashingFile()
        # Arrow's own format would store the arbitrary bytes behind missing values; Parquet does not.
        self._sink = pa.PythonFile(self._file, "w")
        self._writer = pq.ParquetWriter(
            self._sink, schema.remove_metadata(), compression="none", use_dictionary=False, write_statistics=False
        )
        self._groups = RowGroups(_HASHED_ROWS, self._writer.write_table)

    def add(self, table: "pa.Table") -> None:
        """Add the next rows."""
        self._groups.add(table.replace_schema_metadata(None))

    def hexdigest(self) -> str:
        """Return the hash of all rows. No more can be added."""
        self._groups.finish()
        self._writer.close()
        self._sink.close()
        return self._file.digest.hexdigest()[:32]


class RowGroups:
    """Divide rows that come in any parts into groups of one size, as if they came at once.

    Args:
        rows: Number of rows of a group.
        write: Function that gets each group.
    """

    def __init__(self, rows: int, write: Callable[["pa.Table"], None]) -> None:
        self._size, self._write = rows, write
        self._parts: list[pa.Table] = []
        self._rows = 0

    def add(self, table: "pa.Table") -> None:
        """Add the next rows, and write the groups that are full."""
        self._parts.append(table)
        self._rows += table.num_rows
        if self._rows > self._size:
            self._write_groups(self._size * ((self._rows - 1) // self._size))

    def finish(self) -> None:
        """Write the last group."""
        if self._parts:
            self._write_groups(self._rows)

    def _write_groups(self, rows: int) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._parts)
        for start in range(0, max(rows, 1), self._size):
            self._write(table.slice(start, min(self._size, rows - start)).combine_chunks())
        self._parts, self._rows = [table.slice(rows)], self._rows - rows


def hash_table(table: "pa.Table") -> str:
    """Return a hash of the column names, types and values of a table; see `TableHash`."""
    digest = TableHash(table.schema)
    digest.add(table)
    return digest.hexdigest()


def hash_json(value: object) -> str:
    """Return a hash of a JSON value. The order of keys does not matter.

    >>> hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
