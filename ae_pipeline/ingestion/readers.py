"""Read one landed file: CSV, Parquet, PNG or JPEG. Rows that cannot be read are kept with a reason."""

import io
import json
import re
from pathlib import PurePath

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ae_pipeline.common.text import first_line
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion.images import UnreadableImageError, decode_image, image_struct, read_image_column
from ae_pipeline.ingestion.patches import PATCH_COLUMNS, cut_patches
from ae_pipeline.ingestion.rows import (
    IMAGE_STRUCT,
    ORIGIN_COLUMNS,
    REJECTED_SCHEMA,
    FileRows,
    UnreadableFileError,
    format_image,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

FILE_COLUMN = "file"
"""Column with the path of an image file below the landing folder."""

_VALUE = r'(?:[^",][^,]*|"(?:[^"]|"")*"[^",]*|)'
_CLOSED_QUOTES = f"^{_VALUE}(?:,{_VALUE})*$"


def suffixes(images: ImagesConfig | None) -> tuple[str, ...]:
    """Return the suffixes of the files that a dataset reads."""
    return (".csv", ".parquet", *(IMAGE_SUFFIXES if images else ()))


def read_file(name: str, data: bytes, images: ImagesConfig | None = None, dtype: str | None = None) -> FileRows:
    """Read a landed file.

    Args:
        name: Path of the file below the landing folder. Its suffix determines the format.
        data: Content of the file.
        images: Settings for images, or None for a table.
        dtype: Type of the images' values in the schema contract, if there is a contract.

    Raises:
        UnreadableFileError: No row of the file can be read.
    """
    suffix = PurePath(name).suffix.lower()
    if images and suffix in IMAGE_SUFFIXES:
        file = _read_image(name, data, images)
    elif not data:
        raise UnreadableFileError("the file is empty (0 bytes); land it again, at least with a header")
    elif suffix == ".parquet":
        file = _read_parquet(data, images, dtype)
    else:
        file = _read_csv(data)
    if images and images.patch and file.rows.schema.get(images.column) == IMAGE_STRUCT:
        file = _cut_patches(file, images)
    rejected = file.rejected.with_columns(source_file=pl.lit(name))
    return FileRows(file.rows.with_columns(_source_file=pl.lit(name)), rejected)


def _read_image(name: str, data: bytes, images: ImagesConfig) -> FileRows:
    expression = re.compile(images.path or "")
    values: dict[str, object] = {FILE_COLUMN: name}
    schema = {**dict.fromkeys((FILE_COLUMN, *expression.groupindex), pl.String()), images.column: IMAGE_STRUCT}
    try:
        image = decode_image(data)
    except UnreadableImageError as error:
        return _rejected_image(f"{images.column}: readable", f"{images.column}: {error}", values, schema)
    match = expression.search(name)
    if match is None:
        reason = f"{FILE_COLUMN} = {name} does not match images.path={images.path!r}; rename the file, or change path"
        return _rejected_image(f"{FILE_COLUMN}: path", reason, values, schema)
    values |= {**match.groupdict(), images.column: image_struct(image)}
    row = pl.DataFrame([values], schema={**schema, "_row_number": pl.Int64()}, orient="row")
    return FileRows(row.with_columns(_row_number=pl.lit(1, pl.Int64)))


def _rejected_image(rule: str, reason: str, values: dict[str, object], schema: dict[str, pl.DataType]) -> FileRows:
    record = json.dumps(values, ensure_ascii=False)
    rejected = pl.DataFrame([(None, 1, rule, reason, record)], schema=REJECTED_SCHEMA, orient="row")
    return FileRows(pl.DataFrame(schema={**schema, "_row_number": pl.Int64()}), rejected)


def _cut_patches(file: FileRows, images: ImagesConfig) -> FileRows:
    if taken := [name for name in PATCH_COLUMNS if name in file.rows.columns]:
        raise UnreadableFileError(
            f"column {taken[0]!r} has a reserved name, which holds the position of a patch; rename it at the source"
        )
    patch = images.patch or 0
    rows, refused = cut_patches(file.rows, images.column, patch, images.stride or patch)
    reasons = pl.Series([f"{images.column}: {reason}" for _, reason in refused], dtype=pl.String)
    rejected = _rejected(file.rows[[index for index, _ in refused]], images.column, "patches", reasons)
    return FileRows(rows, pl.concat([file.rejected, rejected]).sort("row_number"))


def _rejected(rows: pl.DataFrame, column: str, rule: str, reasons: pl.Series) -> pl.DataFrame:
    """Return rejected rows with the shape of their image in place of its bytes."""
    image = pl.coalesce(format_image(pl.col(column)), pl.lit("no image")).alias(column)
    record = pl.struct(pl.exclude(column, *ORIGIN_COLUMNS).cast(pl.String), image).struct.json_encode()
    return rows.select(
        source_file=pl.lit(None, pl.String),
        row_number="_row_number",
        rule=pl.lit(f"{column}: {rule}"),
        reason=reasons,
        record=record,
    )


def _read_parquet(data: bytes, images: ImagesConfig | None, dtype: str | None) -> FileRows:
    try:
        _check_names(pq.read_schema(io.BytesIO(data)).names)
        table = _read_table(data, with_images=images is not None)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(
            f"not a complete Parquet file ({first_line(error)}); it may be truncated: land it again"
        ) from error
    decoded = None
    if images and images.column in table.column_names:
        decoded = read_image_column(table[images.column], images.column, dtype)
        index = table.column_names.index(images.column)
        table = table.set_column(index, images.column, pa.nulls(table.num_rows))
    frame = pl.DataFrame(pl.from_arrow(table))
    for name, kind in frame.schema.items():
        if kind.is_nested() or kind in {pl.Binary(), pl.Object()}:
            raise UnreadableFileError(
                f"column {name!r} has type {kind}, but a value must be one number, text or time; flatten it at the "
                "source"
            )
    rows = frame.with_row_index("_row_number", offset=1).cast({"_row_number": pl.Int64})
    if not images or decoded is None:
        return FileRows(rows)
    rows = rows.with_columns(decoded.images.alias(images.column))
    is_rejected = decoded.reasons.is_not_null()
    reasons = f"{images.column}: " + decoded.reasons.filter(is_rejected)
    return FileRows(rows.filter(~is_rejected), _rejected(rows.filter(is_rejected), images.column, "readable", reasons))


def _read_table(data: bytes, *, with_images: bool) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        # pyarrow 25.0 cannot read missing values among lists of a fixed size; polars can.
        if not with_images or "Expected all lists to be of size" not in str(error):
            raise
        return pl.read_parquet(io.BytesIO(data)).to_arrow()


def _read_csv(data: bytes) -> FileRows:
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in data.partition(b"\n")[0]:
        raise UnreadableFileError("the text is UTF-16; land it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    header, _, body = data.partition(b"\n")
    names = _header_names(header)
    broken = pl.DataFrame(schema=REJECTED_SCHEMA)
    if b'"' in body or not _is_utf8(body):
        body, broken = _blank_broken_lines(body, len(names))
    rows, ragged = _parse(header + b"\n" + body, names)
    rows = rows.filter(~pl.col("_row_number").is_in(broken["row_number"].implode()))
    return FileRows(rows, pl.concat([broken, ragged]).sort("row_number"))


def _header_names(header: bytes) -> list[str]:
    if not _is_utf8(header):
        raise UnreadableFileError("the header is not UTF-8 text; land the file as UTF-8")
    try:
        names = [name.strip() for name in pa.csv.read_csv(io.BytesIO(header + b"\n")).column_names]
    except pa.ArrowInvalid as error:
        raise UnreadableFileError(
            f"the first line is not a header ({first_line(error)}); add one with the column names"
        ) from error
    _check_names(names)
    return names


def _check_names(names: list[str]) -> None:
    if reserved := sorted(set(ORIGIN_COLUMNS) & set(names)):
        raise UnreadableFileError(f"column {reserved[0]!r} has a reserved name; rename it at the source")
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise UnreadableFileError(f"two columns have the name {duplicates[0]!r}; give each column a unique name")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _blank_broken_lines(body: bytes, width: int) -> tuple[bytes, pl.DataFrame]:
    """Replace the lines that would mislead the parser with empty values, so that each line keeps its number.

    An open quote would swallow the following rows, and one byte that is not UTF-8 would fail the whole file. A record
    is therefore one line: a quoted value can contain commas, but no line breaks.

    Args:
        body: The lines after the header.
        width: Number of columns.

    Returns:
        The body without broken lines, and the broken lines as rejected rows.
    """
    is_utf8 = _is_utf8(body)
    text = pl.Series("text", body.decode("utf-8", errors="replace").split("\n"), dtype=pl.String)
    lines = text.to_frame().with_columns(
        row_number=pl.int_range(2, pl.len() + 2, dtype=pl.Int64),
        rule=pl.when(pl.lit(not is_utf8) & pl.col("text").str.contains("\ufffd", literal=True))
        .then(pl.lit("encoding"))
        .when(
            (pl.col("text").str.count_matches('"', literal=True) % 2 == 1)
            | ~pl.col("text").str.contains(_CLOSED_QUOTES)
        )
        .then(pl.lit("quote")),
    )
    reasons = {
        "encoding": "the line is not UTF-8 text; land the file with one encoding",
        "quote": "a quote is not closed on its line; write each record on one line, and double a quote inside a value",
    }
    broken = lines.filter(pl.col("rule").is_not_null()).select(
        pl.lit(None, dtype=pl.String).alias("source_file"),
        "row_number",
        "rule",
        reason=pl.col("rule").replace_strict(reasons, return_dtype=pl.String),
        record="text",
    )
    blank = pl.lit("," * (width - 1))
    kept = lines.select(pl.when(pl.col("rule").is_null()).then("text").otherwise(blank)).to_series()
    return "\n".join(kept.to_list()).encode(), broken


def _parse(data: bytes, names: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    ragged: list[tuple[None, int, str, str, str]] = []

    def keep(row: pa.csv.InvalidRow) -> str:
        reason = (
            f"the line has {row.actual_columns} values, but the header has {row.expected_columns} columns; write one "
            "value for each column"
        )
        ragged.append((None, row.number, "columns", reason, row.text))
        return "skip"

    table = (
        pa.csv.read_csv(
            io.BytesIO(data),
            # With several threads, the handler of invalid rows receives no row numbers.
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
    if len(names) > 1:  # an empty line is not a row
        rows = rows.filter(~pl.all_horizontal(pl.col(names).is_null()))
    return rows, pl.DataFrame(ragged, schema=REJECTED_SCHEMA, orient="row")
