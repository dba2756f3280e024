"""Staged copies: whether they are whole, and how they are read."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.packs import first_row, rows_of
from ae_pipeline.ingestion.whole_copies import forget_whole_copies
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.parquet import damage_of, footer_of, read_facts
from ae_pipeline.storage.paths import DatasetPaths

_KEPT_BYTES = 256 << 20
"""Maximum size of the rows that are kept in memory."""

_kept: dict[tuple[Path, int], pl.DataFrame] = {}


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


def read_staged(entry: LandedFile, source: str, paths: DatasetPaths, columns: Sequence[str]) -> pl.DataFrame:
    """Read columns of the rows of a landed file; see `require_staged`."""
    path = paths.staged(str(entry.staged))
    require_staged(path, source)
    rows = kept_rows(path)
    if rows is None:
        rows = _read_columns(path, path.stat().st_mtime_ns, tuple(columns))
    return rows_of(entry, rows).select(columns)


@lru_cache(maxsize=1)
def _read_columns(path: Path, modified_ns: int, columns: tuple[str, ...]) -> pl.DataFrame:  # noqa: ARG001
    """Read columns of a staged copy, and keep them, because the next landed file is often in the same one."""
    return pl.read_parquet(path, columns=list(columns), glob=False)


def read_many_staged(
    files: Sequence[tuple[str, LandedFile]], paths: DatasetPaths, columns: Sequence[str]
) -> pl.DataFrame:
    """Read columns of the rows of many small landed files at once, in their order; see `require_staged`.

    Args:
        files: Path below the landing folder and entry of each file.
        paths: Paths of the dataset.
        columns: Columns that all copies have.
    """
    sources = {paths.staged(str(entry.staged)): source for source, entry in files}
    for path, source in sources.items():
        require_staged(path, source)
    scan = pl.scan_parquet(list(sources), glob=False, extra_columns="ignore")
    if len(sources) == len(files) and all(first_row(entry) is None for _, entry in files):
        return scan.select(columns).collect()
    heights = {path: footer_of(path).num_rows for path in sources}
    starts = dict(zip(sources, accumulate(heights.values(), initial=0), strict=False))
    rows, spans = scan.select(columns).collect(), []
    for _, entry in files:
        path, first = paths.staged(str(entry.staged)), first_row(entry)
        count = heights[path] if first is None else entry.rows
        spans.append(np.arange(count) + starts[path] + (first or 0))
    return rows[np.concatenate(spans)]


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
