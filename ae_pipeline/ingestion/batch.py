"""Validate landed files in batches, and write staged copies of their typed rows."""

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.ingestion.already_read import AlreadyRead
from ae_pipeline.ingestion.conform import AFTER_LAST_DAY, check_columns, conform
from ae_pipeline.ingestion.contract import SchemaContract, required_columns
from ae_pipeline.ingestion.copy_writer import Copy, CopyWriter
from ae_pipeline.ingestion.entries import (
    check_file,
    count_days,
    invalid_values,
    new_entry,
    no_valid_row,
    refused_entry,
    unchanged_entry,
)
from ae_pipeline.ingestion.fingerprints import rule_fingerprints
from ae_pipeline.ingestion.images import image_bytes
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.packs import IMAGE_FACT, entries_fact, packed_entries
from ae_pipeline.ingestion.readers.bounds import read_bounded
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.files import ReadOptions, read_file
from ae_pipeline.ingestion.readers.image_rows import ImageRow, binary_of, frame_of, read_image_row
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, FileRows, UnreadableFileError, plain_text
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json

_BATCH_FILES, _BATCH_ROWS, _BATCH_CELLS = 1000, 50_000, 2**21
_BATCH_IMAGE_BYTES = 16 << 20
"""Limits of a batch. One is written while the next is read, so that two of them are in memory."""


class StagingBatch:
    """Validate many files at once, because validation takes as long for 10 rows as for 10,000.

    Args:
        contract: Current schema contract.
        dataset: Dataset whose files are staged.
        today: Current day in the time zone of the dataset.
    """

    def __init__(self, contract: SchemaContract, dataset: Dataset, today: dt.date) -> None:
        self._contract, self._config, self._paths, self._today = contract, dataset.config, dataset.paths, today
        self._rules = rule_fingerprints(contract, dataset, today)
        self._pending: dict[str, tuple[FileRows | ImageRow, LandedFile, LandedFile | None]] = {}
        self._accepted: set[tuple[str, ...]] = set()
        self._rows, self._cells, self._image_bytes = 0, 0, 0
        self._writer = CopyWriter()

    @cached_property
    def _options(self) -> ReadOptions:
        return replace(ReadOptions.under(self._contract, self._config), metadata=self._rules.metadata)

    @property
    def is_full(self) -> bool:
        """Whether the batch has enough files, rows, cells or image bytes to be staged."""
        sizes = (
            (len(self._pending), _BATCH_FILES),
            (self._rows, _BATCH_ROWS),
            (self._cells, _BATCH_CELLS),
            (self._image_bytes, _BATCH_IMAGE_BYTES),
        )
        return any(size >= limit for size, limit in sizes)

    def examine(
        self, name: str, path: Path, previous: LandedFile | None, read: AlreadyRead | None = None
    ) -> tuple[LandedFile, FileRows | ImageRow | None]:
        """Read a file. Threads may examine several files at once.

        Args:
            name: Path of the file below the landing folder.
            path: Path of the file.
            previous: Ledger entry of an earlier version, or None.
            read: Rows of the file, if it was read for the first schema contract. It is read again if the file or its
                metadata have changed.

        Returns:
            The ledger entry, and the rows to stage; None if the file needs no staging, because it is unchanged, cannot
            be read, or has other columns than the schema contract.
        """
        stat, rules = path.stat(), self._rules.of(name)
        try:
            data = read_bounded(path, self._config.source.limits, stat.st_size)
        except UnreadableFileError as error:
            return refused_entry(new_entry(stat, "", None, rules), previous, str(error)), None
        entry = new_entry(stat, hashlib.sha256(data).hexdigest(), previous, rules)
        if unchanged := unchanged_entry(entry, previous, rules, self._paths):
            return unchanged, None
        try:
            file = read.rows_under(self._options, entry.sha256) if read else None
            file = file or read_image_row(name, data, self._options) or read_file(name, data, self._options)
            if isinstance(file, ImageRow):
                self._check_image(file)
                return entry, file
            entry = replace(entry, skipped=dict(file.skipped))
            check_file(name, file, self._contract, self._config)
        except UnreadableFileError as error:
            return refused_entry(entry, previous, str(error)), None
        except SchemaError as error:
            return refused_entry(entry, previous, str(error), keep=True), None
        return entry, replace(file, rows=plain_text(file.rows))

    def _check_image(self, row: ImageRow) -> None:
        """Check the columns of an image as `check_file` does, once for each set of columns."""
        if (columns := tuple(row.texts)) not in self._accepted:
            check_columns(list(columns), self._contract, row.name, required_columns(self._contract, self._config))
            self._accepted.add(columns)

    def add(self, name: str, previous: LandedFile | None, entry: LandedFile, file: FileRows | ImageRow) -> None:
        """Add what `examine` has returned for a file to the batch."""
        self._pending[name] = (file, entry, previous)
        if isinstance(file, ImageRow):
            self._rows += 1
            self._cells += len(file.schema)
            self._image_bytes += file.pixels.nbytes
            return
        self._rows += file.rows.height
        self._cells += file.rows.height * file.rows.width
        if self._config.images and file.rows.schema.get(self._config.images.column) == IMAGE_STRUCT:
            self._image_bytes += image_bytes(file.rows[self._config.images.column])

    def stage(self) -> dict[str, LandedFile]:
        """Validate the rows of the batch, start to write the staged copies of its files, and empty the batch.

        Returns:
            Ledger entry of each file of the batch before, whose copies the disk has confirmed; see `written`.

        Raises:
            StorageError: The disk is full, or a folder cannot be written.
        """
        by_schema: dict[tuple[tuple[str, pl.DataType], ...], list[str]] = {}
        last: tuple[tuple[str, pl.DataType], ...] = ()
        names: list[str] = []
        for name, (file, *_) in self._pending.items():
            schema = file.schema if isinstance(file, ImageRow) else tuple(file.rows.schema.items())
            if schema is not last:  # the hash of a schema takes a tenth of the time of a small image
                last, names = schema, by_schema.setdefault(schema, [])
            names.append(name)
        entries: dict[str, LandedFile] = {}
        copies: list[Copy] = []
        for names in by_schema.values():
            for valid in self._validated(names, entries):
                staged, written = self._stage_files(valid)
                entries |= staged
                copies += written
        self._pending.clear()
        self._rows, self._cells, self._image_bytes = 0, 0, 0
        return self._writer.start(entries, copies)

    def written(self) -> dict[str, LandedFile]:
        """Wait for the last copies, and return the ledger entry of each file of the batch that was staged last."""
        return self._writer.start({}, ())

    def close(self) -> None:
        """Wait for the copies that are being written, and start no more."""
        self._writer.close()

    def _validated(self, names: list[str], entries: dict[str, LandedFile]) -> "list[_Valid]":
        """Validate files with the same columns and types, and add the entries of those that cannot be validated."""
        try:
            return [self._conform(names)]
        except UnreadableFileError as problem:  # one of them cannot be validated at all
            if len(names) > 1:
                return [valid for name in names for valid in self._validated([name], entries)]
            _, entry, previous = self._pending[names[0]]
            entries[names[0]] = refused_entry(entry, previous, str(problem))
            return []

    def _conform(self, names: list[str]) -> "_Valid":
        """Validate files with the same columns and types.

        Raises:
            UnreadableFileError: A library fails on the values of one of them.
        """
        files = [self._pending[name][0] for name in names]
        combined, pixels = _combined(files, column := self._column_of_pixels(names))
        with library_errors_as(UnreadableFileError, invalid_values):
            result = conform(combined, self._contract, self._config, self._today)
        # The conversion of a frame takes a millisecond, and a slice of the result takes none.
        rows = result.rows.rechunk()
        table = rows.to_arrow()
        if column:
            data = pixels(rows[column].cast(pl.String).cast(pl.Int64))
            table = table.set_column(table.column_names.index(column), table.schema.field(column), data)
            rows = rows.with_columns(pl.Series(column, pl.from_arrow(data)))
        runs = rows["_source_file"].rle().struct.unnest()
        starts = runs["len"].cum_sum() - runs["len"]
        spans = dict(zip(runs["value"], zip(starts, runs["len"], strict=True), strict=True))
        assert len(spans) == runs.height  # the rows of a file are still in a row
        spans = {name: spans.get(name, (0, 0)) for name in names}
        rejected = result.rejected.partition_by("source_file", as_dict=True) if result.rejected.height else {}
        nothing = result.rejected.clear()
        return _Valid(rows, table, spans, {name: rejected.get((name,), nothing) for name in names})

    def _column_of_pixels(self, names: list[str]) -> str | None:
        """Return the column whose bytes validation does not need, because it compares shapes: that of image files."""
        images = self._config.images
        if images is None or not self._config.identity or not all(map(is_image, names)):
            return None
        return images.column if self._contract.columns[images.column].type == ColumnType.IMAGE else None

    def _stage_files(self, valid: "_Valid") -> tuple[dict[str, LandedFile], list[Copy]]:
        """Return ledger entries of validated files, and the files to write. The images of a day have one copy."""
        entries: dict[str, LandedFile] = {}
        writes: list[Copy] = []
        copies: dict[str, list[str]] = {}
        all_days = valid.rows["_day"]
        for name, rejected in valid.rejected.items():
            entry, quarantine = self._examine_rows(name, all_days.slice(*valid.spans[name]), rejected)
            entries[name] = entry
            writes += quarantine
            if entry.refused is None:
                days = {*entry.days, *entry.withdrawn}
                copies.setdefault(days.pop() if is_image(name) and len(days) == 1 else name, []).append(name)
        for names in copies.values():
            if len(names) > 1:
                entries |= packed_entries({name: entries[name] for name in names})
            path = self._paths.staged(str(entries[names[0]].staged))
            facts = self._facts({name: entries[name] for name in names})
            writes.append(Copy(path, *valid.part(names), facts))
        return entries, writes

    def _facts(self, entries: Mapping[str, LandedFile]) -> dict[str, str]:
        """Return what the footer of a staged copy says: the shapes of images, and the entries of its files."""
        shapes = {IMAGE_FACT + column: str(shape) for column, shape in self._contract.images.items()}
        return {**shapes, **entries_fact(entries)}

    def _examine_rows(self, name: str, days: pl.Series, rejected: pl.DataFrame) -> tuple[LandedFile, list[Copy]]:
        """Return the ledger entry of a validated file, and the quarantine file of its rejected rows.

        Args:
            name: Path of the file below the landing folder.
            days: Day of each valid row.
            rejected: Rejected rows.
        """
        _, entry, previous = self._pending[name]
        writes: list[Copy] = []
        if rejected.height and rejected["rule"].str.ends_with(AFTER_LAST_DAY).any():
            entry = replace(entry, contract=self._rules.of(name).until_last_day)
        copy = hash_json([name, entry.sha256, entry.contract])
        if rejected.height:
            writes.append(Copy(self._paths.quarantined(copy), rejected))
            by_rule = Counter(rejected["rule"].to_list())
            entry = replace(entry, quarantined=dict(sorted(by_rule.items())), rejected_copy=copy)
        if not len(days) and rejected.height:
            return refused_entry(
                entry, previous, no_valid_row(rejected.height, rejected["reason"][0], self._config)
            ), writes
        entry = replace(entry, staged=copy, rows=len(days), days=count_days(days))
        if previous and previous.sha256 == entry.sha256:
            entry = entry.without_days(previous.withdrawn)
        return entry, writes


def _combined(
    files: Sequence[FileRows | ImageRow], column: str | None
) -> tuple[FileRows, Callable[[pl.Series], pa.ChunkedArray | pa.Array]]:
    """Return the rows of files with the same columns.

    Args:
        files: Files as read.
        column: Column whose bytes validation does not need. It gets the number of each row in place of its bytes.

    Returns:
        The rows, and the function that returns the bytes of the rows with some numbers.
    """
    rejected = pl.concat([FileRows(pl.DataFrame()).rejected, *(f.rejected for f in files if isinstance(f, FileRows))])
    images = [file for file in files if isinstance(file, ImageRow)]
    if column and images and all(isinstance(file, ImageRow) or file.rows.is_empty() for file in files):
        arrays = [image.pixels for image in images]
        rows = frame_of(images, _numbers(len(images)))
        return FileRows(rows, rejected), lambda numbers: binary_of([arrays[number] for number in numbers])
    frames: list[pl.DataFrame] = []
    for _, group in groupby(files, lambda file: isinstance(file, ImageRow)):
        same = list(group)
        images = [file for file in same if isinstance(file, ImageRow)]
        frames += [frame_of(images)] if images else [file.rows for file in same if isinstance(file, FileRows)]
    rows = pl.concat(frames)
    if column is None:
        return FileRows(rows, rejected), lambda numbers: pa.nulls(len(numbers))
    data = rows[column].struct.field("data").rechunk()
    rows = rows.with_columns(pl.col(column).struct.with_fields(data=_numbers(rows.height)))
    return FileRows(rows, rejected), lambda numbers: data.gather(numbers).to_arrow()


def _numbers(count: int) -> pl.Series:
    """Return the numbers of rows as bytes."""
    return pl.int_range(count, eager=True).cast(pl.String).cast(pl.Binary)


@dataclass(frozen=True)
class _Valid:
    """Validated files with the same columns and types.

    Attributes:
        rows: Valid rows of all files, file by file.
        table: The same rows.
        spans: First row and number of rows of each file.
        rejected: Rejected rows of each file.
    """

    rows: pl.DataFrame
    table: pa.Table
    spans: Mapping[str, tuple[int, int]]
    rejected: Mapping[str, pl.DataFrame]

    def part(self, names: Sequence[str]) -> tuple[pl.DataFrame, pa.Table]:
        """Return the rows of some files, in their order."""
        spans = [self.spans[name] for name in names]
        first, count = spans[0][0], sum(length for _, length in spans)
        if all(start == end for (start, _), end in zip(spans[1:], map(sum, spans), strict=False)):
            return self.rows.slice(first, count), self.table.slice(first, count)
        rows = self.rows[np.concatenate([np.arange(start, start + length) for start, length in spans])]
        return rows, rows.to_arrow()
