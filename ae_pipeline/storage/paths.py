"""Paths of the files that belong to a dataset."""

from dataclasses import dataclass
from pathlib import Path

ALL_ROWS = "all"
"""What stands for the day of a dataset without event time."""


@dataclass(frozen=True)
class DatasetPaths:
    """Where one dataset keeps what.

    Attributes:
        root: The data folder, shared by all datasets.
        dataset: Name of the dataset.
        tables: Folder, or prefix of an object store, that holds the latent tables of all datasets; `latents` in the
            data folder by default.
    """

    root: Path
    dataset: str
    tables: str | None = None

    @property
    def landing(self) -> Path:
        """Where files land unless the configuration says otherwise."""
        return self.root / "landing" / self.dataset

    @property
    def contract(self) -> Path:
        """The schema contract: inferred once, then a person's to edit."""
        return self.root / "contracts" / f"{self.dataset}.yaml"

    @property
    def ledger(self) -> Path:
        """What has been read from which landed file."""
        return self.root / "staging" / self.dataset / "ledger.json"

    @property
    def history(self) -> Path:
        """What became of the dataset's models, a line each."""
        return self.root / "history" / f"{self.dataset}.jsonl"

    @property
    def alerts(self) -> Path:
        """What was raised for a person to look at, a line each."""
        return self.root / "history" / f"{self.dataset}.alerts.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one run of this dataset."""
        return self.root / "locks" / f"{self.dataset}.lock"

    @property
    def scratch(self) -> Path:
        """Where a training puts what does not fit into memory, in files that go with it."""
        return self.root / "scratch"

    @property
    def cache(self) -> Path:
        """What can be made anew at any time and takes a while."""
        return self.root / "cache"

    @property
    def latents(self) -> str:
        """The published Delta table: a folder, or an address of an object store."""
        if self.tables and "://" in self.tables:
            return f"{self.tables.rstrip('/')}/{self.dataset}"
        return str((Path(self.tables) if self.tables else self.root / "latents").absolute() / self.dataset)

    @property
    def reports(self) -> Path:
        """Reports of the dataset."""
        return self.root / "reports" / self.dataset

    def staged(self, name: str) -> Path:
        """Typed rows of one landed file, by the name of its staged copy."""
        return self.root / "staging" / self.dataset / "files" / f"{name}.parquet"

    def quarantined(self, name: str) -> Path:
        """Rows of one landed file that break the contract, by the name of its staged copy."""
        return self.root / "quarantine" / self.dataset / f"{name}.parquet"

    def raw(self, day: str) -> Path:
        """Rows of one day, typed and deduplicated."""
        return self.root / "raw" / self.dataset / f"{day}.parquet"

    def features(self, day: str) -> Path:
        """Cleaned and derived columns of one day."""
        return self.root / "features" / self.dataset / f"{day}.parquet"
