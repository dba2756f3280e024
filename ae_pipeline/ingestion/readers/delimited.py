"""Read CSV files and their relatives as text columns, exactly as they landed."""

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.csv

from ae_pipeline.common.text import first_line
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.source import Dialect, SourceConfig
from ae_pipeline.ingestion.readers.bounds import check_rejected, check_table, exceeded
from ae_pipeline.ingestion.readers.dialects import check_dialect, find_separator
from ae_pipeline.ingestion.readers.encodings import MARK, DecodedText, decode, printable_record
from ae_pipeline.ingestion.readers.plain_lines import read_plain_lines
from ae_pipeline.ingestion.readers.records import Broken, RecordScanner
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError, check_names, rejected_rows


def read_delimited(kind: str, data: bytes, source: SourceConfig, dialects: Sequence[Dialect] = ()) -> FileRows:
    """Read a CSV, TSV or TXT file. All values are text; an empty value is missing.

    Args:
        kind: Suffix of the file, such as `.csv`.
        data: Content of the file.
        source: Settings that declare the separator, the encoding or the size of a record.
        dialects: Dialects that the schema contract allows; any if there are none.

    Raises:
        UnreadableFileError: The file has no header or another dialect.
    """
    text = decode(data, source.encoding, [dialect.encoding for dialect in dialects])
    separator = source.separator or find_separator(kind, text.data, [dialect.separator for dialect in dialects])
    dialect = Dialect(separator=separator, encoding=text.encoding)
    check_dialect(dialect, dialects, source)
    header_end, names = read_header(text, separator, source.limits)
    return Body.read(text, header_end, dialect, len(names), source).parse(text.data, names, source.limits)


def read_header(text: DecodedText, separator: str, limits: LimitsConfig) -> tuple[int, list[str]]:
    """Return the index after the header, and the names of the columns.

    Args:
        text: The text, or more of its start than a header may have.
        separator: Character between values.
        limits: Limits of the dataset.

    Raises:
        UnreadableFileError: The text has no header.
    """
    head = RecordScanner(text.data[: limits.record_bytes + 1], separator.encode()).record(0)
    if head.end > limits.record_bytes:
        raise exceeded("or more bytes in its header", head.end, limits.record_bytes, "record_bytes")
    header = text.data[: head.end]
    if MARK.search(header):
        raise UnreadableFileError(
            f"the header is not {text.encoding.upper()} text; land the file as UTF-8, or set source.encoding in "
            "the YAML"
        )
    if b"\0" in header:
        raise UnreadableFileError(
            "the header has NUL bytes, so it is no text, or the text is UTF-16 without a byte order mark; land it as "
            "UTF-8, or set source.encoding to utf-16-le or utf-16-be in the YAML"
        )
    if header.count(separator.encode()) >= limits.columns and not head.problem:
        lines = io.StringIO(header.decode("utf-8", errors="replace"), newline="")
        check_table(limits, columns=len(next(csv.reader(lines, delimiter=separator))))
    return head.end, list(_names(header, separator, head.problem))


@lru_cache(maxsize=64)
def _names(header: bytes, separator: str, problem: str | None) -> tuple[str, ...]:
    """Return the names of the columns. Most files of a dataset have the same header."""
    try:
        if problem:
            raise pa.ArrowInvalid(problem)
        options = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
        read = pa.csv.ReadOptions(block_size=len(header) + 2)
        content = header.rstrip(b"\r\n") + b"\n"
        landed = pa.csv.read_csv(io.BytesIO(content), read_options=read, parse_options=options).column_names
    except pa.ArrowInvalid as error:
        raise UnreadableFileError(
            f"the first line is not a header ({first_line(error)}); add one with the column names"
        ) from error
    names = [each.strip() for each in landed]
    if not any(names):
        raise UnreadableFileError("the first line is not a header (it has no name); add one with the column names")
    # pandas writes its index without a name. With a name, the contract or `exclude` can say what becomes of it.
    names = [each or f"unnamed_{position}" for position, each in enumerate(names, 1)]
    check_names(names)
    return tuple(names)


@dataclass(frozen=True, kw_only=True)
class Body:
    """The records of a text, or of a part of it.

    Attributes:
        start: Index of the first one in the text.
        dialect: How the text is written.
        records: Number of records, also of those that cannot be read.
        parts: The records that can be read.
        lines: Line at which each of them starts.
        longest: Length of the longest record in bytes, if it was measured.
        has_quotes: Whether there are quotes.
        is_plain: Whether each line is a record, without quotes.
        rejected: Line, rule, reason and text of the records that cannot be read.
    """

    start: int
    dialect: Dialect
    records: int
    parts: list[pa.Buffer]
    lines: npt.NDArray[np.int64]
    longest: int
    has_quotes: bool
    is_plain: bool = False
    rejected: list[tuple[int, str, str, str]]

    @classmethod
    def read(cls, text: DecodedText, start: int, dialect: Dialect, width: int, source: SourceConfig) -> "Body":
        """Find the records of a text.

        Args:
            text: The text.
            start: Index after the header.
            dialect: How the text is written.
            width: Number of columns.
            source: Settings that limit a record.

        Raises:
            UnreadableFileError: There are too many records, or too many that cannot be read.
        """
        limits, max_lines = source.limits, source.max_record_lines
        data = text.data
        if start == len(data):
            no_lines = np.empty(0, np.int64)
            return cls(
                start=start,
                dialect=dialect,
                records=0,
                parts=[],
                lines=no_lines,
                longest=0,
                has_quotes=False,
                rejected=[],
            )
        has_quotes = data.find(b'"', start) >= 0
        if not has_quotes and not text.has_marks and _is_one_row_a_line(data, start, limits.record_bytes):
            first = data.count(b"\n", 0, start) + 1
            count = data.count(b"\n", start) + (not data.endswith(b"\n"))
            check_table(limits, rows=count)
            return cls(
                start=start,
                dialect=dialect,
                records=count,
                parts=[pa.py_buffer(data).slice(start)],
                lines=np.arange(first, first + count),
                longest=0,
                has_quotes=False,
                is_plain=True,
                rejected=[],
            )
        scanner = RecordScanner(data, dialect.separator.encode())
        breaks = scanner.breaks
        structural, broken = scanner.structure(start) if has_quotes else (np.empty(0, np.int64), [])
        ends = breaks[breaks >= start]
        is_inside = np.searchsorted(structural, ends) % 2 == 1
        ends = ends[~is_inside] + 1
        if not len(ends) or ends[-1] < len(data):
            ends = np.append(ends, len(data))
        starts = np.insert(ends[:-1], 0, start)
        check_table(limits, rows=len(starts))
        sizes = ends - starts
        bytes_ = np.frombuffer(data, np.uint8)
        lines = np.searchsorted(breaks, starts) + 1
        spans = np.diff(np.append(lines, len(breaks) + 1))
        is_known = ~_within(starts, broken)
        broken += [
            Broken(
                int(starts[at]),
                int(ends[at]),
                "length",
                f"the row has {spans[at]:,} lines, at most {max_lines:,} can be read; close its quote, or raise "
                "source.max_record_lines in the YAML",
            )
            for at in np.flatnonzero((spans > max_lines) & is_known)
        ]
        broken += [
            Broken(
                int(starts[at]),
                int(ends[at]),
                "size",
                f"the row has {sizes[at]:,} bytes, at most {limits.record_bytes:,} can be read; correct it at the "
                "source, or raise source.limits.record_bytes in the YAML",
            )
            for at in np.flatnonzero((sizes > limits.record_bytes) & (spans <= max_lines) & is_known)
        ]
        check_rejected(limits, len(broken))
        is_broken = _within(starts, broken)
        if text.has_marks:
            marks = np.array([mark.start() for mark in MARK.finditer(data)], dtype=np.int64)
            holders = np.unique(np.searchsorted(starts, marks, side="right") - 1)
            reason = f"the line is not {text.encoding.upper()} text; land the file with one encoding"
            marked = [at for at in holders if at >= 0 and not is_broken[at]]
            broken += [Broken(int(starts[at]), int(ends[at]), "encoding", reason) for at in marked]
            is_broken[marked] = True
        broken.sort()
        numbers = np.searchsorted(breaks, [each.start for each in broken]) + 1
        rejected = [
            (int(number), each.rule, each.reason, printable_record(data[each.start : each.end], limits.record_bytes))
            for number, each in zip(numbers, broken, strict=True)
        ]
        is_blank = (bytes_[starts] == ord("\n")) | (bytes_[starts] == ord("\r"))
        is_kept = ~is_broken & ~is_blank if width > 1 else ~is_broken
        longest = int((ends - starts).max())
        return cls(
            start=start,
            dialect=dialect,
            records=len(starts),
            parts=_without(data, start, broken),
            lines=lines[is_kept],
            longest=longest,
            has_quotes=has_quotes,
            rejected=rejected,
        )

    def parse(self, data: bytes, names: list[str], limits: LimitsConfig) -> FileRows:
        """Return the rows, and those that cannot be read.

        Args:
            data: The text.
            names: Names of the columns.
            limits: Limits of the dataset.

        Raises:
            UnreadableFileError: The rows cannot be told apart, or too many cannot be read.
        """
        separator, lines = self.dialect.separator, self.lines
        plain = read_plain_lines(data, self.start, names, separator, len(lines)) if self.is_plain else None
        rows, ragged = (_numbered(plain, lines), []) if plain is not None else _parse(self, names, separator, limits)
        if not self.rejected and not ragged:
            return FileRows(rows, dialect=self.dialect)
        check_rejected(limits, len(self.rejected) + len(ragged))
        rejected = rejected_rows([*self.rejected, *ragged]).sort("row_number")
        return FileRows(rows, rejected, dialect=self.dialect)


def _within(starts: npt.NDArray[np.int64], broken: Sequence[Broken]) -> npt.NDArray[np.bool_]:
    """Return whether each record starts in a broken one."""
    edges = np.array(sorted(edge for each in broken for edge in (each.start, each.end)), dtype=np.int64)
    is_within: npt.NDArray[np.bool_] = np.searchsorted(edges, starts, side="right") % 2 == 1
    return is_within


def _is_one_row_a_line(data: bytes, start: int, max_bytes: int) -> bool:
    """Return whether each line below the header is a row, and none is empty or too long. The data has no quotes."""
    position = start
    while len(data) - position > max_bytes:
        position = data.rfind(b"\n", position, position + max_bytes) + 1
        if not position:
            return False
    return b"\r" not in data and data.find(b"\n\n", start) < 0 and not data.startswith(b"\n", start)


def _without(data: bytes, start: int, broken: Sequence[Broken]) -> list[pa.Buffer]:
    buffer, parts = pa.py_buffer(data), []
    for each in broken:
        parts.append(buffer.slice(start, each.start - start))
        start = each.end
    return [*parts, buffer.slice(start)]


def _parse(
    body: Body, names: list[str], separator: str, limits: LimitsConfig
) -> tuple[pl.DataFrame, list[tuple[int, str, str, str]]]:
    lines, block_size = body.lines, max(1 << 21, body.longest + 16)
    if not len(lines):
        return pl.DataFrame(schema={**dict.fromkeys(names, pl.String()), "_row_number": pl.Int64()}), []
    ragged: list[pa.csv.InvalidRow] = []

    def keep(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip" if len(ragged) <= limits.rejected_rows else "error"

    content = body.parts[0] if len(body.parts) == 1 else pa.py_buffer(b"".join(body.parts))
    if content[:3] == codecs.BOM_UTF8:  # that of the file is gone; pyarrow drops another one before the first value
        content = pa.py_buffer(codecs.BOM_UTF8 + content.to_pybytes())

    def parse(*, use_threads: bool) -> pa.Table:
        ragged.clear()
        return pa.csv.read_csv(
            pa.BufferReader(content),
            read_options=pa.csv.ReadOptions(use_threads=use_threads, column_names=names, block_size=block_size),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator,
                newlines_in_values=body.has_quotes,
                ignore_empty_lines=len(names) > 1,
                invalid_row_handler=None if use_threads else keep,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )

    try:
        table = parse(use_threads=True)
    except pa.ArrowInvalid:  # a row with another number of values: with several threads, its number is unknown
        block_size = max(block_size, content.size + 16) if not body.longest else block_size
        try:
            table = parse(use_threads=False)
        except pa.ArrowInvalid:
            check_rejected(limits, len(ragged))
            raise
    if table.num_rows + len(ragged) != len(lines):
        raise UnreadableFileError(
            f"its rows cannot be told apart: there are {len(lines):,} by the rules for quotes, and "
            f"{table.num_rows + len(ragged):,} as parsed; correct the quotes at the source"
        )
    places = np.array([row.number - 1 for row in ragged], dtype=np.int64)
    rows = _numbered(pl.DataFrame(pl.from_arrow(table)), np.delete(lines, places))
    reason = "the line has {} values, but the header has {} columns; write one value for each column"
    rejected = [
        (int(lines[row.number - 1]), "columns", reason.format(row.actual_columns, row.expected_columns), row.text)
        for row in ragged
    ]
    return rows, rejected


def _numbered(rows: pl.DataFrame, lines: npt.NDArray[np.int64]) -> pl.DataFrame:
    return rows.hstack([pl.Series("_row_number", lines, dtype=pl.Int64)])
