"""What became of a dataset's models, and what somebody should look at: two files that are only ever added to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.paths import DatasetPaths


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
        previous: The one that served until then, if any.
        who: A person, a schedule or a sensor.
        why: In words.
        figures: Of the gate, by rule.
        runs: Dagster's and MLflow's, by name.
    """

    at: str
    change: Change
    version: int
    previous: int | None
    who: str
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)


def record(paths: DatasetPaths, entry: Entry) -> None:
    """Adds an entry to the history."""
    values = asdict(entry)
    add_line(paths.history, {"before" if name == "previous" else name: value for name, value in values.items()})


def history(paths: DatasetPaths) -> list[Entry]:
    """Reads the history, the oldest entry first."""
    return [_entry(line) for line in lines_of(paths.history)]


def _entry(line: Mapping[str, Any]) -> Entry:
    """Return the entry of a line, which has the previous version under the key `before`."""
    values = {"previous" if name == "before" else name: value for name, value in line.items()}
    return Entry(**{**values, "change": Change(line["change"])})
