"""Check the limits of a file before it is read: sizes of files, tables and archives."""

import io
import os
import re
import string
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.ingestion.rows import UnreadableFileError

_CHUNK = 1 << 20

_FREE_BYTES = 64 << 20
"""Content of this size may have any ratio to the size of its file."""

_CELL_BYTES = 16
"""Memory of an empty cell."""

_END_OF_ARCHIVE = b"PK\x05\x06"

_CELL = re.compile(
    rb"""<(?:\w+:)?c\b[^<>]*?\br=["']([A-Za-z]{1,4})([0-9]{1,9})["']|<(?:\w+:)?row\b[^<>]*?\br=["']([0-9]{1,9})["']"""
)

_OVERLAP = 1 << 12
"""Bytes of XML that are searched again with the next part, because a tag may be cut."""


def exceeded(what: str, count: int, limit: int, setting: str) -> UnreadableFileError:
    """Return the error about a file that exceeds a limit.

    Args:
        what: What there is too much of, such as `columns`.
        count: How much the file has, or as far as it was counted.
        limit: The limit.
        setting: Key of `source.limits`.
    """
    return UnreadableFileError(
        f"the file has {count:,} {what}, but source.limits.{setting} is {limit:,}; land it in parts, or raise "
        f"source.limits.{setting} in the YAML"
    )


def check_table(limits: LimitsConfig, *, columns: int = 0, rows: int = 0, size: int = 0) -> None:
    """Check the size of a table.

    Args:
        limits: Limits of the dataset.
        columns: Number of columns.
        rows: Number of rows.
        size: Bytes in memory.

    Raises:
        UnreadableFileError: A limit is exceeded.
    """
    if columns > limits.columns:
        raise exceeded("columns", columns, limits.columns, "columns")
    if rows > limits.rows:
        raise exceeded("rows", rows, limits.rows, "rows")
    if size > limits.decompressed_bytes:
        raise exceeded("bytes in memory", size, limits.decompressed_bytes, "decompressed_bytes")


def check_rejected(limits: LimitsConfig, count: int) -> None:
    """Check the number of rows that cannot be read.

    Raises:
        UnreadableFileError: There are too many, so that the file is refused as a whole.
    """
    if count > limits.rejected_rows:
        raise exceeded("or more rows that cannot be read", count, limits.rejected_rows, "rejected_rows")


def check_sparse(limits: LimitsConfig, columns: int, rows: int, size: int) -> None:
    """Check a table whose rows name their own columns: most cells of it may be empty.

    Args:
        limits: Limits of the dataset.
        columns: Number of different names.
        rows: Number of rows.
        size: Bytes of the file.

    Raises:
        UnreadableFileError: The table has many more cells than the file has values.
    """
    if columns * rows * 4 > size:
        check_table(limits, size=columns * rows * _CELL_BYTES)


def read_bounded(path: Path, limits: LimitsConfig, size: int | None = None) -> bytes:
    """Return the content of a landed file.

    Args:
        path: Path of the file.
        limits: Limits of the dataset.
        size: Size of the file in bytes, if it is known.

    Raises:
        UnreadableFileError: The file is too large to be read.
    """
    size = path.stat().st_size if size is None else size
    if size > limits.file_bytes:
        raise exceeded("bytes", size, limits.file_bytes, "file_bytes")
    # A file object takes as long as the content of a small file, and releases the lock of Python twice as often.
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.read(file, size + 1)
    finally:
        os.close(file)
    if len(data) == size:
        return data
    with path.open("rb", buffering=0) as whole:  # it has just changed, or the system does not read as much at once
        return whole.readall()


class ByteCounter:
    """Counts decompressed bytes, and raises an error as soon as there are too many.

    Args:
        limits: Limits of the dataset.
        size: Size of the file in bytes.
    """

    def __init__(self, limits: LimitsConfig, size: int) -> None:
        self._limits, self._size, self._total = limits, size, 0

    def add(self, count: int) -> None:
        """Count further bytes.

        Raises:
            UnreadableFileError: The content is larger than the limits allow.
        """
        self._total += count
        if self._total > self._limits.decompressed_bytes:
            raise exceeded(
                "or more bytes after decompression", self._total, self._limits.decompressed_bytes, "decompressed_bytes"
            )
        ratio = self._total / max(self._size, 1)
        if self._total > _FREE_BYTES and ratio > self._limits.compression_ratio:
            raise exceeded(
                "or more times its size after decompression",
                int(ratio),
                self._limits.compression_ratio,
                "compression_ratio",
            )


def _parts(stream: "IO[bytes] | pa.NativeFile") -> Iterator[bytes]:
    while part := stream.read(_CHUNK):
        yield part


def check_stream(stream: "IO[bytes] | pa.NativeFile", size: int, limits: LimitsConfig) -> None:
    """Decompress a stream without keeping the content, and check its size.

    Args:
        stream: Stream that decompresses.
        size: Size of the file in bytes.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: The content is too large.
    """
    counter = ByteCounter(limits, size)
    for part in _parts(stream):
        counter.add(len(part))


def check_directory(data: bytes, limits: LimitsConfig) -> None:
    """Check the number of files in a zip file, before its directory is read.

    Raises:
        UnreadableFileError: There are too many, or their names are too long.
    """
    end = data.rfind(_END_OF_ARCHIVE, max(0, len(data) - (1 << 16) - 22))
    if end < 0 or end + 22 > len(data):
        return  # the reader says that the file is damaged
    entries, size = struct.unpack_from("<HI", data, end + 10)
    if entries == 0xFFFF or size == 0xFFFFFFFF:  # ZIP64 has them in a record of its own
        large = data.rfind(b"PK\x06\x06", 0, end)
        if large < 0 or large + 48 > len(data):
            return
        entries, size = struct.unpack_from("<QQ", data, large + 32)
    if entries > limits.archive_members:
        raise exceeded("files in its archive", entries, limits.archive_members, "archive_members")
    if size > limits.archive_members * 1024:
        raise exceeded("bytes of names in its archive", size, limits.archive_members * 1024, "archive_members")


def open_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    """Open a file of a zip file so that all of its content is read, whatever size the directory says."""
    opened = archive.open(entry)
    opened._left = 1 << 62  # type: ignore[attr-defined]
    return opened


def check_workbook(data: bytes, limits: LimitsConfig) -> None:
    """Check an Excel file: its size after decompression, and the rows and columns that its cells span.

    A cell far to the right and one far below are enough to span billions of cells, which the reader would allocate.

    Raises:
        UnreadableFileError: A limit is exceeded.
    """
    if not data.startswith(b"PK"):
        return  # the reader says that it is no Excel file
    check_directory(data, limits)
    counter = ByteCounter(limits, len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            rest, span = b"", [0, 0]
            try:
                with open_member(archive, entry) as stream:
                    for part in _parts(stream):
                        counter.add(len(part))
                        rest = (rest + part)[-len(part) - _OVERLAP :]
                        _grow(span, rest)
                        check_table(limits, columns=span[0], rows=span[1], size=span[0] * span[1] * _CELL_BYTES)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
                continue  # the reader says what is damaged


def _grow(span: list[int], xml: bytes) -> None:
    """Set the columns and rows that the cells of a sheet span."""
    cells = _CELL.findall(xml)
    span[0] = max([span[0], *(_column(letters) for letters in {letters for letters, *_ in cells})])
    span[1] = max([span[1], *(int(row or empty_row) for _, row, empty_row in cells)])


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters.decode().upper():
        number = number * 26 + string.ascii_uppercase.index(letter) + 1
    return number
