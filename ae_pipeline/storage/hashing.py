"""Content hashes of tables and of JSON values."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_HASHED_ROWS, _HASHED_BYTES = 1 << 20, 1 << 24
"""Rows of a row group of the file whose bytes are hashed, and bytes of images in it. Other numbers change hashes."""

_ENCODER = json.JSONEncoder(sort_keys=True, default=str, separators=(",", ":"))


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

    The hash does not depend on parts, chunks, metadata, or the bytes behind missing values. The first row shows how
    large the images of a table are, so that the rows in memory are bounded.

    Args:
        schema: Schema of all parts.
        is_earlier: Whether the hash is that of version 0.2, which had all images in memory.
    """

    def __init__(self, schema: "pa.Schema", *, is_earlier: bool = False) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = _HashingFile()
        # Arrow's own format would store the arbitrary bytes behind missing values; Parquet does not.
        self._sink = pa.PythonFile(self._file, "w")
        self._writer = pq.ParquetWriter(
            self._sink, schema.remove_metadata(), compression="none", use_dictionary=False, write_statistics=False
        )
        self._groups: RowGroups | None = None
        self._is_earlier = is_earlier

    def add(self, table: "pa.Table") -> None:
        """Add the next rows."""
        if self._groups is None or not self._groups.has_rows:
            rows = _HASHED_ROWS if self._is_earlier else _hashed_rows(table)
            self._groups = RowGroups(rows, self._writer.write_table)
        self._groups.add(table.replace_schema_metadata(None))

    def hexdigest(self) -> str:
        """Return the hash of all rows. No more can be added."""
        if self._groups is not None:
            self._groups.finish()
        self._writer.close()
        self._sink.close()
        return self._file.digest.hexdigest()[:32]


def _hashed_rows(table: "pa.Table") -> int:
    """Return the number of rows of a hashed row group: fewer if the first row has an image, as then all rows have."""
    from pyarrow import types

    first = table.slice(0, 1)
    binary = [name for name in table.column_names if types.is_large_binary(table.schema.field(name).type)]
    size = sum(len(value.as_py() or b"") for name in binary for value in first[name])
    return max(1, min(_HASHED_ROWS, _HASHED_BYTES // max(size, 1)))


class RowGroups:
    """Divide rows that come in any parts into groups of one size, as if they came at once.

    Args:
        rows: Number of rows of a group.
        write: Function that gets each group.
    """

    def __init__(self, rows: int, write: Callable[["pa.Table"], None]) -> None:
        self._size, self._write = rows, write
        self._parts: list[pa.Table] = []
        self._rows, self._total = 0, 0

    @property
    def has_rows(self) -> bool:
        """Whether rows were added, be they written or not."""
        return self._total > 0

    def add(self, table: "pa.Table") -> None:
        """Add the next rows, and write the groups that are full."""
        self._total += table.num_rows
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
        self._parts, self._rows = [table.slice(rows)], self._rows - rows
        starts = range(0, max(rows, 1), self._size)
        for start in starts:
            group = table.slice(start, min(self._size, rows - start)).combine_chunks()
            if start == starts[-1]:
                del table  # the parts need not be in memory beside their copy
            self._write(group)


def hash_table(table: "pa.Table", *, is_earlier: bool = False) -> str:
    """Return a hash of the column names, types and values of a table; see `TableHash`."""
    digest = TableHash(table.schema, is_earlier=is_earlier)
    digest.add(table)
    return digest.hexdigest()


def hash_json(value: object) -> str:
    """Return a hash of a JSON value. The order of keys does not matter.

    >>> hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:32]


def hash_json_items(items: Iterable[tuple[str, object]]) -> str:
    """Return the hash of a JSON object as `hash_json` does, without its text in memory.

    Args:
        items: Keys and values of the object, sorted by key.

    >>> hash_json_items([("a", 1), ("b", [2])]) == hash_json({"b": [2], "a": 1})
    True
    """
    digest, separator = hashlib.sha256(b"{"), ""
    for key, value in items:
        digest.update(f"{separator}{_ENCODER.encode(key)}:{_ENCODER.encode(value)}".encode())
        separator = ","
    digest.update(b"}")
    return digest.hexdigest()[:32]
