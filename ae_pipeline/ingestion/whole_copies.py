"""Which copies of landed files are whole, without reading the bytes of many files again in each process."""

import contextlib
import hashlib
import os
import struct
import time
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.integrity import is_sealed
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import MEMBER, DatasetPaths

_KEPT_SECONDS = 86_400.0
"""Time after which the bytes of all copies are read again, because a disk can lose them without changing the file."""

_WORTH_KEEPING = 1000
"""Number of copies from which their states are kept. To read fewer takes less than half a second."""

_BYTES_OF_A_COPY = 512 << 10
"""Bytes whose digest takes as long as to open a file. A copy counts as one more for each of them."""

_HEADER, _DIGEST_SIZE = struct.Struct("<d"), 8


class WholeCopies:
    """The staged copies and quarantine files of a dataset that are whole.

    A copy is read once a day. In between it counts as whole while inode, size and times of the file stay the same. Rows
    are never read from a copy on the strength of this: `require_staged` reads its bytes first.

    Args:
        paths: Paths of the dataset.
    """

    def __init__(self, paths: DatasetPaths) -> None:
        self._paths = paths
        self._file = _kept_file(paths.ledger.parent)
        self._began, self._known = _load(self._file)
        self._folders = (paths.staged("_").parent, paths.quarantined("_").parent)
        self._states = tuple(_states(folder) for folder in self._folders)
        self._new: set[bytes] = set()
        self._bad: set[bytes] = set()
        self._work = 0.0

    def has(self, entry: LandedFile) -> bool:
        """Return whether the staged copy and the quarantine file of a landed file are there and not damaged."""
        return all(
            name is None or self._is_whole(kind, f"{name.partition(MEMBER)[0]}.parquet")
            for kind, name in enumerate((entry.staged, entry.rejected_copy))
        )

    def _is_whole(self, kind: int, name: str) -> bool:
        state = self._states[kind].get(name)
        if state is None or state in self._bad:
            return False
        if state in self._known or state in self._new:
            return True
        path = self._folders[kind] / name
        is_whole = is_sealed(path) or bool(read_facts(path))  # a copy of an earlier version has no seal
        (self._new if is_whole else self._bad).add(state)
        if is_whole:
            self._work += 1 + path.stat().st_size / _BYTES_OF_A_COPY
        return is_whole

    def keep(self) -> None:
        """Keep the states of whole copies for the next process. Without it, that process reads the copies itself."""
        if self._work < _WORTH_KEEPING:
            return
        present = {state for states in self._states for state in states.values()}
        known = (self._known & present) | self._new
        with contextlib.suppress(OSError, StorageError), atomic_write(self._file) as temporary:
            temporary.write_bytes(_HEADER.pack(self._began) + b"".join(sorted(known)))


def forget_whole_copies(copy: Path) -> None:
    """Let the next look read the bytes of all copies, because one that counted as whole is damaged.

    Args:
        copy: Path of a staged copy of the dataset.
    """
    with contextlib.suppress(OSError):
        _kept_file(copy.parent.parent).unlink()


def _kept_file(staging: Path) -> Path:
    return staging / "whole" / "copies.bin"  # the time of its folder is no sign of a change


def _load(file: Path) -> tuple[float, set[bytes]]:
    """Return when the first of the kept states was found, and the states. Damaged ones match no file."""
    now = time.time()
    try:
        data = file.read_bytes()
    except OSError:
        return now, set()
    if len(data) < _HEADER.size:
        return now, set()
    (began,), size = _HEADER.unpack_from(data), _DIGEST_SIZE
    if not 0 <= now - began < _KEPT_SECONDS:
        return now, set()
    return began, {data[at : at + size] for at in range(_HEADER.size, len(data), size)}


def _states(folder: Path) -> dict[str, bytes]:
    """Return a digest of path, inode, size and times of each file in a folder, by name."""
    states: dict[str, bytes] = {}
    try:
        entries = os.scandir(folder)
    except OSError:
        return states
    with entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                state = f"{entry.path}\0{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
                states[entry.name] = hashlib.blake2b(os.fsencode(state), digest_size=_DIGEST_SIZE).digest()
    return states
