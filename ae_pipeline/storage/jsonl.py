"""Append-only JSON Lines files."""

import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ae_pipeline.storage.files import make_folder

CHECKSUM = "crc32"
"""Key of the checksum of a line, over the line without it."""

logger = logging.getLogger(__name__)

_OTHER_KEY = re.compile(rb', "[^"]{%d}": \d+\}\s*$' % len(CHECKSUM))
"""End of a line whose key of the checksum is damaged. Lines of earlier versions end otherwise."""

_reported: set[tuple[object, ...]] = set()
"""Files and damaged lines that this process has warned about."""


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a JSON Lines file. When the function returns, the line is on disk.

    If an interrupted write has left a partial line, the new line starts below it.
    """
    make_folder(path.parent)
    text = sealed_line(line) + "\n"
    with path.open("ab") as file:
        is_partial = path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        file.write(("\n" + text if is_partial else text).encode())
        file.flush()
        os.fsync(file.fileno())


def sealed_line(line: Mapping[str, Any]) -> str:
    """Return a line as JSON, with its checksum."""
    text = json.dumps(line, default=str)
    return json.dumps({**json.loads(text), CHECKSUM: zlib.crc32(text.encode())})


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a JSON Lines file without their checksums. A missing file has no lines.

    Damaged lines are skipped with a warning: lines that are not JSON objects, or that differ from their checksum. A
    partial last line of an interrupted write is skipped, too.
    """
    lines, damaged = read_lines(path)
    if damaged and (path, *damaged) not in _reported:
        _reported.add((path, *damaged))
        logger.warning(
            f"{path} has damaged lines, which are skipped: {', '.join(map(str, damaged[:5]))}; `ae-pipeline doctor` "
            "with --repair moves the file aside and keeps the other lines"
        )
    yield from lines


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the whole lines of a JSON Lines file without their checksums, and the numbers of the damaged ones."""
    return parse_lines(path.read_bytes() if path.is_file() else b"")


def parse_lines(data: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the same as `read_lines`, of the content of a file."""
    lines: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)  # UnicodeDecodeError is a ValueError
        except ValueError:
            line = None
        if isinstance(line, dict):
            checksum = line.pop(CHECKSUM, None)
            is_unsealed = checksum is None and not _OTHER_KEY.search(text)
            if is_unsealed or checksum == zlib.crc32(json.dumps(line).encode()):
                lines.append(line)
                continue
        damaged.append(number)
    return lines, damaged
