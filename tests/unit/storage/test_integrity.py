"""Seals of Parquet files, checksums of lines, and copies of databases."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from ae_pipeline.storage import hashing
from ae_pipeline.storage.hashing import hash_table
from ae_pipeline.storage.integrity import move_aside, parquet_damage
from ae_pipeline.storage.jsonl import add_line, lines_of, read_lines
from ae_pipeline.storage.parquet import damage_of, read_facts, write_parquet
from ae_pipeline.storage.sqlite import copy_database, is_empty, sqlite_damage

ROWS = pl.DataFrame({"row_id": ["a", "b", "c"], "price": [1.5, None, 3.0]})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sealed file with three rows."""
    path = tmp_path / "rows.parquet"
    write_parquet(path, ROWS.to_arrow(), {"input_hash": "x"})
    return path


class TestSeals:
    def test_a_whole_file_has_its_facts_and_rows(self, file: Path) -> None:
        facts = read_facts(file)
        assert (facts["rows"], facts["input_hash"], damage_of(file)) == ("3", "x", None)
        assert pl.read_parquet(file).equals(ROWS)

    def test_every_flipped_byte_is_found_or_harmless(self, file: Path) -> None:
        content = file.read_bytes()
        unnoticed = []
        for index in range(len(content)):
            damaged = bytearray(content)
            damaged[index] ^= 1 << index % 8
            file.write_bytes(damaged)
            if parquet_damage(file) is None:
                unnoticed.append(index)
                assert pl.read_parquet(file).equals(ROWS)
        assert len(unnoticed) <= 1  # the length of the key of the seal: the content hash then proves the rows

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
    def test_a_truncated_file_counts_as_missing(
        self, file: Path, share: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        with caplog.at_level(logging.WARNING):
            assert (read_facts(file), read_facts(file)) == ({}, {})
        assert caplog.text.count("is damaged and not used") == 1  # once for each state of a file
        assert "`ae-pipeline run` builds it again" in caplog.text

    def test_a_change_is_found_in_a_process_that_knows_the_file(self, file: Path) -> None:
        assert read_facts(file)
        content = bytearray(file.read_bytes())
        content[8] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
        assert read_facts(file) == {}

    def test_rows_without_a_seal_are_compared_with_their_hash(self, file: Path) -> None:
        table = ROWS.to_arrow()
        for content_hash, damage in ((hash_table(table), False), ("0" * 32, True)):
            footer = {b"ae_pipeline.content_hash": content_hash.encode(), b"ae_pipeline.rows": b"3"}
            pq.write_table(table.replace_schema_metadata(footer), file)
            assert (parquet_damage(file) is not None) == damage

    def test_images_without_a_seal_may_have_the_hash_of_version_0_2(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hashing, "_HASHED_BYTES", 1)
        table = pl.DataFrame({"image": [b"ab", b"cd", b"ef"]}).to_arrow()
        known = (hash_table(table), hash_table(table, is_earlier=True))
        assert len(set(known)) == 2
        for content_hash, damage in zip((*known, "0" * 32), (False, False, True), strict=True):
            pq.write_table(table.replace_schema_metadata({b"ae_pipeline.content_hash": content_hash.encode()}), file)
            assert (parquet_damage(file) is not None) == damage

    def test_a_missing_file_has_no_facts_and_no_damage(self, tmp_path: Path) -> None:
        assert (read_facts(tmp_path / "none.parquet"), damage_of(tmp_path / "none.parquet")) == ({}, None)

    def test_a_damaged_file_is_kept_under_a_free_name(self, file: Path) -> None:
        first = move_aside(file)
        file.write_bytes(b"again")
        second = move_aside(file)
        assert (first != second, first.exists(), second.read_bytes()) == (True, True, b"again")
        assert first.name.startswith("rows.parquet.damaged-20")


class TestLines:
    @pytest.fixture
    def lines(self, tmp_path: Path) -> Path:
        """Three lines."""
        path = tmp_path / "lines.jsonl"
        for version in (1, 2, 3):
            add_line(path, {"version": version, "why": "drei Größen"})
        return path

    def test_each_changed_line_is_skipped_with_a_warning(self, lines: Path, caplog: pytest.LogCaptureFixture) -> None:
        content = lines.read_bytes()
        for index in range(len(content)):
            damaged = bytearray(content)
            damaged[index] ^= 1
            lines.write_bytes(damaged)
            kept, numbers = read_lines(lines)
            assert numbers, index
            assert all(line in [{"version": n, "why": "drei Größen"} for n in (1, 2, 3)] for line in kept), index
        assert len(list(lines_of(lines))) < 3
        assert "`ae-pipeline doctor` with --repair" in caplog.text

    def test_noise_is_no_line(self, lines: Path) -> None:
        lines.write_bytes(bytes(range(128, 256)) * 4)
        assert list(lines_of(lines)) == []

    def test_lines_of_earlier_versions_have_no_checksum(self, lines: Path) -> None:
        lines.write_text('{"version": 1}\n', encoding="utf-8")
        assert list(lines_of(lines)) == [{"version": 1}]


class TestDatabases:
    @pytest.fixture
    def database(self, tmp_path: Path) -> Path:
        """A database with one table."""
        path = tmp_path / "some.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE rows (name TEXT)")
            connection.executemany("INSERT INTO rows VALUES (?)", [("x" * 500,)] * 200)
            connection.commit()
        return path

    def test_a_whole_database_can_be_copied(self, database: Path, tmp_path: Path) -> None:
        copy_database(database, tmp_path / "copy.db")
        with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
            assert connection.execute("SELECT count(*) FROM rows").fetchone() == (200,)
        assert (sqlite_damage(tmp_path / "copy.db", thorough=True), is_empty(tmp_path / "copy.db")) == (None, False)

    def test_a_truncated_database_is_damaged(self, database: Path) -> None:
        database.write_bytes(database.read_bytes()[:20_000])
        assert "malformed" in str(sqlite_damage(database))

    def test_noise_is_no_database(self, database: Path) -> None:
        database.write_bytes(os.urandom(8192))
        assert "not a database" in str(sqlite_damage(database))

    def test_a_missing_database_is_empty_and_not_damaged(self, tmp_path: Path) -> None:
        assert (sqlite_damage(tmp_path / "none.db"), is_empty(tmp_path / "none.db")) == (None, True)
