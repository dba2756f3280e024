"""A small dataset in the temporary folder of a test: land files, ingest them and read the rows."""

import datetime as dt
import io
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import SchemaContract, save_contract
from ae_pipeline.ingestion.landing import IngestResult, ingest
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

TODAY = dt.date(2024, 12, 31)
DAY = "2024-03-01"
HEADER = "id,time,price,city\n"
REMEDY = r"; .*\b(add|change|choose|correct|double|flatten|free|give|land|move|put|rename|set|widen|write)\b"
"""Pattern of the end of an error message, which states the remedy as an imperative."""

_file_times = itertools.count(1_700_000_000)


@dataclass(frozen=True)
class LandedDataset(Dataset):
    """A dataset with methods to land files and to read the results."""

    def land(self, name: str, content: str | bytes, at: int | None = None) -> Path:
        """Write a landed file.

        Args:
            name: Path below the landing folder.
            content: Content of the file.
            at: Modification time in seconds since 1970. By default later than that of all earlier files.
        """
        path = landing_folder(self) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        seconds = next(_file_times) if at is None else at
        os.utime(path, (seconds, seconds))
        return path

    def declare(self, **columns: dict[str, Any]) -> None:
        """Write a schema contract."""
        contract = SchemaContract.model_validate({"dataset": self.config.dataset, "columns": columns})
        save_contract(contract, self.paths.contract, "a test")

    def edit_contract(self, old: str, new: str) -> None:
        """Replace text in the schema contract, as a user would."""
        text = self.paths.contract.read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(f"the contract does not contain {old!r}:\n{text}")
        self.paths.contract.write_text(text.replace(old, new), encoding="utf-8")

    def ingest(self, today: dt.date = TODAY) -> IngestResult:
        """Ingest the landed files."""
        return ingest(self, today)

    def ingest_accepted(self) -> IngestResult:
        """Ingest the landed files, and accept that rows go."""
        return ingest(self, TODAY, accepts_removal=True)

    def entry(self, name: str) -> LandedFile:
        """Ingest the landed files, and return the ledger entry of one file."""
        return self.ingest().ledger.files[name]

    def raw(self, ingested: IngestResult, day: str = DAY) -> pl.DataFrame:
        """Build the raw rows of a day, and return them."""
        build_raw_day(day, ingested, self.paths)
        return pl.read_parquet(self.paths.raw(day), glob=False)

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        """Ingest the landed files, build all days, and return some columns of their rows, day by day."""
        ingested = self.ingest()
        days = [self.raw(ingested, day) for day in ingested.ledger.days]
        return pl.concat(days).select(columns).rows() if days else []

    def ids(self) -> list[Any]:
        """Ingest the landed files, and return the sorted ids of all rows."""
        return sorted(row[0] for row in self.rows("id"))

    def quarantine(self) -> list[tuple[str, int, str, str]]:
        """Return file, row number, rule and reason of all quarantined rows, sorted by file and row."""
        files = sorted(self.paths.quarantined("_").parent.glob("*.parquet"))
        rows = [
            pl.read_parquet(file, glob=False).select("source_file", "row_number", "rule", "reason") for file in files
        ]
        return sorted(row for part in rows for row in part.rows())


def make_dataset(root: Path, **settings: Any) -> LandedDataset:
    """Return the dataset `shop`: rows with `id` and `time` in 2024. Settings override this; None removes a key."""
    values = {
        "dataset": "shop",
        "identity": ["id"],
        "event_time": "time",
        "start": "2024-01-01",
        "end": "2024-12-31",
        **settings,
    }
    if values["identity"] == ["id"]:  # the tests compare ids as integers; undeclared ones are text
        values["columns"] = {"id": "integer", **values.get("columns", {})}
    config = PipelineConfig.model_validate({name: value for name, value in values.items() if value is not None})
    return LandedDataset(config, DatasetPaths(root, config.dataset))


def line(number: object, time: str = f"{DAY}T10:00:00", price: object = "1.5", city: str = "Oslo") -> str:
    """Return a line of a CSV file with the columns of `HEADER`."""
    return f"{number},{time},{price},{city}\n"


def frame(*numbers: int, **columns: Any) -> pl.DataFrame:
    """Return typed rows with the columns of `HEADER`, as in a Parquet file.

    Args:
        numbers: Ids of the rows.
        columns: Other values of a column, or further columns.
    """
    count = len(numbers)
    time = dt.datetime.fromisoformat(f"{DAY}T10:00:00")
    defaults = {"id": list(numbers), "time": [time] * count, "price": [1.5] * count, "city": ["Oslo"] * count}
    return pl.DataFrame({**defaults, **columns})


def parquet(rows: pl.DataFrame) -> bytes:
    """Return rows as the content of a Parquet file."""
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    return buffer.getvalue()


def leftovers(root: Path) -> list[str]:
    """Return the partial and temporary files below a folder: hidden files, and names that end with tmp."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if re.search(r"^\.|\.?tmp$", path.name))


def assert_says(message: str | None, *patterns: str) -> None:
    """Assert that a message matches patterns, such as those of the rule, the value and the remedy."""
    missing = [pattern for pattern in patterns if not re.search(pattern, message or "")]
    assert not missing, f"{message!r} does not match {missing}"
