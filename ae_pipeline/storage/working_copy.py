"""The working copy of a dataset on this machine, and how it follows the snapshot in an object store.

Names in the store, below the address of the data:

- `state/<dataset>/head.json`: the snapshot that stands. Each change of it is conditional on its version.
- `state/<dataset>/blobs/<sha256>`: content of files. A blob without a snapshot is harmless.
- `landing/<dataset>/` and `contracts/<dataset>.yaml`: as people and other programs write them.
- `reports/<dataset>/` and `feedback/<dataset>/`: copies for readers.
"""

import contextlib
import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import pluralize
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.landing_copy import LandingCopy, files_below, replacing
from ae_pipeline.storage.object_store import ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.snapshot import Entries, Entry, dump_snapshot, merge, parse_snapshot

logger = logging.getLogger(__name__)

_FOLDERS = ("staging", "quarantine", "raw", "features", "reports", "feedback", "damaged")
"""Folders of a dataset that belong to the snapshot, below the data folder."""

_LOCAL = "whole"
"""Folder in `staging` that describes the files of one machine."""

_ATTEMPTS = 8

_ABANDONED_SECONDS = 86_400.0
"""Age from which a blob without a snapshot is deleted. Until then, its snapshot may still be written."""

_INTERNAL = (".context.json", "unfinished.json")
"""Ends of the names of files in `reports` that only the pipeline reads."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What the working copy has seen last.

    Attributes:
        head: Version of the snapshot; empty if there was none, or if the files are not exactly its.
        entries: Its files.
        contract: Version of the schema contract in the store; empty if there was none.
        contract_sha: Hash of its content.
    """

    head: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    contract: str = ""
    contract_sha: str = ""


class WorkingCopy:
    """The files of a dataset on this machine, for one process at a time.

    Args:
        paths: Paths of a dataset in an object store.
    """

    def __init__(self, paths: DatasetPaths) -> None:
        self._paths, self._store = paths, ObjectStore(paths.store or "")
        self._landing = LandingCopy(paths, self._store)
        self._state = f"state/{paths.dataset}"
        self._head = f"{self._state}/head.json"
        self._contract = f"contracts/{paths.dataset}.yaml"
        self._copies = (f"reports/{paths.dataset}", f"feedback/{paths.dataset}")
        self._file = paths.root / ".store" / f"{paths.dataset}.json"

    def update(self) -> None:
        """Make the files equal to the snapshot that stands, and drop what a killed run has left.

        Raises:
            StorageError: The object store does not answer, or has lost a file.
        """
        for attempt in range(_ATTEMPTS):
            record = self._record
            answer = self._store.read(self._head, record.head)
            if answer is None:
                entries, head = dict[str, Entry](), ""
            elif answer.data is None:
                entries, head = record.entries, record.head
            else:
                entries, head = parse_snapshot(answer.data, self._address(self._head)), answer.e_tag
            missing = self._apply(entries)
            if not missing:
                break
            if attempt == _ATTEMPTS - 1:
                raise StorageError(f"{self._address(missing)} is missing; restore it, or `ae-pipeline forget` the data")
        self._keep(_Record(head=head, entries=entries, **self._pull_contract(record)))
        self._landing.update()

    def push(self, only: Collection[Path] = ()) -> bool:
        """Let the snapshot have the changes of the files, in one conditional write.

        Args:
            only: Files to look at; all by default.

        Returns:
            Whether another host has changed the same files, so that they were merged.

        Raises:
            StorageError: Both have changed what cannot be merged, or the object store does not answer.
        """
        record, local = self._record, self._scan()
        names = {path.relative_to(self._paths.root).as_posix() for path in only}
        changed = {
            path for path in local.keys() | record.entries.keys() if local.get(path) != _stat_of(record.entries, path)
        }
        changed = changed & names if only else changed
        if not only:
            self._landing.push()
            record = self._push_contract(record)
        if not changed:
            return False
        present, uploaded = sorted(changed & local.keys()), set[str]()
        for attempt in range(_ATTEMPTS):
            answer = self._store.read(self._head, record.head)
            is_ours = answer.data is None if answer else not record.entries
            theirs = record.entries if is_ours else self._parse(answer.data if answer else None)
            known = uploaded.union(entry.sha256 for entry in theirs.values())
            uploads = copy_all(partial(self._upload, known=known), present)
            uploaded.update(entry.sha256 for entry in uploads)
            ours: dict[str, Entry | None] = {**dict.fromkeys(changed), **dict(zip(present, uploads, strict=True))}
            merged, written = merge(record.entries, theirs, ours, self._content)
            for path, data in written.items():
                merged[path] = self._write_blob(data)
            if head := self._store.replace(self._head, dump_snapshot(merged), answer.e_tag if answer else ""):
                break
            time.sleep(random.uniform(0.05, 0.5) * (attempt + 1))  # noqa: S311 - no secret
        else:
            raise StorageError(
                f"{self._address(self._head)} was changed by others {_ATTEMPTS} times in a row; run again, and let all "
                "hosts use the same AE_PIPELINE_LOCKS"
            )
        for path, data in written.items():
            self._write_local(path, data, merged[path])
        if not only:
            self._apply(merged)
            self._keep(_with(record, head=head, entries=merged))
            self._publish(merged)
        else:
            entries = (
                merged if is_ours else {**record.entries, **{path: merged[path] for path in changed & merged.keys()}}
            )
            self._keep(_with(record, head=head if is_ours else "", entries=entries))
        return bool(written)

    def land(self) -> None:
        """Copy files that this machine has landed to the store, so that they get the times of its objects."""
        self._landing.push()

    def load_landed(self, files: Iterable[Path]) -> None:
        """Copy the content of landed files that the ledger has, because it is read again."""
        self._landing.load(files)

    def forget(self) -> None:
        """Delete the whole state in the store, and the copies for readers."""
        for folder in (self._state, *self._copies):
            self._store.remove(f"{folder}/{each.name}" for each in self._store.list(folder))
        self._keep(_with(self._record, head="", entries={}))

    def remove_unused(self) -> int:
        """Delete blobs that no snapshot has, older than a day, and return their number. The caller holds the lock."""
        answer = self._store.read(self._head)
        used = {entry.sha256 for entry in self._parse(answer.data if answer else None).values()}
        oldest = (time.time() - _ABANDONED_SECONDS) * 1e9
        blobs = f"{self._state}/blobs"
        unused = [each.name for each in self._store.list(blobs) if each.name not in used and each.modified_ns < oldest]
        self._store.remove(f"{blobs}/{name}" for name in unused)
        if unused:
            logger.info(f"{pluralize(len(unused), 'blob')} without a snapshot deleted in {self._address(blobs)}")
        return len(unused)

    @property
    def _record(self) -> _Record:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            entries = {path: Entry(*entry) for path, entry in content.pop("entries").items()}
            return _Record(entries=entries, **content)
        except (OSError, ValueError, TypeError, KeyError):  # the copy is compared file by file
            return _Record()

    def _keep(self, record: _Record) -> None:
        text = json.dumps({**vars(record), "entries": record.entries}, separators=(",", ":"))
        write_text(self._file, text)

    def _address(self, name: str) -> str:
        return f"{self._paths.store}/{name}"

    def _parse(self, data: bytes | None) -> dict[str, Entry]:
        return parse_snapshot(data, self._address(self._head)) if data else {}

    def _blob(self, entry: Entry) -> str:
        return f"{self._state}/blobs/{entry.sha256}"

    def _content(self, entry: Entry) -> bytes:
        answer = self._store.read(self._blob(entry))
        if answer is None or answer.data is None:
            raise StorageError(f"{self._address(self._blob(entry))} is missing; run again")
        return answer.data

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Return size and modification time of each file of the dataset, by its path below the data folder."""
        root, dataset = self._paths.root, self._paths.dataset
        files = [path for folder in _FOLDERS for path in files_below(root / folder / dataset)]
        files += self._paths.history.parent.glob(f"{dataset}.*")
        states = {}
        for path in files:
            relative = path.relative_to(root)
            if relative.parts[:3] != ("staging", dataset, _LOCAL):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    states[relative.as_posix()] = (status.st_size, status.st_mtime_ns)
        return states

    def _apply(self, entries: Entries) -> str | None:
        """Make the files equal to those of a snapshot, and return the name of a blob that is missing, if one is."""
        local = self._scan()
        stale = [path for path in entries if local.get(path) != _stat_of(entries, path)]
        missing = [name for name in copy_all(lambda path: self._download(path, entries[path]), stale) if name]
        if not missing:
            for path in local.keys() - entries.keys():
                (self._paths.root / path).unlink(missing_ok=True)
        return missing[0] if missing else None

    def _download(self, path: str, entry: Entry) -> str | None:
        with replacing(self._paths.root / path, entry.modified_ns) as temporary:
            digest = self._store.download(self._blob(entry), temporary)
            if digest is None:
                return self._blob(entry)
            if digest != entry.sha256:
                raise StorageError(f"{self._address(self._blob(entry))} is damaged; restore it, or delete it")
        return None

    def _write_local(self, path: str, data: bytes, entry: Entry) -> None:
        with replacing(self._paths.root / path, entry.modified_ns) as temporary:
            temporary.write_bytes(data)

    def _upload(self, path: str, known: Collection[str]) -> Entry:
        """Upload a file unless the snapshot has its content, and return its entry."""
        with (self._paths.root / path).open("rb") as file:  # others may replace it meanwhile, or append lines
            status = os.fstat(file.fileno())
            if path.endswith(".jsonl"):
                data = file.read(status.st_size)
                entry = Entry(hashlib.sha256(data).hexdigest(), status.st_size, status.st_mtime_ns)
            else:
                entry = Entry(hashlib.file_digest(file, "sha256").hexdigest(), status.st_size, status.st_mtime_ns)
                file.seek(0)
            if entry.sha256 not in known:
                self._store.write(self._blob(entry), data if path.endswith(".jsonl") else file)
        return entry

    def _write_blob(self, data: bytes) -> Entry:
        entry = Entry(hashlib.sha256(data).hexdigest(), len(data), time.time_ns())
        self._store.write(self._blob(entry), data)
        return entry

    def _pull_contract(self, record: _Record) -> dict[str, str]:
        """Make the schema contract equal to the object that people edit, and return what to keep of it."""
        path = self._paths.contract
        local = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        is_known = local and local == record.contract_sha
        answer = self._store.read(self._contract, record.contract if is_known else "")
        if answer is None:
            path.unlink(missing_ok=True)
            return {}
        if answer.data is not None:
            with replacing(path, time.time_ns()) as temporary:
                temporary.write_bytes(answer.data)
            local = hashlib.sha256(answer.data).hexdigest()
        return {"contract": answer.e_tag, "contract_sha": local}

    def _push_contract(self, record: _Record) -> _Record:
        path = self._paths.contract
        data = path.read_bytes() if path.is_file() else b""
        local = hashlib.sha256(data).hexdigest() if data else ""
        if local == record.contract_sha:
            return record
        e_tag = ""
        if data:
            written = self._store.replace(self._contract, data, record.contract)
            if written is None:
                raise StorageError(
                    f"{self._address(self._contract)} was edited at the same time; run again, so that the edit counts"
                )
            e_tag = written
        else:
            self._store.remove([self._contract])
        record = _with(record, contract=e_tag, contract_sha=local)
        self._keep(record)
        return record

    def _publish(self, entries: Entries) -> None:
        """Bring the copies of reports and marks up to date that other programs read under their names."""
        folders = tuple(f"{folder}/" for folder in self._copies)
        wanted = {
            path: entry.sha256
            for path, entry in entries.items()
            if path.startswith(folders) and not path.endswith((*_INTERNAL, ".jsonl"))
        }
        name = f"{self._state}/published.json"
        answer = self._store.read(name)
        published: Mapping[str, str] = json.loads(answer.data) if answer and answer.data else {}
        if wanted == published:
            return
        stale = [path for path, digest in wanted.items() if published.get(path) != digest]
        copy_all(lambda path: self._store.write(path, self._paths.root / path), stale)
        self._store.remove(published.keys() - wanted.keys())
        self._store.write(name, json.dumps(wanted).encode())


def _with(record: _Record, **changes: Any) -> _Record:
    return _Record(**{**vars(record), **changes})


def _stat_of(entries: Entries, path: str) -> tuple[int, int] | None:
    entry = entries.get(path)
    return (entry.size, entry.modified_ns) if entry else None
