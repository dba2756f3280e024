"""Check the limits of Parquet, Arrow and Avro files from their metadata, before their values are decompressed."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.ingestion.readers.bounds import ByteCounter, check_table

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_VARIABLE = {"BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"}
_TEXT_BYTES = 16
"""Memory of an empty or missing text."""

_BATCH_ROWS = 4096


def check_parquet(file: pq.ParquetFile, limits: LimitsConfig) -> None:
    """Check columns, rows and size of a Parquet file from its footer, and the size of its texts by reading them.

    The footer does not show how large repeated texts are, because a text is stored once and then referenced.

    Args:
        file: The file.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: A limit is exceeded.
    """
    metadata = file.metadata
    check_table(limits, columns=max(len(file.schema_arrow.names), metadata.num_columns), rows=metadata.num_rows)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size, largest = 0, 0
    repeated: set[str] = set()
    for group in groups:
        for index in range(group.num_columns):
            chunk = group.column(index)
            stored, values = max(chunk.total_uncompressed_size, 0), max(chunk.num_values, 0)
            size += max(stored, values * _WIDTHS.get(chunk.physical_type, _TEXT_BYTES))
            if chunk.physical_type in _VARIABLE and values * stored > limits.decompressed_bytes:
                repeated.add(chunk.path_in_schema.split(".")[0])
                largest = max(largest, stored // max(min(values, 64), 1))
        check_table(limits, rows=sum(max(group.num_rows, 0) for group in groups), size=size)
    if repeated:
        batch_rows = max(16, min(_BATCH_ROWS, (64 << 20) // max(largest, 1)))
        total = 0
        for batch in file.iter_batches(batch_rows, columns=sorted(repeated)):
            total += batch.nbytes
            check_table(limits, size=total)


def check_repeated(table: pa.Table, limits: LimitsConfig) -> None:
    """Check the size of columns that store each value once, after their values are repeated.

    Args:
        table: Columns, of which some may be dictionary-encoded or run-end encoded.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: The table would be too large.
    """
    size = 0
    for column in table.columns:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                lengths = pc.take(_lengths(chunk.dictionary), chunk.indices)
            elif pa.types.is_run_end_encoded(chunk.type):
                ends = chunk.run_ends.to_numpy()
                runs = np.diff(ends, prepend=0)
                lengths = pc.multiply(pc.cast(_lengths(chunk.values), pa.int64()), pa.array(runs, pa.int64()))
            else:
                continue
            size += int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)
            check_table(limits, size=size)


def _lengths(values: pa.Array) -> pa.Array:
    """Return the size of each value in bytes."""
    kind, types = values.type, pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return pc.binary_length(values)
    return pa.array(np.full(len(values), _TEXT_BYTES), pa.int64())


def check_arrow(data: bytes, limits: LimitsConfig) -> None:
    """Check rows and size of an Arrow IPC file or stream from its messages.

    A compressed buffer starts with its size after decompression.

    Args:
        data: Content of the file.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: A limit is exceeded.
    """
    start = 8 if data.startswith(b"ARROW1") else 0
    stream = pa.BufferReader(pa.py_buffer(data).slice(start))
    rows = 0
    counter = ByteCounter(limits, len(data))
    while True:
        try:
            message = pa.ipc.read_message(stream)
        except (EOFError, pa.ArrowException, OSError):
            return  # the end, or the reader says what is damaged
        if message.type == "schema":
            check_table(limits, columns=len(pa.ipc.read_schema(message)))
            continue
        if message.type not in {"record batch", "dictionary"}:
            continue
        length, buffers, is_compressed = _record_batch(message)
        rows += length if message.type == "record batch" else 0
        check_table(limits, rows=max(rows, length))
        for offset, stored in buffers:
            is_sized = is_compressed and 0 <= offset <= len(message.body) - 8
            size = struct.unpack_from("<q", message.body, offset)[0] if is_sized and stored >= 8 else stored
            counter.add(max(size, 0))


class _Table:
    """A table of a flatbuffer, of which only the fields are needed that tell sizes."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data, self._position = data, position
        self._fields = position - struct.unpack_from("<i", data, position)[0]

    def field(self, index: int) -> int | None:
        """Return the position of a field, or None if it has its default."""
        (size,) = struct.unpack_from("<H", self._data, self._fields)
        if 4 + 2 * index >= size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._fields + 4 + 2 * index)
        return self._position + offset if offset else None

    def target(self, index: int) -> int | None:
        """Return the position that a field refers to."""
        position = self.field(index)
        return None if position is None else position + int(struct.unpack_from("<I", self._data, position)[0])


def _record_batch(message: pa.Message) -> tuple[int, list[tuple[int, int]], bool]:
    """Return the rows of a record batch, offset and size of its buffers, and whether they are compressed."""
    data = memoryview(message.metadata)
    root = _Table(data, struct.unpack_from("<I", data, 0)[0])
    header = root.target(2)
    if header is not None and message.type == "dictionary":
        header = _Table(data, header).target(1)
    if header is None:
        return 0, [], False
    batch = _Table(data, header)
    length = batch.field(0)
    buffers = batch.target(2)
    (count,) = struct.unpack_from("<I", data, buffers) if buffers is not None else (0,)
    sizes = [struct.unpack_from("<qq", data, (buffers or 0) + 4 + 16 * index) for index in range(count)]
    rows = struct.unpack_from("<q", data, length)[0] if length is not None else 0
    return rows, sizes, batch.field(3) is not None


def check_avro(data: bytes, limits: LimitsConfig) -> None:
    """Check rows and size of an Avro file from the heads of its blocks.

    Args:
        data: Content of the file.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: A limit is exceeded.
    """
    counter, rows = ByteCounter(limits, len(data)), 0
    try:
        codec, position = _avro_header(data)
        while position < len(data):
            count, position = _varint(data, position)
            size, position = _size(data, position)
            rows += abs(count)
            check_table(limits, rows=rows)
            for part in _decompressed_sizes(codec, data[position : position + size]):
                counter.add(part)
            position += size + 16
    except (IndexError, struct.error, zlib.error):
        return  # the reader says what is damaged


def _size(data: bytes, position: int) -> tuple[int, int]:
    """Return a size, and the position after it. A negative one would lead back."""
    size, position = _varint(data, position)
    if size < 0:
        raise IndexError
    return size, position


def _decompressed_sizes(codec: bytes, block: bytes) -> Iterator[int]:
    if codec == b"snappy" and block:
        yield _unsigned(block, 0)[0]
    elif codec == b"deflate":
        inflate = zlib.decompressobj(-15)
        rest = block
        while rest and not inflate.eof:
            yield len(inflate.decompress(rest, 1 << 20))
            rest = inflate.unconsumed_tail
    else:
        yield len(block)


def _avro_header(data: bytes) -> tuple[bytes, int]:
    """Return the codec and the position of the first block."""
    position, codec = 4, b"null"
    while True:
        count, position = _varint(data, position)
        if count == 0:
            return codec, position + 16
        if count < 0:
            _, position = _varint(data, position)
        for _ in range(abs(count)):
            size, position = _size(data, position)
            key, position = data[position : position + size], position + size
            size, position = _size(data, position)
            value, position = data[position : position + size], position + size
            codec = value if key == b"avro.codec" else codec


def _unsigned(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 63:
            return value, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a zigzag-encoded number, and the position after it."""
    value, position = _unsigned(data, position)
    return (value >> 1) ^ -(value & 1), position
