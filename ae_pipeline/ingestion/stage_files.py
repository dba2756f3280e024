"""Stage landed files: in this process, or many at once by the workers of an engine."""

import datetime as dt
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial

from ae_pipeline.common.cores import cores
from ae_pipeline.engine.mapping import Engine, engine_map, selected_engine
from ae_pipeline.ingestion.already_read import AlreadyRead
from ae_pipeline.ingestion.batch import StagingBatch
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.large_files import LargeFileStaging
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.read_ahead import NewFile, images_at_once, read_ahead, reads_ahead
from ae_pipeline.ingestion.readers.image_rows import ImageRow
from ae_pipeline.ingestion.rows import FileRows
from ae_pipeline.ingestion.staged import forget_rows
from ae_pipeline.storage.dataset import Dataset

_CHUNK_BYTES, _CHUNK_FILES = 16 << 20, 500
"""Size of the files, and number of files, that one worker stages at once; fewer if that gives some workers none."""

_CHUNKS_PER_CORE = 4


Entries = dict[str, LandedFile]
"""Ledger entries by the name of the file."""

_Examined = tuple[LandedFile, FileRows | ImageRow | None] | None
"""Entry of a file, and its rows unless they are staged already; None for a large file, which is staged by itself."""


def stage_files(
    files: Sequence[NewFile],
    contract: SchemaContract,
    dataset: Dataset,
    today: dt.date,
    already_read: dict[str, AlreadyRead],
) -> Generator[tuple[int, Entries]]:
    """Stage files, and yield how many are staged so far, with the ledger entries of the last ones.

    Args:
        files: Files to stage.
        contract: Current schema contract.
        dataset: Dataset whose files are staged.
        today: Current day in the time zone of the dataset.
        already_read: Rows of files that were read for the first schema contract. They are taken out.
    """
    is_here = selected_engine() is Engine.THREADS
    here = [file for file in files if is_here or file.name in already_read]
    yield from _stage(here, contract, dataset, today, already_read)
    known = {file.name for file in here}
    chunks, done = list(_chunks([file for file in files if file.name not in known])), len(here)
    work = partial(_stage_chunk, contract=contract, dataset=dataset, today=today)
    for chunk, entries in zip(chunks, engine_map(work, chunks), strict=True):
        done += len(chunk)
        yield done, entries


def _stage(
    files: Sequence[NewFile],
    contract: SchemaContract,
    dataset: Dataset,
    today: dt.date,
    already_read: dict[str, AlreadyRead],
) -> Iterator[tuple[int, Entries]]:
    batch, large = StagingBatch(contract, dataset, today), LargeFileStaging(contract, dataset, today)

    def examine(file: NewFile) -> _Examined:
        read = already_read.pop(file.name, None)
        if read is None and large.takes(file.name, file.path):
            return None
        return batch.examine(file.name, file.path, file.previous, read)

    threads = images_at_once(dataset.config.source.limits.pixels)
    results = read_ahead(examine, files, _pixel_bytes, threads) if reads_ahead(files) else None
    examined = map(examine, files) if results is None else results
    done = 0
    with closing(batch), nullcontext() if results is None else closing(results):
        try:
            for done, (file, result) in enumerate(zip(files, examined, strict=True), start=1):
                entry, rows = result or (large.stage(file.name, file.path, file.previous), None)
                if rows is not None:
                    batch.add(file.name, file.previous, entry, rows)
                entries = {} if rows is not None else {file.name: entry}
                yield done, entries | (batch.stage() if batch.is_full else {})
            yield done, batch.stage()
        except Exception:
            yield done, batch.written()
            raise
        yield done, batch.written()


def _pixel_bytes(examined: _Examined) -> int:
    """Return the size of the pixels of a file that was read, or an estimate of its size in memory."""
    rows = examined[1] if examined else None
    if isinstance(rows, ImageRow):
        return rows.pixels.nbytes
    return int(rows.rows.estimated_size()) if rows else 0


def _stage_chunk(files: Sequence[NewFile], contract: SchemaContract, dataset: Dataset, today: dt.date) -> Entries:
    entries: Entries = {}
    for _, part in _stage(files, contract, dataset, today, {}):
        entries |= part
    forget_rows()  # the raw days are built by other workers
    return entries


def _chunks(files: Sequence[NewFile]) -> Iterator[list[NewFile]]:
    sizes = [file.path.stat().st_size for file in files]
    parts = _CHUNKS_PER_CORE * cores()
    most_bytes, most_files = min(_CHUNK_BYTES, sum(sizes) / parts), min(_CHUNK_FILES, -(-len(files) // parts))
    chunk: list[NewFile] = []
    size = 0
    for file, file_size in zip(files, sizes, strict=True):
        chunk.append(file)
        size += file_size
        if size >= most_bytes or len(chunk) == most_files:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
