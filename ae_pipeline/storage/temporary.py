"""Temporary files and folders of processes that were killed."""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from ae_pipeline.common.text import pluralize
from ae_pipeline.storage.lock_kinds import LOCKS_VARIABLE
from ae_pipeline.storage.paths import DatasetPaths

_TEMPORARY = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.tmp")
"""Name of a file of `atomic_write`, with the process that writes it."""

_UNTOUCHED_SECONDS, _OTHER_HOST_SECONDS = 5.0, 3600.0
"""Age from which a file of a dead process is deleted. Where several hosts write, its process may be on another one."""

_ABANDONED_SECONDS = 86_400.0
"""Age from which a file is deleted whatever its process is. In containers, each run can have the same process id."""

_FOLDER = re.compile(r"ae_pipeline_(\d+)_\w+")
"""Name of a folder of `server_folder`, with the process that uses it."""

logger = logging.getLogger(__name__)


def is_running(pid: int) -> bool:
    """Return whether this machine has a process with an id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def server_folder() -> "TemporaryDirectory[str]":
    """Return a temporary folder of this process, which only this user can enter. Delete those of killed processes."""
    for path in Path(gettempdir()).glob("ae_pipeline_*"):
        match = _FOLDER.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)  # one of another user stays
    return TemporaryDirectory(prefix=f"ae_pipeline_{os.getpid()}_")


def remove_temporary_files(paths: DatasetPaths) -> None:
    """Delete the temporary files of a dataset whose process is dead. The caller holds the lock of the dataset.

    Args:
        paths: Paths of the dataset.
    """
    is_one_host = (os.environ.get(LOCKS_VARIABLE) or "file") == "file"
    least_age = _UNTOUCHED_SECONDS if is_one_host else _OTHER_HOST_SECONDS
    removed = 0
    for path in _temporary_files(paths):
        match = _TEMPORARY.fullmatch(path.name)
        try:
            age = time.time() - path.stat().st_mtime
            if match and age > (_ABANDONED_SECONDS if is_running(int(match[1])) else least_age):
                path.unlink()
                removed += 1
        except OSError:  # its writer lives on another machine, or the folder is read-only, which a write reports
            continue
    if removed:
        logger.info(f"{pluralize(removed, 'temporary file')} of killed runs of {paths.dataset!r} deleted")


def _temporary_files(paths: DatasetPaths) -> Iterator[Path]:
    stages = (paths.raw("_"), paths.features("_"), paths.quarantined("_"), paths.ledger, paths.marks)
    folders = [*(stage.parent for stage in stages), paths.reports]
    if "://" not in paths.latents:
        folders.append(Path(paths.latents))
    shared = [paths.contract, paths.history]  # in folders of all datasets
    if paths.store is not None:  # the working copy has landed files and records, too
        folders.append(paths.landing)
        shared.append(paths.root / ".store" / "_")
    for folder in folders:
        for parent, _, names in os.walk(folder):
            yield from (Path(parent, name) for name in names if name.endswith(".tmp"))
    for file in shared:
        yield from file.parent.glob(f".{paths.dataset}.*.tmp")
