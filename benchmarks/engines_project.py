"""A dataset of CSV files with one day each, for `benchmarks.engines`."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import feature_columns
from ae_pipeline.features.split import cut_window
from ae_pipeline.ingestion.contract import load_contract
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from benchmarks.generated import FIRST, day_of, day_rows

COLUMNS = 16


def digest_of(root: Path, paths: Iterable[Path]) -> str:
    """Return a hash of the names and bytes of files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def files_of_table(location: str) -> list[Path]:
    """Return the files of the newest version of a table in a folder."""
    table = TableFiles(location).open()
    assert table is not None
    return [Path(location) / path for path in live_files(table)]


class Project:
    """A dataset of CSV files with one day each, and a bundle that is fitted on it."""

    def __init__(self, root: Path, days: int, rows: int) -> None:
        self.days = [day_of(index) for index in range(days)]
        self._root, self._rows = root, rows
        self._config = PipelineConfig.model_validate(
            {
                "dataset": "engines",
                "identity": ["key"],
                "event_time": "at",
                "exclude": ["key", "at"],
                "start": FIRST.isoformat(),
                "end": self.days[-1],
                "training": {"validation_days": 2, "calibration_days": 2, "epochs": 1},
                "gate": {"days": 0},
            }
        )
        self._landed = root / "landed"
        self._landed.mkdir()
        for index, day in enumerate(self.days):
            path = self._landed / f"{day}.csv"
            frame = day_rows(index, COLUMNS, rows).rename({"row_id": "key", "event_time": "at"})
            frame.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).write_csv(path)
            os.utime(path, (index, index))

    def landed_in(self, name: str) -> Dataset:
        """Return the dataset in a new folder, where its files have landed."""
        dataset = Dataset(self._config, DatasetPaths(self._root / name, "engines"))
        shutil.copytree(self._landed, dataset.paths.landing)
        return dataset

    def copied(self, dataset: Dataset, name: str) -> Dataset:
        """Return the dataset in a new folder, with the features of another folder and no table."""
        copy = Dataset(self._config, DatasetPaths(self._root / name, "engines"))
        features, contract = dataset.paths.features("_").parent, dataset.paths.contract
        shutil.copytree(features, copy.paths.features("_").parent)
        copy.paths.contract.parent.mkdir(parents=True)
        shutil.copy(contract, copy.paths.contract)
        return copy

    def build(self, dataset: Dataset) -> None:
        """Read the landed files, and build raw rows and features."""
        build_raw_days(dataset, self.days, "benchmark", read_landed=True)
        build_feature_days(dataset, self.days)

    def model(self, bundle: Path, dataset: Dataset) -> ModelBundle:
        """Return the bundle in a folder, fitted on a dataset with features if it is not there yet."""
        if not bundle.exists():
            facts = {day: read_facts(dataset.paths.features(day)) for day in self.days}
            content = {day: fact["content_hash"] for day, fact in facts.items()}
            columns = feature_columns(dataset.config, load_contract(dataset.paths.contract))
            fit_bundle(dataset, columns, cut_window(content, dataset.config))[0].save(bundle)
        return ModelBundle.load(bundle)
