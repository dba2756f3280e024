"""A small dataset under a test's own folder: lands files and reads them back, one second of file time apart."""

import datetime as dt
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.config import PipelineConfig
from ae_pipeline.ingestion.landing import Intake, build_raw_day, take_in
from ae_pipeline.storage import DatasetPaths

TODAY = dt.date(2024, 12, 31)

_file_times = itertools.count(1_700_000_000)


@dataclass(frozen=True)
class Dataset:
    """A dataset's configuration and folders, and what a test does with them."""

    config: PipelineConfig
    paths: DatasetPaths

    def land(self, name: str, content: str | bytes, at: int | None = None) -> Path:
        """Writes a landed file; without `at`, seconds since 1970, each is newer than all before it."""
        path = self.paths.landing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self._stamp(path, at)

    def land_parquet(self, name: str, frame: pl.DataFrame, at: int | None = None) -> Path:
        """Writes a landed Parquet file."""
        path = self.paths.landing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
        return self._stamp(path, at)

    def take_in(self, today: dt.date = TODAY) -> Intake:
        """Reads what has landed."""
        return take_in(self.config, self.paths, today, lambda *_: None)

    def raw(self, intake: Intake, day: str) -> pl.DataFrame:
        """Writes the raw rows of a day and reads them."""
        build_raw_day(day, intake, self.paths)
        return pl.read_parquet(self.paths.raw(day))

    def all_raw(self, intake: Intake) -> pl.DataFrame:
        """Writes the raw rows of all days and reads them."""
        return pl.concat([self.raw(intake, day) for day in intake.ledger.days])

    def quarantine(self) -> pl.DataFrame:
        """Reads all rows in quarantine, in the order of file and row."""
        files = sorted(self.paths.quarantined("_").parent.glob("*.parquet"))
        return pl.concat([pl.read_parquet(file) for file in files]).sort("source_file", "row_number")

    def _stamp(self, path: Path, at: int | None) -> Path:
        seconds = next(_file_times) if at is None else at
        os.utime(path, (seconds, seconds))
        return path


def make_dataset(root: Path, **settings: Any) -> Dataset:
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
    return Dataset(config, DatasetPaths(root, config.dataset))


def leftovers(root: Path) -> list[str]:
    """Lists half-written and temporary files below a folder."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".tmp" in path.name)
