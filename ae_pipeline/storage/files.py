"""Atomic writes of local files, with errors that name the remedy."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ae_pipeline.common.errors import StorageError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents.

    Raises:
        StorageError: A file stands where the folder must be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        blocking = next(p for p in (path, *path.parents) if p.exists() and not p.is_dir())
        raise StorageError(f"{blocking} is a file where a folder must be; move it away") from error
    except OSError as error:
        raise translate_os_error(error, path) from error
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; on success it becomes `path` in one step.

    Whatever goes wrong in between leaves `path` as it was and no temporary file.

    Raises:
        StorageError: The disk is full, or the place cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise translate_os_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def translate_os_error(error: OSError, path: Path) -> OSError | StorageError:
    """Makes an error that says what to do of one that writing at `path` gave."""
    if error.errno in _NO_SPACE:
        return StorageError(
            f"no space left while writing {path}; nothing was changed there: free some space and run again"
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StorageError(f"{path} cannot be written ({error.strerror}); give this user the right to")
    return error
