"""Helpers for tests of the latent table."""

from collections.abc import Callable, Iterable
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.layout import day_key
from ae_pipeline.latents.publish import Publication, publish
from ae_pipeline.latents.read import published_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.loop import TrainingResult
from tests.support.sensors import Fitted

RewriteDay = Callable[[Fitted, str, pl.DataFrame], None]
"""Type of the fixture that replaces the features of a day."""

FitFrame = Callable[..., tuple[ModelBundle, TrainingResult]]
"""Type of the fixture that fits a bundle on a frame."""


def publish_days(
    dataset: Fitted, days: Iterable[str], bundle: ModelBundle | None = None, version: int = 1
) -> Publication:
    """Publish days of a dataset under its own bundle or another one."""
    return publish(
        list(days),
        Dataset((bundle or dataset.bundle).config, dataset.paths),
        bundle or dataset.bundle,
        version,
        {"dagster_run": "r1"},
    )


def table(paths: DatasetPaths, version: int | None = None) -> pl.DataFrame:
    """Return the rows of a version of the table, the newest one by default, in the order of event time."""
    return pl.read_delta(paths.latents, version=version).sort("event_time", "row_id")


def query_with_duckdb(query: str, **tables: pa.Table) -> pl.DataFrame:
    """Return the result of an SQL query that DuckDB runs. The tables have the names of the arguments."""
    with duckdb.connect() as connection:
        for name, rows in tables.items():
            connection.register(name, rows)
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description or []]
        return pl.DataFrame(cursor.fetchall(), schema=names, orient="row")


def files_by_day(paths: DatasetPaths) -> dict[str, str]:
    """Return the path of the file of each published day."""
    return {day: entry.path for day, entry in published_days(paths).items()}


def path_of_day(day: str, features_hash: str, fingerprint: str, space: str) -> str:
    """Return the path of a day that has its own file."""
    return f"{space}/{day}/part-{day_key(features_hash, fingerprint)}.parquet"


def files_of(paths: DatasetPaths, version: int | None = None) -> set[str]:
    """Return the names of the files of a version of the table."""
    return {Path(uri).name for uri in DeltaTable(paths.latents, version=version).file_uris()}


def assert_one_space_in_every_version(paths: DatasetPaths) -> None:
    """Raise AssertionError if a version of the table has rows of two latent spaces or two models."""
    for version in range(DeltaTable(paths.latents).version() + 1):
        rows = table(paths, version)
        assert rows["latent_space"].n_unique() <= 1, f"version {version} mixes spaces"
        assert rows["model_version"].n_unique() <= 1, f"version {version} mixes models"
