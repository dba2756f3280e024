"""Atomic writes of local files, and errors that name the remedy."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ae_pipeline.common.errors import StorageError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


def make_folder(path: Path) -> Path:
    """Create a folder and its parents if they do not exist, and return its path.

    Raises:
        StorageError: A file is in the way, or the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        blocking = next(p for p in (path, *path.parents) if p.exists() and not p.is_dir())
        raise StorageError(f"expected a directory at {blocking}, found a file; move or delete it") from error
    except OSError as error:
        raise_os_error(error, path)
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` on success.

    On an error, `path` stays as it was, and the temporary file is deleted.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    with temporary_beside(path) as temporary:
        yield temporary
        publish(temporary, path)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`. If it is still there in the end, it is deleted.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    except OSError as error:
        raise_os_error(error, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with temporary_beside(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def publish(temporary: Path, path: Path) -> None:
    """Rename a temporary file in the same folder to `path`, once the disk has confirmed it."""
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def replacing(path: Path, modified_ns: int) -> Iterator[Path]:
    """Yield a temporary path that replaces a file with a given modification time, if something was written there.

    The disk need not confirm it, because another place has the content, too.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    with temporary_beside(path) as temporary:
        yield temporary
        if temporary.exists():
            os.utime(temporary, ns=(modified_ns, modified_ns))
            temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def raise_os_error(error: OSError, path: Path) -> NoReturn:
    """Raise a `StorageError` that names the remedy, or the error itself if there is no known remedy.

    Args:
        error: Error of a write.
        path: File or folder that was being written.
    """
    if error.errno in _NO_SPACE:
        message = f"no space left while writing {path}, which is unchanged; free some space and run again"
    elif error.errno in _NO_PERMISSION:
        message = f"{path} cannot be written ({error.strerror}); grant this user write permission"
    elif error.errno == errno.ENAMETOOLONG:
        message = f"the disk refuses the name of {path}, because it is too long; choose a shorter one"
    else:
        raise error
    raise StorageError(message) from error
