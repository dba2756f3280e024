"""Validate landed files in batches, and write a staged copy of the typed rows of each file."""

import datetime as dt
import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.common.text import first_line
from ae_pipeline.config.days import last_day
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.conform import AFTER_LAST_DAY, check_columns, conform
from ae_pipeline.ingestion.contract import SchemaContract, is_needed, required_columns
from ae_pipeline.ingestion.copy_writer import Copy, CopyWriter
from ae_pipeline.ingestion.images import image_bytes
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.readers.bounds import read_bounded
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.files import ReadOptions, leave_out, read_file
from ae_pipeline.ingestion.readers.image_metadata import ImageMetadata, load_image_metadata
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, ORIGIN_COLUMNS, FileRows, UnreadableFileError, plain_text
from ae_pipeline.ingestion.staged import entry_fact, has_whole_copies
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import DatasetPaths

RAW_VERSION = "2"
"""Version of the ingestion code. Increase it when the same files would give other raw rows."""

IMAGE_FACT = "image."
"""Prefix of the footer key with the shape of the images of a column in a staged copy."""

_BATCH_FILES, _BATCH_ROWS, _BATCH_CELLS = 500, 50_000, 2**21
_BATCH_IMAGE_BYTES = 32 << 20
"""Limits of a batch. One is written while the next is read, so that two of them are in memory."""

_FEW_ROWS = 1000
"""Number of rows up to which Python counts faster than a query, which takes a millisecond for each of many files."""


@dataclass(frozen=True)
class RuleFingerprints:
    """Fingerprints of everything that rows are validated with.

    Attributes:
        lasting: Fingerprint of the schema contract and the settings.
        until_last_day: Fingerprint of the same and the last valid day. Files with rows after that day get this one, so
            that they are read again on the next day.
        metadata: Metadata of images, which count for the image that they describe.
    """

    lasting: str
    until_last_day: str
    metadata: ImageMetadata = field(default_factory=ImageMetadata)

    def of(self, name: str) -> "RuleFingerprints":
        """Return the fingerprints of everything that the rows of one file are validated with.

        Args:
            name: Path of the file below the landing folder.
        """
        metadata = self.metadata.fingerprint(name) if is_image(name) else None
        if metadata is None:
            return self
        return RuleFingerprints(hash_json([self.lasting, metadata]), hash_json([self.until_last_day, metadata]))


def rule_fingerprints(contract: SchemaContract, dataset: Dataset, today: dt.date) -> RuleFingerprints:
    """Return the fingerprints of a schema contract, the settings and the metadata of images.

    Args:
        contract: Current schema contract.
        dataset: Configuration and paths of the dataset.
        today: Current day in the time zone of the dataset.
    """
    config = dataset.config
    settings: list[object] = [config.identity, config.event_time, config.start, config.end, *config.timezone_setting()]
    if config.images:  # conditional, so that datasets without images keep their fingerprint
        settings.append(config.images.model_dump(mode="json", exclude={"masks", "metadata"}))
    if config.source.reading:
        settings.append(config.source.reading)
    lasting = hash_json([RAW_VERSION, contract.fingerprint, settings])
    metadata = load_image_metadata(landing_folder(dataset), config)
    return RuleFingerprints(lasting, hash_json([lasting, last_day(config, today)]), metadata)


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
        self._pending: dict[str, tuple[FileRows, LandedFile, LandedFile | None]] = {}
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
        self, name: str, path: Path, previous: LandedFile | None, read: FileRows | None = None
    ) -> tuple[LandedFile, FileRows | None]:
        """Read a file. Threads may examine several files at once.

        Args:
            name: Path of the file below the landing folder.
            path: Path of the file.
            previous: Ledger entry of an earlier version, or None.
            read: Rows of the file, if it was read for the first schema contract.

        Returns:
            The ledger entry, and the rows to stage; None if the file needs no staging, because it is unchanged, cannot
            be read, or has other columns than the schema contract.
        """
        stat, rules = path.stat(), self._rules.of(name)
        try:
            data = read_bounded(path, self._config.source.limits)
        except UnreadableFileError as error:
            return refused_entry(new_entry(stat, "", None, rules), previous, str(error)), None
        entry = new_entry(stat, hashlib.sha256(data).hexdigest(), previous, rules)
        if unchanged := unchanged_entry(entry, previous, rules, self._paths):
            return unchanged, None
        try:
            file = leave_out(read, self._options) if read else read_file(name, data, self._options)
            entry = replace(entry, skipped=dict(file.skipped))
            check_file(name, file, self._contract, self._config)
        except UnreadableFileError as error:
            return refused_entry(entry, previous, str(error)), None
        except SchemaError as error:
            return refused_entry(entry, previous, str(error), keep=True), None
        return entry, replace(file, rows=plain_text(file.rows))

    def add(self, name: str, previous: LandedFile | None, entry: LandedFile, file: FileRows) -> None:
        """Add what `examine` has returned for a file to the batch."""
        self._pending[name] = (file, entry, previous)
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
        for name, (file, *_) in self._pending.items():
            by_schema.setdefault(tuple(file.rows.schema.items()), []).append(name)
        entries: dict[str, LandedFile] = {}
        copies: list[Copy] = []
        for names in by_schema.values():
            for name, part in self._validated(names, entries).items():
                entries[name], written = self._stage_file(name, part)
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

    def _validated(self, names: list[str], entries: dict[str, LandedFile]) -> "dict[str, _Part]":
        """Validate files with the same columns and types, and add the entries of those that cannot be validated."""
        try:
            return self._conform(names)
        except UnreadableFileError as problem:  # one of them cannot be validated at all
            if len(names) > 1:
                return {key: part for name in names for key, part in self._validated([name], entries).items()}
            _, entry, previous = self._pending[names[0]]
            entries[names[0]] = refused_entry(entry, previous, str(problem))
            return {}

    def _conform(self, names: list[str]) -> "dict[str, _Part]":
        """Validate files with the same columns and types.

        Raises:
            UnreadableFileError: A library fails on the values of one of them.
        """
        files = [self._pending[name][0] for name in names]
        combined = FileRows(pl.concat([f.rows for f in files]), pl.concat([f.rejected for f in files]))
        with library_errors_as(UnreadableFileError, invalid_values):
            result = conform(combined, self._contract, self._config, self._today)
        if len(names) == 1:
            return {names[0]: _Part(result.rows, result.rows.to_arrow(), result.rejected)}
        # The conversion of a frame takes a millisecond, and a slice of the result takes none.
        rows = result.rows.rechunk()
        table, runs = rows.to_arrow(), rows["_source_file"].rle().struct.unnest()
        starts = runs["len"].cum_sum() - runs["len"]
        spans = dict(zip(runs["value"], zip(starts, runs["len"], strict=True), strict=True))
        assert len(spans) == runs.height  # the rows of a file are still in a row
        rejected = result.rejected.partition_by("source_file", as_dict=True)
        nothing = result.rejected.clear()
        return {
            name: _Part(rows.slice(*span), table.slice(*span), rejected.get((name,), nothing))
            for name in names
            for span in [spans.get(name, (0, 0))]
        }

    def _stage_file(self, name: str, file: "_Part") -> tuple[LandedFile, list[Copy]]:
        _, entry, previous = self._pending[name]
        writes: list[Copy] = []
        if file.rejected.height and file.rejected["rule"].str.ends_with(AFTER_LAST_DAY).any():
            entry = replace(entry, contract=self._rules.of(name).until_last_day)
        copy = hash_json([name, entry.sha256, entry.contract])
        if file.rejected.height:
            writes.append(Copy(self._paths.quarantined(copy), file.rejected))
            by_rule = Counter(file.rejected["rule"].to_list())
            entry = replace(entry, quarantined=dict(sorted(by_rule.items())), rejected_copy=copy)
        if file.rows.is_empty() and file.rejected.height:
            reason = no_valid_row(file.rejected.height, file.rejected["reason"][0])
            return refused_entry(entry, previous, reason), writes
        shapes = {IMAGE_FACT + column: str(shape) for column, shape in self._contract.images.items()}
        entry = replace(entry, staged=copy, rows=file.rows.height, days=count_days(file.rows["_day"]))
        if previous and previous.sha256 == entry.sha256:
            entry = entry.without_days(previous.withdrawn)
        facts = {**shapes, **entry_fact(name, entry)}
        return entry, [*writes, Copy(self._paths.staged(copy), file.rows, file.table, facts)]


@dataclass(frozen=True)
class _Part:
    """What validation gives for one file: its valid rows, as a frame and as a table, and its rejected rows."""

    rows: pl.DataFrame
    table: pa.Table
    rejected: pl.DataFrame


def new_entry(stat: os.stat_result, digest: str, previous: LandedFile | None, rules: RuleFingerprints) -> LandedFile:
    """Return the ledger entry of a file that is not staged yet.

    Args:
        stat: State of the file.
        digest: SHA-256 of the file.
        previous: Ledger entry of an earlier version, or None.
        rules: Fingerprints of everything that its rows are validated with.
    """
    is_same = previous is not None and previous.sha256 == digest
    return LandedFile(
        size=stat.st_size,
        modified_ns=stat.st_mtime_ns,
        sha256=digest,
        landed_ns=previous.landed_ns if previous and is_same else stat.st_mtime_ns,
        contract=rules.lasting,
        staged=None,
    )


def unchanged_entry(
    entry: LandedFile, previous: LandedFile | None, rules: RuleFingerprints, paths: DatasetPaths
) -> LandedFile | None:
    """Return the earlier entry of a file, if it has the same content and rules, and its copies are whole."""
    if previous is None or previous.sha256 != entry.sha256:
        return None
    if previous.contract not in {rules.lasting, rules.until_last_day} or not has_whole_copies(previous, paths):
        return None
    return replace(previous, size=entry.size, modified_ns=entry.modified_ns)


def check_file(name: str, file: FileRows, contract: SchemaContract, config: PipelineConfig) -> None:
    """Check that a file has the columns of the contract, and that no needed one was skipped.

    Raises:
        UnreadableFileError: A column that the contract has was skipped.
        SchemaError: A column is missing or unknown.
    """
    columns = [column for column in file.rows.columns if column not in ORIGIN_COLUMNS]
    for column, reason in file.skipped.items():
        rule = contract.columns.get(column)
        if is_needed(column, config):
            raise UnreadableFileError(f"column {column!r} is needed, but {reason}")
        if rule and not rule.optional:
            raise UnreadableFileError(
                f"column {column!r}: {reason}; or exclude it in the YAML, so that its values are missing"
            )
    check_columns(columns, contract, name, required_columns(contract, config))


def invalid_values(error: BaseException) -> str:
    """Return why a file is refused whose values a library fails on."""
    return f"its values cannot be validated ({type(error).__name__}: {first_line(error)}); correct the file"


def no_valid_row(count: int, first: str) -> str:
    """Return why a file is refused without a valid row.

    Args:
        count: Number of its rows.
        first: Reason of the first one.
    """
    return f"none of its {count:,} rows satisfies the schema contract; the first one: {first}"


def count_days(days: pl.Series) -> dict[str, int]:
    """Return the number of rows of each day."""
    few = len(days) <= _FEW_ROWS
    counts = (
        Counter(days.to_list()) if few else zip(days.unique(maintain_order=True), days.unique_counts(), strict=True)
    )
    return dict(sorted(dict(counts).items()))


def refused_entry(entry: LandedFile, previous: LandedFile | None, reason: str, *, keep: bool = False) -> LandedFile:
    """Return the entry of a file that cannot be used. It keeps the rows of an earlier version.

    If the content is unchanged, and only the rules are new, the rows under the old rules are withdrawn, unless `keep`.
    """
    is_unchanged = previous is not None and previous.sha256 == entry.sha256 and previous.refused is None
    withdrawn = previous.withdrawn if previous and previous.sha256 == entry.sha256 else {}
    if previous is None or (is_unchanged and not keep):
        return replace(entry, refused=reason, withdrawn=withdrawn)
    kept = replace(entry, staged=previous.staged, rows=previous.rows, days=previous.days)
    return replace(kept, refused=reason, withdrawn=previous.withdrawn)
