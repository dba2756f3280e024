"""Reads the published latent table."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
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
    # From the log itself: file_uris() writes blanks and other signs of the folder's name as %20.
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist())


def files_by_day(paths: DatasetPaths) -> dict[str, str]:
    """Gives the file of each published day, relative to the table."""
    return {path.split("/")[1]: path for path in current_files(paths)}


def rows_published(days: Sequence[str], paths: DatasetPaths) -> int:
    """Counts the rows that the table's log has for some days."""
    table, wanted = open_table(paths), set(days)
    if table is None:
        return 0
    log = pl.DataFrame(pl.from_arrow(pa.table(table.get_add_actions(flatten=True)))).select("path", "num_records")
    return sum(rows for path, rows in log.iter_rows() if path.split("/")[1] in wanted)


def published_day(path: str, paths: DatasetPaths) -> pl.DataFrame:
    """Reads one file of the table."""
    return pl.read_parquet(paths.latents / path)


def model_version_of(paths: DatasetPaths) -> int:
    """Gives the model version that the table was scored with; all its rows bear the same."""
    return int(published_day(current_files(paths)[-1], paths)["model_version"][0])


def latents_of(files: Sequence[str], paths: DatasetPaths, latent_dim: int) -> npt.NDArray[np.float32]:
    """Reads the latents of some files of the table, (n, latent_dim)."""
    names = [f"z_{place:03d}" for place in range(latent_dim)]
    parts = [pl.read_parquet(paths.latents / path, columns=names).to_numpy() for path in files]
    return np.concatenate(parts) if parts else np.empty((0, latent_dim), np.float32)


def scores_of(files: Sequence[str], paths: DatasetPaths) -> npt.NDArray[np.float64]:
    """Reads the scores of some files of the table, (n,)."""
    parts = [pl.read_parquet(paths.latents / path, columns=["score"])["score"].to_numpy() for path in files]
    return np.concatenate([np.empty(0), *parts])
