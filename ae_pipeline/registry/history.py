"""The history of a dataset's models: promotions, rejections and rollbacks, in an append-only file of JSON lines."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ae_pipeline.storage.jsonl import add_line, lines_of
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import save


class Change(StrEnum):
    """A decision on a model version."""

    PROMOTED = "promoted"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """A decision on a model version: one line of the history.

    Attributes:
        at: Time of the decision, ISO 8601, UTC.
        change: Decision.
        version: Version that was promoted, rejected or rolled back to.
        previous: Version that was the champion until then; None without a champion.
        who: Person, schedule or sensor that decided.
        why: Reason, as a sentence.
        figures: Figures and thresholds of the gate, by rule.
        runs: Ids of the Dagster run and of the MLflow run, by name.
    """

    at: str
    change: Change
    version: int
    previous: int | None
    who: str
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)


def record(paths: DatasetPaths, entry: HistoryEntry) -> None:
    """Append an entry to the history, and save it, because the version has moved in the model store already."""
    values = asdict(entry)
    add_line(paths.history, {"before" if name == "previous" else name: value for name, value in values.items()})
    save(paths)


def history(paths: DatasetPaths) -> list[HistoryEntry]:
    """Return the history, the oldest entry first. Lines that are no entries are skipped."""
    return [entry for line in lines_of(paths.history) if (entry := _parse_entry(line))]


def _parse_entry(line: Mapping[str, Any]) -> HistoryEntry | None:
    """Return the entry of a line, or None if it is none. On disk, the previous version has the key `before`."""
    values = {"previous" if name == "before" else name: value for name, value in line.items()}
    try:
        return HistoryEntry(**{**values, "change": Change(line["change"])})
    except (KeyError, TypeError, ValueError):  # damaged, in a line of an earlier version, which has no checksum
        return None
