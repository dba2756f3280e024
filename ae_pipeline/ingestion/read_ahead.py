"""Read image files by several threads ahead of the consumer, so that the pixels in memory are bounded."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ae_pipeline.common.cores import cores
from ae_pipeline.common.memory import machine_memory
from ae_pipeline.engine.mapping import Engine, selected_engine
from ae_pipeline.ingestion.image_files import quiet
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.readers.pictures import is_image

_PIXEL_BYTES, _MEMORY_SHARE = 16, 4
"""Memory for a pixel while an image is decoded, and the part of the memory that all images may take: a quarter."""

_GROUP_BYTES, _GROUP_PIXEL_BYTES, _GROUP_FILES = 256 << 10, 1 << 20, 32
"""Size of the image files, size of their pixels, and number of files, that one thread reads as one task."""

_AHEAD_BYTES = 16 << 20
"""Size of the pixels that are read while the consumer is busy. Each thread has at least one task."""


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


R = TypeVar("R")


def images_at_once(pixels: int) -> int:
    """Return how many images of at most some pixels are decoded at once: one for each core, if the memory suffices.

    >>> images_at_once(10**12)
    1
    """
    return max(1, min(cores(), machine_memory() // _MEMORY_SHARE // (pixels * _PIXEL_BYTES)))


def reads_ahead(files: Sequence[NewFile]) -> bool:
    """Return whether threads of this process read files ahead. Images take long to decode, without the lock of Python.

    The workers of other engines use one thread each.
    """
    return selected_engine() is Engine.THREADS and all(is_image(file.name) for file in files)


def read_ahead(
    read: Callable[[NewFile], R], files: Sequence[NewFile], pixel_bytes: Callable[[R], int], threads: int
) -> Generator[R]:
    """Read image files by several threads, and yield the results in order.

    A thread reads a group of small images as one task, because a task takes as long as to decode one of them. While the
    consumer works on results, the threads read on, until as many pixels as the limit are in memory.

    Args:
        read: Function that reads a file.
        files: Files to read.
        pixel_bytes: Function that returns the size of the pixels of a result.
        threads: Number of files that are read at once.
    """
    yield from _ReadAhead(read, pixel_bytes, threads).results(files)


class _ReadAhead(Generic[R]):
    """Threads that read groups of images.

    Attributes:
        largest: Size of the pixels of the largest image of the group that was read last.
        held: Size of the pixels that were read and not consumed.
    """

    def __init__(self, read: Callable[[NewFile], R], pixel_bytes: Callable[[R], int], threads: int) -> None:
        self._read, self._pixel_bytes, self._threads = read, pixel_bytes, threads
        # Images are read one by one until it is known how large they are.
        self.largest, self.held, self._lock = _GROUP_PIXEL_BYTES, 0, threading.Lock()

    def results(self, files: Sequence[NewFile]) -> Generator[R]:
        """Yield the result of each file, in order."""
        pending: deque[tuple[list[NewFile], Future[list[R]]]] = deque()
        executor = ThreadPoolExecutor(self._threads, thread_name_prefix="images")
        try:
            for group in self._groups(files):
                pending.append((group, executor.submit(self._read_unless_full, group)))
                while self._is_far_ahead(pending):
                    yield from self._first(pending)
            while pending:
                yield from self._first(pending)
        finally:
            executor.shutdown(cancel_futures=True)

    def _is_far_ahead(self, pending: "deque[tuple[list[NewFile], Future[list[R]]]]") -> bool:
        if len(pending) <= self._threads:
            return False
        return sum(len(group) for group, _ in pending) * self.largest > _AHEAD_BYTES

    def _first(self, pending: "deque[tuple[list[NewFile], Future[list[R]]]]") -> Iterator[R]:
        group, future = pending.popleft()
        results = future.result()
        rest = group[len(results) :]
        while results:  # taken out, so that an image is not kept longer than its consumer needs it
            yield self._released(results.pop(0))
        for file in rest:
            yield self._released(self._read_group([file])[0])

    def _released(self, result: R) -> R:
        with self._lock:
            self.held -= self._pixel_bytes(result)
        return result

    def _groups(self, files: Sequence[NewFile]) -> Iterator[list[NewFile]]:
        group: list[NewFile] = []
        size = 0
        for file in files:
            file_size = 0
            with suppress(OSError):  # the reader raises it
                file_size = file.path.stat().st_size
            most = min(_GROUP_FILES, _GROUP_PIXEL_BYTES // max(self.largest, 1))
            if group and (size + file_size > _GROUP_BYTES or len(group) >= most):
                yield group
                group, size = [], 0
            group.append(file)
            size += file_size
        if group:
            yield group

    def _is_full(self) -> bool:
        """Return whether no more images may be read ahead. The lock is held."""
        return self.held > max(_AHEAD_BYTES, (self._threads + 1) * self.largest)

    def _read_unless_full(self, group: Sequence[NewFile]) -> list[R]:
        """Read the files of a group; none if images are much larger than those before, so that the memory is full."""
        with self._lock:
            is_full = self._is_full()
        return [] if is_full else self._read_group(group)

    def _read_group(self, group: Sequence[NewFile]) -> list[R]:
        """Read the files of a group; not all if they are much larger than those before, so that the memory is full."""
        results: list[R] = []
        size = largest = 0
        with quiet:
            for file in group:
                results.append(self._read(file))
                pixels = self._pixel_bytes(results[-1])
                size, largest = size + pixels, max(largest, pixels)
                with self._lock:
                    self.held += pixels
                    if size > _GROUP_PIXEL_BYTES and self._is_full():
                        break
        with self._lock:
            self.largest = largest or self.largest
        return results
