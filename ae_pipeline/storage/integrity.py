"""Seals: the SHA-256 digest of a file, within the file, and digests of whole files.

A sealed Parquet file has the digest of its bytes in its footer, computed with zeros in the place of the digest. So the
digest also covers the footer itself: names, statistics and hashes.
"""

import datetime as dt
import hashlib
import io
import re
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ae_pipeline.storage.hashing import hash_table

SEAL = "ae_pipeline.sha256"
"""Key of the seal in the footer."""

UNSEALED = "0" * 64
"""Value of the key until `seal` replaces it."""

_IN_FOOTER = re.compile(rb"\x18%c.{%d}\x18%c(.{64})" % (len(SEAL), len(SEAL), 64), re.DOTALL)
"""A key and a value of these lengths, as thrift writes them. The digest covers the key, so that it can be any here."""

_TRAILER, _MAGIC, _CHUNK = 8, b"PAR1", 1 << 20


def seal(path: Path) -> None:
    """Replace the placeholder in the footer of a Parquet file by the digest of the file.

    Raises:
        ValueError: The footer has no placeholder.
    """
    with path.open("r+b") as file:
        _seal(file, str(path))


def sealed(content: bytes) -> bytes:
    """Return the content of a Parquet file with its digest in place of the placeholder.

    Raises:
        ValueError: The footer has no placeholder.
    """
    file = io.BytesIO(content)
    _seal(file, "the content")
    return file.getvalue()


def parquet_damage(path: Path) -> str | None:
    """Return how a Parquet file differs from the one that was written, or None if it is whole.

    A sealed file is read once, byte by byte. A file of an earlier version has no seal: its rows are read and compared
    with the content hash in its footer, if the same version of pyarrow wrote it.

    Args:
        path: File of `write_parquet` or of the latent table; it must exist.
    """
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            position = _position(file)
            digest = position and _digest(file, position[0])
        if position is None:
            return _unsealed_damage(path)
    except (pa.ArrowException, UnicodeDecodeError, ValueError) as error:
        return f"it is cut short or is not a Parquet file ({str(error).splitlines()[0][:200] if str(error) else ''})"
    if digest != position[1]:
        return "its bytes are not those that were written: their SHA-256 is another one"
    return None


def is_sealed(path: Path) -> bool:
    """Return whether a file is a whole Parquet file with a seal, without opening it with pyarrow, which takes longer.

    Args:
        path: File to read, byte by byte.
    """
    try:
        with path.open("rb") as file:
            position = _position(file)
            return position is not None and _digest(file, position[0]) == position[1]
    except (FileNotFoundError, ValueError):
        return False


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None if it does not exist. The file is read again only if it has changed."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _file_digest(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if path.is_file() else None


def move_aside(path: Path, folder: Path | None = None) -> Path:
    """Rename a damaged file or folder, so that it is kept, and return its new path.

    Args:
        path: File or folder that exists.
        folder: Folder to move it to; the one that it is in by default.
    """
    target = (folder or path.parent) / f"{path.name}.damaged-{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M%S}"
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    free = target
    while free.exists():
        number += 1
        free = target.with_name(f"{target.name}-{number}")
    return path.rename(free)


@lru_cache(maxsize=1 << 14)
def _file_digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(file: BinaryIO, name: str) -> None:
    position = _position(file)
    if position is None:
        raise ValueError(f"{name} has no placeholder for a seal in its footer")
    digest = _digest(file, position[0])
    file.seek(position[0])
    file.write(digest.encode())


def _position(file: BinaryIO) -> tuple[int, str] | None:
    """Return offset and value of the seal, or None if the file has none.

    Raises:
        ValueError: The file does not end like a Parquet file.
    """
    size = file.seek(0, 2)
    file.seek(max(size - _TRAILER, 0))
    trailer = file.read()
    length = int.from_bytes(trailer[:4], "little")
    if trailer[4:] != _MAGIC or not 0 < length <= size - _TRAILER - len(_MAGIC):
        raise ValueError("its end is not that of a Parquet file")
    start = size - _TRAILER - length
    file.seek(start)
    match = _IN_FOOTER.search(file.read(length))
    return (start + match.start(1), match[1].decode(errors="replace")) if match else None


def _digest(file: BinaryIO, position: int) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    remaining = position
    while remaining and (chunk := file.read(min(_CHUNK, remaining))):
        digest.update(chunk)
        remaining -= len(chunk)
    digest.update(UNSEALED.encode())
    file.seek(position + len(UNSEALED))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _unsealed_damage(path: Path) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata, created_by = file.schema_arrow.metadata or {}, file.metadata.created_by
            table = file.read()
    except OSError as error:  # a page that cannot be decoded
        return f"its rows cannot be read ({str(error).splitlines()[0][:200]})"
    known = metadata.get(b"ae_pipeline.content_hash")
    if known is None or created_by != f"parquet-cpp-arrow version {pa.__version__}":
        return None  # another version of the writer encodes the same rows in other bytes
    hashes = (hash_table(table, is_earlier=is_earlier) for is_earlier in (False, True))
    return None if known.decode() in hashes else "its rows are not those of the content hash in its footer"
