"""Partition rows by identity, and sort them, with bounded memory."""

import bisect
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import polars as pl
import pyarrow as pa

from ae_pipeline.storage.files import make_folder, raise_os_error

_PARTITION_ROWS = 500_000
"""Approximate number of rows in memory at once."""

MAX_PARTITIONS = 64
"""Maximum number of open files of one pass. A day has two passes at once, and four days are built at once."""

_INDEX = "\0partition"


def partition_by_identity(batches: Iterable[pl.DataFrame], rows: int, folder: Path) -> Iterator[pl.DataFrame]:
    """Yield rows in partitions. All rows of an identity are in the same partition, in their original order.

    Many rows are first distributed to temporary files by a hash of their identity. Then each file is one partition, as
    in a Grace hash join (Kitsuregawa et al. 1983). Memory stays bounded, and the time is linear in the number of rows.

    Args:
        batches: Rows with `row_id`, all with the same columns.
        rows: Approximate number of rows.
        folder: Folder for the temporary files.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    partitions = min(math.ceil(rows / _PARTITION_ROWS), MAX_PARTITIONS)
    if partitions <= 1:
        frames = list(batches)
        if frames:
            yield pl.concat(frames)
        return
    index = (pl.col("row_id").hash(seed=0) % partitions).cast(pl.Int64).alias(_INDEX)
    divided = (batch.with_columns(index).partition_by(_INDEX, as_dict=True, include_key=False) for batch in batches)
    yield from _spill(({key: rows for (key,), rows in parts.items()} for parts in divided), folder)


def sort_in_partitions(
    batches: Iterable[pl.DataFrame], keys: Sequence[str], bounds: Sequence[tuple[Any, ...]], folder: Path
) -> Iterator[pl.DataFrame]:
    """Yield rows in ascending order of some columns, in partitions.

    Args:
        batches: Rows, all with the same columns. No two rows have the same keys, and no key is missing.
        keys: Columns by which the rows are sorted.
        bounds: First keys of each partition but the first one, in ascending order; see `partition_bounds`.
        folder: Folder for the temporary files.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """

    def divided(batch: pl.DataFrame) -> dict[int, pl.DataFrame]:
        rows = batch.sort(keys)
        sorted_keys = rows.select(keys)
        cuts = [bisect.bisect_left(range(rows.height), bound, key=sorted_keys.row) for bound in bounds]
        edges = pairwise([0, *cuts, rows.height])
        return {index: rows[start:end] for index, (start, end) in enumerate(edges) if start < end}

    for part in _spill((divided(batch) for batch in batches), folder):
        yield part.sort(keys)


def partition_bounds(sample: pl.DataFrame, keys: Sequence[str], rows: int) -> list[tuple[Any, ...]]:
    """Return bounds of partitions of about the same size for `sort_in_partitions`.

    Args:
        sample: Some of the rows, taken evenly.
        keys: Columns by which the rows are sorted.
        rows: Number of all rows.
    """
    partitions = min(math.ceil(rows / _PARTITION_ROWS), MAX_PARTITIONS)
    values = sample.select(keys).unique().sort(keys)
    return [values.row(values.height * index // partitions) for index in range(1, partitions)] if values.height else []


def _spill(divided: Iterable[Mapping[int, pl.DataFrame]], folder: Path) -> Iterator[pl.DataFrame]:
    """Write the rows of each partition to a temporary file, and yield one partition after the other."""
    with ExitStack() as stack:
        files: dict[int, IO[bytes]] = {}
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        try:
            make_folder(folder)
            for parts in divided:
                for index, rows in parts.items():
                    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
                    if index not in writers:
                        files[index] = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                        writers[index] = pa.ipc.new_stream(files[index], table.schema)
                    writers[index].write_table(table)
            for writer in writers.values():
                writer.close()
        except OSError as error:
            raise_os_error(error, folder)
        for _, file in sorted(files.items()):
            file.seek(0)
            yield pl.DataFrame(pa.ipc.open_stream(file).read_all())
            file.truncate(0)  # its rows are no longer needed
