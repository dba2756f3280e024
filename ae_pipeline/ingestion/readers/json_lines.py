"""Read JSON Lines files and JSON arrays as text columns: numbers keep all their digits, as written."""

import json
from collections.abc import Callable
from typing import Any

import polars as pl

from ae_pipeline.common.text import first_line
from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion.readers.bounds import check_sparse, check_table, exceeded
from ae_pipeline.ingestion.readers.encodings import decode, printable_record
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError, check_names, rejected_rows

_BOOLEANS = {True: "true", False: "false"}


def read_json_lines(data: bytes, source: SourceConfig) -> FileRows:
    """Read a JSON Lines file: one object a line, each key a column.

    Numbers are text as written, booleans are `true` and `false`, and null is a missing value. A column with arrays or
    objects is skipped.

    Args:
        data: Content of the file.
        source: Settings that declare the encoding.

    Raises:
        UnreadableFileError: The text has another encoding than declared, or no line is a JSON object.
    """
    text, limits = decode(data, source.encoding), source.limits
    objects: list[dict[str, Any]] = []
    numbers: list[int] = []
    rejected: list[tuple[int, str, str, str]] = []
    names: dict[str, None] = {}
    parse = _decoder(_unique).decode
    for number, line in enumerate(text.data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            if len(line) > limits.record_bytes:
                raise ValueError(
                    f"it has {len(line):,} bytes, but source.limits.record_bytes is {limits.record_bytes:,}"
                )
            row = parse(line.decode())
            if not isinstance(row, dict):
                raise ValueError("it is no object with names and values")
            if b"\\ud" in line or b"\\uD" in line:
                "".join(each for each in (*row, *row.values()) if isinstance(each, str)).encode()
        except (ValueError, RecursionError) as error:
            reason = f"the line is not a JSON object ({first_line(error)}); write one object on each line"
            rejected.append((number, "json", reason, printable_record(line, limits.record_bytes)))
            if len(rejected) > limits.rejected_rows:
                what = "or more lines that are no JSON object"
                raise exceeded(what, len(rejected), limits.rejected_rows, "rejected_rows") from error
            continue
        names |= dict.fromkeys(row)
        check_table(limits, columns=len(names), rows=len(objects) + 1)
        objects.append(row)
        numbers.append(number)
    check_sparse(limits, len(names), len(objects), len(data))
    if not any(objects):
        first = f" ({rejected[0][2]})" if rejected else ""
        raise UnreadableFileError(f"no line is a JSON object with values{first}; land it again with one object a line")
    return _columns(objects, numbers, rejected)


def starts_with_array(head: bytes) -> bool:
    """Return whether the first bytes of a JSON file are those of an array, in UTF-8 or UTF-16."""
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"[")


def read_json_array(data: bytes, source: SourceConfig) -> FileRows:
    """Read a JSON file whose content is one array: each object a row, each key a column, as `read_json_lines` does.

    The number of a row is its position in the array, from 1.

    Args:
        data: Content of the file.
        source: Settings that declare the encoding.

    Raises:
        UnreadableFileError: The text has another encoding than declared, or is no array of objects.
    """
    remedy = "land one array of objects, or JSON Lines as .jsonl"
    text = decode(data, source.encoding)
    try:
        items = _decoder(_Pairs.of).decode(text.data.decode())
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(
            f"not a complete JSON file ({first_line(error)}); it may be truncated: land it again"
        ) from error
    if not isinstance(items, list):
        raise UnreadableFileError(f"the file holds no JSON array; {remedy}")
    limits = source.limits
    check_table(limits, rows=len(items))
    objects: list[dict[str, Any]] = []
    numbers: list[int] = []
    rejected: list[tuple[int, str, str, str]] = []
    for number, item in enumerate(items, 1):
        if isinstance(item, dict) and not _has_lone_surrogate(item):
            objects.append(item)
            numbers.append(number)
            continue
        problem = "it has two values with the same name" if isinstance(item, _Pairs) else "it is no object"
        problem = "it has half of a character" if isinstance(item, dict) else problem
        reason = f"the item is not a JSON object ({problem}); write an array of objects with different names"
        rejected.append((number, "json", reason, json.dumps(item)))
        if len(rejected) > limits.rejected_rows:
            what = "or more items that are no JSON object"
            raise exceeded(what, len(rejected), limits.rejected_rows, "rejected_rows")
    names = {name for item in objects for name in item}
    check_table(limits, columns=len(names))
    check_sparse(limits, len(names), len(objects), len(data))
    if not any(objects):
        first = f" ({rejected[0][2]})" if rejected else ""
        raise UnreadableFileError(f"no item of the array is a JSON object with values{first}; {remedy}")
    return _columns(objects, numbers, rejected)


def _decoder(of_pairs: Callable[[list[tuple[str, Any]]], object]) -> json.JSONDecoder:
    return json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=of_pairs)


class _Pairs(list[tuple[str, Any]]):
    """Names and values of an object that has a name twice."""

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> "dict[str, Any] | _Pairs":
        row = dict(pairs)
        return row if len(row) == len(pairs) else cls(pairs)


def _has_lone_surrogate(row: dict[str, Any]) -> bool:
    texts = (each for each in (*row, *row.values()) if isinstance(each, str) and not each.isascii())
    return any("\ud800" <= character <= "\udfff" for text in texts for character in text)


def _columns(objects: list[dict[str, Any]], numbers: list[int], rejected: list[tuple[int, str, str, str]]) -> FileRows:
    names = list(dict.fromkeys(name for row in objects for name in row))
    check_names([name.strip() for name in names])
    columns: dict[str, pl.Series] = {}
    nested: dict[str, str] = {}
    for name in names:
        values = [row.get(name) for row in objects]
        kinds = {type(value) for value in values} & {dict, list, _Pairs}
        if kinds:
            holds = " and ".join(sorted({"arrays" if kind is list else "objects" for kind in kinds}))
            nested[name.strip()] = f"it holds {holds}, but a value must be one number, text or time; flatten it"
            continue
        texts = [_BOOLEANS[value] if isinstance(value, bool) else value for value in values]
        columns[name.strip()] = pl.Series(texts, dtype=pl.String, strict=True)
    rows = pl.DataFrame({**columns, "_row_number": pl.Series(numbers, dtype=pl.Int64)})
    return FileRows(rows, rejected_rows(rejected), nested)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("it has two values with the same name")
    return row
