"""Rows per second of the ingestion in every format, and of a large CSV file, beside polars' own readers.

The first part writes one table in each format and dialect, ingests each one as a dataset of its own, and compares the
raw rows. The table has identities of 20 digits and with leading zeros, nanoseconds, decimals, missing booleans,
categories, line breaks in values, and letters beyond ASCII. The second part ingests a large CSV file and writes its raw
rows, beside polars' `read_csv` and `write_parquet` of the same file. Times are medians of rounds that alternate.
"""

import argparse
import csv
import datetime as dt
import gzip
import io
import json
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xlsxwriter

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.landing import ingest
from ae_pipeline.ingestion.raw import write_raw_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from benchmarks.report import Row, format_table, write_report

Content = Callable[[], bytes]
"""Function that returns the content of a file."""

PolarsReader = Callable[[bytes], pl.DataFrame]
"""Function of polars that reads the content of a file."""


def table(rows: int) -> pl.DataFrame:
    """Return the table as text; a missing value is null."""
    rng = np.random.default_rng(0)
    start = dt.datetime(2024, 1, 1)
    return pl.DataFrame(
        {
            "id": [f"{12345678901234567890 + number}" for number in range(rows)],
            "code": [f"{number:06d}" for number in range(rows)],
            "at": [f"{start + dt.timedelta(seconds=n):%Y-%m-%dT%H:%M:%S}.{n * 7 + 1:09d}" for n in range(rows)],
            "price": [f"{value / 100:.2f}" for value in rng.integers(-(10**6), 10**6, rows)],
            "paid": [("true", "false", None)[value] for value in rng.integers(0, 3, rows)],
            "kind": [("red", "blue", "grün")[value] for value in rng.integers(0, 3, rows)],
            "note": [("one\ntwo", 'a "b", c; d|e\tf', "Tromsø", None)[value] for value in rng.integers(0, 4, rows)],
        }
    )


def delimited(rows: pl.DataFrame, separator: str, end: str = "\n") -> str:
    """Return rows as text with quotes where they are needed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end)
    writer.writerows([rows.columns, *rows.rows()])
    return text.getvalue()


def json_lines(rows: pl.DataFrame) -> bytes:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.iter_rows(named=True)).encode()


def excel(rows: pl.DataFrame) -> bytes:
    """Return rows as the only sheet of an Excel file."""
    content = io.BytesIO()
    with xlsxwriter.Workbook(content, {"in_memory": True, "strings_to_numbers": False}) as book:
        sheet = book.add_worksheet()
        for index, row in enumerate([tuple(rows.columns), *rows.iter_rows()]):
            for column, value in enumerate(row):
                if value is not None:
                    sheet.write_string(index, column, value)
    return content.getvalue()


def stored(write: Callable[[io.BytesIO], object]) -> bytes:
    """Return what a function writes."""
    content = io.BytesIO()
    write(content)
    return content.getvalue()


def zstd(data: bytes) -> bytes:
    """Return data compressed with Zstandard."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def zipped(data: bytes) -> bytes:
    """Return data as the only file of a zip file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", data)
    return content.getvalue()


def files(rows: pl.DataFrame) -> Mapping[str, tuple[str, bytes, PolarsReader | None]]:
    """Return name, content and polars' reader of each file; None if polars cannot read it."""
    plain = delimited(rows, ",")

    def read(separator: str = ",") -> PolarsReader:
        return lambda data: pl.read_csv(data, separator=separator, infer_schema=False)

    return {
        "CSV": ("a.csv", plain.encode(), read()),
        "CSV, semicolon": ("a.csv", delimited(rows, ";").encode(), read(";")),
        "CSV, bar, CR LF": ("a.csv", delimited(rows, "|", "\r\n").encode(), read("|")),
        "TSV": ("a.tsv", delimited(rows, "\t").encode(), read("\t")),
        "CSV, UTF-8 with mark": ("a.csv", plain.encode("utf-8-sig"), read()),
        "CSV, UTF-16": ("a.csv", plain.encode("utf-16"), None),
        "CSV, cp1252": ("a.csv", plain.encode("cp1252"), None),
        "CSV, gzip": ("a.csv.gz", gzip.compress(plain.encode()), read()),
        "CSV, zstd": ("a.csv.zst", zstd(plain.encode()), read()),
        "CSV, zip": ("a.csv.zip", zipped(plain.encode()), None),
        "JSON Lines": ("a.jsonl", json_lines(rows), pl.read_ndjson),
        "JSON Lines, gzip": ("a.jsonl.gz", gzip.compress(json_lines(rows)), None),
        "JSON array": ("a.json", json.dumps(rows.to_dicts(), ensure_ascii=False).encode(), pl.read_json),
        "Excel": ("a.xlsx", excel(rows), lambda data: pl.read_excel(data, engine="calamine")),
        "Parquet": ("a.parquet", stored(rows.write_parquet), pl.read_parquet),
        "Parquet, categories": (
            "a.parquet",
            stored(rows.with_columns(pl.col("kind").cast(pl.Categorical)).write_parquet),
            pl.read_parquet,
        ),
        "Arrow file": ("a.arrow", stored(rows.write_ipc), pl.read_ipc),
        "Arrow stream": ("a.ipc", stored(rows.write_ipc_stream), pl.read_ipc_stream),
        "Avro": ("a.avro", stored(rows.write_avro), lambda data: pl.read_avro(io.BytesIO(data))),
    }


def ingested(name: str, content: bytes, settings: Mapping[str, object]) -> tuple[float, int, str]:
    """Return the seconds from a landed file to its raw rows, their number, and a hash of them."""
    with tempfile.TemporaryDirectory() as folder:
        config = PipelineConfig.model_validate({"dataset": "rows", **settings})
        dataset = Dataset(config, DatasetPaths(Path(folder), "rows"))
        dataset.paths.landing.mkdir(parents=True)
        path = dataset.paths.landing / name
        path.write_bytes(content)
        os.utime(path, (1, 1))
        started = time.perf_counter()
        result = ingest(dataset, dt.date(2024, 12, 31))
        days = list(write_raw_days(sorted(result.ledger.days), result, dataset.paths))
        seconds = time.perf_counter() - started
        raw = [pl.read_parquet(dataset.paths.raw(day.day), glob=False) for day in days]
        return seconds, sum(day.rows for day in days), hash_table(pl.concat(raw).to_arrow())


def compare_formats(rows: int, rounds: int) -> list[Row]:
    """Ingest the table in each format, and measure polars' reader of the same file."""
    landed = table(rows)
    results: list[Row] = []
    expected = ""
    for title, (name, content, reader) in files(landed).items():
        runs = [ingested(name, content, {"identity": ["id"]}) for _ in range(rounds)]
        expected = expected or runs[0][2]
        row: dict[str, str | int | float] = {
            "part": "formats",
            "format": title,
            "rows": runs[0][1],
            "identical": int({digest for *_, digest in runs} == {expected}),
            "rows_per_s": round(rows / statistics.median(seconds for seconds, *_ in runs)),
        }
        if reader:
            seconds = []
            for _ in range(rounds):
                started = time.perf_counter()
                reader(content)
                seconds.append(time.perf_counter() - started)
            row["polars_rows_per_s"] = round(rows / statistics.median(seconds))
        results.append(row)
    return results


def large_csv(rows: int) -> bytes:
    """Return a CSV file with 20 columns of a kind with the flights: identities, times, categories and numbers."""
    rng = np.random.default_rng(0)
    seconds = np.sort(rng.integers(0, 30 * 86_400, rows))
    times = pl.Series(seconds * 10**6).cast(pl.Datetime("us")) + dt.timedelta(days=19_723)
    columns: dict[str, object] = {
        "id": np.arange(rows),
        "time": times.dt.strftime("%Y-%m-%dT%H:%M:%S"),
        "carrier": rng.choice(["UA", "AA", "DL", "B6"], rows),
        "tail": rng.choice([f"N{number:05d}" for number in range(4000)], rows),
        "origin": rng.choice(["EWR", "JFK", "LGA"], rows),
        "dest": rng.choice([f"A{number:02d}" for number in range(100)], rows),
        **{f"i{number}": rng.integers(0, 3000, rows) for number in range(7)},
        **{f"f{number}": np.round(rng.normal(0, 100, rows), 3) for number in range(7)},
    }
    return stored(pl.DataFrame(columns).write_csv)


def compare_large(rows: int, rounds: int) -> list[Row]:
    """Ingest a large CSV file, with daily partitions and without, beside polars' read and write of the file."""
    content = large_csv(rows)
    ways: dict[str, Callable[[], float]] = {
        "ingestion, one partition": lambda: ingested("a.csv", content, {"identity": ["id"]})[0],
        "ingestion, 30 days": lambda: ingested(
            "a.csv", content, {"identity": ["id"], "event_time": "time", "start": "2024-01-01", "end": "2024-12-31"}
        )[0],
        "polars": lambda: _read_and_write(content),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            seconds[way].append(run())
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return [
        {
            "part": "large CSV",
            "way": way,
            "rows": rows,
            "seconds": round(value, 3),
            "rows_per_s": round(rows / value),
            "of_polars": round(medians["polars"] / value, 3),
        }
        for way, value in medians.items()
    ]


def _read_and_write(content: bytes) -> float:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.csv"), Path(folder, f"{ALL_ROWS}.parquet")
        source.write_bytes(content)
        started = time.perf_counter()
        pl.read_csv(source, try_parse_dates=True).write_parquet(target)
        return time.perf_counter() - started


def describe(results: list[Row]) -> str:
    """Return the tables of both parts."""
    formats = [
        [
            str(row["format"]),
            f"{row['rows']:,}",
            "yes" if row["identical"] else "NO",
            f"{row['rows_per_s']:,}",
            f"{row['polars_rows_per_s']:,}" if "polars_rows_per_s" in row else "–",
        ]
        for row in results
        if row["part"] == "formats"
    ]
    large = [
        [str(row["way"]), f"{row['seconds']:.2f}", f"{row['rows_per_s']:,}", f"{row['of_polars']:.2f}"]
        for row in results
        if row["part"] == "large CSV"
    ]
    return "\n\n".join(
        [
            format_table(["format", "rows", "same raw rows", "rows/s", "polars' reader, rows/s"], formats),
            format_table(["CSV to raw rows", "s", "rows/s", "speed of polars = 1"], large),
        ]
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000, help="rows of the table in each format")
    parser.add_argument("--large-rows", type=int, default=300_000, help="rows of the large CSV file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    results = compare_formats(arguments.rows, arguments.rounds)
    results += compare_large(arguments.large_rows, arguments.rounds)
    write_report(arguments.out, "formats", results, ("fastexcel", "polars", "pyarrow"))
    print(describe(results))


if __name__ == "__main__":
    main()
