"""Image files that threads read ahead come in order, and their pixels in memory are bounded."""

import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from ae_pipeline.ingestion.read_ahead import NewFile, read_ahead

LIMIT = 16 << 20


class Counted:
    """Reads files of given sizes, and knows how many bytes were read and not consumed."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes, self._lock = sizes, threading.Lock()
        self.held, self.highest, self.times = 0, 0, 0

    def read(self, file: NewFile) -> tuple[str, int]:
        """Return name and size of a file."""
        size = self._sizes[file.name]
        with self._lock:
            self.held += size
            self.times += 1
            self.highest = max(self.highest, self.held)
        return file.name, size

    def consume(self, size: int) -> None:
        """Forget a file."""
        with self._lock:
            self.held -= size


def landed(folder: Path, sizes: list[int]) -> tuple[list[NewFile], Counted]:
    files = [NewFile(f"{number:05d}.png", folder / f"{number:05d}.png", None) for number in range(len(sizes))]
    for file in files:
        file.path.write_bytes(b"x" * 100)
    return files, Counted(dict(zip([file.name for file in files], sizes, strict=True)))


def reading() -> list[str]:
    """Return the names of the threads that read images."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([4 << 10] * 3000, LIMIT + (2 << 20)),
        ([4 << 20] * 40, LIMIT + (12 << 20)),
        ([64 << 20] * 12, 4 * (64 << 20)),
        ([4 << 10] * 1500 + [64 << 20] * 40, 10 * (64 << 20)),
    ],
    ids=["small", "large", "huge", "small ones before huge ones"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_in_memory_are_bounded(tmp_path: Path, sizes: list[int], most: int, threads: int) -> None:
    files, counted = landed(tmp_path, sizes)
    names: list[str] = []
    for name, size in read_ahead(counted.read, files, lambda result: result[1], threads):
        names.append(name)
        if len(names) % 50 == 1:  # the consumer is busy, so that the threads read as far ahead as they may
            threading.Event().wait(0.005)
        counted.consume(size)
    assert names == [file.name for file in files]
    assert counted.held == 0
    assert 0 < counted.highest <= most


def test_threads_read_on_while_the_consumer_is_busy(tmp_path: Path) -> None:
    files, counted = landed(tmp_path, [64 << 10] * 400)
    results = read_ahead(counted.read, files, lambda result: result[1], 2)
    consumed = [next(results) for _ in range(40)]
    for _ in range(1000):
        if counted.highest >= LIMIT // 2:
            break
        threading.Event().wait(0.005)
    assert counted.highest >= LIMIT // 2
    assert [name for name, _ in [*consumed, *results]] == [file.name for file in files]


def test_an_error_ends_the_reading(tmp_path: Path) -> None:
    files, counted = landed(tmp_path, [64 << 10] * 100)

    def read(file: NewFile) -> tuple[str, int]:
        if file.name == files[50].name:
            raise OSError("the disk is gone")
        return counted.read(file)

    results = read_ahead(read, files, lambda result: result[1], 2)
    with pytest.raises(OSError, match="the disk is gone"):
        list(results)
    assert reading() == []


def test_closing_ends_the_reading(tmp_path: Path) -> None:
    files, counted = landed(tmp_path, [64 << 10] * 4000)
    results = read_ahead(counted.read, files, lambda result: result[1], 2)
    assert [next(results)[0] for _ in range(20)] == [file.name for file in files[:20]]
    assert reading() != []
    results.close()
    assert reading() == []
    assert counted.times < len(files) // 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_group_ends_where_its_images_fill_the_memory(tmp_path: Path, threads: int) -> None:
    files, counted = landed(tmp_path, [4 << 10] * 100 + [64 << 20] * 100)
    is_grouped = threading.Event()

    class Files(list[NewFile]):
        def __iter__(self) -> Iterator[NewFile]:
            yield from list.__iter__(self)
            is_grouped.set()

    def read(file: NewFile) -> tuple[str, int]:
        if file.name >= files[100].name:  # the groups were made for the small images
            assert is_grouped.wait(60)
        return counted.read(file)

    names: list[str] = []
    for name, size in read_ahead(read, Files(files), lambda result: result[1], threads):
        names.append(name)
        counted.consume(size)
    assert names == [file.name for file in files]
    assert counted.held == 0
    assert 64 << 20 <= counted.highest <= (2 * threads + 2) * (64 << 20) + LIMIT


def test_an_image_is_not_kept_after_it_was_yielded(tmp_path: Path) -> None:
    files, _ = landed(tmp_path, [1] * 60)
    results = read_ahead(lambda file: np.zeros(20 << 20, np.uint8), files, lambda result: result.nbytes, 1)
    for _ in range(len(files)):
        array = next(results)
        kept = weakref.ref(array)
        del array
        assert kept() is None
