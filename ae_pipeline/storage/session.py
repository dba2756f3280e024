"""Work on a dataset: hold its lock, and keep the working copy and an object store equal.

With a data folder, only the lock is held. With an object store, a session copies the state from there first, and back
at its end. A killed session leaves the state of its last copy, and what it was doing is done again.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ae_pipeline.common.errors import PipelineError, StorageError
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.lock_kinds import Holder
from ae_pipeline.storage.locks import dataset_lock, locks
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.working_copy import WorkingCopy

logger = logging.getLogger(__name__)

_CLEAN_SECONDS = 86_400.0
"""Time between two clean-ups of a dataset by one machine."""

_PAUSE_SECONDS = 30.0
"""Time after a failed refresh in which pages show what this machine has, because each attempt can take long."""

_Key = tuple[Path, str, int]

_open: dict[_Key, WorkingCopy] = {}
"""Working copies of the sessions of this process, by data folder, dataset and thread."""

_refreshed: dict[tuple[Path, str], float] = {}
"""Last refresh of each working copy by this process, in seconds of `time.monotonic`."""


@contextmanager
def hold_dataset(
    paths: DatasetPaths,
    on_wait: Callable[[Holder | None], None] = lambda _: None,
    *,
    accepts_loss: bool = False,
    is_shared: bool = False,
) -> Iterator[None]:
    """Hold the lock of a dataset while its files change, and wait while another process holds it.

    A thread may hold it twice. Each end copies the state to the object store.

    Args:
        paths: Paths of the dataset.
        on_wait: Called once with the holder, as far as it is known, before this process waits.
        accepts_loss: Whether to go on without files that the object store has lost and no run builds again.
        is_shared: Whether others may hold the dataset so at the same time. Each must change files of its own only.
            With an object store, those on one machine wait for each other, because they have one working copy. They
            share the lock meanwhile, so that who wants to hold it alone waits for all of them.

    Raises:
        StorageError: The locks or the object store cannot be reached, or another host has changed the same file.
        LostFileError: The object store has lost a file.
    """
    lock = dataset_lock(paths, is_shared=is_shared)
    with locks().hold(lock, on_wait), _session(paths, accepts_loss=accepts_loss, is_shared=is_shared):
        yield


@contextmanager
def try_to_hold_dataset(paths: DatasetPaths) -> Iterator[bool]:
    """Hold the lock of a dataset unless somebody holds it, this thread included; yield whether it was free.

    Raises:
        StorageError: As for `hold_dataset`.
    """
    with locks().try_to_hold(dataset_lock(paths)) as is_free:
        if not is_free:
            yield False
            return
        with _session(paths):
            yield True


def save(paths: DatasetPaths) -> None:
    """Copy the state to the object store now, if this thread holds the dataset. Call it before what cannot be undone.

    Raises:
        StorageError: The object store does not answer, or another host has changed the same file.
    """
    if copy := _session_of(paths):
        with _file_lock(paths, "save"):
            copy.push()


def save_landed(paths: DatasetPaths) -> None:
    """Copy files that a query or a callable has landed here to the object store, if this thread holds the dataset.

    An object that another program has replaced meanwhile stays, and replaces the file at the next look.
    """
    if copy := _session_of(paths):
        copy.land()


def load_landed(paths: DatasetPaths, files: Iterable[Path]) -> None:
    """Copy the content of landed files to this machine before they are read. Their list needs only size and time."""
    if copy := _session_of(paths):
        copy.load_landed(files)
    elif paths.store is not None:
        with _file_lock(paths, "update"):
            WorkingCopy(paths).load_landed(files)


def refresh(paths: DatasetPaths, max_age: float = 0.0, *, accepts_loss: bool = False) -> None:
    """Bring the files of this machine up to date before they are read, unless a process of this machine changes them.

    Args:
        paths: Paths of the dataset. With a data folder, nothing happens.
        max_age: Age in seconds up to which an earlier refresh of this process is new enough. After a refresh that
            failed, the files are new enough for half a minute.
        accepts_loss: Whether to go on without files that the object store has lost and no run builds again.

    Raises:
        StorageError: The object store does not answer.
        LostFileError: The object store has lost a file.
    """
    key = (paths.root, paths.dataset)

    def is_new() -> bool:
        return max_age > 0 and time.monotonic() - _refreshed.get(key, float("-inf")) < max_age

    if paths.store is None or _session_of(paths) or is_new():
        return
    with _file_lock(paths, "update"):
        if is_new():  # another thread was faster
            return
        try:
            with _file_lock(paths, "session", timeout=0), _file_lock(paths, "save"):
                WorkingCopy(paths).update(accepts_loss=accepts_loss)
        except Timeout:
            return
        except StorageError:
            _refreshed[key] = time.monotonic() + _PAUSE_SECONDS
            raise
        _refreshed[key] = time.monotonic()


@contextmanager
def recording(paths: DatasetPaths, *files: Path) -> Iterator[Callable[[], None]]:
    """Append to files that need no lock of the dataset, and copy them to the object store at once.

    Yields:
        Function to call after the append. If the object store does not answer, it raises an error, and the next copy
        of the state saves the lines.

    Args:
        paths: Paths of the dataset.
        files: Files that change.
    """
    if paths.store is None:
        yield lambda: None
        return
    with _file_lock(paths, "save"):
        # A session of this thread copies them with the rest.
        yield lambda: None if _session_of(paths) else WorkingCopy(paths).push(files)


def forget_state(paths: DatasetPaths) -> None:
    """Delete the state in the object store with all its earlier versions. The caller holds the dataset."""
    if copy := _session_of(paths):
        copy.forget()


def forget_landed(paths: DatasetPaths) -> None:
    """Delete the objects of the landed files in the object store. The caller holds the dataset."""
    if copy := _session_of(paths):
        copy.forget_landed()


@contextmanager
def _session(paths: DatasetPaths, *, accepts_loss: bool = False, is_shared: bool = False) -> Iterator[None]:
    if paths.store is None:
        yield
        return
    if _session_of(paths):
        yield
        save(paths)
        return
    key = _key(paths)
    with _file_lock(paths, "session"):
        copy = WorkingCopy(paths)
        with _file_lock(paths, "update"), _file_lock(paths, "save"):  # no line is appended meanwhile
            copy.update(accepts_loss=accepts_loss)
        _open[key] = copy
        try:
            yield
        except BaseException:
            try:
                save(paths)  # an alert about the error, and what is done
            except PipelineError as error:
                logger.error(f"the state of {paths.dataset!r} was not saved: {error}")
            raise
        else:
            save(paths)
            if not is_shared:  # another session may be about to use a blob that no snapshot has
                _remove_unused(copy, paths)
        finally:
            del _open[key]


def _remove_unused(copy: WorkingCopy, paths: DatasetPaths) -> None:
    """Delete what no snapshot needs any more, once a day on each machine."""
    marker = paths.root / ".store" / f"{paths.dataset}.cleaned"
    if not marker.exists() or time.time() - marker.stat().st_mtime > _CLEAN_SECONDS:
        try:
            copy.remove_unused()
        except StorageError as error:
            logger.warning(f"blobs that nothing needs are not deleted yet: {error}")
        marker.touch()


def _session_of(paths: DatasetPaths) -> WorkingCopy | None:
    return _open.get(_key(paths))


def _key(paths: DatasetPaths) -> _Key:
    return paths.root, paths.dataset, threading.get_ident()


def _file_lock(paths: DatasetPaths, name: str, timeout: float = -1) -> FileLock:
    """Return a lock of the working copy: for a session, for a copy from the store, or for one to the store."""
    folder = make_folder(paths.root / ".store")
    return FileLock(folder / f"{paths.dataset}.{name}.lock", timeout=timeout)
