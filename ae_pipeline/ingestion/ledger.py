"""The ledger: a JSON file that records which landed file gave which rows."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.hashing import hash_json_items
from ae_pipeline.storage.paths import MEMBER
from ae_pipeline.storage.snapshot import LEDGER_DIGEST, ledger_lines

_PACKED = "packed"
"""JSON key of an entry whose staged copy is a pack. Earlier versions refuse it, and so delete no pack as unused."""


@dataclass(frozen=True, kw_only=True)
class LandedFile:
    """The entry of one landed file.

    Attributes:
        size: Size of the file in bytes, as last seen.
        modified_ns: Modification time of the file in ns since 1970, as last seen.
        sha256: Hash of the content.
        landed_ns: Time at which this content landed first, in ns since 1970. Of two rows with the same identity, the
            one from the file with the later time wins. Landing the same content again does not change the time.
        contract: Fingerprint of the schema contract and settings that the rows were validated with.
        staged: Name of the staged copy, or None if no version of the file could be read.
        rows: Number of valid rows in the staged copy.
        days: Number of valid rows of each day.
        quarantined: Number of rejected rows for each violated rule.
        rejected_copy: Name of the quarantine file with the rejected rows, or None.
        refused: Reason why the newest version cannot be used, or None. Rows of an earlier version remain until the file
            lands again.
        skipped: Reason for each column of the newest version that was not read.
        deleted: Whether the file has left the landing folder and the log has said so. Its rows remain.
        withdrawn: Number of valid rows of each day that a person withdrew. They are in the staged copy only.
    """

    size: int
    modified_ns: int
    sha256: str
    landed_ns: int
    contract: str
    staged: str | None
    rows: int = 0
    days: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    rejected_copy: str | None = None
    refused: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    deleted: bool = False
    withdrawn: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LandedFile":
        """Return the entry that `as_json` gave.

        Raises:
            TypeError: A value is missing, or not known to this version.
        """
        return cls(**{key: value for key, value in values.items() if key != _PACKED})

    def as_json(self) -> dict[str, Any]:
        """Return the values of the entry, and whether its staged copy is a pack, if it is one."""
        return {**vars(self), _PACKED: True} if MEMBER in str(self.staged) else vars(self)

    def without_days(self, days: Collection[str]) -> "LandedFile":
        """Return the entry without the rows of some days."""
        moved = {day: count for day, count in self.days.items() if day in days}
        kept = {day: count for day, count in self.days.items() if day not in days}
        return replace(self, days=kept, withdrawn=dict(sorted({**self.withdrawn, **moved}.items())))

    def with_days(self, days: Collection[str]) -> "LandedFile":
        """Return the entry with the rows of some days that were withdrawn."""
        moved = {day: count for day, count in self.withdrawn.items() if day in days}
        kept = {day: count for day, count in self.withdrawn.items() if day not in days}
        return replace(self, days=dict(sorted({**self.days, **moved}.items())), withdrawn=kept)


@dataclass(frozen=True)
class Ledger:
    """The entries of all files that have ever landed.

    Attributes:
        files: Entries by the path of the file below the landing folder.
    """

    files: dict[str, LandedFile] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read a ledger. It is empty if nothing was read yet.

        Raises:
            StorageError: The ledger is invalid, or it is missing although staged copies exist.
        """
        remedy = (
            f"restore it, or delete {path.parent} to read all files again that are still in the landing folder, or run "
            f"`ae-pipeline doctor {path.parent.name} --repair`, which rebuilds it from the staged copies"
        )
        if not path.exists():
            if any(path.parent.glob("files/*.parquet")):
                raise StorageError(
                    f"the ledger {path} is missing, but it is the only record of rows whose files have left the "
                    f"landing folder; {remedy}"
                )
            return cls()
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            digest = entries.pop(LEDGER_DIGEST, None)
            if digest is not None and digest != hash_json_items((name, entries[name]) for name in sorted(entries)):
                raise ValueError("its entries are not those that were written: their digest is another one")
            return cls({name: LandedFile.from_json(entry) for name, entry in entries.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageError(f"the ledger {path} cannot be read ({error}); {remedy}") from error

    def save(self, path: Path) -> None:
        """Write the ledger atomically."""
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(ledger_lines(self.files, LandedFile.as_json))

    @property
    def days(self) -> list[str]:
        """Days with rows of at least one file, sorted."""
        return sorted({day for entry in self.files.values() for day in entry.days})

    @property
    def withdrawn(self) -> dict[str, int]:
        """Number of rows of each day that a person withdrew."""
        total: Counter[str] = Counter()
        for entry in self.files.values():
            total.update(entry.withdrawn)
        return dict(sorted(total.items()))

    @property
    def refused(self) -> dict[str, str]:
        """Reason for each file whose newest version cannot be used, and has not left the landing folder."""
        return {name: entry.refused for name, entry in self.files.items() if entry.refused and not entry.deleted}

    @property
    def refused_message(self) -> str:
        """Which files are refused, and why the first one is; empty if none is."""
        if not (refused := self.refused):
            return ""
        name, reason = next(iter(refused.items()))
        if len(refused) == 1:
            return f"the landed file {name} is refused: {reason}"
        return f"{len(refused):,} landed files are refused, the first one {name}: {reason}"

    def quarantined(self, days: Sequence[str] | None = None) -> dict[str, int]:
        """Return the number of rejected rows for each rule, the most frequent rule first.

        Args:
            days: Count only files with rows on these days, or without any valid row; all files by default.
        """
        total: Counter[str] = Counter()
        for entry in self.files.values():
            if days is None or not entry.days or not entry.days.keys().isdisjoint(days):
                total.update(entry.quarantined)
        return dict(total.most_common())

    def rows_beside(self, days: Sequence[str]) -> int:
        """Return the number of valid rows, on any day, of files with rows on some of the given days."""
        selected = set(days)
        return sum(entry.rows for entry in self.files.values() if not entry.days or entry.days.keys() & selected)

    def sources(self, day: str) -> list[tuple[str, LandedFile]]:
        """Return the files with rows of a day, the newest last."""
        return self._by_day.get(day, [])

    @cached_property
    def _by_day(self) -> dict[str, list[tuple[str, LandedFile]]]:
        by_day: dict[str, list[tuple[str, LandedFile]]] = {}
        for item in sorted(self.files.items(), key=landing_order):
            for day in item[1].days:
                by_day.setdefault(day, []).append(item)
        return by_day


def landing_order(item: tuple[str, LandedFile]) -> tuple[int, str]:
    """Return a sort key that orders files by the time their content landed."""
    return item[1].landed_ns, item[0]
