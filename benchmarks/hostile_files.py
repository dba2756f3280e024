"""Hostile files for `benchmarks.hostile`: what is written into the landing folder, and what must become of it."""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

HEADER = "id,time,price,city\n"
ROW = "7,2024-03-01T10:00:00,1.5,Oslo\n"
_LETTERS = "".join(random.Random(0).choices("abcdefghij", k=1 << 20))

Write = Callable[[Path], None]


@dataclass(frozen=True)
class HostileFile:
    """A hostile file.

    Attributes:
        case: What is hostile.
        name: Path below the landing folder.
        write: Writes the file, or what shall have this path.
        expected: Pattern of the right answer: `refused:` and a reason, `quarantined:` and a rule, `not read:` and a
            reason, or `read:` and a number of rows.
        images: Whether the dataset has images.
    """

    case: str
    name: str
    write: Write
    expected: str
    images: bool = False


def _bytes(content: bytes | str | Callable[[], bytes | str]) -> Write:
    def write(path: Path) -> None:
        data = content() if callable(content) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return write


def _columns(count: int, separator: str = ",") -> str:
    names = separator.join(f"c{index}" for index in range(count))
    return f"{names}\n{separator.join(['1'] * count)}\n"


def _lines(line: str, count: int) -> Callable[[], str]:
    return lambda: HEADER + line * count


def _sparse() -> str:
    rows = (json.dumps({f"k{index % 4000}": 1}) for index in range(100_000))
    return "\n".join(rows)


def _chunks(size: int) -> Iterator[bytes]:
    for _ in range(size >> 20):
        yield bytes(1 << 20)


def _gzip_bomb(path: Path) -> None:
    with gzip.open(path, "wb", 6) as file:
        for chunk in _chunks(1 << 30):
            file.write(chunk)


def _zstd_bomb(path: Path) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for chunk in _chunks(2 << 30):
            file.write(chunk)


def _zip(*entries: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _zip_bomb(path: Path, name: str = "a.csv", head: bytes = b"") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        file.write(head)
        for chunk in _chunks(1 << 30):
            file.write(chunk)


def _lying_zip(path: Path) -> None:
    _zip_bomb(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 1 << 30), struct.pack("<I", 100)))


def _encrypted_zip() -> bytes:
    data = bytearray(_zip(("a.csv", (HEADER + ROW).encode())))
    data[6] |= 1
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    return bytes(data)


_TYPES = b"""<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">\
<Default Extension="xml" ContentType="application/xml"/></Types>"""
_OFFICE = b"http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = b"http://schemas.openxmlformats.org/package/2006/relationships"
_MAIN = b"http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def _relation(kind: bytes, target: bytes) -> bytes:
    return b'<Relationships xmlns="%s"><Relationship Id="r1" Type="%s/%s" Target="%s"/></Relationships>' % (
        _PACKAGE,
        _OFFICE,
        kind,
        target,
    )


def _workbook(sheet: bytes, doctype: bytes = b"") -> bytes:
    book = b'<workbook xmlns="%s" xmlns:r="%s"><sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>'
    return _zip(
        ("[Content_Types].xml", _TYPES),
        ("_rels/.rels", _relation(b"officeDocument", b"xl/workbook.xml")),
        ("xl/workbook.xml", book % (_MAIN, _OFFICE)),
        ("xl/_rels/workbook.xml.rels", _relation(b"worksheet", b"worksheets/sheet1.xml")),
        (
            "xl/worksheets/sheet1.xml",
            b'%s<worksheet xmlns="%s"><sheetData>%s</sheetData></worksheet>' % (doctype, _MAIN, sheet),
        ),
    )


def _cell(address: str, text: str = "x") -> bytes:
    return f'<c r="{address}" t="inlineStr"><is><t>{text}</t></is></c>'.encode()


def _wide_sheet() -> bytes:
    return _workbook(b'<row r="1">' + b"".join(b"<c><v>1</v></c>" for _ in range(6000)) + b"</row>")


_LAUGHS = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">%s]>' % b"".join(
    b'<!ENTITY %c "%s">' % (98 + index, b"&%c;" % (97 + index) * 10) for index in range(9)
)


def _parquet(table: Callable[[], pa.Table], **options: object) -> Write:
    return lambda path: pq.write_table(table(), path, compression="zstd", **options)


def _same(rows: int, columns: int = 1) -> pa.Table:
    values = pa.array(np.zeros(rows, np.int64))
    return pa.table({f"c{index}": values for index in range(columns)})


def _long_texts() -> pa.Table:
    return pa.table({"id": pa.DictionaryArray.from_arrays(np.zeros(1_000_000, np.int32), pa.array(["x" * 10_000]))})


def _short_then_long() -> pa.Table:
    indices = np.append(np.zeros(100_000, np.int32), np.ones(400_000, np.int32))
    return pa.table({"id": pa.DictionaryArray.from_arrays(indices, pa.array(["x", "y" * 20_000]))})


def _no_texts() -> pa.Table:
    return pa.table({f"c{index}": pa.nulls(1_000_000, pa.string()) for index in range(100)})


def _arrow(table: Callable[[], pa.Table], compression: str | None = None) -> Write:
    def write(path: Path) -> None:
        content = table()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema, options=options) as writer:
            writer.write_table(content)

    return write


def _nothing_often() -> pa.Table:
    return pa.table({"id": pa.nulls(1_000_000_000, pa.null())})


def _runs() -> pa.Table:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1_000_000], pa.int32()), pa.array(["x" * 10_000]))
    return pa.table({"id": runs})


def _feather_1(path: Path) -> None:
    path.write_bytes(b"FEA1" + bytes(100) + b"FEA1")


def _varint(value: int) -> bytes:
    number, result = (value << 1) ^ (value >> 63), b""
    while number > 0x7F:
        result += bytes([number & 0x7F | 0x80])
        number >>= 7
    return result + bytes([number])


def _avro(kind: str, count: int, block: bytes, codec: str = "null") -> bytes:
    schema = json.dumps({"type": "record", "name": "r", "fields": [{"name": "id", "type": kind}]}).encode()
    entries = ((b"avro.schema", schema), (b"avro.codec", codec.encode()))
    head = b"".join(_varint(len(part)) + part for entry in entries for part in entry)
    sync = bytes(16)
    return b"Obj\x01" + _varint(2) + head + _varint(0) + sync + _varint(count) + _varint(len(block)) + block + sync


def _avro_bomb() -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = b"".join(deflate.compress(chunk) for chunk in _chunks(1 << 30)) + deflate.flush()
    return _avro("long", 1 << 22, block, "deflate")


def _png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), *chunks, (b"IDAT", data or zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def _text_bomb() -> bytes:
    compress = zlib.compressobj(9)
    text = b"".join(compress.compress(chunk) for chunk in _chunks(1 << 30)) + compress.flush()
    return _png(4, 4, (b"zTXt", b"k\0\0" + text))


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(100) + b"\xff\xd9"


def _link(target: str) -> Write:
    return lambda path: path.symlink_to(target)


def _linked_folder(path: Path) -> None:
    outside = path.parent.parent.parent / "outside"
    outside.mkdir()
    (outside / "b.csv").write_text(HEADER + ROW)
    path.parent.symlink_to(outside, target_is_directory=True)


def _outside(path: Path) -> None:
    target = path.parent.parent / "secret.csv"
    target.write_text(HEADER + ROW)
    path.symlink_to(target)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.write(HEADER.encode())
        file.truncate(3 << 30)


def _garbage(size: int) -> bytes:
    return random.Random(1).randbytes(size)
