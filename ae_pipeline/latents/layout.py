"""Layout of a latent table: names and columns of its files, and how a file is written and verified."""

import datetime as dt
import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.text import first_line, pluralize
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.integrity import SEAL, UNSEALED, seal
from ae_pipeline.storage.parquet import ROW_GROUP, row_bytes, rows_per_batch
from ae_pipeline.storage.paths import ALL_ROWS

if TYPE_CHECKING:
    from ae_pipeline.detector.bundle import ModelBundle

LATENTS_VERSION = "3"
"""Version of the row format. Increase it if the same features and model would give a different file."""

MIN_ROWS_FOR_OWN_FILE = 20_000
"""Rows from which a day has its own file. Days with fewer rows share the file of their month.

Opening a file costs a reader as much as reading thousands of rows, but a corrected day rewrites its whole file.
"""

_DAYS_KEY = b"ae_pipeline.days"
"""Key in the Parquet footer of the days of a file, each with its `day_key`."""

_MONTH_LENGTH = len("2013-01")


def latent_schema(latent_dim: int) -> pa.Schema:
    """Return the columns of the table.

    Args:
        latent_dim: Width of the latent space.

    Examples:
        >>> latent_schema(2).names[:6]
        ['row_id', 'event_time', 'date', 'z_000', 'z_001', 'score']
    """
    return pa.schema(
        [
            pa.field("row_id", pa.string(), nullable=False),
            pa.field("event_time", pa.timestamp("us", "UTC")),
            pa.field("date", pa.date32()),
            *(pa.field(f"z_{index:03d}", pa.float32(), nullable=False) for index in range(latent_dim)),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("p_value", pa.float64(), nullable=False),
            pa.field("is_anomaly", pa.bool_(), nullable=False),
            pa.field("model_version", pa.int64(), nullable=False),
            pa.field("latent_space", pa.string(), nullable=False),
        ]
    )


def day_key(features_hash: str, fingerprint: str) -> str:
    """Return a hash of what the rows of a day are made from. The same features and model give the same rows.

    Args:
        features_hash: Content hash of the features of the day.
        fingerprint: Fingerprint of the model.
    """
    return hash_json([LATENTS_VERSION, features_hash, fingerprint])[:16]


def group_of(day: str, rows: int) -> str:
    """Return the group whose file a day belongs to: its month, or the day itself if it has many rows.

    Args:
        day: ISO date, or `ALL_ROWS`.
        rows: Number of rows of the day.

    Examples:
        >>> group_of("2013-07-04", 900), group_of("2013-07-04", 25_000)
        ('2013-07', '2013-07-04')
    """
    return day if day == ALL_ROWS or rows >= MIN_ROWS_FOR_OWN_FILE else day[:_MONTH_LENGTH]


def file_path(space: str, group: str, keys: Mapping[str, str]) -> str:
    """Return the path of a file, which identifies its content: a file that exists under this path needs no rewrite.

    Args:
        space: Latent space.
        group: Month or day.
        keys: `day_key` of each day in the file.
    """
    name = keys[group] if group in keys else hash_json(sorted(keys.items()))[:16]
    return f"{space}/{group}/part-{name}.parquet"


class PathParts(NamedTuple):
    """Parts of the path of a file of the table.

    Attributes:
        space: Latent space.
        group: Month or day of its rows, or `ALL_ROWS`.
        name: `day_key` of its day, or a hash of the keys of its days.
    """

    space: str
    group: str
    name: str

    @property
    def is_month(self) -> bool:
        """Whether several days can share the file."""
        return len(self.group) == _MONTH_LENGTH


_PATH = re.compile(r"(v\d+_\w+)/(\d{4}-\d\d(?:-\d\d)?|" + ALL_ROWS + r")/part-(\w+)\.parquet")


def parse_path(path: str) -> PathParts | None:
    """Return the parts of a path, or None if the path is not one that a publication writes.

    Examples:
        >>> parse_path("v1_04f3a1b0/2013-07/part-0123abcd.parquet")
        PathParts(space='v1_04f3a1b0', group='2013-07', name='0123abcd')
    """
    match = _PATH.fullmatch(path)
    return PathParts(*match.groups()) if match else None


def spaces_of(paths: Iterable[str]) -> set[str]:
    """Return the latent spaces of files of the table.

    >>> spaces_of(["v1_04f3a1b0/2013-07/part-0123abcd.parquet", "v1_04f3a1b0/2013-08/part-4567ef00.parquet"])
    {'v1_04f3a1b0'}
    """
    return {path.partition("/")[0] for path in paths}


def keys_of(path: str, files: TableFiles) -> dict[str, str]:
    """Return the `day_key` of each day in a file of the table.

    Raises:
        PublicationError: The file was not written by a publication, or it is missing.
    """
    parts = parse_path(path)
    if parts is None:
        keys = {}
    elif parts.is_month:
        keys = _read_keys(files.location, path)
    else:
        keys = {parts.group: parts.name}
    if not keys:
        raise PublicationError(
            f"{files.full_path(path)} is in the table, but no publication wrote it; restore the previous version of "
            "the table, or move the table away and materialize latent_features for all days"
        )
    return keys


@functools.lru_cache(maxsize=4096)
def _read_keys(location: str, path: str) -> dict[str, str]:
    """Read the keys from the footer of a file. They are cached, because a file never changes."""
    try:
        metadata = pq.read_schema(path, filesystem=TableFiles(location).filesystem).metadata or {}
    except FileNotFoundError as error:
        raise PublicationError(
            f"{location}/{path} is missing; materialize latent_features for any day, which scores its days again"
        ) from error
    keys: dict[str, str] = json.loads(metadata.get(_DAYS_KEY, b"{}"))
    return keys


def read_features(features: Path) -> Iterator[pa.RecordBatch]:
    """Yield the features of a day from its Parquet file, one batch at a time."""
    # A pre-buffer would hold the whole file in memory.
    file = pq.ParquetFile(features, pre_buffer=False)
    yield from file.iter_batches(rows_per_batch(file.metadata.num_columns, row_bytes(file.metadata)))


def score_batch(bundle: "ModelBundle", model_version: int, batch: pa.RecordBatch, day: str) -> pa.Table:
    """Score a batch of features, and return its rows in the form of the table.

    Args:
        bundle: Model.
        model_version: Version of the model.
        batch: Batch of `read_features`.
        day: Day of the rows, an ISO date, or `ALL_ROWS`.
    """
    rows = pl.DataFrame(batch)
    scored = bundle.score(rows)
    space = latent_space_name(model_version, bundle.fingerprint)
    date = None if day == ALL_ROWS else dt.date.fromisoformat(day)
    columns = [
        # From the batch, because a column of the polars frame would keep all other columns of the batch in memory.
        batch["row_id"].cast(pa.string()),
        batch["event_time"].cast(pa.timestamp("us", "UTC")),
        pa.repeat(pa.scalar(date, pa.date32()), rows.height),
        *(pa.array(np.ascontiguousarray(scored.latents[:, index])) for index in range(bundle.model.latent_dim)),
        pa.array(scored.score),
        pa.array(scored.p_value),
        pa.array(scored.is_anomaly),
        pa.repeat(pa.scalar(model_version, pa.int64()), rows.height),
        pa.repeat(pa.scalar(space), rows.height),
    ]
    return pa.Table.from_arrays(columns, schema=latent_schema(bundle.model.latent_dim))


def write_file(
    days: Iterable[pa.Table], keys: Mapping[str, str], latent_dim: int, path: str, files: TableFiles
) -> None:
    """Write the rows of days into one file of the table, one row group at a time. Repeating it is safe.

    Args:
        days: Rows of the days, in the order of event time.
        keys: `day_key` of each day.
        latent_dim: Width of the latent space.
        path: Path of the file.
        files: Files of the table.
    """
    schema = latent_schema(latent_dim)
    # Latents look like noise to a codec: zstd makes them a tenth smaller, but reading takes two to five times as long.
    # A dictionary would store each value twice.
    codecs = {name: "NONE" if name.startswith("z_") else "zstd" for name in schema.names}
    with files.writing(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            schema.with_metadata({_DAYS_KEY: json.dumps(dict(keys))}),
            compression=codecs,
            use_dictionary=["latent_space", "model_version", "date"],
            write_page_checksum=True,
            sorting_columns=pq.SortingColumn.from_ordering(schema, [("event_time", "ascending")]),
        ) as writer:
            buffer = schema.empty_table()
            for rows in days:
                buffer = pa.concat_tables([buffer, rows])
                while buffer.num_rows >= ROW_GROUP:
                    writer.write_table(buffer.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                    buffer = buffer.slice(ROW_GROUP)
            if buffer.num_rows:
                writer.write_table(buffer, row_group_size=ROW_GROUP)
            writer.add_key_value_metadata({SEAL: UNSEALED})
        seal(temporary)


def verify_file(
    path: str,
    files: TableFiles,
    days: Collection[str],
    rows: Mapping[str, int],
    schema: pa.Schema,
    space: str,
    violations: Callable[[pl.DataFrame], list[str]],
) -> dict[str, int]:
    """Read a file back before it enters the table, and return the number of flagged rows of its published days.

    Args:
        path: Path of the file.
        files: Files of the table.
        days: Days that the file must have.
        rows: Number of rows in the features, by day, for the days of this publication.
        schema: Schema of the table.
        space: Latent space that all rows must have.
        violations: Function that returns the rules of the data contract that rows violate.

    Raises:
        PublicationError: The file is not readable, a checksum does not match, or the content is not the expected one.
    """
    target = files.full_path(path)
    try:
        table = files.read(path)
    except (pa.ArrowException, OSError) as error:
        raise _refusal(target, f"cannot be read ({first_line(error)})") from error
    if not table.schema.equals(schema):
        columns = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise _refusal(target, f"has the columns {columns}, which are not those of the table")
    frame = pl.DataFrame(pl.from_arrow(table))
    by_day = frame.group_by(pl.col("date").dt.to_string().fill_null(ALL_ROWS)).agg(pl.len(), pl.col("is_anomaly").sum())
    counts = {day: (count, flagged) for day, count, flagged in by_day.iter_rows()}
    for day, expected in rows.items():
        count, _ = counts.get(day, (0, 0))
        if count != expected:
            raise _refusal(target, f"has {pluralize(count, 'row')} of {day}, but the features have {expected:,}")
    if unexpected := sorted(counts.keys() - set(days)):
        raise _refusal(target, f"has rows of {unexpected[0]}, a day that does not belong to it")
    if missing := sorted(set(days) - counts.keys()):
        raise _refusal(target, f"has no rows of {missing[0]}, a day that belongs to it")
    spaces = sorted(frame["latent_space"].unique().to_list())
    if spaces != [space]:
        raise _refusal(target, f"has rows of latent space {' and '.join(spaces)} instead of {space}")
    if broken := violations(frame):
        raise _refusal(target, f"violates the data contract: {'; '.join(broken)}")
    return {day: counts[day][1] for day in rows}


def _refusal(target: str, reason: str) -> PublicationError:
    return PublicationError(f"{target} {reason}; the table is unchanged: delete this file and run again")


def add_action(path: str, files: TableFiles, now: int) -> AddAction:
    """Return the entry of the log that adds a file to the table, with the statistics that let readers skip files.

    Args:
        path: Path of the file.
        files: Files of the table.
        now: Modification time of the entry, in milliseconds since 1970.
    """
    metadata = pq.read_metadata(path, filesystem=files.filesystem)
    times, dates = _bounds(metadata, "event_time"), _bounds(metadata, "date")
    stats: dict[str, object] = {"numRecords": metadata.num_rows}
    if times and dates:
        stats["minValues"] = {"event_time": _as_timestamp(times[0]), "date": dates[0].isoformat()}
        stats["maxValues"] = {"event_time": _as_timestamp(times[1]), "date": dates[1].isoformat()}
        stats["nullCount"] = {"event_time": 0, "date": 0}
    size = files.filesystem.get_file_info(path).size
    return AddAction(path, size, {}, now, data_change=True, stats=json.dumps(stats))


def _bounds(metadata: pq.FileMetaData, column: str) -> tuple[Any, Any] | None:
    """Return the lowest and the highest value of a column; None if a row group has no statistics."""
    index = metadata.schema.names.index(column)
    groups = [metadata.row_group(group).column(index).statistics for group in range(metadata.num_row_groups)]
    if not all(group is not None and group.has_min_max for group in groups):
        return None
    return min(group.min for group in groups), max(group.max for group in groups)


def _as_timestamp(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
