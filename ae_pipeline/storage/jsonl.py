"""Append-only files of JSON lines."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ae_pipeline.storage.files import make_folder


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file, in one write that has reached the disk when this returns."""
    make_folder(path.parent)
    text = json.dumps(line, default=str) + "\n"
    with path.open("ab") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            text = "\n" + text  # a power cut has left half a line
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the lines of such a file; half a line that a power cut has left is passed over."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
