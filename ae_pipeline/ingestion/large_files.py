"""Stage a large text file part by part: its staged copy is written while it is read, so that memory stays bounded."""

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.ingestion.conform import AFTER_LAST_DAY, conform
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.entries import (
    check_file,
    count_days,
    invalid_values,
    new_entry,
    no_valid_row,
    refused_entry,
    unchanged_entry,
)
from ae_pipeline.ingestion.fingerprints import RuleFingerprints, rule_fingerprints
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.packs import entry_fact
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.files import ReadOptions, is_in_parts, read_parts
from ae_pipeline.ingestion.readers.large_text import ChangedFileError, scan_text
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import publish, temporary_beside
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet_parts import ParquetParts


class LargeFileStaging:
    """Stage large files as `StagingBatch` stages others, with the same result.

    Args:
        contract: Current schema contract.
        dataset: Dataset whose files are staged.
        today: Current day in the time zone of the dataset.
    """

    def __init__(self, contract: SchemaContract, dataset: Dataset, today: dt.date) -> None:
        self._contract, self._config, self._paths, self._today = contract, dataset.config, dataset.paths, today
        self._dataset, self._options = dataset, ReadOptions.under(contract, dataset.config)

    @cached_property
    def _rules(self) -> RuleFingerprints:
        return rule_fingerprints(self._contract, self._dataset, self._today)

    def takes(self, name: str, path: Path) -> bool:
        """Return whether a file is so large that it is staged here; see `is_in_parts`."""
        with suppress(UnreadableFileError):  # it is refused where it is read
            return is_in_parts(name, path, self._options)
        return False

    def stage(self, name: str, path: Path, previous: LandedFile | None) -> LandedFile:
        """Read and validate a file, write its staged copy, and return its ledger entry.

        Args:
            name: Path of the file below the landing folder.
            path: Path of the file; `is_in_parts` says that it is read in parts.
            previous: Ledger entry of an earlier version, or None.

        Raises:
            StorageError: The disk is full, or a folder cannot be written.
        """
        stat, rules = path.stat(), self._rules.of(name)
        entry = new_entry(stat, scan_text(path).sha256, previous, rules)
        if unchanged := unchanged_entry(entry, previous, rules, self._paths):
            return unchanged
        try:
            with closing(read_parts(name, path, self._options)) as parts:
                first = next(parts)
                entry = replace(entry, skipped=dict(first.skipped))
                check_file(name, first, self._contract, self._config)
                return self._write(name, entry, previous, first, parts)
        except ChangedFileError as error:
            return refused_entry(replace(entry, sha256=""), previous, str(error))
        except UnreadableFileError as error:
            return refused_entry(entry, previous, str(error))
        except SchemaError as error:
            return refused_entry(entry, previous, str(error), keep=True)

    def _write(
        self, name: str, entry: LandedFile, previous: LandedFile | None, first: FileRows, others: Iterator[FileRows]
    ) -> LandedFile:
        """Write the staged copy and the quarantine file, whose name depends on all rows, and return the entry."""
        days, rules, reason = Counter[str](), Counter[str](), ""
        with ExitStack() as files:
            staged = ParquetParts(files.enter_context(temporary_beside(self._paths.staged(entry.sha256))), fast=True)
            rejected = ParquetParts(files.enter_context(temporary_beside(self._paths.quarantined(entry.sha256))))
            files.enter_context(closing(staged))
            files.enter_context(closing(rejected))
            part: FileRows | None = first
            while part is not None:
                with library_errors_as(UnreadableFileError, invalid_values):
                    valid = conform(part, self._contract, self._config, self._today)
                staged.add(valid.rows.to_arrow())
                days.update(count_days(valid.rows["_day"]))
                if valid.rejected.height:
                    reason = reason or valid.rejected["reason"][0]
                    rejected.add(valid.rejected.to_arrow())
                    rules.update(dict(valid.rejected["rule"].value_counts().iter_rows()))
                del part, valid
                part = next(others, None)
            if any(rule.endswith(AFTER_LAST_DAY) for rule in rules):
                entry = replace(entry, contract=self._rules.of(name).until_last_day)
            copy = hash_json([name, entry.sha256, entry.contract])
            if rules:
                rejected.finish({})
                publish(rejected.path, self._paths.quarantined(copy))
                entry = replace(entry, quarantined=dict(sorted(rules.items())), rejected_copy=copy)
            if rules and not staged.rows:
                return refused_entry(entry, previous, no_valid_row(rules.total(), reason, self._config))
            entry = replace(entry, staged=copy, rows=staged.rows, days=dict(sorted(days.items())))
            if previous and previous.sha256 == entry.sha256:
                entry = entry.without_days(previous.withdrawn)
            staged.finish(entry_fact(name, entry))
            publish(staged.path, self._paths.staged(copy))
        return entry
