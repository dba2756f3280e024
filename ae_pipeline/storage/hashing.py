"""Content hashes of tables and of JSON values."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


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


def hash_table(table: "pa.Table") -> str:
    """Return a hash of the column names, types and values of a table.

    The hash does not depend on chunks, metadata, or the bytes behind missing values.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = _HashingFile()
    plain = table.replace_schema_metadata(None).combine_chunks()
    # Arrow's own format would store the arbitrary bytes behind missing values; Parquet does not.
    with pa.PythonFile(file, "w") as sink:
        pq.write_table(plain, sink, compression="none", use_dictionary=False, write_statistics=False)
    return file.digest.hexdigest()[:32]


def hash_json(value: object) -> str:
    """Return a hash of a JSON value. The order of keys does not matter.

    >>> hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
