"""Hostile files in the landing folder, each read in a process of its own that is measured.

A good file lands beside each hostile one. Its rows must be read, whatever becomes of the hostile file.
"""

import gzip
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import hostile_files as files
from benchmarks.hostile_files import HEADER, ROW, HostileFile, _bytes
from benchmarks.report import Row

MAX_SECONDS, MAX_BYTES = 10.0, 10**9
"""Processor time and memory, with the start of the process, above which a case counts as wrong."""

_File = HostileFile
_GOOD, _GOOD_ROWS = "good.csv", 3

_LIMIT = r"refused: .*source\.limits\."
_BOMB = f"{_LIMIT}(decompressed_bytes|compression_ratio)"
_PICTURE = "quarantined: image: readable"

INPUTS: tuple[HostileFile, ...] = (
    # Text
    _File("header of 100,000 columns", "a.csv", _bytes(files._columns(100_000)), f"{_LIMIT}columns"),
    _File(
        "header of 6,000 columns", "a.tsv", _bytes(files._columns(6000, "\t")), "refused: .*(limits.columns|separator)"
    ),
    _File("header of 10 MB", "a.csv", _bytes("x" * 10_000_000 + "\n1\n"), f"{_LIMIT}record_bytes"),
    _File("header of 5,000,000 separators", "a.csv", _bytes("," * 5_000_000), f"{_LIMIT}record_bytes"),
    _File("zeros", "a.csv", _bytes(bytes(20_000_000)), "refused: .*(NUL|record_bytes)"),
    _File("random bytes", "a.csv", _bytes(files._garbage(1_000_000)), "refused: "),
    _File("empty file", "a.csv", _bytes(""), "refused: the file is empty"),
    _File("only a byte order mark", "a.csv", _bytes(b"\xef\xbb\xbf"), "refused: "),
    _File("cut UTF-16", "a.csv", _bytes((HEADER + ROW).encode("utf-16")[:-1]), "refused: .*UTF-16"),
    _File("row of 5 MB", "a.csv", _bytes(HEADER + ROW[:-1] + "x" * 5_000_000 + "\n"), "quarantined: size"),
    _File("row of 5,000 lines", "a.csv", _bytes(HEADER + '7,"x' + "\n" * 5000 + '",1,a\n'), "quarantined: length"),
    _File("quote that is never closed", "a.csv", _bytes(HEADER + '7,"' + ROW * 300_000), "quarantined: quote"),
    _File("3,000,000 quotes", "a.csv", _bytes(HEADER + '"' * 3_000_000), "quarantined: "),
    _File("rows with too few values", "a.csv", _bytes(files._lines("7\n", 3_000_000)), f"{_LIMIT}rejected_rows"),
    _File("11,000,000 rows", "a.csv", _bytes(files._lines("1,,,\n", 11_000_000)), f"{_LIMIT}rows"),
    _File("two equal names", "a.csv", _bytes("id,time,price,city,id\n" + ROW), "refused: two columns"),
    _File("reserved name", "a.csv", _bytes("_row_number,time,price,city\n" + ROW), "refused: .*reserved"),
    _File(
        "NUL in a value", "a.csv", _bytes(HEADER + ROW.replace("1.5", "1\0005")), "(read: 1 rows|quarantined: price)"
    ),
    _File("file of 3 GiB", "a.csv", files._large, f"{_LIMIT}file_bytes"),
    # JSON Lines
    _File(
        "100,000 names",
        "a.jsonl",
        _bytes(lambda: json.dumps({f"k{i}": 1 for i in range(100_000)})),
        f"{_LIMIT}columns|refused: .*record_bytes",
    ),
    _File(
        "other names in each line",
        "a.jsonl",
        _bytes(lambda: "\n".join(f'{{"k{i}": 1}}' for i in range(100_000))),
        f"{_LIMIT}columns",
    ),
    _File("many names, each in few lines", "a.jsonl", _bytes(files._sparse), f"{_LIMIT}decompressed_bytes"),
    _File(
        "100,000 nested arrays",
        "a.jsonl",
        _bytes('{"id": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "refused: no line is a JSON object",
    ),
    _File("line of 5 MB", "a.jsonl", _bytes('{"id": "' + "x" * 5_000_000 + '"}\n'), "refused: .*record_bytes"),
    _File("broken lines", "a.jsonl", _bytes("{\n" * 1_000_000), f"{_LIMIT}rejected_rows"),
    _File(
        "number of 900,000 digits",
        "a.jsonl",
        _bytes(f'{{"id": 7, "time": "2024-03-01", "price": {"9" * 900_000}, "city": "a"}}'),
        "(quarantined: price|refused: none)",
    ),
    _File(
        "lone surrogate",
        "a.jsonl",
        _bytes('{"id": "\\ud800", "time": "2024-03-01", "price": 1, "city": "a"}'),
        "refused: .*JSON",
    ),
    # Compressed
    _File("gzip of 1 GiB of zeros", "a.csv.gz", files._gzip_bomb, _BOMB),
    _File("Zstandard of 2 GiB of zeros", "a.csv.zst", files._zstd_bomb, _BOMB),
    _File("zip of 1 GiB of zeros", "a.zip", files._zip_bomb, _BOMB),
    _File("zip that lies about its size", "a.zip", files._lying_zip, _BOMB),
    _File(
        "zip of 20,000 files",
        "a.zip",
        _bytes(lambda: files._zip(*((f"{i}.csv", b"") for i in range(20_000)))),
        f"{_LIMIT}archive_members",
    ),
    _File(
        "zip of two files",
        "a.zip",
        _bytes(lambda: files._zip(("a.csv", b"1"), ("b.csv", b"1"))),
        "refused: the zip file holds 2 files",
    ),
    _File(
        "zip in a zip",
        "a.zip",
        _bytes(lambda: files._zip(("a.zip", files._zip(("a.csv", b"1"))))),
        "refused: the zip file holds a.zip",
    ),
    _File("encrypted zip", "a.zip", _bytes(files._encrypted_zip), "refused: .*(encrypted|password)"),
    _File(
        "zip with a path out of the folder",
        "a.zip",
        _bytes(lambda: files._zip(("../../../b.csv", (HEADER + ROW).encode()))),
        "read: 1 rows",
    ),
    _File(
        "cut gzip",
        "a.csv.gz",
        _bytes(lambda: gzip.compress((HEADER + ROW * 1000).encode())[:-20]),
        "refused: not a complete gzip file",
    ),
    _File(
        "gzip with more behind it",
        "a.csv.gz",
        _bytes(lambda: gzip.compress((HEADER + ROW).encode()) + b"more"),
        "refused: not a complete gzip file",
    ),
    # Excel
    _File("workbook of 1 GiB", "a.xlsx", lambda path: files._zip_bomb(path, "xl/worksheets/sheet1.xml"), _BOMB),
    _File(
        "cells that span the sheet",
        "a.xlsx",
        _bytes(
            lambda: files._workbook(
                b'<row r="1">' + files._cell("A1") + b'</row><row r="1048576">' + files._cell("XFD1048576") + b"</row>"
            )
        ),
        f"{_LIMIT}(columns|decompressed_bytes)",
    ),
    _File(
        "cells that span 9,000,000 rows",
        "a.xlsx",
        _bytes(
            lambda: files._workbook(
                b'<row r="1">' + files._cell("A1") + b'</row><row r="90000000">' + files._cell("B90000000") + b"</row>"
            )
        ),
        f"{_LIMIT}rows",
    ),
    _File("sheet of 6,000 columns", "a.xlsx", _bytes(files._wide_sheet), f"{_LIMIT}columns"),
    _File(
        "entities that multiply",
        "a.xlsx",
        _bytes(
            lambda: files._workbook(b'<row r="1"><c r="A1" t="inlineStr"><is><t>&j;</t></is></c></row>', files._LAUGHS)
        ),
        "refused: ",
    ),
    _File("workbook that is no zip", "a.xlsx", _bytes(files._garbage(100_000)), "refused: not a complete Excel file"),
    # Typed formats
    _File(
        "Parquet of 50,000,000 equal rows",
        "a.parquet",
        files._parquet(lambda: files._same(50_000_000)),
        f"{_LIMIT}rows",
    ),
    _File(
        "Parquet of 900,000,000 equal values",
        "a.parquet",
        files._parquet(lambda: files._same(9_000_000, 100)),
        f"{_LIMIT}decompressed_bytes",
    ),
    _File(
        "Parquet that repeats a long text",
        "a.parquet",
        files._parquet(files._long_texts),
        f"{_LIMIT}decompressed_bytes",
    ),
    _File(
        "Parquet with long texts at its end",
        "a.parquet",
        files._parquet(files._short_then_long, store_schema=False),
        f"{_LIMIT}decompressed_bytes",
    ),
    _File("Parquet of missing texts", "a.parquet", files._parquet(files._no_texts), f"{_LIMIT}decompressed_bytes"),
    _File("Parquet of 6,000 columns", "a.parquet", files._parquet(lambda: files._same(1, 6000)), f"{_LIMIT}columns"),
    _File("cut Parquet", "a.parquet", _bytes(b"PAR1" + bytes(1000)), "refused: not a complete Parquet file"),
    _File(
        "Parquet with a footer of 2 GB",
        "a.parquet",
        _bytes(b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"),
        "refused: not a complete Parquet file",
    ),
    _File("Arrow that repeats a long text", "a.arrow", files._arrow(files._long_texts), f"{_LIMIT}decompressed_bytes"),
    _File("Arrow of a long run", "a.arrow", files._arrow(files._runs), f"{_LIMIT}decompressed_bytes"),
    _File(
        "compressed Arrow of equal values", "a.arrow", files._arrow(lambda: files._same(9_000_000, 100), "zstd"), _BOMB
    ),
    _File("Arrow of a billion empty rows", "a.arrow", files._arrow(files._nothing_often), f"{_LIMIT}rows"),
    _File("Feather of version 1", "a.feather", files._feather_1, "refused: .*version 1"),
    _File("Avro of a trillion empty rows", "a.avro", _bytes(files._avro("null", 10**12, b"")), f"{_LIMIT}rows"),
    _File("deflated Avro of 1 GiB", "a.avro", _bytes(files._avro_bomb), _BOMB),
    _File(
        "Avro with a negative size",
        "a.avro",
        _bytes(b"Obj\x01" + files._varint(2) + files._varint(-9) * 9),
        "refused: not a complete Avro file",
    ),
    # Images
    _File("PNG of 400,000,000 pixels", "a.png", _bytes(files._png(20_000, 20_000)), _PICTURE, images=True),
    _File("PNG of 4,000,000,000 pixels", "a.png", _bytes(files._png(2**31 - 1, 2)), _PICTURE, images=True),
    _File("PNG with 1 GiB of text", "a.png", _bytes(files._text_bomb), "read: 1 rows|quarantined: image", images=True),
    _File(
        "JPEG that claims 65,000 × 65,000 pixels", "a.jpg", _bytes(files._jpeg(65_000, 65_000)), _PICTURE, images=True
    ),
    _File("cut PNG", "a.png", _bytes(files._png(9, 9)[:-30]), _PICTURE, images=True),
    _File("SVG with the name of a PNG", "a.png", _bytes("<svg onload='alert(1)'/>"), _PICTURE, images=True),
    # Paths
    _File("link out of the folder", "a.csv", files._outside, "not read: .*link"),
    _File("link to a device", "a.csv", files._link("/dev/zero"), "not read: .*link"),
    _File("linked folder", "sub/b.csv", files._linked_folder, "not there|not read: .*link"),
    _File("link to itself", "a.csv", files._link("a.csv"), "not read: .*link"),
    _File("FIFO", "a.csv", os.mkfifo, "not read: .*no regular file"),
    _File("name with control characters", "a\x1b[31m\n.csv", _bytes(HEADER + ROW), "read: 1 rows"),
)
"""Hostile files with the expected answer."""


def land(case: HostileFile, root: Path) -> None:
    """Write a hostile file and a good one into a landing folder."""
    folder = root / "data" / "landing" / "shop"
    folder.mkdir(parents=True)
    good = "".join(f"{number},2024-03-01T10:00:00,1.5,Oslo\n" for number in range(_GOOD_ROWS))
    (folder / _GOOD).write_text(HEADER + good)
    path = folder / case.name
    if path.parent != folder and case.write is not files._linked_folder:
        path.parent.mkdir(parents=True)
    case.write(path)


def read(root: Path, name: str, *, images: bool) -> str:
    """Ingest the landing folder, and return what became of a file."""
    import datetime as dt

    import polars as pl

    from ae_pipeline.common.text import printable_path
    from ae_pipeline.config.pipeline import PipelineConfig
    from ae_pipeline.ingestion.landing import ingest
    from ae_pipeline.ingestion.landing_folder import list_landing
    from ae_pipeline.storage.dataset import Dataset
    from ae_pipeline.storage.paths import DatasetPaths

    table = {"identity": ["id"], "event_time": "time", "start": "2024-01-01", "end": "2024-12-31"}
    settings = {"images": {}, "identity": ["file"], "source": {"pattern": "*.[pj]*g"}} if images else table
    dataset = Dataset(
        PipelineConfig.model_validate({"dataset": "shop", **settings}), DatasetPaths(root / "data", "shop")
    )
    if images:
        from PIL import Image

        Image.new("L", (4, 4)).save(dataset.paths.landing / "good.png")
    ledger = ingest(dataset, dt.date(2024, 12, 31)).ledger
    good = ledger.files["good.png" if images else _GOOD]
    if good.rows != (1 if images else _GOOD_ROWS):
        return f"the good file has {good.rows} rows"
    name = printable_path(name)
    if reason := list_landing(dataset).others.get(name):
        return f"not read: {reason}"
    if (entry := ledger.files.get(name)) is None:
        return "not there"
    rules = [
        rule
        for path in dataset.paths.quarantined("_").parent.glob("*.parquet")
        for rule in pl.read_parquet(path)["rule"].to_list()
    ]
    if rules:
        return f"quarantined: {rules[0]}"
    return f"refused: {entry.refused}" if entry.refused else f"read: {entry.rows} rows"


def run_input(case: HostileFile) -> Row:
    """Land a hostile file, read it in a process of its own, and return answer, time and memory."""
    with TemporaryDirectory() as folder:
        land(case, Path(folder))
        command = [sys.executable, "-m", "benchmarks.hostile_inputs", folder, case.name, str(int(case.images))]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        return _row(case, f"ended with {result.returncode}: {lines[-1] if lines else ''}", 0.0, 0)
    measured = json.loads(result.stdout.splitlines()[-1])
    return _row(case, measured["answer"], measured["seconds"], measured["bytes"])


def _row(case: HostileFile, answer: str, seconds: float, peak: int) -> Row:
    is_right = re.match(case.expected, answer) is not None and seconds <= MAX_SECONDS and peak <= MAX_BYTES
    return {
        "case": case.case,
        "answer": answer[:160],
        "right": int(is_right),
        "seconds": round(seconds, 2),
        "megabytes": round(peak / 1e6),
    }


def run_inputs(cases: Sequence[HostileFile] = INPUTS) -> list[Row]:
    """Return one row for each hostile file."""
    return [run_input(case) for case in cases]


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes, without that of the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kilobytes = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))
    return int(kilobytes[1]) * 1024 if kilobytes else 0


def _main(root: str, name: str, images: str) -> None:
    answer = read(Path(root), name, images=images == "1")
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime
    print(json.dumps({"answer": answer, "seconds": seconds, "bytes": _peak_memory()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
