"""Publishes latents and scores: plain Parquet files that enter a Delta Lake log, all of a run in one commit."""

import datetime as dt
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.errors import PublicationError
from ae_pipeline.latents.read import current_files, files_by_day, open_table
from ae_pipeline.storage import DatasetPaths, atomic_write, hash_json, make_folder, read_facts, write_text

LATENTS_VERSION = "2"
"""Raised when the same features and model would give another file."""

_ROW_GROUP = 122_880


@dataclass(frozen=True)
class LatentDay:
    """One day of the published table.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Rows in it.
        flagged: Rows within the alert budget.
        path: Of its file, relative to the table; None for a day without rows.
        built: Whether the file was written now.
    """

    day: str
    rows: int
    flagged: int
    path: str | None
    built: bool


@dataclass(frozen=True)
class Publication:
    """What a publication came to.

    Attributes:
        days: Every day asked for, and those rebuilt since the table had to change its space as a whole.
        table_version: Of the Delta table after it.
        latent_space: Whose rows the table holds.
        committed: Whether anything changed.
    """

    days: tuple[LatentDay, ...]
    table_version: int
    latent_space: str
    committed: bool


def latent_space_name(model_version: int, fingerprint: str) -> str:
    """Names the latent space of a model: its version, and its fingerprint, since another store counts from 1 again."""
    return f"v{model_version}_{fingerprint[:8]}"


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


def stale_days(days: Iterable[str], paths: DatasetPaths, bundle: ModelBundle, model_version: int) -> list[str]:
    """Lists days whose rows in the table are not those of their features under this model."""
    published, fingerprint = files_by_day(paths), bundle.fingerprint
    space = latent_space_name(model_version, fingerprint)
    stale = []
    for day in days:
        if facts := read_facts(paths.features(day)):
            path = expected_path(day, facts["content_hash"], fingerprint, space) if facts["rows"] != "0" else None
            stale += [day] if published.get(day) != path else []
    return stale


def score_file(bundle: ModelBundle, model_version: int, features: Path, target: Path) -> None:
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
    with atomic_write(target) as temporary:
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


def publish(
    days: Sequence[str],
    paths: DatasetPaths,
    bundle: ModelBundle,
    model_version: int,
    origin: Mapping[str, str],
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Publication:
    """Brings days of the table up to date under a model, in one commit, and then the list of its current files.

    That list is Delta's symlink manifest, `_symlink_format_manifest/manifest`, for engines that know Parquet alone.

    Rows of two spaces never stand in one version of the table: where it holds rows of another model, all its days are
    scored anew and change over together with those asked for.

    Args:
        days: Days to publish; their features must be there.
        paths: The dataset's.
        bundle: The model that serves.
        model_version: Its version.
        origin: Runs that this commit comes from, kept in its metadata.
        progress: Told while it works.

    Raises:
        PublicationError: Features of a day are missing, or a written file is not what its features call for.
    """
    space = latent_space_name(model_version, bundle.fingerprint)
    held = files_by_day(paths)
    before = sorted(held.values())
    foreign = [path for path in before if not path.startswith(f"{space}/")]
    wanted = sorted({*days, *held}) if foreign else list(days)
    found: list[LatentDay] = []
    for done, day in enumerate(wanted):
        progress(done, len(wanted), "days scored")
        found.append(_bring_up_to_date(day, paths, bundle, model_version))
    progress(len(wanted), len(wanted), "days scored")

    kept = {entry.path for entry in found if entry.path}
    touched = {entry.day for entry in found}
    leaving = [path for day, path in held.items() if path not in kept and day in touched]
    entering = sorted(kept - set(before))
    if entering or leaving:
        _commit(
            paths, bundle, entering, leaving, {**origin, "model_version": str(model_version), "latent_space": space}
        )
    table = open_table(paths)
    if table is not None:
        # Also when nothing was committed: an earlier run may have ended between its commit and this.
        # DeltaTable.generate() would write one for each folder, and leave those of files that are gone.
        files = "".join(f"{paths.latents / path}\n" for path in current_files(paths))
        write_text(paths.latents / "_symlink_format_manifest" / "manifest", files)
    version = table.version() if table is not None else -1
    return Publication(tuple(found), version, space, bool(entering or leaving))


def _bring_up_to_date(day: str, paths: DatasetPaths, bundle: ModelBundle, model_version: int) -> LatentDay:
    source = paths.features(day)
    facts = read_facts(source)
    if not facts:
        raise PublicationError(f"features of {paths.dataset!r} have no {day}; materialize that partition first")
    rows = int(facts["rows"])
    if rows == 0:
        return LatentDay(day, 0, 0, None, False)
    fingerprint = bundle.fingerprint
    space = latent_space_name(model_version, fingerprint)
    path = expected_path(day, facts["content_hash"], fingerprint, space)
    target = paths.latents / path
    built = not target.exists()
    if built:
        score_file(bundle, model_version, source, target)
    flagged = _verify(target, rows, latent_schema(bundle.model.latent_dim), space)
    return LatentDay(day, rows, flagged, path, built)


def _verify(target: Path, rows: int, schema: pa.Schema, space: str) -> int:
    """Reads a file back before it enters the table, and counts its flagged rows.

    Raises:
        PublicationError: It cannot be read, by its pages' checksums either, or does not hold what it must.
    """
    remedy = "the table was left as it was: remove that file and run again"
    try:
        found = pq.read_table(target, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise PublicationError(f"{target} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    if not found.schema.equals(schema):
        named = ", ".join(f"{field.name}: {field.type}" for field in found.schema)
        raise PublicationError(f"{target} has the columns {named}, which are not those of the table; {remedy}")
    floats = [name for name in schema.names if pa.types.is_floating(schema.field(name).type)]
    wrong = [name for name in floats if not np.isfinite(found[name].to_numpy()).all()]
    if wrong:
        raise PublicationError(f"{target} holds values of {wrong[0]!r} that are not finite; {remedy}")
    if found.num_rows != rows or found["latent_space"].unique().to_pylist() != [space]:
        raise PublicationError(
            f"{target} holds {found.num_rows} rows of {' and '.join(found['latent_space'].unique().to_pylist())}, "
            f"where the features have {rows} for {space}; {remedy}"
        )
    return int(pc.sum(found["is_anomaly"]).as_py() or 0)


def _commit(
    paths: DatasetPaths,
    bundle: ModelBundle,
    entering: Sequence[str],
    leaving: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    schema = latent_schema(bundle.model.latent_dim)
    table = open_table(paths)
    if table is None:
        make_folder(paths.latents)
        table = DeltaTable.create(paths.latents, schema, name=f"{paths.dataset}_latents")
    now = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [_added(paths.latents, path, now) for path in entering]
    actions += [RemoveAction(path, data_change=True, deletion_timestamp=now) for path in leaving]
    # Another width means another schema, which only an overwrite may bring; it removes all files that are not added.
    mode = "append" if _same_columns(table, schema) else "overwrite"
    if mode == "overwrite":
        actions = [action for action in actions if isinstance(action, AddAction)]
    table.create_write_transaction(
        actions, mode, schema, commit_properties=CommitProperties(custom_metadata=dict(metadata))
    )


def _same_columns(table: DeltaTable, schema: pa.Schema) -> bool:
    before: list[str] = [field.name for field in table.schema().fields]
    return before == list(schema.names)


def _added(root: Path, path: str, now: int) -> AddAction:
    metadata = pq.ParquetFile(root / path).metadata
    index = metadata.schema.names.index("event_time")
    groups = [metadata.row_group(i).column(index).statistics for i in range(metadata.num_row_groups)]
    stats: dict[str, object] = {"numRecords": metadata.num_rows}
    if all(group is not None and group.has_min_max for group in groups):
        low, high = min(group.min for group in groups), max(group.max for group in groups)
        stats["minValues"] = {"event_time": _stamp(low), "date": f"{low:%Y-%m-%d}"}
        stats["maxValues"] = {"event_time": _stamp(high), "date": f"{high:%Y-%m-%d}"}
        stats["nullCount"] = {"event_time": 0, "date": 0}
    return AddAction(path, (root / path).stat().st_size, {}, now, data_change=True, stats=json.dumps(stats))


def _stamp(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
