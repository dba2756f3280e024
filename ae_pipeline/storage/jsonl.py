"""Append-only JSON Lines files."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ae_pipeline.storage.files import make_folder


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a JSON Lines file. When the function returns, the line is on disk.

    If an interrupted write has left a partial line, the new line starts below it.
    """
    make_folder(path.parent)
    text = json.dumps(line, default=str) + "\n"
    with path.open("ab") as file:
        is_partial = path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        file.write(("\n" + text if is_partial else text).encode())
        file.flush()
        os.fsync(file.fileno())


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a JSON Lines file. Partial lines are skipped, and a missing file has no lines."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
