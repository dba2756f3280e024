"""Write staged copies and quarantine files by several threads, while the next files are read."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.staged import keep_rows
from ae_pipeline.storage.parquet import detach, write_rows

_WRITERS = 8
"""Files that are written at once. A disk needs a while to confirm each one."""


@dataclass(frozen=True)
class Copy:
    """A file to write.

    Attributes:
        path: Path of the file.
        rows: Its rows.
        table: The same rows, if they are already converted.
        facts: Facts for the footer of a staged copy; None for a quarantine file.
    """

    path: Path
    rows: pl.DataFrame
    table: pa.Table | None = None
    facts: dict[str, str] | None = None


class CopyWriter:
    """Write one batch of files while the next one is read. The ledger gets a batch once the disk has confirmed it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="copies")
        self._entries: dict[str, LandedFile] = {}
        self._writes: list[tuple[Copy, Future[None]]] = []

    def start(self, entries: dict[str, LandedFile], copies: Sequence[Copy]) -> dict[str, LandedFile]:
        """Start to write the next batch, once the one before is on the disk.

        Args:
            entries: Ledger entries of the files of the next batch.
            copies: Files to write for them.

        Returns:
            The ledger entries of the batch before.

        Raises:
            StorageError: The disk is full, or a folder cannot be written.
        """
        written = self._finish()
        self._entries = entries
        self._writes = [(copy, self._pool.submit(_write, copy)) for copy in copies]
        return written

    def close(self) -> None:
        """Wait for the files that are being written, and start no more."""
        self._pool.shutdown(cancel_futures=True)

    def _finish(self) -> dict[str, LandedFile]:
        entries, writes = self._entries, self._writes
        self._entries, self._writes = {}, []
        wait([write for _, write in writes])  # all of them, so that none is written after an error is raised
        for _, write in writes:
            write.result()
        if staged := [copy for copy, _ in writes if copy.facts is not None]:
            rows = staged[-1].rows
            keep_rows(staged[-1].path, detach(rows) if len(staged) > 1 else rows)
        return entries


def _write(copy: Copy) -> None:
    table = copy.rows.to_arrow() if copy.table is None else copy.table
    write_rows(copy.path, table, copy.facts, fast=copy.facts is not None)
