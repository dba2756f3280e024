"""Ledger entries of landed files that are being read, and why a file is refused."""

import os
from collections import Counter
from dataclasses import replace

import polars as pl

from ae_pipeline.common.text import first_line
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.conform import check_columns
from ae_pipeline.ingestion.contract import SchemaContract, is_needed, required_columns
from ae_pipeline.ingestion.fingerprints import RuleFingerprints
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.rows import ORIGIN_COLUMNS, FileRows, UnreadableFileError
from ae_pipeline.ingestion.staged import has_whole_copies
from ae_pipeline.storage.paths import DatasetPaths

_FEW_ROWS = 1000
"""Number of rows up to which Python counts faster than a query, which takes a millisecond for each of many files."""


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
    if len(days) == 1:  # an image
        return {days.item(): 1}
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
