"""Readers of the published latent table: `read_latents` for users, and functions by day for the pipeline."""

import contextlib
import datetime as dt
import functools
import math
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.text import first_line
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import PathParts, keys_of, parse_path
from ae_pipeline.storage.location import reader_paths
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

if TYPE_CHECKING:
    import pandas as pd

CURRENT = "current"

_MAX_SAMPLE_ROWS = 20_000
"""Rows of a day that are enough to estimate the distribution of its latents and scores."""

MANIFEST = "_symlink_format_manifest/manifest"
"""Delta's list of current files, for engines that only read Parquet."""


@dataclass(frozen=True)
class Latents:
    """Rows of the latent table, all of one latent space.

    Attributes:
        arrow: Rows, in the order of event time.
        latent_space: Name of the latent space. Do not compare latents of different latent spaces.
        model_version: Version of the registered model that computed the rows.
        table_version: Version of the Delta table that the rows were read from. A version never changes.

    Examples:
        >>> import tempfile
        >>> from ae_pipeline.latents.example import write_example_table
        >>> with tempfile.TemporaryDirectory() as data:
        ...     write_example_table(data)
        ...     latents = read_latents("example", data=data)
        >>> latents.polars()["score"].to_list()
        [0.25, 1.5, 9.0]
        >>> latents.pandas().attrs
        {'latent_space': 'v1_04f3a1b0', 'model_version': 1, 'table_version': 0}
    """

    arrow: pa.Table
    latent_space: str
    model_version: int
    table_version: int

    def pandas(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame, with the latent space and the versions in `attrs`."""
        frame: pd.DataFrame = self.arrow.to_pandas()
        frame.attrs.update(
            latent_space=self.latent_space, model_version=self.model_version, table_version=self.table_version
        )
        return frame

    def polars(self) -> pl.DataFrame:
        """Return the rows as a polars frame."""
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
    """Return published latents and scores of one latent space, in the order of event time.

    Args:
        dataset: Name of the dataset.
        start: First day or event time to read: a date, a time, or ISO 8601 text. A date is a day in the time zone of
            the dataset, and a time without a zone is UTC.
        end: First day or event time after the rows to read.
        space: `current`, or an earlier latent space by its name or by the version of its model. An earlier space is
            read as it was in the last version of the table under that model.
        columns: Columns to read; all by default.
        data: Data folder, or address of the object store that has the data; by default `AE_PIPELINE_DATA` of the
            environment, or `data` in the working directory.
        tables: Folder, or prefix of an object store, that holds the tables; by default `latents` in the data folder, or
            `AE_PIPELINE_TABLES` of the environment without `data`. Credentials are in variables of the provider.

    Raises:
        ConfigError: `data` is an address of another kind.
        PublicationError: Table, space or column do not exist; rows have no event time to select by; rows of the space
            were vacuumed after the retention; or the table mixes latent spaces.

    Examples:
        >>> import tempfile
        >>> from ae_pipeline.latents.example import write_example_table
        >>> with tempfile.TemporaryDirectory() as data:
        ...     write_example_table(data)
        ...     latents = read_latents("example", start="2024-01-02", columns=["row_id", "z_000", "score"], data=data)
        >>> latents.arrow.to_pylist()
        [{'row_id': 'b', 'z_000': -1.0, 'score': 1.5}, {'row_id': 'c', 'z_000': 2.0, 'score': 9.0}]
        >>> latents.latent_space, latents.model_version
        ('v1_04f3a1b0', 1)
    """
    paths = reader_paths(dataset, data, tables)
    table, commit = _open_version(paths, space)
    source = table.to_pyarrow_dataset()
    names = source.schema.names if columns is None else list(columns)
    if missing := sorted(set(names) - set(source.schema.names)):
        raise PublicationError(
            f"latents of {dataset!r} have no column {missing[0]!r}; choose among {', '.join(source.schema.names)}"
        )
    condition = _time_condition(start, end)
    parts = [parts for path in live_files(table) if (parts := parse_path(path))]
    if condition is not None and any(part.group == ALL_ROWS for part in parts):
        raise PublicationError(f"rows of {dataset!r} have no event time; read them without start and end")
    try:
        rows = _read_rows(source, names, condition)
    except FileNotFoundError as error:
        raise _missing_file(paths, table, commit, space) from error
    except (OSError, pa.ArrowException) as error:
        raise PublicationError(
            f"a file of {paths.latents} is damaged ({first_line(error)}); `ae-pipeline run {dataset}` writes it again"
        ) from error
    if _has_month_and_day_files(parts):
        rows = rows.sort_by("event_time")
    spaces = sorted(str(name) for name in pc.unique(rows["latent_space"]).to_pylist())
    if len(spaces) > 1:
        raise PublicationError(
            f"version {table.version()} of {paths.latents} mixes the latent spaces {' and '.join(spaces)}, which no "
            "publication does; restore an earlier version of the table"
        )
    # The rows are more reliable than the log: a restored table has no commit of a publication.
    first = rows.slice(0, 1).to_pylist()
    latent_space = first[0]["latent_space"] if first else commit.latent_space
    model_version = first[0]["model_version"] if first else commit.model_version
    return Latents(rows.select(names), latent_space, model_version, table.version())


def _read_rows(source: ds.FileSystemDataset, names: Sequence[str], condition: pc.Expression | None) -> pa.Table:
    """Return rows with the given columns and those that `read_latents` needs, file by file in the order of paths.

    Paths are in the order of time, and rows of a file are in the order of event time.
    """
    fragments = sorted(source.get_fragments(condition), key=lambda fragment: str(fragment.path))
    ordered = ds.FileSystemDataset(fragments, source.schema, source.format, source.filesystem)
    further = {"latent_space", "model_version", "event_time"} - set(names)
    checks = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    return ordered.to_table([*names, *further], filter=condition, fragment_scan_options=checks)


def _has_month_and_day_files(parts: Sequence[PathParts]) -> bool:
    """Return whether a month has both a file of its own and files of single days, so that times of files overlap."""
    months = {part.group for part in parts if part.is_month}
    months_of_days = {part.group[: len("2013-01")] for part in parts if not part.is_month}
    return bool(months & months_of_days)


def _missing_file(paths: DatasetPaths, table: DeltaTable, commit: "_Commit", space: str | int) -> PublicationError:
    version = f"version {table.version()} of {paths.latents}"
    if space == CURRENT:
        return PublicationError(
            f"a file of {version} is missing; materialize latent_features for any day, which scores its days again"
        )
    return PublicationError(
        f"{version}, the last one of latent space {commit.latent_space}, was vacuumed after the retention; choose "
        f"{CURRENT!r} or a later latent space"
    )


def _time_condition(
    start: dt.date | dt.datetime | str | None, end: dt.date | dt.datetime | str | None
) -> pc.Expression | None:
    bounds = [
        compare(*_parse_bound(bound))
        for compare, bound in ((pc.greater_equal, start), (pc.less, end))
        if bound is not None
    ]
    return functools.reduce(operator.and_, bounds) if bounds else None


def _parse_bound(value: dt.date | dt.datetime | str) -> tuple[pc.Expression, pa.Scalar]:
    """Return the column to compare, `date` or `event_time`, and the value to compare it with."""
    with contextlib.suppress(ValueError):
        return pc.field("date"), pa.scalar(dt.date.fromisoformat(str(value)), pa.date32())
    try:
        time = dt.datetime.fromisoformat(str(value))
    except ValueError as error:
        raise PublicationError(
            f"{value!r} is not an ISO 8601 date or time; write it like 2013-07-04 or 2013-07-04T10:00:00Z"
        ) from error
    time = time if time.tzinfo else time.replace(tzinfo=dt.UTC)
    return pc.field("event_time"), pa.scalar(time, pa.timestamp("us", "UTC"))


class _Commit(NamedTuple):
    """A publication in the log of a table."""

    table_version: int
    latent_space: str
    model_version: int


def _open_version(paths: DatasetPaths, space: str | int) -> tuple[DeltaTable, _Commit]:
    """Return the newest version of the table, or the newest one of a latent space, with its commit."""
    table = open_table(paths)
    commits = _commits(table) if table else []
    if table is None or not commits:
        raise PublicationError(f"{paths.latents} is not a latent table; publish latents of {paths.dataset!r} first")
    if space == CURRENT:
        return table, commits[0]
    matches = [commit for commit in commits if space in (commit.latent_space, commit.model_version)]
    if not matches:
        known = ", ".join(dict.fromkeys(commit.latent_space for commit in commits))
        raise PublicationError(
            f"latents of {paths.dataset!r} have no latent space {space!r}; choose among {known}, or {CURRENT!r}"
        )
    table.load_as_version(matches[0].table_version)
    return table, matches[0]


def _commits(table: DeltaTable) -> list[_Commit]:
    """Return the publications of a table, the newest one first."""
    return [
        _Commit(entry["version"], entry["latent_space"], int(entry["model_version"]))
        for entry in table.history()
        if "latent_space" in entry
    ]


def last_versions(table: DeltaTable) -> dict[str, int]:
    """Return the newest version of the table in each latent space."""
    return {commit.latent_space: commit.table_version for commit in reversed(_commits(table))}


def open_table(paths: DatasetPaths) -> DeltaTable | None:
    """Return the newest version of the table, or None if nothing was published yet."""
    return TableFiles(paths.latents).open()


def current_files(paths: DatasetPaths) -> list[str]:
    """Return the paths of the current files, relative to the table."""
    table = open_table(paths)
    return live_files(table) if table else []


class PublishedDay(NamedTuple):
    """A day in the table.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        path: Path of the file with its rows, relative to the table.
        key: Hash of what its rows were made from; see `day_key`.
    """

    day: str
    path: str
    key: str

    @property
    def group(self) -> str:
        """Month or day of the file; see `PathParts`."""
        return self.path.split("/")[1]

    @property
    def identity(self) -> str:
        """Text that changes if and only if the rows of the day change: latent space, day and key."""
        return f"{self.path.split('/')[0]}/{self.day}/{self.key}"


def days_in(paths: Iterable[str], files: TableFiles) -> dict[str, PublishedDay]:
    """Return the days in some files of a table, by date."""
    keys = {path: keys_of(path, files) for path in paths}
    days = [PublishedDay(day, path, key) for path, keys_of_days in keys.items() for day, key in keys_of_days.items()]
    return {entry.day: entry for entry in sorted(days)}


def published_days(paths: DatasetPaths) -> dict[str, PublishedDay]:
    """Return the published days of a dataset, by date. Days of damaged files are missing, and published again."""
    table = open_table(paths)
    files = TableFiles(paths.latents)
    return days_in(files.whole(live_files(table)), files) if table else {}


def read_day(day: PublishedDay, files: TableFiles, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a day as an Arrow table."""
    names = None if columns is None else tuple(columns)
    if not (parts := parse_path(day.path)) or not parts.is_month:
        return files.read(day.path, list(names) if names else None)
    table = _read_cached(files.location, day.path, names and (*names, *({"date"} - set(names))))
    rows = table.filter(pc.field("date") == dt.date.fromisoformat(day.day))
    return rows.select(names) if names else rows


@functools.lru_cache(maxsize=1)
def _read_cached(location: str, path: str, columns: tuple[str, ...] | None) -> pa.Table:
    """Read a file and keep it, because the next day is often in the same file."""
    return TableFiles(location).read(path, list(columns) if columns else None)


def published_day(day: PublishedDay, paths: DatasetPaths, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return the rows of a day as a polars frame."""
    return pl.DataFrame(pl.from_arrow(read_day(day, TableFiles(paths.latents), columns)))


def rows_published(days: Sequence[str], paths: DatasetPaths) -> int:
    """Return the number of rows that the table has of some days."""
    published = published_days(paths)
    return sum(published_day(published[day], paths, ["date"]).height for day in sorted(days) if day in published)


def model_version_of(paths: DatasetPaths) -> int:
    """Return the version of the model that scored the table. It is the same in all rows."""
    files, current = TableFiles(paths.latents), current_files(paths)
    if not (whole := files.whole(current)):
        return int(current[-1].split("_")[0].removeprefix("v"))  # the name of the latent space
    return int(files.read(whole[-1], ["model_version"])["model_version"][0].as_py())


def latents_of(days: Iterable[PublishedDay], paths: DatasetPaths, latent_dim: int) -> npt.NDArray[np.float32]:
    """Return latents of some days, (n, latent_dim). Of a day with more than 20,000 rows, every n-th row is taken."""
    names = [f"z_{index:03d}" for index in range(latent_dim)]
    parts = [subsample(published_day(day, paths, names)).to_numpy() for day in days]
    return np.concatenate(parts) if parts else np.empty((0, latent_dim), np.float32)


def subsample(rows: pl.DataFrame) -> pl.DataFrame:
    """Return every n-th row of a day with more than 20,000 rows, and all rows of a smaller one."""
    return rows.gather_every(max(1, math.ceil(rows.height / _MAX_SAMPLE_ROWS)))
