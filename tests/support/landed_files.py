"""Files of random tables in many formats and dialects, and damage to their bytes."""

import csv
import datetime as dt
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import xlsxwriter
from hypothesis import strategies as st

COLUMNS = ("id", "time", "x", "n")

Row = tuple[str, dt.datetime, str]
"""Identity, time and value of a row."""

_BREAK = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class LandedTable:
    """A file of a table.

    Attributes:
        name: Name of the file.
        content: Its bytes.
        rows: Number of its records.
        ids: Identities of its rows as they landed, or None if the file is damaged.
        is_exact: Whether the number of records is known; otherwise there are at most so many.
    """

    name: str
    content: bytes
    rows: int
    ids: tuple[str, ...] | None
    is_exact: bool = True


@dataclass(frozen=True)
class _Text:
    """A text file before it is compressed.

    Attributes:
        data: Its bytes.
        rows: Number of its records, or the largest number that is possible.
        is_exact: Whether the number of records is known.
        is_damaged: Whether the rows differ from those of the table.
    """

    data: bytes
    rows: int
    is_exact: bool = True
    is_damaged: bool = False


@st.composite
def landed_text(draw: st.DrawFn, index: int, rows: Sequence[Row]) -> LandedTable:
    """Draw a CSV, TSV or JSON file of rows, in some encoding, possibly damaged, possibly compressed."""
    kind = draw(st.sampled_from(["csv", "csv", "csv", "tsv", "txt", "jsonl", "json"]))
    encodings = (
        ["utf-8", "utf-8", "utf-8-sig", "utf-16"]
        if kind == "json"
        else ["utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"]
    )
    encoding = draw(st.sampled_from(encodings))
    if kind in {"jsonl", "json"}:
        objects = [_json_object(number, row) for number, row in enumerate(rows)]
        lines = [json.dumps(each, ensure_ascii=draw(st.booleans())) for each in objects]
    else:
        separator = "\t" if kind == "tsv" else draw(st.sampled_from(",;\t|"))
        lines = _csv_lines(draw, rows, separator)
    damages = draw(st.lists(st.sampled_from(sorted(_LINE_DAMAGES)), max_size=2)) if kind != "json" else []
    first = 0 if kind == "jsonl" else 1
    original = list(lines)
    for damage in damages:
        lines = _LINE_DAMAGES[damage](draw, lines, first)
    end = draw(st.sampled_from(["\n", "\r\n"]))
    body = f"[{','.join(lines)}]" if kind == "json" else end.join(lines) + draw(st.sampled_from(["", end]))
    try:
        data = body.encode(encoding)
    except UnicodeEncodeError:
        encoding, data = "utf-8", body.encode()
    text = _Text(data, len(lines) - first if kind != "json" else len(lines), is_damaged=lines != original)
    if text.is_damaged and kind != "jsonl":
        text = _recount(text, encoding)
    text = _damage_bytes(draw, text, kind, encoding)
    suffix, content = draw(_compressed(f"{index}.{kind}", text.data))
    ids = None if text.is_damaged or encoding == "cp1252" else tuple(text for text, *_ in rows)
    return LandedTable(f"{index}.{kind}{suffix}", content, text.rows, ids, text.is_exact)


def _json_object(number: int, row: Row) -> dict[str, object]:
    identity, time, value = row
    return {"id": identity, "time": time.isoformat(), "x": value, "n": number}


def _csv_lines(draw: st.DrawFn, rows: Sequence[Row], separator: str) -> list[str]:
    buffer = io.StringIO()
    if draw(st.booleans()):
        writer = csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
    else:
        writer = csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((text, time.isoformat(), value, number) for number, (text, time, value) in enumerate(rows))
    return buffer.getvalue().removesuffix("\n").split("\n")


def _recount(text: _Text, encoding: str) -> _Text:
    """Count the records of a damaged delimited text: its lines below the header, if it has no quotes."""
    try:
        decoded = text.data.decode(encoding, errors="surrogateescape")
    except UnicodeDecodeError:
        decoded = text.data.decode(encoding, errors="ignore")
    lines = [line for line in _BREAK.split(decoded) if line]
    return _Text(text.data, max(len(lines) - 1, 0), '"' not in decoded, is_damaged=True)


def _damage_bytes(draw: st.DrawFn, text: _Text, kind: str, encoding: str) -> _Text:
    """Damage the bytes of a text: cut it, flip bits, or empty it."""
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "flip", "empty"]))
    data = text.data
    if damage == "none":
        return text
    if damage == "empty":
        return _Text(b"", text.rows, is_exact=True, is_damaged=True)
    if damage == "cut":
        data = data[: draw(st.integers(1, len(data)))]
    elif kind == "json":
        return text
    else:
        flipped = bytearray(data)
        for _ in range(draw(st.integers(1, 3))):
            flipped[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        data = bytes(flipped)
    changed = _Text(data, text.rows, text.is_exact, is_damaged=True)
    if data == text.data:
        return text
    if kind == "json":  # refused as a whole
        return changed
    if encoding == "utf-16" or data[:1] in {b"\xff", b"\xfe"} or b"\xfe\xff" in data[:3]:
        return _Text(data, len(data), is_exact=False, is_damaged=True)
    if kind == "jsonl":
        lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        return _Text(data, len(lines), is_damaged=True)
    return _recount(changed, "utf-8" if encoding == "utf-16" else encoding)


@st.composite
def _compressed(draw: st.DrawFn, name: str, data: bytes) -> tuple[str, bytes]:
    """Draw the suffix and the content of a compressed file."""
    compression = draw(st.sampled_from(["", "", "", ".gz", ".zst", ".zip"]))
    if compression == ".gz":
        return compression, gzip.compress(data, mtime=0)
    if compression == ".zst":
        return compression, pa.Codec("zstd").compress(data, asbytes=True) if data else b""
    if compression == ".zip":
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
        return compression, content.getvalue()
    return "", data


@st.composite
def landed_columns(draw: st.DrawFn, index: int, rows: Sequence[Row]) -> LandedTable:
    """Draw a Parquet, Arrow, Avro or Excel file of rows, possibly cut or empty."""
    kind = draw(st.sampled_from(["parquet", "parquet", "arrow", "ipc", "feather", "avro", "xlsx"]))
    ids = pl.Series("id", [text for text, *_ in rows], dtype=pl.String)
    of_ids = draw(st.sampled_from(["text", "category", "integers", "floats"]))
    if of_ids == "category" and kind != "avro":
        ids = ids.cast(pl.Categorical)
    elif of_ids == "integers":
        ids = pl.Series("id", draw(st.lists(st.integers(2**53, 2**53 + 4), min_size=len(rows), max_size=len(rows))))
    elif of_ids == "floats":
        numbers = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1, width=32), st.none())
        ids = pl.Series("id", draw(st.lists(numbers, min_size=len(rows), max_size=len(rows))), dtype=pl.Float32)
    unit = pl.Datetime("us") if kind == "avro" else draw(st.sampled_from([pl.Datetime(u) for u in ("ms", "us", "ns")]))
    times = pl.Series("time", [time for _, time, _ in rows], dtype=unit)
    values = pl.Series("x", [value for *_, value in rows], dtype=pl.String)
    table = pl.DataFrame([ids, times, values, pl.Series("n", range(len(rows)))])
    content = _WRITERS[kind](table)
    landed = tuple(text for text, *_ in rows) if of_ids in {"text", "category"} and kind != "xlsx" else None
    damage = draw(st.sampled_from(["none"] * 6 + ["cut", "empty"]))
    if damage != "none":
        content, landed = content[: draw(st.integers(1, len(content) - 1)) if damage == "cut" else 0], None
    return LandedTable(f"{index}.{kind}", content, len(rows), landed)


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    content = io.BytesIO()
    write(content)
    return content.getvalue()


def _excel(table: pl.DataFrame) -> bytes:
    content = io.BytesIO()
    with xlsxwriter.Workbook(
        content, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    ) as book:
        sheet = book.add_worksheet()
        texts = table.with_columns(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%S")).cast(pl.String)
        for number, row in enumerate([tuple(table.columns), *texts.rows()]):
            for column, text in enumerate(row):
                if text:
                    sheet.write_string(number, column, text)
    return content.getvalue()


_WRITERS: dict[str, Callable[[pl.DataFrame], bytes]] = {
    "parquet": lambda table: _written(table.write_parquet),
    "arrow": lambda table: _written(table.write_ipc),
    "feather": lambda table: _written(table.write_ipc),
    "ipc": lambda table: _written(table.write_ipc_stream),
    "avro": lambda table: _written(table.write_avro),
    "xlsx": _excel,
}


def _line(draw: st.DrawFn, lines: list[str], first: int) -> int:
    return draw(st.integers(min(first, len(lines) - 1), len(lines) - 1))


def _cut_line(draw: st.DrawFn, lines: list[str], first: int) -> list[str]:
    index = _line(draw, lines, first)
    return [*lines[:index], lines[index][: draw(st.integers(1, len(lines[index])))], *lines[index + 1 :]]


def _repeat_line(draw: st.DrawFn, lines: list[str], first: int) -> list[str]:
    index = _line(draw, lines, first)
    return [*lines[:index], lines[index], *lines[index:]]


def _add_value(draw: st.DrawFn, lines: list[str], first: int) -> list[str]:
    index = _line(draw, lines, first)
    return [
        *lines[:index],
        lines[index] + draw(st.sampled_from([",extra", ";extra", "\textra", '"'])),
        *lines[index + 1 :],
    ]


def _open_quote(draw: st.DrawFn, lines: list[str], first: int) -> list[str]:
    index = _line(draw, lines, first)
    return [*lines[:index], '"' + lines[index], *lines[index + 1 :]]


def _change_header(draw: st.DrawFn, lines: list[str], first: int) -> list[str]:
    return [lines[0].replace("x", draw(st.sampled_from(["y", "", "n"]))), *lines[1:]] if first else lines


_LINE_DAMAGES: dict[str, Callable[[st.DrawFn, list[str], int], list[str]]] = {
    "cut": _cut_line,
    "repeat": _repeat_line,
    "add": _add_value,
    "open": _open_quote,
    "header": _change_header,
}
