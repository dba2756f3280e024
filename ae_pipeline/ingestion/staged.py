"""Staged copies: whether they are whole, and how they are read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.whole_copies import forget_whole_copies
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.parquet import damage_of, read_facts
from ae_pipeline.storage.paths import DatasetPaths

ENTRY_FACT = "ledger_entry"
"""Footer key of a staged copy with its entry of the ledger, as JSON, from which a lost ledger is rebuilt."""


_KEPT_BYTES = 256 << 20
"""Maximum size of the rows that are kept in memory."""

_kept: dict[tuple[Path, int], pl.DataFrame] = {}


def entry_fact(name: str, entry: LandedFile) -> dict[str, str]:
    """Return the footer entry of a staged copy.

    Args:
        name: Path of the file below the landing folder.
        entry: Entry of the file; rows and days are those of the copy.
    """
    return {ENTRY_FACT: json.dumps({"name": name, **vars(entry)})}


def stored_entry(path: Path) -> tuple[str, LandedFile] | None:
    """Return name and ledger entry of a staged copy, or None if it is damaged or of an earlier version."""
    text = read_facts(path).get(ENTRY_FACT)
    if text is None:
        return None
    values = json.loads(text)
    return values.pop("name"), LandedFile(**values)


def has_whole_copies(entry: LandedFile, paths: DatasetPaths) -> bool:
    """Return whether the staged copy and the quarantine file of a landed file are there and not damaged."""
    copies = ((entry.staged, paths.staged), (entry.rejected_copy, paths.quarantined))
    return all(name is None or bool(read_facts(path_of(name))) for name, path_of in copies)


def kept_contract(paths: DatasetPaths) -> Path:
    """Return the path of the copy of the schema contract that the last ingestion used."""
    return paths.ledger.with_name("contract.yaml")


def keep_contract(paths: DatasetPaths) -> None:
    """Copy the valid schema contract, so that it can be restored."""
    text, copy = paths.contract.read_text(encoding="utf-8"), kept_contract(paths)
    if not copy.is_file() or copy.read_bytes() != text.encode():
        write_text(copy, text)


def require_staged(path: Path, source: str) -> None:
    """Check that a staged copy can be read.

    Args:
        path: Path of the copy.
        source: Path of the landed file below the landing folder.

    Raises:
        StorageError: The copy is missing or damaged.
    """
    if not read_facts(path):
        forget_whole_copies(path)
        dataset = path.parent.parent.name
        raise StorageError(
            f"the staged copy of {source} is {'damaged' if damage_of(path) else 'missing'}, so that its rows cannot be "
            f"read: {path}; land {source} again, or `ae-pipeline doctor {dataset} --repair` takes its rows from "
            "raw_data"
        )


def read_staged(path: Path, source: str, columns: Sequence[str]) -> pl.DataFrame:
    """Read columns of a staged copy; see `require_staged`."""
    require_staged(path, source)
    rows = kept_rows(path)
    return pl.read_parquet(path, columns=list(columns), glob=False) if rows is None else rows.select(columns)


def read_many_staged(paths: Mapping[Path, str], columns: Sequence[str]) -> pl.DataFrame:
    """Read columns of many small staged copies at once, in their order; see `require_staged`.

    Args:
        paths: Path of each landed file below the landing folder, by the path of its copy.
        columns: Columns that all copies have.
    """
    for path, source in paths.items():
        require_staged(path, source)
    scan = pl.scan_parquet(list(paths), glob=False, extra_columns="ignore")
    return scan.select(columns).collect()


def keep_rows(path: Path, rows: pl.DataFrame) -> None:
    """Keep the rows of the staged copy that was written last in memory, for the raw days that are built next.

    Args:
        path: Path of the copy.
        rows: Its rows. They are not kept if they are large.
    """
    _kept.clear()
    if rows.estimated_size() <= _KEPT_BYTES:
        _kept[path, path.stat().st_mtime_ns] = rows


def forget_rows() -> None:
    """Keep no rows in memory."""
    _kept.clear()


def kept_rows(path: Path) -> pl.DataFrame | None:
    """Return the rows of a staged copy if they are in memory."""
    return _kept.get((path, path.stat().st_mtime_ns))
