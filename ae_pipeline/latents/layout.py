"""The layout of a latent table: names and columns of its files, how one is written and what it is held against."""

import datetime as dt
import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.parallel import prefetch
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import ROW_GROUP, row_bytes, rows_per_batch
from ae_pipeline.storage.paths import ALL_ROWS

LATENTS_VERSION = "3"
"""Raised when the same features and model would give another file."""

ALONE = 20_000
"""Rows from which a day has a file of its own; days with fewer share one with the others of their month.

Opening a file costs a reader as much as thousands of rows do, and a corrected day rewrites its file.
"""

_DAYS = b"ae_pipeline.days"


def latent_schema(latent_dim: int) -> pa.Schema:
    """Columns of the table."""
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
    """Names what the rows of a day are made of: the same features under the same model give the same rows."""
    return hash_json([LATENTS_VERSION, features_hash, fingerprint])[:16]


def group_of(day: str, rows: int) -> str:
    """Names the file that a day belongs in: that of its month, or one of its own where it has many rows."""
    return day if day == ALL_ROWS or rows >= ALONE else day[: len("2013-01")]


def file_path(space: str, group: str, keys: Mapping[str, str]) -> str:
    """Names a file by what it holds, so that a file that is there is right.

    Args:
        space: Latent space.
        group: The month or day.
        keys: `day_key` of each of its days.
    """
    name = keys[group] if group in keys else hash_json(sorted(keys.items()))[:16]
    return f"{space}/{group}/part-{name}.parquet"


class Parts(NamedTuple):
    """What the path of a file of the table says.

    Attributes:
        space: Latent space.
        group: The month or day that its rows are of, or `ALL_ROWS`.
        name: `day_key` of its day, or a hash of those of its days.
    """

    space: str
    group: str
    name: str

    @property
    def is_month(self) -> bool:
        """Whether days share the file."""
        return len(self.group) == len("2013-01")


_PATH = re.compile(r"(v\d+_\w+)/(\d{4}-\d\d(?:-\d\d)?|" + ALL_ROWS + r")/part-(\w+)\.parquet")


def parse_path(path: str) -> Parts | None:
    """Reads the path of a file of the table; None where no publication wrote it."""
    found = _PATH.fullmatch(path)
    return Parts(*found.groups()) if found else None


def keys_of(path: str, files: TableFiles) -> dict[str, str]:
    """Gives the days of a file of the table, each with its `day_key`.

    Raises:
        PublicationError: No publication wrote it, or it is gone.
    """
    parts = parse_path(path)
    keys = {} if parts is None else _keys_in(files.location, path) if parts.is_month else {parts.group: parts.name}
    if not keys:
        raise PublicationError(
            f"{files.full_path(path)} stands in the table and was not written by a publication; restore the version "
            "before it, or move the table away and materialize latent_features of all days"
        )
    return keys


@functools.lru_cache(maxsize=4096)
def _keys_in(index: str, path: str) -> dict[str, str]:
    """Reads them from the footer; a file never changes."""
    try:
        metadata = pq.read_schema(path, filesystem=TableFiles(index).filesystem).metadata or {}
    except FileNotFoundError as error:
        raise PublicationError(
            f"{index}/{path} is gone; materialize latent_features of any day to have its days put back"
        ) from error
    keys: dict[str, str] = json.loads(metadata.get(_DAYS, b"{}"))
    return keys


def score_day(bundle: ModelBundle, model_version: int, features: Path) -> Iterator[pa.Table]:
    """Scores one file of features, and gives the rows as the table has them, a row group at a time."""
    # What is buffered before it is read grows with the file.
    file = pq.ParquetFile(features, pre_buffer=False)
    for batch in prefetch(file.iter_batches(rows_per_batch(file.metadata.num_columns, row_bytes(file.metadata)))):
        yield _scored(bundle, model_version, batch)


def _scored(bundle: ModelBundle, model_version: int, batch: pa.RecordBatch) -> pa.Table:
    rows = pl.DataFrame(batch)
    scored = bundle.score(rows)
    space = latent_space_name(model_version, bundle.fingerprint)
    columns = [
        # Of the batch itself: a column that went through polars would keep all others of its batch in memory.
        batch["row_id"].cast(pa.string()),
        batch["event_time"].cast(pa.timestamp("us", "UTC")),
        rows["event_time"].dt.date().to_arrow(),
        *(pa.array(np.ascontiguousarray(scored.latents[:, index])) for index in range(bundle.model.latent_dim)),
        pa.array(scored.score),
        pa.array(scored.p_value),
        pa.array(scored.is_anomaly),
        pa.array(np.full(rows.height, model_version)),
        pa.array([space] * rows.height, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=latent_schema(bundle.model.latent_dim))


def write_file(
    days: Iterable[pa.Table], keys: Mapping[str, str], latent_dim: int, path: str, files: TableFiles
) -> None:
    """Writes the rows of days into one file of the table, a row group at a time; safe to run twice.

    Args:
        days: Rows of the days, in the order of time.
        keys: `day_key` of each.
        latent_dim: Width of the latent space.
        path: Of the file.
        files: Of the table.
    """
    schema = latent_schema(latent_dim)
    # Latents are noise to a codec: zstd saves a tenth of them, and readers take two to five times as long. A dictionary
    # would store them twice.
    codecs = {name: "NONE" if name.startswith("z_") else "zstd" for name in schema.names}
    with (
        files.writing(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema.with_metadata({_DAYS: json.dumps(dict(keys))}),
            compression=codecs,
            use_dictionary=["latent_space", "model_version", "date"],
            write_page_checksum=True,
            sorting_columns=pq.SortingColumn.from_ordering(schema, [("event_time", "ascending")]),
        ) as writer,
    ):
        waiting = schema.empty_table()
        for rows in days:
            waiting = pa.concat_tables([waiting, rows])
            while waiting.num_rows >= ROW_GROUP:
                writer.write_table(waiting.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                waiting = waiting.slice(ROW_GROUP)
        if waiting.num_rows:
            writer.write_table(waiting, row_group_size=ROW_GROUP)


def verify_file(
    path: str,
    files: TableFiles,
    days: Collection[str],
    rows: Mapping[str, int],
    schema: pa.Schema,
    space: str,
    broken_rules: Callable[[pl.DataFrame], list[str]],
) -> dict[str, int]:
    """Reads a file back before it enters the table, and counts the flagged rows of its days.

    Args:
        path: Of the file.
        files: Of the table.
        days: That it is to hold.
        rows: That the features have of those of them that are published now.
        schema: Of the table.
        space: Whose rows it is to hold.
        broken_rules: Holds rows against the contract of the table.

    Raises:
        PublicationError: It cannot be read, by its pages' checksums either, or does not hold what it must.
    """
    remedy, target = "the table was left as it was: remove that file and run again", files.full_path(path)
    try:
        table = files.read(path)
    except (pa.ArrowException, OSError) as error:
        raise PublicationError(f"{target} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    if not table.schema.equals(schema):
        named = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise PublicationError(f"{target} has the columns {named}, which are not those of the table; {remedy}")
    found = pl.DataFrame(pl.from_arrow(table))
    counted = found.group_by(pl.col("date").dt.to_string().fill_null(ALL_ROWS)).agg(
        pl.len(), pl.col("is_anomaly").sum()
    )
    held = {day: (count, flagged) for day, count, flagged in counted.iter_rows()}
    spaces = sorted(found["latent_space"].unique().to_list())
    if wrong := {day: count for day, count in rows.items() if held.get(day, (0, 0))[0] != count}:
        day, count = next(iter(wrong.items()))
        raise PublicationError(
            f"{target} holds {held.get(day, (0, 0))[0]} rows of {day}, where the features have {count}; {remedy}"
        )
    if further := sorted(held.keys() ^ set(days)):
        raise PublicationError(f"{target} has or lacks rows of {further[0]}, unlike its name says; {remedy}")
    if spaces != [space]:
        raise PublicationError(f"{target} holds rows of {' and '.join(spaces)}, and not of {space}; {remedy}")
    if broken := broken_rules(found):
        raise PublicationError(f"{target} breaks the contract of the table: {'; '.join(broken)}; {remedy}")
    return {day: held[day][1] for day in rows}


def add_action(path: str, files: TableFiles, now: int) -> AddAction:
    """Makes the entry of the log that lets a file into the table, with the figures that let readers skip it.

    Args:
        path: Of the file.
        files: Of the table.
        now: Milliseconds since 1970.
    """
    metadata = pq.read_metadata(path, filesystem=files.filesystem)
    index = metadata.schema.names.index("event_time")
    groups = [metadata.row_group(i).column(index).statistics for i in range(metadata.num_row_groups)]
    stats: dict[str, object] = {"numRecords": metadata.num_rows}
    if all(group is not None and group.has_min_max for group in groups):
        low, high = min(group.min for group in groups), max(group.max for group in groups)
        stats["minValues"] = {"event_time": _stamp(low), "date": f"{low:%Y-%m-%d}"}
        stats["maxValues"] = {"event_time": _stamp(high), "date": f"{high:%Y-%m-%d}"}
        stats["nullCount"] = {"event_time": 0, "date": 0}
    size = files.filesystem.get_file_info(path).size
    return AddAction(path, size, {}, now, data_change=True, stats=json.dumps(stats))


def _stamp(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
