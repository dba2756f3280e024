"""Rows of the same identity side by side, however many rows there are."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pyarrow as pa

from ae_pipeline.storage.files import make_folder, translate_os_error

_AT_ONCE = 200_000
"""Rows that are held at once, about."""

_MOST_PARTS = 128
"""Files that are open at once, at most."""


def by_identity(batches: Iterable[pl.DataFrame], rows: int, folder: Path) -> Iterator[pl.DataFrame]:
    """Gives rows in parts, all rows of an identity in the same part, in the order in which they came.

    Many rows are parted by a hash into files without a name, of which one after another is read: memory does not grow
    with them, and time goes with their number (as in a Grace hash join, Kitsuregawa et al. 1983).

    Args:
        batches: Rows with `row_id`, all of the same columns.
        rows: How many there are, about.
        folder: Where there is room.

    Raises:
        StorageError: There is no room.
    """
    parts = min(math.ceil(rows / _AT_ONCE), _MOST_PARTS)
    if parts <= 1:
        together = list(batches)
        if together:
            yield pl.concat(together)
        return
    with ExitStack() as stack:
        try:
            make_folder(folder)
            files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(parts)]
            writers: list[pa.ipc.RecordBatchStreamWriter] = []
            for batch in batches:
                table = batch.to_arrow(compat_level=pl.CompatLevel.oldest())
                writers = writers or [pa.ipc.new_stream(file, table.schema) for file in files]
                own = (batch["row_id"].hash(seed=0) % parts).to_numpy()
                for index, writer in enumerate(writers):
                    writer.write_table(table.filter(pa.array(own == index)))
            for writer in writers:
                writer.close()
        except OSError as error:
            raise translate_os_error(error, folder) from error
        for file in files if writers else ():
            file.seek(0)
            yield pl.DataFrame(pa.ipc.open_stream(file).read_all())
