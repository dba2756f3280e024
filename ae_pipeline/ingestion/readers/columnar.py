"""Read Parquet, Arrow IPC (Feather) and Avro files. Their columns keep their types."""

import io
from collections.abc import Callable, Mapping
from functools import partial

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ae_pipeline.common.text import first_line
from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.ingestion.image_files import decode_image
from ae_pipeline.ingestion.images import read_image_column
from ae_pipeline.ingestion.readers.arrow_types import to_polars
from ae_pipeline.ingestion.readers.bounds import check_table
from ae_pipeline.ingestion.readers.columnar_bounds import check_arrow, check_avro, check_parquet, check_repeated
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.pictures import rejected_images
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError, check_names

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_columnar(
    kind: str, data: bytes, limits: LimitsConfig, images: ImagesConfig | None = None, dtype: str | None = None
) -> FileRows:
    """Read a file that stores typed columns.

    Args:
        kind: Suffix of the format, such as `.parquet`.
        data: Content of the file.
        limits: Limits of the dataset.
        images: Settings for images, or None for a table.
        dtype: Type of the images' values in the schema contract, if there is a contract.

    Raises:
        UnreadableFileError: The file is damaged or too large, or two of its columns have the same name.
    """
    title, read = _READERS[kind]

    def message(error: BaseException) -> str:
        return f"not a complete {title} file ({first_line(error)}); it may be truncated: land it again"

    with library_errors_as(UnreadableFileError, message):
        table = read(data, limits, images is not None)
        check_table(limits, columns=table.num_columns, rows=table.num_rows)
        check_repeated(table, limits)
    names = [name or f"unnamed_{position}" for position, name in enumerate(table.column_names, 1)]
    check_names(names)
    table = table.rename_columns(names)
    decoded = None
    if images and images.column in table.column_names:
        decode = partial(decode_image, max_pixels=limits.pixels)
        decoded = read_image_column(table[images.column], images.column, decode, dtype, images.channels)
        index = table.column_names.index(images.column)
        table = table.set_column(index, images.column, pa.nulls(table.num_rows))
    frame, skipped = to_polars(table)
    rows = frame.with_columns(pl.Series("_row_number", range(1, table.num_rows + 1), dtype=pl.Int64))
    if not images or decoded is None:
        return FileRows(rows, skipped=skipped)
    rows = rows.with_columns(decoded.images.alias(images.column))
    is_rejected = decoded.reasons.is_not_null()
    reasons = f"{images.column}: " + decoded.reasons.filter(is_rejected)
    rejected = rejected_images(rows.filter(is_rejected), images.column, "readable", reasons)
    return FileRows(rows.filter(~is_rejected), rejected, skipped)


def _read_parquet(data: bytes, limits: LimitsConfig, with_images: bool) -> pa.Table:
    file = pq.ParquetFile(io.BytesIO(data))
    check_parquet(file, limits)
    check_names(file.schema_arrow.names)
    try:
        # Timestamps of 96 bits are read as ns by default, which ends in 2262: 9999-12-31 would become 1816-03-29.
        table = pq.read_table(io.BytesIO(data), coerce_int96_timestamp_unit="us")
    except pa.ArrowInvalid as error:
        # pyarrow 25.0 cannot read missing values among lists of a fixed size; polars can.
        if not with_images or "Expected all lists to be of size" not in str(error):
            raise
        return pl.read_parquet(io.BytesIO(data)).to_arrow()
    nanoseconds = [
        column.name
        for column in (file.schema.column(index) for index in range(len(file.schema)))
        if column.physical_type == "INT96" and column.path == column.name and _fits_ns(table[column.name])
    ]
    if nanoseconds:
        exact = pq.read_table(io.BytesIO(data), columns=nanoseconds)
        for name in nanoseconds:
            table = table.set_column(table.column_names.index(name), name, exact[name])
    return table


def _fits_ns(column: pa.ChunkedArray) -> bool:
    """Return whether times of 96 bits can be read as ns without overflow."""
    bounds = pc.min_max(column.cast(pa.int64()))
    limit = 2**63 // 1000 - 1
    return all(bounds[key].as_py() is None or abs(bounds[key].as_py()) < limit for key in ("min", "max"))


def _read_arrow(data: bytes, limits: LimitsConfig, with_images: bool) -> pa.Table:  # noqa: ARG001
    if data.startswith(b"FEA1"):  # pyarrow's reader of this format crashes on damaged files
        raise UnreadableFileError("the file has version 1 of the Feather format; write it again as version 2")
    check_arrow(data, limits)
    if data.startswith(b"ARROW1"):
        table = pa.ipc.open_file(data).read_all()
    # A stream that ends between two batches would be read without an error.
    elif data.endswith(_END_OF_STREAM):
        table = pa.ipc.open_stream(data).read_all()
    else:
        raise pa.ArrowInvalid("the mark at the end of the stream is missing")
    table.validate(full=True)
    return table


def _read_avro(data: bytes, limits: LimitsConfig, with_images: bool) -> pa.Table:  # noqa: ARG001
    check_avro(data, limits)
    return pl.read_avro(io.BytesIO(data)).to_arrow()


_ARROW = ("Arrow", _read_arrow)
_READERS: Mapping[str, tuple[str, Callable[[bytes, LimitsConfig, bool], pa.Table]]] = {
    ".parquet": ("Parquet", _read_parquet),
    ".arrow": _ARROW,
    ".feather": _ARROW,
    ".ipc": _ARROW,
    ".avro": ("Avro", _read_avro),
}

COLUMNAR_SUFFIXES = tuple(_READERS)
