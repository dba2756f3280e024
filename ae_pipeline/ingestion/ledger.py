"""The ledger: what has been read from which landed file."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.files import write_text


@dataclass(frozen=True)
class LandedFile:
    """What the ledger knows of one landed file.

    Attributes:
        size: Bytes, as last seen.
        modified_ns: When it was last written, ns since 1970.
        sha256: Of its content.
        landed_ns: When this content was first written there; the newest wins where two files bear the same row, and the
            same content copied there again is no newer.
        contract: Fingerprint of the contract and settings that its rows were held against.
        staged: Name of its staged copy, or None when no version of it could be read.
        rows: Good rows in the staged copy.
        days: Good rows by day.
        quarantined: Rejected rows by rule.
        rejected_copy: Name of the file in quarantine that holds them.
        refused: Why the newest version cannot be used; what an earlier version gave stands until it is landed again.
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


@dataclass(frozen=True)
class Ledger:
    """All files that ever landed, by their path below the landing place."""

    files: dict[str, LandedFile] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Reads the ledger, empty when there is none yet.

        Raises:
            StorageError: It is broken, or it is gone while the copies that it knew of are there.
        """
        remedy = f"put it back, or remove {path.parent} to have all files read anew that still lie in the landing place"
        if not path.exists():
            if any(path.parent.glob("files/*.parquet")):
                raise StorageError(
                    f"the ledger {path} is gone, and rows of files that have left are known to it alone; {remedy}"
                )
            return cls()
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            return cls({name: LandedFile(**entry) for name, entry in entries.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise StorageError(f"the ledger {path} cannot be read ({error}); {remedy}") from error

    def save(self, path: Path) -> None:
        """Writes the ledger in one step."""
        write_text(path, json.dumps({name: asdict(entry) for name, entry in self.files.items()}, indent=0))

    @property
    def days(self) -> list[str]:
        """Every day that some file has rows for, sorted."""
        return sorted({day for entry in self.files.values() for day in entry.days})

    @property
    def refused(self) -> dict[str, str]:
        """Files whose newest version cannot be used, with the reason."""
        return {name: entry.refused for name, entry in self.files.items() if entry.refused}

    def quarantined(self, days: Sequence[str] | None = None) -> dict[str, int]:
        """Adds up rejected rows by rule, the most frequent first; of all files, or of those with rows on some days."""
        total: Counter[str] = Counter()
        for entry in self.files.values():
            if days is None or not entry.days or not entry.days.keys().isdisjoint(days):
                total.update(entry.quarantined)
        return dict(total.most_common())

    def rows_beside(self, days: Sequence[str]) -> int:
        """Counts the good rows of all files that have rows on some days, on whatever day these rows are."""
        wanted = set(days)
        return sum(entry.rows for entry in self.files.values() if not entry.days or entry.days.keys() & wanted)

    def sources(self, day: str) -> list[tuple[str, LandedFile]]:
        """Files with rows of a day, the newest last."""
        return sorted(((name, entry) for name, entry in self.files.items() if day in entry.days), key=landing_order)


def landing_order(item: tuple[str, LandedFile]) -> tuple[int, str]:
    """Sorts files by when their content landed, the newest last."""
    return item[1].landed_ns, item[0]
