"""Read JSON Lines files as text columns: numbers keep all their digits, as written."""

import json
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
    nested: dict[str, str] = {}
    names: dict[str, None] = {}
    parse = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_unique).decode
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
    if not names:
        first = f" ({rejected[0][2]})" if rejected else ""
        raise UnreadableFileError(f"no line is a JSON object with values{first}; land it again with one object a line")
    check_names([name.strip() for name in names])
    columns: dict[str, pl.Series] = {}
    for name in names:
        values = [row.get(name) for row in objects]
        if kinds := {type(value).__name__ for value in values if isinstance(value, (dict, list))}:
            holds = " and ".join(sorted({"dict": "objects", "list": "arrays"}[kind] for kind in kinds))
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
