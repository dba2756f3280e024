"""The landed files of an object store, copied to this machine."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import pluralize, printable_path
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.object_store import ListedObject, ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)


class LandingCopy:
    """The landing folder of a dataset, which follows the objects below `landing/<dataset>`.

    An object is told from an earlier one by size, time and version, as a local file is by size and time.

    Args:
        paths: Paths of the dataset.
        store: Object store of the data.
    """

    def __init__(self, paths: DatasetPaths, store: ObjectStore) -> None:
        self._folder, self._store, self._prefix = paths.landing, store, f"landing/{paths.dataset}"
        self._seen: dict[str, tuple[int, int]] | None = None

    def pull(self) -> None:
        """Copy new and changed objects, and delete files whose object is gone. One listing tells which they are."""
        objects = self._listed()
        local = self._local()
        stale = [each for name, each in objects.items() if local.get(name) != _state(each)]
        for name in local.keys() - objects.keys():
            (self._folder / name).unlink(missing_ok=True)
        copy_all(self._download, stale)
        self._seen = {name: _state(each) for name, each in objects.items()}

    def push(self) -> None:
        """Copy files that this machine has landed to the store, and delete objects whose file was removed here."""
        if self._seen is None:
            return
        seen, local = self._seen, self._local()
        new = [name for name, state in local.items() if seen.get(name) != state]
        gone = seen.keys() - local.keys()
        if not new and not gone:
            return
        copy_all(lambda name: self._store.write(f"{self._prefix}/{name}", self._folder / name), new)
        self._store.remove(f"{self._prefix}/{name}" for name in gone)
        objects = self._listed()
        for name in new:
            if each := objects.get(name):
                os.utime(self._folder / name, ns=(each.modified_ns, each.modified_ns))
        self._seen = {name: _state(each) for name, each in objects.items() if name in local}

    def _listed(self) -> dict[str, ListedObject]:
        """Return the objects that can be files of a folder, by name."""
        objects = {each.name: each for each in self._store.list(self._prefix)}
        folders = {parent.as_posix() for name in objects for parent in PurePosixPath(name).parents}
        unusable = [name for name in objects if name in folders or _is_outside(name)]
        if others := [name for name in unusable if objects[name].size]:  # an empty one stands for a folder
            names = ", ".join(printable_path(name) for name in others[:5])
            logger.warning(
                f"{pluralize(len(others), 'object')} below {self._store.address}/{self._prefix} cannot be a file of a "
                f"folder and {'is' if len(others) == 1 else 'are'} not read: {names}; give each another name"
            )
        return {name: each for name, each in objects.items() if name not in unusable}

    def _local(self) -> dict[str, tuple[int, int]]:
        states = {}
        for path in files_below(self._folder):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                states[path.relative_to(self._folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return states

    def _download(self, each: ListedObject) -> None:
        with replacing(self._folder / each.name, each.modified_ns) as temporary:
            # One that was deleted since the listing is gone in the next one.
            if self._store.download(f"{self._prefix}/{each.name}", temporary) is None:
                return
            if temporary.stat().st_size != each.size:
                raise StorageError(f"{self._prefix}/{each.name} has changed while it was read; run again")


def _state(each: ListedObject) -> tuple[int, int]:
    return each.size, each.modified_ns


def _is_outside(name: str) -> bool:
    return any(part in {"", ".", ".."} for part in name.split("/")) or "\0" in name or _is_temporary(name)


def _is_temporary(name: str) -> bool:
    return name.endswith(".tmp") and name.rpartition("/")[2].startswith(".")


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, except for temporary ones."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if not _is_temporary(name))


@contextlib.contextmanager
def replacing(path: Path, modified_ns: int) -> Iterator[Path]:
    """Yield a temporary path that replaces a file with a given modification time, if something was written there.

    It may be lost with the power, since the object store has it.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if temporary.exists():
            os.utime(temporary, ns=(modified_ns, modified_ns))
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
