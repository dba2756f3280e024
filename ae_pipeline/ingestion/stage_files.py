"""Stage landed files: in this process, or many at once by the workers of an engine."""

import datetime as dt
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from ae_pipeline.common.cores import cores
from ae_pipeline.common.memory import machine_memory
from ae_pipeline.engine.mapping import Engine, engine_map, selected_engine
from ae_pipeline.ingestion.batch import StagingBatch
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.large_files import LargeFileStaging
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.readers.image_rows import ImageRow
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.ingestion.rows import FileRows
from ae_pipeline.ingestion.staged import forget_rows
from ae_pipeline.storage.dataset import Dataset

_CHUNK_BYTES, _CHUNK_FILES = 16 << 20, 500
"""Size of the files, and number of files, that one worker stages at once; fewer if that gives some workers none."""

_CHUNKS_PER_CORE = 4

_PIXEL_BYTES, _MEMORY_SHARE = 16, 4
"""Memory for a pixel while an image is decoded, and the part of the memory that all images may take: a quarter."""

_GROUP_BYTES, _GROUP_PIXEL_BYTES, _GROUP_FILES = 64 << 10, 1 << 20, 16
"""Size of the image files, size of their pixels, and number of files, that one thread reads as one task."""


@dataclass(frozen=True)
class NewFile:
    """A landed file that is new or has changed.

    Attributes:
        name: Path below the landing folder.
        path: Path of the file.
        previous: Ledger entry of an earlier version, or None.
    """

    name: str
    path: Path
    previous: LandedFile | None


Entries = dict[str, LandedFile]
"""Ledger entries by the name of the file."""

_Examined = tuple[LandedFile, FileRows | ImageRow | None] | None
"""Entry of a file, and its rows unless they are staged already; None for a large file, which is staged by itself."""


def stage_files(
    files: Sequence[NewFile],
    contract: SchemaContract,
    dataset: Dataset,
    today: dt.date,
    already_read: dict[str, FileRows],
) -> Generator[tuple[int, Entries]]:
    """Stage files, and yield how many are staged so far, with the ledger entries of the last ones.

    Args:
        files: Files to stage.
        contract: Current schema contract.
        dataset: Dataset whose files are staged.
        today: Current day in the time zone of the dataset.
        already_read: Rows of files that were read for the first schema contract. They are taken out.
    """
    here = [file for file in files if selected_engine() is Engine.THREADS or file.name in already_read]
    yield from _stage(here, contract, dataset, today, already_read)
    known = {file.name for file in here}
    chunks, done = list(_chunks([file for file in files if file.name not in known])), len(here)
    work = partial(_stage_chunk, contract=contract, dataset=dataset, today=today)
    for chunk, entries in zip(chunks, engine_map(work, chunks), strict=True):
        done += len(chunk)
        yield done, entries


def images_at_once(pixels: int) -> int:
    """Return how many images of at most some pixels are decoded at once: one for each core, if the memory suffices.

    >>> images_at_once(10**12)
    1
    """
    return max(1, min(cores(), machine_memory() // _MEMORY_SHARE // (pixels * _PIXEL_BYTES)))


def _stage(
    files: Sequence[NewFile],
    contract: SchemaContract,
    dataset: Dataset,
    today: dt.date,
    already_read: dict[str, FileRows],
) -> Iterator[tuple[int, Entries]]:
    batch, large = StagingBatch(contract, dataset, today), LargeFileStaging(contract, dataset, today)

    def examine(file: NewFile) -> _Examined:
        read = already_read.pop(file.name, None)
        if read is None and large.takes(file.name, file.path):
            return None
        return batch.examine(file.name, file.path, file.previous, read)

    # Images take long to decode, without the interpreter lock. The workers of other engines use one thread each.
    is_ahead = selected_engine() is Engine.THREADS and all(is_image(file.name) for file in files)
    threads = images_at_once(dataset.config.source.limits.pixels)
    groups = _SmallGroups(examine)
    results = engine_map(groups.examine, groups.of(files), threads=threads) if is_ahead else None
    examined = map(examine, files) if results is None else chain.from_iterable(results)
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


class _SmallGroups:
    """Groups of small images, because a task of a thread takes as long as to decode one.

    Args:
        examine: Function that reads a file.
    """

    def __init__(self, examine: Callable[[NewFile], _Examined]) -> None:
        self._examine = examine
        self._largest = _GROUP_PIXEL_BYTES  # images are read one by one until it is known how large they are

    def of(self, files: Sequence[NewFile]) -> Iterator[list[NewFile]]:
        """Yield the files in groups."""
        group: list[NewFile] = []
        size = 0
        for file in files:
            file_size = 0
            with suppress(OSError):  # the reader raises it
                file_size = file.path.stat().st_size
            most = min(_GROUP_FILES, _GROUP_PIXEL_BYTES // max(self._largest, 1))
            if group and (size + file_size > _GROUP_BYTES or len(group) >= most):
                yield group
                group, size = [], 0
            group.append(file)
            size += file_size
        if group:
            yield group

    def examine(self, group: Sequence[NewFile]) -> list[_Examined]:
        """Read the files of a group, and remember the size of its largest image."""
        results = [self._examine(file) for file in group]
        rows = [result[1] for result in results if result is not None and result[1] is not None]
        sizes = [each.pixels.nbytes if isinstance(each, ImageRow) else _GROUP_PIXEL_BYTES for each in rows]
        self._largest = max(sizes, default=self._largest)
        return results


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
