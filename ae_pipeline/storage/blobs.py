"""Content of the files of a dataset in an object store, as objects named by their hash."""

import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.files import replacing
from ae_pipeline.storage.object_store import ObjectStore
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.snapshot import Entry


def uri_of_content(paths: DatasetPaths, file: Path) -> str:
    """Return the URI under which other machines find the content of raw rows or features.

    In an object store, it is an object named by its hash. It is there when the state was copied.

    Args:
        paths: Paths of the dataset.
        file: File of this machine.
    """
    if paths.store is None:
        return file.as_uri()
    with file.open("rb") as content:
        return f"{paths.store}/{_folder(paths)}/{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _folder(paths: DatasetPaths) -> str:
    return f"state/{paths.dataset}/blobs"


class Blobs:
    """The blobs of a dataset, and the files of this machine that have their content.

    Args:
        paths: Paths of the dataset.
        store: Object store of the data.
    """

    def __init__(self, paths: DatasetPaths, store: ObjectStore) -> None:
        self._root, self._store = paths.root, store
        self.folder = _folder(paths)

    def read(self, entry: Entry) -> bytes:
        """Return the content of a file.

        Raises:
            StorageError: The store has lost it.
        """
        answer = self._store.read(self._name(entry), is_content=True)
        if answer is None or answer.data is None:
            raise StorageError(f"{self._address(entry)} is missing; run again")
        return answer.data

    def write(self, data: bytes) -> Entry:
        """Upload content, and return the entry of a file that has it from now on."""
        entry = Entry(hashlib.sha256(data).hexdigest(), len(data), time.time_ns())
        self._store.write(self._name(entry), data)
        return entry

    def upload(self, path: str, known: Collection[str]) -> Entry:
        """Upload a file unless the store has its content, and return its entry.

        Args:
            path: Path below the data folder.
            known: Hashes of the content that the store has.
        """
        with (self._root / path).open("rb") as file:  # others may replace it meanwhile, or append lines
            status = os.fstat(file.fileno())
            if path.endswith(".jsonl"):
                data = file.read(status.st_size)
                entry = Entry(hashlib.sha256(data).hexdigest(), status.st_size, status.st_mtime_ns)
            else:
                entry = Entry(hashlib.file_digest(file, "sha256").hexdigest(), status.st_size, status.st_mtime_ns)
                file.seek(0)
            if entry.sha256 not in known:
                self._store.write(self._name(entry), data if path.endswith(".jsonl") else file)
        return entry

    def download(self, path: str, entry: Entry) -> str:
        """Replace a file by the content of an entry. Return why that is not possible; empty if it is.

        Args:
            path: Path below the data folder.
            entry: Its entry in the snapshot.
        """
        with replacing(self._root / path, entry.modified_ns) as temporary:
            answer = self._store.download(self._name(entry), temporary)
            if answer is not None and answer[0] == entry.sha256:
                return ""
            temporary.unlink(missing_ok=True)
        return f"{self._address(entry)} is {'damaged' if answer else 'missing'}"

    def _name(self, entry: Entry) -> str:
        return f"{self.folder}/{entry.sha256}"

    def _address(self, entry: Entry) -> str:
        return f"{self._store.address}/{self._name(entry)}"
