"""Reads one landed file into text or typed columns, keeping what cannot be read and saying why."""

import io
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

SUFFIXES = (".csv", ".parquet")
"""Endings of the files that are read."""

REJECTED_SCHEMA = {
    "source_file": pl.String(),
    "row_number": pl.Int64(),
    "rule": pl.String(),
    "reason": pl.String(),
    "record": pl.String(),
}
"""Rows in quarantine: file and place in it, the rule broken, the reason in words, the row as it stood."""

PLACE = ("_source_file", "_row_number")
"""Columns that say where a row comes from."""

_VALUE = r'(?:[^",][^,]*|"(?:[^"]|"")*"[^",]*|)'
_CLOSED_QUOTES = f"^{_VALUE}(?:,{_VALUE})*$"


class UnreadableFileError(Exception):
    """A landed file that cannot be read at all; the message says why and what to do."""


@dataclass(frozen=True)
class FileRows:
    """What one or more files of the same columns hold.

    Attributes:
        rows: Their columns as they stand in them (CSV: all text), and `PLACE`: the file, and the line in a CSV or the
            row in a Parquet file, counted from 1.
        rejected: Rows that cannot be read, in the columns of `REJECTED_SCHEMA`.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED_SCHEMA))


def read_file(name: str, data: bytes) -> FileRows:
    """Reads a landed file.

    Args:
        name: Its path below the landing place, whose ending tells the format.
        data: Its content.

    Raises:
        UnreadableFileError: Nothing of it can be read.
    """
    if not data:
        raise UnreadableFileError("the file is empty (0 bytes); land it again, with at least its header")
    file = _read_parquet(data) if name.lower().endswith(".parquet") else _read_csv(data)
    rejected = file.rejected.with_columns(source_file=pl.lit(name))
    return FileRows(file.rows.with_columns(_source_file=pl.lit(name)), rejected)


def _read_parquet(data: bytes) -> FileRows:
    try:
        _refuse_names(pq.read_schema(io.BytesIO(data)).names)
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(
            f"not a whole Parquet file ({_first_line(error)}); it may have been cut off on its way: land it again"
        ) from error
    frame = pl.DataFrame(pl.from_arrow(table))
    for name, dtype in frame.schema.items():
        if dtype.is_nested() or dtype in {pl.Binary(), pl.Object()}:
            raise UnreadableFileError(
                f"column {name!r} holds {dtype}, and a value is one number, text or time; flatten it at the source"
            )
    return FileRows(frame.with_row_index("_row_number", offset=1).cast({"_row_number": pl.Int64}))


def _read_csv(data: bytes) -> FileRows:
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in data.partition(b"\n")[0]:
        raise UnreadableFileError("the text is UTF-16; land it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    header, _, body = data.partition(b"\n")
    names = _header_names(header)
    refused = pl.DataFrame(schema=REJECTED_SCHEMA)
    if b'"' in body or not _is_utf8(body):
        body, refused = _without_broken_lines(body, len(names))
    rows, ragged = _parse(header + b"\n" + body, names)
    rows = rows.filter(~pl.col("_row_number").is_in(refused["row_number"].implode()))
    return FileRows(rows, pl.concat([refused, ragged]).sort("row_number"))


def _header_names(header: bytes) -> list[str]:
    if not _is_utf8(header):
        raise UnreadableFileError("the header is not UTF-8 text; land the file as UTF-8")
    try:
        names = [name.strip() for name in pa.csv.read_csv(io.BytesIO(header + b"\n")).column_names]
    except pa.ArrowInvalid as error:
        raise UnreadableFileError(
            f"the first line is no header ({_first_line(error)}); begin the file with one"
        ) from error
    _refuse_names(names)
    return names


def _refuse_names(names: list[str]) -> None:
    if own := sorted(set(PLACE) & set(names)):
        raise UnreadableFileError(f"column {own[0]!r} bears a name of the pipeline's own; rename it at the source")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UnreadableFileError(f"the header names column {doubled[0]!r} twice; give each column a name of its own")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _without_broken_lines(body: bytes, width: int) -> tuple[bytes, pl.DataFrame]:
    """Blanks out the lines that would lead the parser astray, so that each line keeps its number.

    An open quote swallows the good rows after it, and one byte that is not UTF-8 fails the whole file: such lines are
    taken out before the parser sees them. Hence a record is one line: a quoted value may hold commas, not line breaks.
    """
    whole = _is_utf8(body)
    text = pl.Series("text", body.decode("utf-8", errors="replace").split("\n"), dtype=pl.String)
    lines = text.to_frame().with_columns(
        row_number=pl.int_range(2, pl.len() + 2, dtype=pl.Int64),
        rule=pl.when(pl.lit(not whole) & pl.col("text").str.contains("\ufffd", literal=True))
        .then(pl.lit("encoding"))
        .when(
            (pl.col("text").str.count_matches('"', literal=True) % 2 == 1)
            | ~pl.col("text").str.contains(_CLOSED_QUOTES)
        )
        .then(pl.lit("quote")),
    )
    words = {
        "encoding": "the line is not UTF-8 text; land the file in one encoding",
        "quote": "a quote is opened and not closed on its line; double a quote inside a value; a record is one line",
    }
    refused = lines.filter(pl.col("rule").is_not_null()).select(
        pl.lit(None, dtype=pl.String).alias("source_file"),
        "row_number",
        "rule",
        reason=pl.col("rule").replace_strict(words, return_dtype=pl.String),
        record="text",
    )
    blank = pl.lit("," * (width - 1))
    mended = lines.select(pl.when(pl.col("rule").is_null()).then("text").otherwise(blank)).to_series()
    return "\n".join(mended.to_list()).encode(), refused


def _parse(data: bytes, names: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ragged: list[tuple[None, int, str, str, str]] = []

    def keep(row: pa.csv.InvalidRow) -> str:
        reason = (
            f"the line has {row.actual_columns} values where the header names {row.expected_columns} columns; "
            "give each column one value"
        )
        ragged.append((None, row.number, "columns", reason, row.text))
        return "skip"

    table = (
        pa.csv.read_csv(
            io.BytesIO(data),
            # One thread: only then do rows bear their numbers.
            read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            parse_options=pa.csv.ParseOptions(invalid_row_handler=keep, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
        if data.partition(b"\n")[2].strip()
        else pa.table({name: pa.array([], pa.string()) for name in names})
    )
    rows = pl.DataFrame(pl.from_arrow(table))
    skipped = {number for _, number, *_ in ragged}
    numbers = pl.Series("_row_number", range(2, rows.height + len(ragged) + 2), dtype=pl.Int64)
    rows = rows.with_columns(numbers.filter(~numbers.is_in(list(skipped))))
    if len(names) > 1:  # an empty line is no row
        rows = rows.filter(~pl.all_horizontal(pl.col(names).is_null()))
    return rows, pl.DataFrame(ragged, schema=REJECTED_SCHEMA, orient="row")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
