"""Tests of source.limits: what exceeds a limit is refused before it is read, and links out are not followed."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ae_pipeline.config.limits import LimitsConfig
from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion.readers.bounds import read_bounded
from ae_pipeline.ingestion.readers.files import ReadOptions, read_file
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError
from benchmarks import hostile_files as hostile
from tests.support.datasets import DAY, HEADER, REMEDY, LandedDataset, assert_says, line, make_dataset


def read(name: str, data: bytes, **limits: Any) -> FileRows:
    """Read a file under limits."""
    return read_file(name, data, ReadOptions(source=SourceConfig.model_validate({"limits": limits})))


def excel(rows: int, columns: int) -> bytes:
    """Return an Excel file with a header of names."""
    buffer = io.BytesIO()
    pl.DataFrame({f"c{column}": [1] * rows for column in range(columns)}).write_excel(buffer)
    return buffer.getvalue()


def table(rows: int, columns: int) -> pa.Table:
    """Return a table of whole numbers."""
    return pa.table({f"c{column}": np.arange(rows) for column in range(columns)})


def parquet(content: pa.Table, **options: Any) -> bytes:
    """Return a table as Parquet."""
    buffer = io.BytesIO()
    pq.write_table(content, buffer, **options)
    return buffer.getvalue()


def arrow(content: pa.Table, compression: str | None = None) -> bytes:
    """Return a table as an Arrow file."""
    buffer = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(buffer, content.schema, options=options) as writer:
        writer.write_table(content)
    return buffer.getvalue()


def avro(rows: int, columns: int) -> bytes:
    """Return a table as Avro."""
    buffer = io.BytesIO()
    pl.DataFrame(table(rows, columns)).write_avro(buffer, compression="deflate")
    return buffer.getvalue()


def text(rows: int, columns: int) -> bytes:
    """Return a table as CSV."""
    return "\n".join([",".join(f"c{i}" for i in range(columns)), *[",".join("1" * columns)] * rows]).encode()


def json_lines(rows: int, columns: int) -> bytes:
    """Return a table as JSON Lines."""
    return "\n".join([json.dumps({f"c{i}": 1 for i in range(columns)})] * rows).encode()


FORMATS: dict[str, Callable[[int, int], bytes]] = {
    "a.csv": text,
    "a.csv.gz": lambda rows, columns: gzip.compress(text(rows, columns)),
    "a.jsonl": json_lines,
    "a.xlsx": excel,
    "a.parquet": lambda rows, columns: parquet(table(rows, columns)),
    "a.arrow": lambda rows, columns: arrow(table(rows, columns)),
    "a.feather": lambda rows, columns: arrow(table(rows, columns), "zstd"),
    "a.avro": avro,
}
"""Content of a file with a number of rows and columns, by its name."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns", "setting"), [(2, 9, "columns"), (60, 2, "rows")])
def test_the_limit_itself_is_read_and_one_more_is_refused(name: str, rows: int, columns: int, setting: str) -> None:
    content = FORMATS[name](rows, columns)
    limit = {"columns": columns, "rows": rows + (name == "a.xlsx")}[setting]  # a sheet has the header as a row
    assert read(name, content, **{setting: limit}).rows.height == rows
    with pytest.raises(UnreadableFileError) as error:
        read(name, content, **{setting: min(rows, columns, limit - 1) if setting == "columns" else rows - 1})
    assert_says(str(error.value), rf"has {limit} {setting}", rf"source\.limits\.{setting} is", REMEDY)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.csv.zip", "a.xlsx", "a.parquet", "a.feather", "a.avro"])
def test_content_that_is_too_large_after_decompression_is_refused(name: str) -> None:
    plain = text(5000, 3)
    compressed: dict[str, Callable[[], bytes]] = {
        "a.csv.gz": lambda: gzip.compress(plain),
        "a.csv.zst": lambda: pa.Codec("zstd").compress(plain, asbytes=True),
        "a.csv.zip": lambda: hostile._zip(("a.csv", plain)),
    }
    content = compressed.get(name, lambda: FORMATS[name](5000, 3))()
    assert read(name, content).rows.height == 5000
    with pytest.raises(UnreadableFileError, match=r"but source\.limits\.decompressed_bytes is 20,000; .* raise"):
        read(name, content, decompressed_bytes=20_000)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "_chunks", lambda size: iter([bytes(size >> 10)]))
    hostile._zip_bomb(tmp_path / "a.zip")
    data = (tmp_path / "a.zip").read_bytes()
    lying = data.replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != data
    with pytest.raises(UnreadableFileError, match=r"source\.limits\.decompressed_bytes"):
        read("a.zip", lying, decompressed_bytes=1000)


def test_content_of_an_unlikely_ratio_is_refused() -> None:
    content = gzip.compress(bytes(80 << 20))
    with pytest.raises(
        UnreadableFileError, match=r"has \d+ or more times its size .*source\.limits\.compression_ratio"
    ):
        read("a.csv.gz", content)


REPEATED = pa.table({"c": ["x" * 5000] * 5000})
RUN = pa.RunEndEncodedArray.from_arrays(pa.array([5000]), pa.array(["x" * 5000]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", parquet(REPEATED, store_schema=False)),
        ("a.parquet", parquet(pa.table({"c": pa.array(["x" * 5000] * 5000).dictionary_encode()}))),
        ("a.parquet", parquet(pa.table({"c": pa.nulls(100_000, pa.string())}))),
        ("a.parquet", parquet(REPEATED, use_dictionary=False, column_encoding={"c": "DELTA_BYTE_ARRAY"})),
        ("a.arrow", arrow(pa.table({"c": pa.array(["x" * 5000] * 5000).dictionary_encode()}))),
        ("a.arrow", arrow(pa.table({"c": RUN}))),
        ("a.arrow", arrow(pa.table({"c": pa.array([["x" * 5000] * 10] * 500)}), "zstd")),
    ],
)  # fmt: skip
def test_values_that_are_stored_once_count_as_often_as_they_occur(name: str, content: bytes) -> None:
    assert len(content) < 200_000
    assert read(name, content).rows.height >= 500
    with pytest.raises(UnreadableFileError, match=r"source\.limits\.decompressed_bytes is 1,000,000"):
        read(name, content, decompressed_bytes=1_000_000)


@pytest.mark.parametrize(
    ("first", "last", "setting"),
    [("A1", "XFD1", "columns"), ("A1", "B1048576", "rows"), ("A1", "ALL900000", "decompressed_bytes")],
)
def test_cells_of_a_sheet_that_span_too_much_are_refused(first: str, last: str, setting: str) -> None:
    cells = [
        f'<row r="{address.lstrip("ABCDEFLX")}">'.encode() + hostile._cell(address) + b"</row>"
        for address in (first, last)
    ]
    limits = {"rows": 10_000_000 if setting != "rows" else 1000}
    with pytest.raises(UnreadableFileError, match=rf"source\.limits\.{setting}"):
        read("a.xlsx", hostile._workbook(b"".join(cells)), **limits)


def test_a_zip_of_many_files_is_refused_before_its_directory_is_read() -> None:
    content = hostile._zip(*((f"{index}.csv", b"") for index in range(20)))
    with pytest.raises(
        UnreadableFileError, match=r"20 files in its archive, but source\.limits\.archive_members is 19"
    ):
        read("a.zip", content, archive_members=19)
    with pytest.raises(UnreadableFileError, match=r"names in its archive, but source\.limits\.archive_members"):
        read("a.zip", hostile._zip(("x" * 2000 + ".csv", b"")), archive_members=1)


@pytest.mark.parametrize("size", [0, 1, 3000, 1 << 20])
@pytest.mark.parametrize("change", [0, 7, -7])
def test_a_file_that_changes_after_its_size_was_looked_up_is_read_whole(tmp_path: Path, size: int, change: int) -> None:
    content = bytes(index % 251 for index in range(max(size + change, 0)))
    (tmp_path / "a.csv").write_bytes(content)
    assert read_bounded(tmp_path / "a.csv", LimitsConfig(), size) == content
    assert read_bounded(tmp_path / "a.csv", LimitsConfig()) == content


class TestRecords:
    @pytest.mark.parametrize("row", ["7," + "x" * 200, '7,"' + "x" * 200 + '"', '7,"' + "x\n" * 100 + '"'])
    def test_a_long_row_goes_to_quarantine_without_its_text(self, row: str) -> None:
        file = read("a.csv", f"id,x\n1,a\n{row}\n2,b".encode(), record_bytes=100)
        assert file.rows["id"].to_list() == ["1", "2"]
        ((number, rule, reason, record),) = file.rejected.select("row_number", "rule", "reason", "record").rows()
        assert (number, rule, record) == (3, "size", f"{len(row) + 1} bytes")
        assert_says(reason, f"{len(row) + 1} bytes, at most 100", r"raise source\.limits\.record_bytes")

    def test_a_long_json_line_goes_to_quarantine_without_its_text(self) -> None:
        file = read("a.jsonl", b'{"id": 1}\n{"id": "' + b"x" * 200 + b'"}\n{"id": 2}', record_bytes=100)
        assert file.rows["id"].to_list() == ["1", "2"]
        assert file.rejected["record"].to_list() == ["210 bytes"]

    @pytest.mark.parametrize("header", ["x" * 200, "x," * 100, '"' + "x" * 200 + '"'])
    def test_a_long_header_is_refused(self, header: str) -> None:
        with pytest.raises(UnreadableFileError, match=r"header, but source\.limits\.record_bytes is 100"):
            read("a.csv", f"{header}\n1\n".encode(), record_bytes=100)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", b"id,x\n" + b"7\n" * 20),
            ("a.csv", b"id,x\n" + b'"7,1\n' * 20),
            ("a.jsonl", b'{"id": 1}\n' + b"{\n" * 20),
        ],
    )
    def test_many_rows_that_cannot_be_read_refuse_the_file(self, name: str, content: bytes) -> None:
        assert read(name, content, rejected_rows=20).rejected.height == 20
        with pytest.raises(UnreadableFileError, match=r"source\.limits\.rejected_rows is 19"):
            read(name, content, rejected_rows=19)

    def test_names_that_occur_in_few_lines_do_not_fill_the_memory(self) -> None:
        content = b"\n".join(b'{"k%d": 1}' % (index % 500) for index in range(5000))
        with pytest.raises(UnreadableFileError, match=r"source\.limits\.decompressed_bytes"):
            read("a.jsonl", content, decompressed_bytes=1_000_000)


class TestLanding:
    def test_a_refused_file_holds_up_no_other_and_is_read_after_an_edit(self, tmp_path: Path) -> None:
        shop = make_dataset(tmp_path, source={"limits": {"file_bytes": 200}})
        shop.land("large.csv", HEADER + "".join(line(number) for number in range(20)))
        shop.land("small.csv", HEADER + line(100))
        assert shop.ids() == [100]
        assert_says(shop.entry("large.csv").refused, "bytes, but source.limits.file_bytes is 200", REMEDY)
        assert shop.ingest().read == ()
        assert len(make_dataset(tmp_path).ids()) == 21

    def test_a_larger_version_of_a_file_keeps_the_rows_of_the_earlier_one(self, tmp_path: Path) -> None:
        shop = make_dataset(tmp_path, source={"limits": {"file_bytes": 200}})
        shop.land("a.csv", HEADER + line(1))
        assert shop.ids() == [1]
        shop.land("a.csv", HEADER + "".join(line(number) for number in range(20)))
        assert shop.ids() == [1]
        assert shop.entry("a.csv").refused

    def test_an_image_with_too_many_pixels_goes_to_quarantine(self, tmp_path: Path) -> None:
        from PIL import Image

        settings: dict[str, Any] = {"identity": ["file"], "event_time": None, "start": None, "end": None, "images": {}}
        shop = make_dataset(tmp_path, source={"limits": {"pixels": 50}}, **settings)
        for name, side in (("a.png", 7), ("b.png", 8), ("c.png", 7)):
            buffer = io.BytesIO()
            Image.new("L", (side, side)).save(buffer, "PNG")
            shop.land(name, buffer.getvalue())
        assert shop.rows("file") == [("a.png",), ("c.png",)]
        ((source, _, rule, reason),) = shop.quarantine()
        assert (source, rule) == ("b.png", "image: readable")
        assert_says(reason, r"8×8 pixels, but source\.limits\.pixels is 50", REMEDY)

    def test_the_oldest_files_are_read_and_the_others_named(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shop = make_dataset(tmp_path, source={"limits": {"files": 2}})
        for number, name in enumerate("cab"):
            shop.land(f"{name}.csv", HEADER + line(number))
        assert shop.ids() == [0, 1]
        assert_says(caplog.text, r"b\.csv: there are 3 files, but source\.limits\.files is 2; raise it")
        shop.land("0.csv", HEADER + line(9))
        assert shop.ids() == [0, 1]


class TestLinks:
    @pytest.fixture
    def shop(self, tmp_path: Path) -> LandedDataset:
        """A dataset with one file, and a file outside of its landing folder."""
        shop = make_dataset(tmp_path / "data")
        shop.land("a.csv", HEADER + line(1))
        outside = tmp_path / "outside" / f"date={DAY}"
        outside.mkdir(parents=True)
        (outside / "b.csv").write_text(HEADER + line(2))
        return shop

    @pytest.mark.parametrize("pattern", ["**/*", "*", "*/*", "*/*/*", "sub/*/b.csv", "*.csv"])
    def test_links_out_of_the_folder_are_not_followed(self, shop: LandedDataset, tmp_path: Path, pattern: str) -> None:
        landing = shop.paths.landing
        (landing / "b.csv").symlink_to(tmp_path / "outside" / f"date={DAY}" / "b.csv")
        (landing / "sub").symlink_to(tmp_path / "outside", target_is_directory=True)
        (landing / "deep").mkdir()
        (landing / "deep" / "c.csv").symlink_to("../../../../outside/" + f"date={DAY}/b.csv")
        (landing / "gone.csv").symlink_to(tmp_path / "nothing.csv")
        (landing / "loop.csv").symlink_to("loop.csv")
        (landing / "device.csv").symlink_to("/dev/zero")
        found = make_dataset(tmp_path / "data", source={"pattern": pattern})
        if pattern in {"**/*", "*", "*.csv"}:
            assert found.ids() == [1]
        else:
            with pytest.raises(Exception, match="link"):
                found.ingest()

    def test_a_link_inside_of_the_folder_and_a_linked_folder_are_read(
        self, shop: LandedDataset, tmp_path: Path
    ) -> None:
        (shop.paths.landing / "again.csv").symlink_to("a.csv")
        assert sorted(shop.ingest().ledger.files) == ["a.csv", "again.csv"]
        moved = tmp_path / "elsewhere"
        shop.paths.landing.rename(moved)
        shop.paths.landing.symlink_to(moved, target_is_directory=True)
        os.utime(moved / "a.csv", (1, 1))
        assert shop.ids() == [1]
