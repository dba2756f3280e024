"""Reads the published latent table."""

from pathlib import Path

import polars as pl
from deltalake import DeltaTable

from ae_pipeline.storage import DatasetPaths


def open_table(paths: DatasetPaths) -> DeltaTable | None:
    """Opens the table, or gives None where nothing was published yet."""
    return DeltaTable(paths.latents) if DeltaTable.is_deltatable(str(paths.latents)) else None


def current_files(paths: DatasetPaths) -> list[str]:
    """Lists the files of the table as it stands, relative to it."""
    table = open_table(paths)
    if table is None:
        return []
    root = Path(paths.latents).resolve()
    return sorted(str(Path(uri.removeprefix("file://")).resolve().relative_to(root)) for uri in table.file_uris())


def published_day(path: str, paths: DatasetPaths) -> pl.DataFrame:
    """Reads one file of the table."""
    return pl.read_parquet(paths.latents / path)
