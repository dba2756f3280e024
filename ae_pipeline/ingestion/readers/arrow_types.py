"""Arrow columns to polars, one by one: what polars cannot hold exactly is converted, or the column is skipped."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ae_pipeline.common.text import first_line
from ae_pipeline.ingestion.readers.failures import library_errors_as

_MAX_SECONDS = 253_402_300_800
"""Seconds from 1970 to the year 10000."""


class SkippedColumnError(Exception):
    """A column cannot be read. The message states the reason and the remedy."""


class Columns(NamedTuple):
    """The columns of a file.

    Attributes:
        frame: Columns that can be read.
        skipped: Reason for each of the others.
    """

    frame: pl.DataFrame
    skipped: Mapping[str, str]


def to_polars(table: pa.Table) -> Columns:
    """Return the columns of an Arrow table with their values unchanged, as types that polars has.

    Args:
        table: Columns with different names.
    """
    series: dict[str, pl.Series] = {}
    skipped: dict[str, str] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            with library_errors_as(SkippedColumnError, partial(_unreadable, column.type)):
                series[name] = pl.Series(name, pl.from_arrow(_plain(column)))
        except SkippedColumnError as error:
            skipped[name] = str(error)
    frame = pl.DataFrame(series) if series else pl.DataFrame(height=table.num_rows)
    return Columns(frame, skipped)


def _unreadable(kind: pa.DataType, error: BaseException) -> str:
    return f"it has type {kind}, which cannot be read ({first_line(error)}); change its type at the source"


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with a type that polars reads exactly.

    Raises:
        SkippedColumnError: A value of the type is not one number, text or time.
    """
    kind, types = column.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(_storage(column))
    if types.is_dictionary(kind):
        encoded = _without_views(column)
        return _plain(encoded.cast(encoded.type.value_type))
    if types.is_run_end_encoded(kind):
        encoded = _without_views(column)
        chunks = [pc.run_end_decode(chunk) for chunk in encoded.chunks]
        return _plain(pa.chunked_array(chunks, encoded.type.value_type))
    if types.is_float16(kind):
        return column.cast(pa.float32())
    if types.is_decimal(kind):
        return _plain_decimal(column)
    if types.is_timestamp(kind):
        return _plain_timestamp(column)
    is_plain = (
        *(types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_date, types.is_time),
        *(types.is_string, types.is_large_string, types.is_string_view),
    )
    if not any(check(kind) for check in is_plain):
        raise SkippedColumnError(
            f"it has type {kind}, but a value must be one number, text or time; flatten or convert it at the source"
        )
    return column


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if isinstance(kind, pa.UuidType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    chunks = [chunk.storage for chunk in column.chunks]
    return pa.chunked_array(chunks, kind.storage_type)


def _without_views(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return encoded text with plain texts as its values: pyarrow 25.0 cannot decode views of texts."""
    kind, text = column.type, pa.large_string()
    if not pa.types.is_string_view(kind.value_type):
        return column
    if pa.types.is_dictionary(kind):
        parts = (pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(text)) for chunk in column.chunks)
        return pa.chunked_array(list(parts), pa.dictionary(kind.index_type, text))
    runs = (pa.RunEndEncodedArray.from_arrays(chunk.run_ends, chunk.values.cast(text)) for chunk in column.chunks)
    return pa.chunked_array(list(runs), pa.run_end_encoded(kind.run_end_type, text))


def _plain_decimal(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return decimals of at most 38 digits as decimals, and longer ones as text."""
    kind = column.type
    if kind.precision <= 38 and 0 <= kind.scale <= kind.precision:
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column.cast(pa.string())


def _plain_timestamp(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times with a zone as UTC: the instants are the same, and polars knows only some names of zones.

    polars has no seconds. Seconds that ms cannot hold become text, so that their rows go to quarantine.
    """
    kind = column.type
    zone = "UTC" if kind.tz else None
    instants = column.cast(pa.timestamp(kind.unit, zone))
    if kind.unit != "s":
        return instants
    for unit in ("us", "ms"):
        with suppress(pa.ArrowInvalid):
            return instants.cast(pa.timestamp(unit, zone))
    numbers = instants.cast(pa.int64())
    is_near = pc.and_(pc.greater(numbers, -_MAX_SECONDS), pc.less(numbers, _MAX_SECONDS))
    near = pc.if_else(is_near, numbers, None).cast(pa.timestamp("s", zone)).cast(pa.timestamp("us", zone))
    text = pc.strftime(near, format="%Y-%m-%dT%H:%M:%SZ" if zone else "%Y-%m-%dT%H:%M:%S")
    far = pc.binary_join_element_wise(numbers.cast(pa.string()), "s since 1970", " ")
    return pc.if_else(pc.is_null(numbers), None, pc.if_else(is_near, text, far))
