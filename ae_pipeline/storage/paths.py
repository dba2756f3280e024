"""Paths of the files that belong to a dataset."""

from dataclasses import dataclass
from pathlib import Path

from ae_pipeline.storage.project import table_prefix

ALL_ROWS = "all"
"""Name of the only partition of a dataset without event time, used in place of a day."""

MEMBER = "@"
"""What separates the name of a staged copy of many landed files from the first row of one of them."""


@dataclass(frozen=True)
class DatasetPaths:
    """Paths of the files of one dataset.

    >>> DatasetPaths(Path("data"), "orders").raw("2025-01-31").as_posix()
    'data/raw/orders/2025-01-31.parquet'

    Attributes:
        root: Data folder, shared by all datasets. For an object store, the folder of its working copy.
        dataset: Name of the dataset.
        project: Folder of the project, to which the paths of the YAML are relative; by default the current folder.
        tables: Folder, or prefix of an object store, with the latent tables of all datasets. By default `latents` in
            the data folder.
        store: Address of the object store that has the data; None if the data folder has it.
    """

    root: Path
    dataset: str
    tables: str | None = None
    project: Path = Path()
    store: str | None = None

    @property
    def landing(self) -> Path:
        """Folder of the landed files, unless `source.path` names another one."""
        return self.root / "landing" / self.dataset

    @property
    def contract(self) -> Path:
        """Schema contract, which is inferred once and then edited by people."""
        return self.root / "contracts" / f"{self.dataset}.yaml"

    @property
    def ledger(self) -> Path:
        """Ledger: which landed file gave which rows."""
        return self.root / "staging" / self.dataset / "ledger.json"

    @property
    def fetched(self) -> Path:
        """Days that a query or a callable has fetched, and when."""
        return self.ledger.with_name("fetched.json")

    @property
    def history(self) -> Path:
        """History of the champions, as JSON Lines."""
        return self.root / "history" / f"{self.dataset}.jsonl"

    @property
    def alerts(self) -> Path:
        """Alerts, as JSON Lines."""
        return self.root / "history" / f"{self.dataset}.alerts.jsonl"

    @property
    def withdrawals(self) -> Path:
        """Days that people withdrew, and took back, as JSON Lines."""
        return self.root / "history" / f"{self.dataset}.withdrawals.jsonl"

    @property
    def marks(self) -> Path:
        """What people said about rows, causes and days, as JSON Lines. A Parquet file beside it has the same."""
        return self.root / "feedback" / self.dataset / "marks.jsonl"

    @property
    def lock(self) -> Path:
        """Lock file that serializes the runs of the dataset."""
        return self.root / "locks" / f"{self.dataset}.lock"

    @property
    def scratch(self) -> Path:
        """Folder for temporary files of work that does not fit into memory."""
        return self.root / "scratch"

    @property
    def cache(self) -> Path:
        """Folder of files that can be deleted and recomputed at any time."""
        return self.root / "cache"

    @property
    def latents(self) -> str:
        """Published Delta table: a folder, or the URI of an object store.

        Raises:
            ConfigError: `tables` is an address, but none of an object store.
        """
        if self.tables and "://" in table_prefix(self.tables):
            return f"{self.tables.rstrip('/')}/{self.dataset}"
        return str((Path(self.tables) if self.tables else self.root / "latents").absolute() / self.dataset)

    @property
    def reports(self) -> Path:
        """Folder of the reports."""
        return self.root / "reports" / self.dataset

    def address(self, path: Path) -> str:
        """Return where other machines find a report or the schema contract: its object, or its path without a store.

        >>> DatasetPaths(Path("copy"), "orders", store="s3://bucket/shop").address(Path("copy/reports/orders/a"))
        's3://bucket/shop/reports/orders/a'
        """
        return f"{self.store}/{path.relative_to(self.root).as_posix()}" if self.store else str(path)

    def uri(self, path: Path) -> str:
        """Return the same as a URI."""
        return self.address(path) if self.store else path.as_uri()

    def state_uri(self, folder: Path) -> str:
        """Return the URI of a folder of raw rows or features. In an object store, a snapshot lists their objects.

        >>> DatasetPaths(Path("copy"), "orders", store="s3://bucket/shop").state_uri(Path("copy/raw/orders"))
        's3://bucket/shop/state/orders/head.json'
        """
        return f"{self.store}/state/{self.dataset}/head.json" if self.store else folder.as_uri()

    def staged(self, name: str) -> Path:
        """Return the path of the staged copy of a landed file.

        Args:
            name: Name of the copy, as in the ledger; several landed files can have one copy.
        """
        return self.root / "staging" / self.dataset / "files" / f"{name.partition(MEMBER)[0]}.parquet"

    def quarantined(self, name: str) -> Path:
        """Return the path of the quarantined rows of a landed file.

        Args:
            name: Name of the copy, as in the ledger.
        """
        return self.root / "quarantine" / self.dataset / f"{name}.parquet"

    def raw(self, day: str) -> Path:
        """Return the path of the typed and deduplicated rows of a day."""
        return self.root / "raw" / self.dataset / f"{day}.parquet"

    def features(self, day: str) -> Path:
        """Return the path of the cleaned and derived columns of a day."""
        return self.root / "features" / self.dataset / f"{day}.parquet"
