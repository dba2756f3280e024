"""Partition rows by identity with bounded memory."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pyarrow as pa

from ae_pipeline.storage.files import make_folder, translate_os_error

_PARTITION_ROWS = 500_000
"""Approximate number of rows in memory at once."""

_MAX_PARTITIONS = 128
"""Maximum number of open files."""


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
    partitions = min(math.ceil(rows / _PARTITION_ROWS), _MAX_PARTITIONS)
    if partitions <= 1:
        frames = list(batches)
        if frames:
            yield pl.concat(frames)
        return
    with ExitStack() as stack:
        try:
            make_folder(folder)
            files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(partitions)]
            writers: list[pa.ipc.RecordBatchStreamWriter] = []
            for batch in batches:
                partition = batch["row_id"].hash(seed=0) % partitions
                for index, file in enumerate(files):
                    table = batch.filter(partition == index).to_arrow(compat_level=pl.CompatLevel.oldest())
                    if index == len(writers):
                        writers.append(pa.ipc.new_stream(file, table.schema))
                    writers[index].write_table(table)
            for writer in writers:
                writer.close()
        except OSError as error:
            raise translate_os_error(error, folder) from error
        for file in files if writers else ():
            file.seek(0)
            yield pl.DataFrame(pa.ipc.open_stream(file).read_all())
