"""Copies of reports and marks in an object store, under the names that other programs read."""

import json
from collections.abc import Collection, Mapping

from ae_pipeline.storage.object_store import ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.snapshot import Entries

_INTERNAL = (".context.json", "unfinished.json")
"""Ends of the names of files in `reports` that only the pipeline reads."""

_ATTEMPTS = 3


class ReaderCopies:
    """Copies for readers of a dataset.

    Args:
        paths: Paths of the dataset.
        store: Object store of the data.
    """

    def __init__(self, paths: DatasetPaths, store: ObjectStore) -> None:
        self._root, self._store = paths.root, store
        self.folders = (f"reports/{paths.dataset}", f"feedback/{paths.dataset}")
        self._list = f"state/{paths.dataset}/published.json"

    def publish(self, entries: Entries, only: Collection[str] = ()) -> bool:
        """Make the copies equal to the files of this machine, and return whether they are.

        Args:
            entries: Files of the snapshot.
            only: Paths to copy. By default, all, and other copies are deleted.
        """
        folders = tuple(f"{folder}/" for folder in self.folders)
        wanted = {
            path: entry.sha256
            for path, entry in entries.items()
            if path.startswith(folders) and not path.endswith((*_INTERNAL, ".jsonl")) and (not only or path in only)
        }
        if only and not wanted:
            return True
        for _ in range(_ATTEMPTS):  # another host can publish at the same time
            answer = self._store.read(self._list)
            published: Mapping[str, str] = json.loads(answer.data) if answer and answer.data else {}
            target = {**published, **wanted} if only else wanted
            if target == published:
                return True
            stale = [path for path, digest in target.items() if published.get(path) != digest]
            copy_all(lambda path: self._store.write(path, self._root / path), stale)
            self._store.remove(published.keys() - target.keys())
            if self._store.replace(self._list, json.dumps(target).encode(), answer.e_tag if answer else ""):
                return True
        return False
