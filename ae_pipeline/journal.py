"""What became of a dataset's models, and what somebody should look at: two files that are only ever added to."""

import datetime as dt
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ae_pipeline.storage import DatasetPaths, make_folder


class Change(StrEnum):
    """What can become of a version."""

    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True)
class Entry:
    """One line of the history.

    Attributes:
        at: When, ISO 8601, UTC.
        change: What happened.
        version: Which version it happened to: the one that serves from then on, or that was rejected.
        before: The one that served until then, if any.
        who: A person, a schedule or a sensor.
        why: In words.
        figures: Of the gate, by rule.
        runs: Dagster's and MLflow's, by name.
    """

    at: str
    change: Change
    version: int
    before: int | None
    who: str
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)


def now() -> str:
    """Gives this moment, ISO 8601, UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def record(paths: DatasetPaths, entry: Entry) -> None:
    """Adds an entry to the history."""
    add_line(paths.history, asdict(entry))


def history(paths: DatasetPaths) -> list[Entry]:
    """Reads the history, the oldest entry first."""
    return [Entry(**{**line, "change": Change(line["change"])}) for line in lines_of(paths.history)]


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
