"""Reads the published latent table."""

import datetime as dt
import functools
import math
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import keys_of, parse_path
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

if TYPE_CHECKING:
    import pandas as pd

CURRENT = "current"

_LOOKED_AT = 20_000
"""Rows of a day that are enough to tell how its latents and scores are spread."""

MANIFEST = "_symlink_format_manifest/manifest"
"""Delta's list of current files, for engines that know Parquet alone."""


@dataclass(frozen=True)
class Latents:
    """Rows of the table, all of one latent space.

    Attributes:
        arrow: The rows, in the order of event time.
        latent_space: Whose axes these are; rows of two spaces must not be compared.
        model_version: Of the registered model that made them.
        table_version: Of the Delta table that they were read from; it stays as it is.
    """

    arrow: pa.Table
    latent_space: str
    model_version: int
    table_version: int

    def pandas(self) -> "pd.DataFrame":
        """Gives the rows as pandas has them, with the space and the versions in `attrs`."""
        frame: pd.DataFrame = self.arrow.to_pandas()
        frame.attrs.update(
            latent_space=self.latent_space, model_version=self.model_version, table_version=self.table_version
        )
        return frame

    def polars(self) -> pl.DataFrame:
        """Gives the rows as polars has them."""
        return pl.DataFrame(pl.from_arrow(self.arrow))


def read_latents(
    dataset: str,
    *,
    start: dt.date | dt.datetime | str | None = None,
    end: dt.date | dt.datetime | str | None = None,
    space: str | int = CURRENT,
    columns: Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    tables: str | None = None,
) -> Latents:
    """Reads published latents and scores, of one latent space.

    Args:
        dataset: Its name.
        start: First event time to read, ISO 8601 or a date; without a time zone it is UTC.
        end: First event time no longer to read.
        space: `current`, or an earlier one by its name or by the version of its model: the table as it last was under
            that model.
        columns: Which ones; all by default.
        data: The data folder; by default `AE_PIPELINE_DATA`, or `data` where you are.
        tables: Folder or prefix of an object store that holds the tables; by default `latents` in the data folder, or
            without `data` what `AE_PIPELINE_TABLES` says. Credentials come from the environment: `AWS_ACCESS_KEY_ID`.

    Raises:
        PublicationError: There is no such table, space, or column, its rows have no event time to choose by, they were
            collected after their retention, or the rows asked for are of more than one space.
    """
    folder = Path(data or os.environ.get("AE_PIPELINE_DATA") or "data").resolve()
    paths = DatasetPaths(folder, dataset, tables or (None if data else os.environ.get("AE_PIPELINE_TABLES")))
    table, commit = _open_version(paths, space)
    source = table.to_pyarrow_dataset()
    names = source.schema.names if columns is None else list(columns)
    if missing := sorted(set(names) - set(source.schema.names)):
        raise PublicationError(
            f"latents of {dataset!r} have no column {missing[0]!r}; choose among {', '.join(source.schema.names)}"
        )
    wanted = [
        compare(pc.field("event_time"), pa.scalar(_moment(moment), pa.timestamp("us", "UTC")))
        for compare, moment in ((pc.greater_equal, start), (pc.less, end))
        if moment is not None
    ]
    chosen = functools.reduce(operator.and_, wanted) if wanted else None
    groups = {parts.group for path in live_files(table) if (parts := parse_path(path))}
    months = {group for group in groups if len(group) == len("2013-01")}
    if wanted and ALL_ROWS in groups:
        raise PublicationError(f"rows of {dataset!r} have no event time to choose by; leave start and end out")
    # In the order of their paths files are in that of their days, and each has its rows in the order of event time;
    # but for a day with a file of its own beside that of its month.
    fragments = sorted(source.get_fragments(chosen), key=lambda fragment: str(fragment.path))
    ordered = ds.FileSystemDataset(fragments, source.schema, source.format, source.filesystem)
    further = {"latent_space", "model_version", "event_time"} - set(names)
    try:
        rows = ordered.to_table([*names, *further], filter=chosen)
    except FileNotFoundError as error:
        where = f"version {table.version()} of {paths.latents}"
        raise PublicationError(
            f"a file of {where} is gone; materialize latent_features of any day to have its days put back"
            if space == CURRENT
            else f"{where}, the last of space {commit.latent_space}, was collected after its retention; choose "
            f"{CURRENT!r}, or a later space"
        ) from error
    spaces = {str(name) for name in pc.unique(rows["latent_space"]).to_pylist()}
    if len(spaces) > 1:
        raise PublicationError(
            f"version {table.version()} of {paths.latents} mixes the latent spaces "
            f"{' and '.join(sorted(spaces))}, which no publication does; restore an earlier version"
        )
    if {group[: len("2013-01")] for group in groups if group not in months} & months:
        rows = rows.sort_by("event_time")
    # Of the rows themselves: a table that somebody has restored has no commit of ours.
    told = rows.slice(0, 1).to_pylist()
    name = told[0]["latent_space"] if told else commit.latent_space
    model = told[0]["model_version"] if told else commit.model_version
    return Latents(rows.select(names), name, model, table.version())


class _Commit(NamedTuple):
    table_version: int
    latent_space: str
    model_version: int


def _open_version(paths: DatasetPaths, space: str | int) -> tuple[DeltaTable, _Commit]:
    """Opens the table as it is, or as it last was under a space."""
    table = open_table(paths)
    commits = _commits(table) if table else []
    if table is None or not commits:
        raise PublicationError(f"{paths.latents} holds no latent table; publish latents of {paths.dataset!r} first")
    if space == CURRENT:
        return table, commits[0]
    found = [commit for commit in commits if space in (commit.latent_space, commit.model_version)]
    if not found:
        there = ", ".join(dict.fromkeys(commit.latent_space for commit in commits))
        raise PublicationError(
            f"latents of {paths.dataset!r} have no space {space!r}; choose among {there}, or {CURRENT!r}"
        )
    table.load_as_version(found[0].table_version)
    return table, found[0]


def _commits(table: DeltaTable) -> list[_Commit]:
    """Lists publications, the newest first."""
    return [
        _Commit(entry["version"], entry["latent_space"], int(entry["model_version"]))
        for entry in table.history()
        if "latent_space" in entry
    ]


def last_versions(table: DeltaTable) -> dict[str, int]:
    """Gives the version of the table that its newest publication in each latent space made."""
    return {commit.latent_space: commit.table_version for commit in reversed(_commits(table))}


def _moment(given: dt.date | dt.datetime | str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(str(given))
    except ValueError as error:
        raise PublicationError(
            f"{given!r} is no moment of ISO 8601; give a date such as 2013-07-04, or 2013-07-04T10:00:00Z"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def open_table(paths: DatasetPaths) -> DeltaTable | None:
    """Opens the table, or gives None where nothing was published yet."""
    return TableFiles(paths.latents).open()


def current_files(paths: DatasetPaths) -> list[str]:
    """Lists the files of the table as it stands, relative to it."""
    table = open_table(paths)
    return live_files(table) if table else []


class PublishedDay(NamedTuple):
    """A day as the table has it.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        path: Of the file that its rows are in, relative to the table.
        key: What its rows were made of: with the space another one means other rows.
    """

    day: str
    path: str
    key: str

    @property
    def identity(self) -> str:
        """Names these very rows."""
        return f"{self.path.split('/')[0]}/{self.day}/{self.key}"


def days_in(paths: Iterable[str], files: TableFiles) -> dict[str, PublishedDay]:
    """Lists the days of some files of a table."""
    keys = {path: keys_of(path, files) for path in paths}
    found = [PublishedDay(day, path, key) for path, own in keys.items() for day, key in own.items()]
    return {entry.day: entry for entry in sorted(found)}


def published_days(paths: DatasetPaths) -> dict[str, PublishedDay]:
    """Lists the published days of a dataset."""
    table = open_table(paths)
    return days_in(live_files(table), TableFiles(paths.latents)) if table else {}


def read_day(day: PublishedDay, files: TableFiles, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the rows of a day, as Arrow has them."""
    names = None if columns is None else tuple(columns)
    if not (parts := parse_path(day.path)) or not parts.is_month:
        return files.read(day.path, list(names) if names else None)
    table = _last_file(files.location, day.path, names and (*names, *({"date"} - set(names))))
    chosen = table.filter(pc.field("date") == dt.date.fromisoformat(day.day))
    return chosen.select(names) if names else chosen


@functools.lru_cache(maxsize=1)
def _last_file(index: str, path: str, columns: tuple[str, ...] | None) -> pa.Table:
    """Reads a file; days are read one after another, and many stand in the same."""
    return TableFiles(index).read(path, list(columns) if columns else None)


def published_day(day: PublishedDay, paths: DatasetPaths, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Reads the rows of a day, as polars has them."""
    return pl.DataFrame(pl.from_arrow(read_day(day, TableFiles(paths.latents), columns)))


def rows_published(days: Sequence[str], paths: DatasetPaths) -> int:
    """Counts the rows that the table has of some days."""
    published = published_days(paths)
    return sum(published_day(published[day], paths, ["date"]).height for day in sorted(days) if day in published)


def model_version_of(paths: DatasetPaths) -> int:
    """Gives the model version that the table was scored with; all its rows bear the same."""
    found = TableFiles(paths.latents).read(current_files(paths)[-1], ["model_version"])
    return int(found["model_version"][0].as_py())


def latents_of(days: Iterable[PublishedDay], paths: DatasetPaths, latent_dim: int) -> npt.NDArray[np.float32]:
    """Reads latents of some days of the table, (n, latent_dim): of long days 20,000 rows at most, evenly spaced."""
    names = [f"z_{index:03d}" for index in range(latent_dim)]
    parts = [_thinned(published_day(day, paths, names)).to_numpy() for day in days]
    return np.concatenate(parts) if parts else np.empty((0, latent_dim), np.float32)


def scores_of(days: Iterable[PublishedDay], paths: DatasetPaths) -> npt.NDArray[np.float64]:
    """Reads scores of some days of the table, (n,): of long days 20,000 rows at most, evenly spaced."""
    parts = [_thinned(published_day(day, paths, ["score"]))["score"].to_numpy() for day in days]
    return np.concatenate([np.empty(0), *parts])


def _thinned(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.gather_every(max(1, math.ceil(rows.height / _LOOKED_AT)))
