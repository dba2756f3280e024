"""Read a large CSV file part by part, so that memory does not grow with it. The rows are those of `read_delimited`.

The file is read twice: once for its digest and its encoding, which every byte can change, and once for its rows. A part
ends after a record that no later text can change. A quoted value that is not closed makes its part grow until the text
decides where it ends.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import polars as pl

from ae_pipeline.config.source import Dialect, SourceConfig
from ae_pipeline.ingestion.readers.bounds import check_rejected, check_table
from ae_pipeline.ingestion.readers.delimited import Body, read_header
from ae_pipeline.ingestion.readers.dialects import check_dialect, find_separator
from ae_pipeline.ingestion.readers.encodings import DecodedText, TextEvidence, decode_as, keeps_lines, without_mark
from ae_pipeline.ingestion.readers.records import RecordScanner
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError

LARGE_BYTES = 32 << 20
"""Size from which a file is read part by part."""

PART_BYTES = 8 << 20
"""Approximate size of a part."""

_MANY_ROWS = 1 << 62


class ChangedFileError(UnreadableFileError):
    """A file has changed while it was read."""


@dataclass(frozen=True, kw_only=True)
class TextScan:
    """What every byte of a text file decides.

    Attributes:
        sha256: Digest of the file.
        evidence: Evidence of its encoding.
        lines: Number of line breaks. There are no more records below the header.
    """

    sha256: str
    evidence: TextEvidence
    lines: int


def scan_text(path: Path) -> TextScan:
    """Read a file once, and return its digest, the evidence of its encoding, and its number of lines."""
    stat = path.stat()
    return _scan(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _scan(path: Path, *_state: int) -> TextScan:
    digest, evidence, lines = hashlib.sha256(), TextEvidence(), 0
    with path.open("rb") as file:
        rest = b""
        while block := file.read(max(PART_BYTES, len(rest))):
            digest.update(block)
            data = rest + block
            cut = data.rfind(b"\n") + 1
            if cut:
                evidence.add(data[:cut])
                lines += _count_lines(data[:cut])
            rest = data[cut:]
        evidence.add(rest)
    return TextScan(sha256=digest.hexdigest(), evidence=evidence, lines=lines + _count_lines(rest))


def _count_lines(text: bytes) -> int:
    """Return the number of line breaks: LF, CR LF or CR."""
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


@dataclass(frozen=True)
class _Part:
    """Some records of a file: their text, and the number of lines before them."""

    text: bytes
    body: Body
    names: list[str]
    lines_before: int


def reads_in_parts(path: Path, source: SourceConfig, dialects: Sequence[Dialect]) -> bool:
    """Return whether a text file is read part by part: it is large, and its encoding keeps lines.

    Raises:
        UnreadableFileError: The text has another encoding than declared, or its encoding cannot be told.
    """
    if not LARGE_BYTES <= path.stat().st_size <= source.limits.file_bytes:
        return False
    return keeps_lines(_encoding(scan_text(path), source, dialects))


def read_delimited_parts(
    kind: str, path: Path, source: SourceConfig, dialects: Sequence[Dialect] = ()
) -> Generator[FileRows]:
    """Read a CSV, TSV or TXT file as `read_delimited` does, and yield its rows part by part, at least one part.

    Args:
        kind: Suffix of the file, such as `.csv`.
        path: Path of the file; see `reads_in_parts`.
        source: Settings that declare the separator, the encoding or the size of a record.
        dialects: Dialects that the schema contract allows; any if there are none.

    Raises:
        UnreadableFileError: The file has no header, another dialect or too many rows, or has changed while it was read.
    """
    limits = source.limits
    if scan_text(path).lines > limits.rows:
        check_table(limits, rows=sum(part.body.records for part in _parts(kind, path, source, dialects)))
    rejected = 0
    for part in _parts(kind, path, source, dialects):
        rows = part.body.parse(part.text, part.names, limits)
        rejected += rows.rejected.height
        check_rejected(limits, rejected)
        yield _moved(rows, part.lines_before)


def _parts(kind: str, path: Path, source: SourceConfig, dialects: Sequence[Dialect]) -> Iterator[_Part]:
    scan = scan_text(path)
    encoding = _encoding(scan, source, dialects)
    any_rows = source.model_copy(update={"limits": source.limits.model_copy(update={"rows": _MANY_ROWS})})
    digest = hashlib.sha256()
    with path.open("rb") as file:
        reader = _Reader(file, encoding, scan.evidence.byte_order_mark, digest)
        while len(reader.text) <= max(PART_BYTES // 2, source.limits.record_bytes) and not reader.is_at_end:
            reader.read_more()
        separator = source.separator or find_separator(kind, reader.text, [each.separator for each in dialects])
        dialect = Dialect(separator=separator, encoding=encoding)
        check_dialect(dialect, dialects, source)
        start, names = read_header(DecodedText(reader.text, encoding), separator, source.limits)
        lines, is_first = 0, True
        while is_first or reader.text or not reader.is_at_end:
            end = len(reader.text) if reader.is_at_end else _settled_end(reader.text, start, separator)
            if end <= start and not reader.is_at_end:
                reader.read_more()
                continue
            text = DecodedText(reader.take(end), encoding, reader.has_marks)
            body = Body.read(text, start, dialect, len(names), any_rows)
            yield _Part(text.data, body, names, lines)
            lines += _count_lines(text.data)
            start, is_first = 0, False
            reader.read_more()
    if digest.hexdigest() != scan.sha256:
        raise ChangedFileError("the file has changed while it was read; it is read again once it is complete")


class _Reader:
    """Decoded lines of a file that are not yet taken.

    Attributes:
        text: The lines, in UTF-8.
        has_marks: Whether a byte could not be decoded so far.
        is_at_end: Whether the text reaches the end of the file.
    """

    def __init__(self, file: BinaryIO, encoding: str, mark: bytes, digest: "hashlib._Hash") -> None:
        self._file, self._encoding, self._mark, self._digest = file, encoding, mark, digest
        self._rest = b""
        self.text, self.has_marks, self.is_at_end = b"", False, False

    def read_more(self) -> None:
        """Read about as much as there is, at least a part."""
        size = max(PART_BYTES, len(self.text), len(self._rest))
        block = self._file.read(size)
        self._digest.update(block)
        self.is_at_end = self.is_at_end or len(block) < size
        data = self._rest + block
        cut = len(data) if self.is_at_end else data.rfind(b"\n") + 1
        self._rest = data[cut:]
        decoded = decode_as(without_mark(data[:cut], self._mark), self._encoding)
        if cut:
            self._mark = b""
        self.text += decoded.data
        self.has_marks |= decoded.has_marks

    def take(self, end: int) -> bytes:
        """Return the text up to an index, and keep the rest."""
        taken, self.text = self.text[:end], self.text[end:]
        return taken


def _settled_end(text: bytes, start: int, separator: str) -> int:
    """Return the index after the last record that more text cannot change. The text ends with a line feed."""
    if text.find(b'"', start) < 0:
        return len(text)
    scanner = RecordScanner(text, separator.encode())
    scanner.structure(start)
    return min(scanner.undecided, default=len(text))


def _encoding(scan: TextScan, source: SourceConfig, dialects: Sequence[Dialect]) -> str:
    return scan.evidence.encoding(source.encoding, [dialect.encoding for dialect in dialects])


def _moved(file: FileRows, lines: int) -> FileRows:
    """Return rows whose lines are counted from the start of the file."""
    if not lines:
        return file
    rows = file.rows.with_columns(pl.col("_row_number") + lines)
    return FileRows(rows, file.rejected.with_columns(pl.col("row_number") + lines), file.skipped, file.dialect)
