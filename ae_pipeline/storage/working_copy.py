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
import random
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ae_pipeline.common.errors import ConflictError, LostFileError, StorageError
from ae_pipeline.common.text import pluralize
from ae_pipeline.storage.blobs import Blobs
from ae_pipeline.storage.files import replacing, write_text
from ae_pipeline.storage.landing_copy import LandingCopy, files_below
from ae_pipeline.storage.object_store import ObjectStore, copy_all
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.reader_copies import ReaderCopies
from ae_pipeline.storage.snapshot import Entries, Entry, dump_snapshot, is_rebuilt, merge, parse_snapshot

logger = logging.getLogger(__name__)

_FOLDERS = ("staging", "quarantine", "raw", "features", "reports", "feedback", "damaged")
"""Folders of a dataset that belong to the snapshot, below the data folder."""

_LOCAL = "whole"
"""Folder in `staging` that describes the files of one machine."""

_ATTEMPTS, _SAVE_ATTEMPTS = 8, 128
"""Attempts to copy and to save. Each time that many hosts save at once, one of them succeeds."""

_ABANDONED_SECONDS = 86_400.0
"""Age from which a blob without a snapshot is deleted. Until then, its snapshot may still be written."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What the working copy has seen last.

    Attributes:
        head: Version of the snapshot; empty if there was none, or if the files are not exactly its.
        entries: Its files.
        contract: Version of the schema contract in the store; empty if there was none.
        contract_sha: Hash of its content.
        published: Version of the snapshot whose copies for readers are complete.
        lost: Files of the snapshot whose content the store has lost.
        unsaved: Files with lines that the store does not have yet.
    """

    head: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    contract: str = ""
    contract_sha: str = ""
    published: str = ""
    lost: tuple[str, ...] = ()
    unsaved: tuple[str, ...] = ()


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
        self._blobs, self._copies = Blobs(paths, self._store), ReaderCopies(paths, self._store)
        self._file = paths.root / ".store" / f"{paths.dataset}.json"

    def update(self, *, accepts_loss: bool = False) -> None:
        """Make the files equal to the snapshot that stands, and drop what a killed run has left.

        A file whose content the store has lost is left out if the next runs build it again.

        Args:
            accepts_loss: Whether to leave out the others, too. An older one of this machine stays.

        Raises:
            StorageError: The object store does not answer.
            LostFileError: It has lost a file that no run builds again.
        """
        self._push_unsaved()
        failed, last = dict[str, str](), ""
        for _ in range(_ATTEMPTS):
            record = self._record
            answer = self._store.read(self._head, record.head)
            if answer is None:
                entries, head = dict[str, Entry](), ""
            elif answer.data is None:
                entries, head = record.entries, record.head
            else:
                entries, head = parse_snapshot(answer.data, self._address(self._head)), answer.e_tag
            failed = self._apply(entries)
            if not failed or head == last:  # the snapshot that stands needs them
                break
            last = head
        lost = record.lost if head and head == record.head else ()
        if failed:
            self._report(failed, accepts_loss=accepts_loss)
            lost, entries = (*lost, *failed), {path: each for path, each in entries.items() if path not in failed}
            if more := self._apply(entries, keeps={path for path in failed if not is_rebuilt(path)}):
                raise StorageError(f"{next(iter(more.values()))}; run again")
        contract = self._pull_contract(record)
        self._keep(_with(_Record(head=head, entries=entries, published=record.published, lost=lost), **contract))
        self._landing.update()

    def push(self, only: Collection[Path] = ()) -> None:
        """Let the snapshot have the changes of the files, in one conditional write. Merge those of another host.

        Args:
            only: Files to look at; all by default. If they cannot be saved, the next copy saves them first.

        Raises:
            ConflictError: Both have changed what cannot be merged.
            StorageError: The object store does not answer.
        """
        names = {path.relative_to(self._paths.root).as_posix() for path in only}
        try:
            self._push(names)
        except ConflictError:
            raise
        except StorageError:
            record = self._record
            self._keep(_with(record, unsaved=sorted({*record.unsaved, *names})))
            raise

    def _push(self, only: Collection[str]) -> None:
        record, local = self._record, self._scan()
        changed = {
            path for path in local.keys() | record.entries.keys() if local.get(path) != _stat_of(record.entries, path)
        }
        changed = changed & set(only) if only else changed.union(record.lost)
        if not only:
            self._landing.push()
            record = self._push_contract(record)
        if not changed:
            if not only:
                self._publish_again(record)
            return
        present, uploaded = sorted(changed & local.keys()), set[str]()
        for attempt in range(_SAVE_ATTEMPTS):
            answer = self._store.read(self._head, record.head)
            is_ours = answer.data is None if answer else not record.entries
            theirs = record.entries if is_ours else self._parse(answer.data if answer else None)
            known = uploaded.union(entry.sha256 for path, entry in theirs.items() if path not in record.lost)
            uploads = copy_all(partial(self._blobs.upload, known=known), present)
            uploaded.update(entry.sha256 for entry in uploads)
            ours: dict[str, Entry | None] = {**dict.fromkeys(changed), **dict(zip(present, uploads, strict=True))}
            merged, written = merge(record.entries, theirs, ours, self._blobs.read)
            for path, data in written.items():
                merged[path] = self._blobs.write(data)
            if head := self._store.replace(self._head, dump_snapshot(merged), answer.e_tag if answer else ""):
                break
            time.sleep(random.uniform(0.05, 0.5) * min(attempt + 1, _ATTEMPTS))  # noqa: S311 - no secret
        else:
            raise StorageError(
                f"{self._address(self._head)} was changed by others {_SAVE_ATTEMPTS} times in a row; run again, and "
                "let all hosts use the same AE_PIPELINE_LOCKS"
            )
        for path, data in written.items():
            self._write_local(path, data, merged[path])
        if not only:
            self._apply(merged)
            self._keep(record := _with(record, head=head, entries=merged, lost=(), unsaved=()))
            self._publish(record)
            return
        saved = (changed & merged.keys()) | written.keys()
        entries = merged if is_ours else {**record.entries, **{path: merged[path] for path in saved}}
        unsaved = tuple(path for path in record.unsaved if path not in only)
        self._keep(_with(record, head=head if is_ours else "", entries=entries, unsaved=unsaved))
        if self._copies.publish(merged, saved) and is_ours and record.published == record.head:
            self._keep(_with(self._record, published=head))

    def _push_unsaved(self) -> None:
        """Save the lines that were appended while the store did not answer, before the files follow the snapshot."""
        if unsaved := self._record.unsaved:
            try:
                self.push([self._paths.root / path for path in unsaved])
            except ConflictError as error:  # of a dataset that was forgotten meanwhile
                logger.warning(f"lines in {', '.join(unsaved)} that were not saved are dropped: {error}")
            self._keep(_with(self._record, unsaved=()))

    def _publish(self, record: _Record) -> None:
        if self._copies.publish(record.entries):
            self._keep(_with(record, published=record.head))

    def _publish_again(self, record: _Record) -> None:
        """Publish what a killed run has not, if the files are those of the snapshot that stands."""
        if record.head and record.published != record.head:
            answer = self._store.read(self._head, record.head)
            if answer is not None and answer.data is None:
                self._publish(record)

    def land(self) -> None:
        """Copy files that this machine has written to the landing folder to the store."""
        self._landing.push(changes_too=True)

    def load_landed(self, files: Iterable[Path]) -> None:
        """Copy the content of landed files that the ledger has, because it is read again."""
        self._landing.load(files)

    def forget(self) -> None:
        """Delete the whole state in the store, and the copies for readers."""
        for folder in (self._state, *self._copies.folders):
            self._store.remove(f"{folder}/{each.name}" for each in self._store.list(folder))
        self._keep(_with(self._record, head="", entries={}, published="", lost=(), unsaved=()))

    def forget_landed(self) -> None:
        """Delete the objects of the landed files."""
        self._landing.forget()

    def remove_unused(self) -> int:
        """Delete blobs that no snapshot has, older than a day, and return their number. The caller holds the lock."""
        answer = self._store.read(self._head)
        used = {entry.sha256 for entry in self._parse(answer.data if answer else None).values()}
        oldest = (time.time() - _ABANDONED_SECONDS) * 1e9
        blobs = self._blobs.folder
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
            lost, unsaved = (tuple(content.pop(name, ())) for name in ("lost", "unsaved"))
            return _Record(entries=entries, lost=lost, unsaved=unsaved, **content)
        except (OSError, ValueError, TypeError, KeyError):  # the copy is compared file by file
            return _Record()

    def _keep(self, record: _Record) -> None:
        text = json.dumps({**vars(record), "entries": record.entries}, separators=(",", ":"))
        write_text(self._file, text)

    def _address(self, name: str) -> str:
        return f"{self._paths.store}/{name}"

    def _parse(self, data: bytes | None) -> dict[str, Entry]:
        return parse_snapshot(data, self._address(self._head)) if data else {}

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

    def _apply(self, entries: Entries, keeps: Collection[str] = ()) -> dict[str, str]:
        """Make the files equal to those of a snapshot, and return why some cannot be.

        Args:
            entries: Files of the snapshot.
            keeps: Files that stay although the snapshot does not have them.
        """
        local = self._scan()
        stale = [path for path in entries if local.get(path) != _stat_of(entries, path)]
        reasons = copy_all(lambda path: self._blobs.download(path, entries[path]), stale)
        failed = {path: reason for path, reason in zip(stale, reasons, strict=True) if reason}
        if not failed:
            for path in local.keys() - entries.keys() - set(keeps):
                (self._paths.root / path).unlink(missing_ok=True)
        return failed

    def _report(self, failed: Mapping[str, str], *, accepts_loss: bool) -> None:
        lost = {} if accepts_loss else {path: reason for path, reason in failed.items() if not is_rebuilt(path)}
        path, reason = next(iter((lost or failed).items()))
        text = f"{reason}, the content of {path}"
        if others := len(lost or failed) - 1:
            text += f" (and of {pluralize(others, 'other file')})"
        if lost:
            raise LostFileError(
                f"{text}; restore it, or go on without it by `ae-pipeline doctor {self._paths.dataset} --repair`"
            )
        logger.warning(f"{text}; it is left out, and the next runs build what they can")

    def _write_local(self, path: str, data: bytes, entry: Entry) -> None:
        with replacing(self._paths.root / path, entry.modified_ns) as temporary:
            temporary.write_bytes(data)

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


def _with(record: _Record, **changes: Any) -> _Record:
    return _Record(**{**vars(record), **changes})


def _stat_of(entries: Entries, path: str) -> tuple[int, int] | None:
    entry = entries.get(path)
    return (entry.size, entry.modified_ns) if entry else None
