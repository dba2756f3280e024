"""Content hashes of tables and of JSON values."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq


def hash_table(table: pa.Table) -> str:
    """Hashes names, types and values of a table, whatever its chunks and the bytes behind missing values."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    # Parquet stores no bytes for a missing value, as Arrow's own format does.
    pq.write_table(plain, sink, compression="none", use_dictionary=False, write_statistics=False)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def hash_json(value: object) -> str:
    """Hashes anything that JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
