"""The layout of a latent table: names and columns of its files, how one is written and what it is held against."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.errors import PublicationError
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.storage import hash_json

LATENTS_VERSION = "2"
"""Raised when the same features and model would give another file."""

_ROW_GROUP = 122_880


def latent_space_name(model_version: int, fingerprint: str) -> str:
    """Names the latent space of a model: its version, and its fingerprint, since another store counts from 1 again."""
    return f"v{model_version}_{fingerprint[:8]}"


def axes_name(bundle: ModelBundle, model_version: int) -> str:
    """Names the axes that a model's latents are told in: the space that had them first."""
    first: str | None = bundle.facts.get("alignment", {}).get("axes")
    return first or latent_space_name(model_version, bundle.fingerprint)


def latent_schema(latent_dim: int) -> pa.Schema:
    """Columns of the table."""
    return pa.schema(
        [
            pa.field("row_id", pa.string(), nullable=False),
            pa.field("event_time", pa.timestamp("us", "UTC")),
            pa.field("date", pa.date32()),
            *(pa.field(f"z_{place:03d}", pa.float32(), nullable=False) for place in range(latent_dim)),
            pa.field("score", pa.float64(), nullable=False),
            pa.field("p_value", pa.float64(), nullable=False),
            pa.field("is_anomaly", pa.bool_(), nullable=False),
            pa.field("model_version", pa.int64(), nullable=False),
            pa.field("latent_space", pa.string(), nullable=False),
        ]
    )


def expected_path(day: str, features_hash: str, fingerprint: str, latent_space: str) -> str:
    """Names the file of a day: the same features under the same model give the same name, so a file there is right."""
    return f"{latent_space}/{day}/part-{hash_json([LATENTS_VERSION, features_hash, fingerprint])[:16]}.parquet"


def score_file(bundle: ModelBundle, model_version: int, features: Path, path: str, files: TableFiles) -> None:
    """Scores one file of features into one file of the table; safe to run twice."""
    rows = pl.read_parquet(features)
    scored = bundle.score(rows)
    schema = latent_schema(bundle.model.latent_dim)
    space = latent_space_name(model_version, bundle.fingerprint)
    columns = [
        rows["row_id"].to_arrow().cast(pa.string()),
        rows["event_time"].to_arrow().cast(pa.timestamp("us", "UTC")),
        rows["event_time"].dt.date().to_arrow(),
        *(pa.array(np.ascontiguousarray(scored.latents[:, place])) for place in range(bundle.model.latent_dim)),
        pa.array(scored.score),
        pa.array(scored.p_value),
        pa.array(scored.is_anomaly),
        pa.array(np.full(rows.height, model_version)),
        pa.array([space] * rows.height, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    floats = [name for name in schema.names if pa.types.is_floating(schema.field(name).type)]
    with files.writing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            row_group_size=_ROW_GROUP,
            use_byte_stream_split=floats,
            use_dictionary=["latent_space", "model_version", "date"],
            write_page_checksum=True,
            sorting_columns=pq.SortingColumn.from_ordering(schema, [("event_time", "ascending")]),
        )


def verify_file(
    path: str,
    files: TableFiles,
    rows: int,
    schema: pa.Schema,
    space: str,
    broken_rules: Callable[[pl.DataFrame], list[str]],
) -> int:
    """Reads a file back before it enters the table, and counts its flagged rows.

    Args:
        path: Of the file.
        files: Of the table.
        rows: That its features have.
        schema: Of the table.
        space: Whose rows it is to hold.
        broken_rules: Holds rows against the contract of the table.

    Raises:
        PublicationError: It cannot be read, by its pages' checksums either, or does not hold what it must.
    """
    remedy, target = "the table was left as it was: remove that file and run again", files.full_path(path)
    try:
        found = files.read(path, verify=True)
    except (pa.ArrowException, OSError) as error:
        raise PublicationError(f"{target} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    if not found.schema.equals(schema):
        named = ", ".join(f"{field.name}: {field.type}" for field in found.schema)
        raise PublicationError(f"{target} has the columns {named}, which are not those of the table; {remedy}")
    if found.num_rows != rows or found["latent_space"].unique().to_pylist() != [space]:
        raise PublicationError(
            f"{target} holds {found.num_rows} rows of {' and '.join(found['latent_space'].unique().to_pylist())}, "
            f"where the features have {rows} for {space}; {remedy}"
        )
    if broken := broken_rules(pl.DataFrame(pl.from_arrow(found))):
        raise PublicationError(f"{target} breaks the contract of the table: {'; '.join(broken)}; {remedy}")
    return int(pc.sum(found["is_anomaly"]).as_py() or 0)


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
