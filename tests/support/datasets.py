"""A small dataset under a test's own folder: lands files and reads them back, one second of file time apart."""

import datetime as dt
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import SchemaContract, save_contract
from ae_pipeline.ingestion.landing import IngestResult, ingest, landing_folder
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.raw import build_raw_day
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths

TODAY = dt.date(2024, 12, 31)
DAY = "2024-03-01"
HEADER = "id,time,price,city\n"
REMEDY = r"; .*\b(add|begin|change|choose|double|fill|flatten|free|give|land|mend|move|put|rename|use|widen)\b"
"""What an explanation ends with: words that tell a person what to do."""

_file_times = itertools.count(1_700_000_000)


@dataclass(frozen=True)
class LandedDataset(Dataset):
    """A dataset's configuration and folders, and what a test does with them."""

    def land(self, name: str, content: str | bytes, at: int | None = None) -> Path:
        """Writes a landed file; without `at`, seconds since 1970, each is newer than all before it."""
        path = landing_folder(self) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        seconds = next(_file_times) if at is None else at
        os.utime(path, (seconds, seconds))
        return path

    def declare(self, **columns: dict[str, Any]) -> None:
        """Writes a schema contract."""
        contract = SchemaContract.model_validate({"dataset": self.config.dataset, "columns": columns})
        save_contract(contract, self.paths.contract, "a test")

    def edit_contract(self, old: str, new: str) -> None:
        """Changes words of the schema contract, as a person would."""
        text = self.paths.contract.read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(f"the contract does not say {old!r}:\n{text}")
        self.paths.contract.write_text(text.replace(old, new), encoding="utf-8")

    def ingest(self, today: dt.date = TODAY) -> IngestResult:
        """Reads what has landed."""
        return ingest(self, today)

    def file(self, name: str) -> LandedFile:
        """Reads what has landed and gives the ledger's entry of a file."""
        return self.ingest().ledger.files[name]

    def raw(self, intake: IngestResult, day: str = DAY) -> pl.DataFrame:
        """Writes the raw rows of a day and reads them."""
        build_raw_day(day, intake, self.paths)
        return pl.read_parquet(self.paths.raw(day))

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        """Reads what has landed, writes all days and gives columns of their rows, day by day."""
        intake = self.ingest()
        days = [self.raw(intake, day) for day in intake.ledger.days]
        return pl.concat(days).select(columns).rows() if days else []

    def ids(self) -> list[Any]:
        """Reads what has landed and gives the ids of all rows, sorted."""
        return sorted(row[0] for row in self.rows("id"))

    def quarantine(self) -> list[tuple[str, int, str, str]]:
        """Gives file, row number, rule and reason of all rows in quarantine, in the order of file and row."""
        files = sorted(self.paths.quarantined("_").parent.glob("*.parquet"))
        rows = [pl.read_parquet(file).select("source_file", "row_number", "rule", "reason") for file in files]
        return sorted(row for part in rows for row in part.rows())


def make_dataset(root: Path, **settings: Any) -> LandedDataset:
    """Makes the dataset 'shop': rows with `id` and `time` in 2024, unless the settings say otherwise."""
    given = {
        "dataset": "shop",
        "identity": ["id"],
        "event_time": "time",
        "start": "2024-01-01",
        "end": "2024-12-31",
        **settings,
    }
    config = PipelineConfig.model_validate({name: value for name, value in given.items() if value is not None})
    return LandedDataset(config, DatasetPaths(root, config.dataset))


def line(number: object, time: str = f"{DAY}T10:00:00", price: object = "1.5", city: str = "Oslo") -> str:
    """Gives one line of a CSV file with the columns of `HEADER`."""
    return f"{number},{time},{price},{city}\n"


def frame(*numbers: int, **columns: Any) -> pl.DataFrame:
    """Gives rows with the columns of `HEADER`, typed, as a Parquet file holds them."""
    count = len(numbers)
    time = dt.datetime.fromisoformat(f"{DAY}T10:00:00")
    plain = {"id": list(numbers), "time": [time] * count, "price": [1.5] * count, "city": ["Oslo"] * count}
    return pl.DataFrame({**plain, **columns})


def parquet(rows: pl.DataFrame) -> bytes:
    """Gives the content of a Parquet file."""
    import io

    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    return buffer.getvalue()


def leftovers(root: Path) -> list[str]:
    """Lists half-written and temporary files below a folder: all that is hidden or called so."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if re.search(r"^\.|\.?tmp$", path.name))


def assert_says(message: str | None, *patterns: str) -> None:
    """Holds a message against patterns: what the rule is, which value broke it, what to do."""
    unsaid = [pattern for pattern in patterns if not re.search(pattern, message or "")]
    assert not unsaid, f"{message!r} does not say {unsaid}"
