"""The landed files of an object store, copied to this machine."""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import pluralize, printable_path
from ae_pipeline.storage.files import replacing, write_text
from ae_pipeline.storage.object_store import ListedObject, ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.snapshot import LEDGER_DIGEST, is_relative

logger = logging.getLogger(__name__)


_LENGTH = 200
"""Bytes of a name that a disk can hold, with what a temporary file adds. An object can have a longer one."""


_MOST_AT_ONCE = 256 << 20
"""Bytes of a file that one conditional request writes. A larger one is compared with the store just before."""


_logged: set[str] = set()
"""Warnings that this process has logged."""


class _Copied(NamedTuple):
    """A file of the landing folder as it was copied from the store.

    Attributes:
        size: Size in bytes.
        modified_ns: Modification time in ns since 1970.
        is_hollow: Whether only size and time are those of the object. Its rows are in a staged copy.
    """

    size: int
    modified_ns: int
    is_hollow: bool = False


class LandingCopy:
    """The landing folder of a dataset, which follows the objects below `landing/<dataset>`.

    Size, time and version tell an object from an earlier one; size and time do so for a local file. A file that
    the ledger has is not copied again: a sparse file of its size and time stands for it until its content is needed.

    Args:
        paths: Paths of the dataset.
        store: Object store of the data.
    """

    def __init__(self, paths: DatasetPaths, store: ObjectStore) -> None:
        self._folder, self._store, self._prefix = paths.landing, store, f"landing/{paths.dataset}"
        self._ledger = paths.ledger
        self._file = paths.root / ".store" / f"{paths.dataset}.landing.json"
        self._refused = set[str]()  # files that `push` left to the object of another program

    def update(self) -> None:
        """Copy new and changed objects, and delete files whose object is gone. One listing tells which they are.

        A new file that was landed here stays, until `push` makes it an object. The object replaces any other file.
        """
        objects, local, known = self._list_objects(), self._local(), self._load()
        stale = {}
        for name, each in objects.items():
            state, last = local.get(name), known.get(name)
            if last is not None and state == last[:2] == _state(each):
                continue
            if state not in {None, _state(each), last and last[:2]}:
                logger.warning(f"{self._folder / name} was written here, and is in the store; the object replaces it")
            stale[name] = each
        for name in local.keys() - objects.keys():
            if name in known and known[name][:2] == local[name]:
                (self._folder / name).unlink(missing_ok=True)
        read = self._read_files() if stale else {}
        hollow = {name for name, each in stale.items() if read.get(name) == _state(each) and _can_wait(name)}
        for name in hollow:
            with replacing(self._folder / name, objects[name].modified_ns) as temporary, temporary.open("wb") as file:
                file.truncate(objects[name].size)
        copied = {name: known[name] for name in objects.keys() - stale.keys()}
        copied |= {name: _Copied(*_state(stale[name]), is_hollow=True) for name in hollow}
        copied |= self._download([each for name, each in stale.items() if name not in hollow])
        if copied != known:  # last: a file that the record does not have is copied again
            self._save(copied)

    def push(self, *, changes_too: bool = False) -> None:
        """Make new files of the folder objects. No object is deleted, and none is replaced that others have written.

        Args:
            changes_too: Whether to replace objects whose file was changed here: after a query has written its files.
        """
        known, local = self._load(), self._local()
        new = [name for name in local if name not in known and name not in self._refused]
        if changes_too:
            new += [name for name, state in local.items() if name in known and known[name][:2] != state]
        if not new:
            return
        written = dict(zip(new, copy_all(lambda name: self._write(name, known.get(name)), new), strict=True))
        objects = self._list_objects()
        for name, e_tag in written.items():
            each = objects.get(name)
            if each and e_tag is not None and each.e_tag.strip('"') == e_tag.strip('"'):
                os.utime(self._folder / name, ns=(each.modified_ns, each.modified_ns))
                known[name] = _Copied(*_state(each))
            else:
                known.pop(name, None)
                self._refused.add(name)
        self._save(known)

    def load(self, files: Iterable[Path]) -> None:
        """Copy the content of files that only have size and time of their object.

        Raises:
            StorageError: The object has changed meanwhile, or is gone.
        """
        known = self._load()
        names = (path.relative_to(self._folder).as_posix() for path in files if path.is_relative_to(self._folder))
        hollow = [ListedObject(name, *known[name][:2]) for name in names if name in known and known[name].is_hollow]
        if not hollow:
            return
        copied = self._download(hollow)
        rest = {name: each for name, each in known.items() if name not in {each.name for each in hollow}}
        self._save({**rest, **copied})
        for each in hollow:
            if each.name not in copied:
                raise StorageError(f"{self._prefix}/{each.name} was deleted before it was read; run again")
            if copied[each.name][:2] != _state(each):
                raise StorageError(f"{self._prefix}/{each.name} was replaced before it was read; run again")

    def forget(self) -> None:
        """Delete the objects of the files of this copy, as the user asked for."""
        self._store.remove(f"{self._prefix}/{name}" for name in self._load())
        self._save({})

    def _load(self) -> dict[str, _Copied]:
        try:
            return {name: _Copied(*each) for name, each in json.loads(self._file.read_text(encoding="utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageError(
                f"{self._file} cannot be read ({error}); delete {self._folder} and {self._file}, so that all landed "
                "files are copied again"
            ) from error

    def _save(self, copied: Mapping[str, _Copied]) -> None:
        write_text(self._file, json.dumps(copied, separators=(",", ":")))

    def _read_files(self) -> dict[str, tuple[int, int]]:
        """Return size and time of the files that the ledger has; none if it cannot be read, which a run reports."""
        try:
            entries = json.loads(self._ledger.read_text(encoding="utf-8"))
            return {name: (e["size"], e["modified_ns"]) for name, e in entries.items() if name != LEDGER_DIGEST}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _list_objects(self) -> dict[str, ListedObject]:
        """Return the objects that can be files of a folder, by name."""
        objects = {each.name: each for each in self._store.list(self._prefix)}
        folders = {parent.as_posix() for name in objects for parent in PurePosixPath(name).parents}
        unusable = [name for name in objects if name in folders or _is_outside(name)]
        if others := [name for name in unusable if objects[name].size]:  # an empty one stands for a folder
            names = ", ".join(printable_path(name) for name in others[:5])
            message = (
                f"{pluralize(len(others), 'object')} below {self._store.address}/{self._prefix} cannot be a file of a "
                f"folder and {'is' if len(others) == 1 else 'are'} not read: {names}; give each another name"
            )
            if message not in _logged:  # a sensor looks often
                _logged.add(message)
                logger.warning(message)
        return {name: each for name, each in objects.items() if name not in unusable}

    def _local(self) -> dict[str, tuple[int, int]]:
        states = {}
        for path in files_below(self._folder):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                states[path.relative_to(self._folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return states

    def _download(self, objects: Sequence[ListedObject]) -> dict[str, _Copied]:
        """Copy the content of objects, and return the versions that were read. An object that is gone has no file."""
        versions = copy_all(self._download_one, objects)
        return {each.name: _Copied(*_state(each)) for each in versions if each is not None}

    def _download_one(self, each: ListedObject) -> ListedObject | None:
        path, version = self._folder / each.name, each
        with replacing(path, each.modified_ns) as temporary:
            answer = self._store.download(f"{self._prefix}/{each.name}", temporary)
        if answer is None:
            path.unlink(missing_ok=True)
            return None
        if not answer[1].is_version(*_state(each)):  # replaced since the listing
            version = answer[1]
            os.utime(path, ns=(version.modified_ns, version.modified_ns))
        return ListedObject(each.name, version.size, version.modified_ns)

    def _write(self, name: str, last: _Copied | None) -> str | None:
        """Write an object unless another program has written it since, and return its ETag; None if one has."""
        key, path = f"{self._prefix}/{name}", self._folder / name
        is_large = path.stat().st_size > _MOST_AT_ONCE
        current = self._store.find(key) if last or is_large else None
        token: str | None = current[1] if current else ""
        is_last = current[0].is_version(*last[:2]) if current and last else current is None
        if is_last and is_large:  # in parts, for which no store knows a condition
            self._store.write(key, path)
            current = self._store.find(key)
            return current[0].e_tag if current else None
        token = self._store.replace(key, path, token or "") if is_last else None
        if token is None:
            logger.warning(f"{path} was written here, and another program has written {key}; the object replaces it")
            return None
        return token.split(" ", maxsplit=1)[0]


def _state(each: ListedObject) -> tuple[int, int]:
    return each.size, each.modified_ns


def _can_wait(name: str) -> bool:
    """Return whether a list of the folder reads nothing of a file: of JSON, it reads the first bytes."""
    return not name.lower().endswith(".json")


def _is_outside(name: str) -> bool:
    return not is_relative(name) or _is_temporary(name) or any(len(os.fsencode(e)) > _LENGTH for e in name.split("/"))


def _is_temporary(name: str) -> bool:
    return name.endswith(".tmp") and name.rpartition("/")[2].startswith(".")


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, except for temporary ones."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if not _is_temporary(name))
