"""Errors of the machine in one line: a full disk, a folder that cannot be written, a locked database, no memory.

Libraries report them in many ways, often without a path. The folders of the project then show which one it is.
"""

import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from enum import Enum
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.memory import machine_memory
from ae_pipeline.storage.location import DATA_VARIABLE, data_folder
from ae_pipeline.storage.project import find_project, local_folder

FOLDERS = {"AE_PIPELINE_DATA": "data", "AE_PIPELINE_MLRUNS": "mlruns", "DAGSTER_HOME": ".dagster"}
"""Environment variable of each folder that runs write to, and its name in the project by default."""


class Fault(Enum):
    """Kind of an error of the machine. The value is a pattern of messages about it."""

    FULL = r"No space left on device|disk is full|Disk quota exceeded|File too large|disk I/O error"
    READ_ONLY = r"Read-only file system|readonly database|[Pp]ermission denied|unable to open database file"
    LOCKED = r"database (table |schema )?is locked"
    MEMORY = r"can't allocate memory|not enough memory|Unable to allocate|Cannot allocate memory|out of memory"
    AWAY = r"API request to \S+ failed with exception|API request to endpoint \S+ failed"
    DAMAGED = r"database disk image is malformed|file is not a database"


_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), Fault.FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), Fault.READ_ONLY),
    errno.ENOMEM: Fault.MEMORY,
}


_OF_THE_PROGRAM = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError)
"""Errors of SQLite about a statement, not about the file."""


def project_folders() -> dict[str, Path]:
    """Return the folders that runs write to, by the environment variable that selects each.

    For data in an object store, it is the folder of the working copy.

    Raises:
        ConfigError: A variable has an address instead of a path.
    """
    root = find_project().root
    return {
        name: data_folder() if name == DATA_VARIABLE else local_folder(os.environ.get(name) or root / default, name)
        for name, default in FOLDERS.items()
    }


def environment_error(error: BaseException) -> StorageError | None:
    """Return an error that names path, need and remedy if the machine has failed, or None for every other error.

    Args:
        error: Error of a library; its chain has the error of the system or of SQLite.
    """
    for each in _chain(error):
        path = each.filename if isinstance(each, OSError) and isinstance(each.filename, str) else None
        if fault := fault_of(each):
            return _described(fault, str(each), Path(path) if path else None)
        if isinstance(each, sqlite3.DatabaseError) and not isinstance(each, _OF_THE_PROGRAM):
            return _described(Fault.DAMAGED, str(each), None)
    return None


def environment_message(text: str) -> str | None:
    """Return the same for the message of an error that another process had, or None."""
    fault = next((fault for fault in Fault if re.search(fault.value, text)), None)
    path = re.search(r"\[Errno \d+\][^:]*: '([^']+)'", text)
    return str(_described(fault, text.partition("\n")[0], Path(path[1]) if path else None)) if fault else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def fault_of(error: BaseException) -> Fault | None:
    """Return the kind of an error of the machine, without the errors that it comes from; None for every other error."""
    if isinstance(error, MemoryError):
        return Fault.MEMORY
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return _ERRNO[error.errno]
    return next((fault for fault in Fault if re.search(fault.value, str(error))), None)


def _described(fault: Fault, message: str, path: Path | None) -> StorageError:
    folders = project_folders()
    match fault:
        case Fault.FULL:
            name, folder = _named(path, min(folders.items(), key=lambda item: _free(item[1])), folders)
            return StorageError(
                f"no space left on the disk of {folder}{name}: {_free(folder) / 1e6:,.1f} MB are free, and more are "
                "needed; free some space and run again"
            )
        case Fault.READ_ONLY:
            failing = next((item for item in folders.items() if not _is_writable(item[1])), None)
            if path is None and failing is None:
                return StorageError(f"a file cannot be written ({message}); grant this user write permission")
            name, folder = _named(path, failing, folders)
            return StorageError(
                f"{folder}{name} cannot be written; grant this user write permission, or mount its disk for writing"
            )
        case Fault.LOCKED:
            locked = next((each for each in _databases(folders) if _is_locked(each)), None)
            return StorageError(
                f"the database {locked or 'of Dagster or MLflow'} is locked by another process, and stayed so; end "
                "the process that has it open, for example a backup or an SQL shell, and run again"
            )
        case Fault.MEMORY:
            reason = message.partition("\n")[0] or "MemoryError"
            return StorageError(
                f"there is not enough memory for this step: the machine has "
                f"{machine_memory() / 1e9:,.1f} GB ({reason}); end other programs, or set training.memory_budget lower"
            )
        case Fault.AWAY:
            return StorageError(
                "the MLflow server does not answer any more; start it, or correct MLFLOW_TRACKING_URI, and run again"
            )
        case Fault.DAMAGED:
            return StorageError(
                f"a database cannot be read ({message}); `ae-pipeline doctor --repair` moves it aside if it is damaged"
            )


def _named(path: Path | None, failing: tuple[str, Path] | None, folders: Mapping[str, Path]) -> tuple[str, Path]:
    """Return the variable of a folder in brackets, and the path to name: that of the error, or that of the folder."""
    if path is None and failing is not None:
        return f" ({failing[0]})", failing[1]
    path = path or Path()
    variable = next((name for name, folder in folders.items() if path.is_relative_to(folder)), None)
    return f" ({variable})" if variable else "", path


def _free(folder: Path) -> int:
    """Return the free space of the disk of a path in bytes."""
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    return shutil.disk_usage(existing).free


def _is_writable(folder: Path) -> bool:
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    return os.access(existing, os.W_OK)


def _databases(folders: Mapping[str, Path]) -> Iterator[Path]:
    for name in ("DAGSTER_HOME", "AE_PIPELINE_MLRUNS"):
        yield from sorted(folders[name].rglob("*.db"))


def _is_locked(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.DatabaseError:
        return False
    return False
