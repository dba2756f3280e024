"""Publishes latents and scores: plain Parquet files that enter a Delta Lake log, all of a run in one commit."""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction
from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.bundle import ModelBundle
from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import PublicationError
from ae_pipeline.latents.data_contract import broken_rules, build_contract, renew
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import (
    add_action,
    expected_path,
    latent_schema,
    latent_space_name,
    score_file,
    verify_file,
)
from ae_pipeline.latents.read import MANIFEST, by_day, files_by_day, last_versions
from ae_pipeline.latents.retention import collect, retention_properties, set_aside
from ae_pipeline.storage import DatasetPaths, read_facts

_TRUSTED = dt.timedelta(minutes=30)
"""Age up to which a file that no commit knows is taken as it is; an older one may be swept while it is wanted."""


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
        contract: Version of the data contract beside it; None where there is no table yet.
    """

    days: tuple[LatentDay, ...]
    table_version: int
    latent_space: str
    committed: bool
    contract: str | None


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


def publish(
    days: Sequence[str],
    paths: DatasetPaths,
    bundle: ModelBundle,
    model_version: int,
    origin: Mapping[str, str],
    progress: Callable[[int, int, str], None] = lambda *_: None,
    config: PipelineConfig | None = None,
) -> Publication:
    """Brings days of the table up to date under a model, in one commit, and then the list of its current files.

    That list is Delta's symlink manifest, `_symlink_format_manifest/manifest`, for engines that know Parquet alone.

    Rows of two spaces never stand in one version of the table: where it holds rows of another model, all its days are
    scored anew and change over together with those asked for. What the table held when this began is what the commit
    goes by: where another publication comes between, nothing is committed.

    Args:
        days: Days to publish; their features must be there.
        paths: The dataset's.
        bundle: The model that serves.
        model_version: Its version.
        origin: Runs that this commit comes from, kept in its metadata.
        progress: Told while it works.
        config: The pipeline's as it is now; as the model was trained under by default.

    Raises:
        PublicationError: Features of a day are missing, a written file is not what its features call for, or another
            publication came first.
    """
    config, files = config or bundle.config, TableFiles(paths.latents)
    table = files.open()
    space = latent_space_name(model_version, bundle.fingerprint)
    held = by_day(live_files(table) if table else [])
    before = set(held.values())
    foreign = any(not path.startswith(f"{space}/") for path in before)
    wanted = sorted({*days, *held}) if foreign else list(days)
    committed = before | (set_aside(table) if table else set())
    recent = dt.datetime.now(dt.UTC) - _TRUSTED
    there = {path for path, written in files.written(space).items() if path in committed or written > recent}
    contract = build_contract(config, bundle, model_version, files)
    found: list[LatentDay] = []
    for done, day in enumerate(wanted):
        progress(done, len(wanted), "days scored")
        found.append(_bring_up_to_date(day, paths, bundle, model_version, files, there, contract))
    progress(len(wanted), len(wanted), "days scored")

    kept = {entry.path for entry in found if entry.path}
    touched = {entry.day for entry in found}
    leaving = [path for day, path in held.items() if path not in kept and day in touched]
    entering = sorted(kept - before)
    changes = bool(entering or leaving)
    if changes:
        table = table or _create(files, paths, bundle, config)
        metadata = {**origin, "model_version": str(model_version), "latent_space": space}
        _commit(table, files, bundle, entering, leaving, metadata)
    if table is None:
        return Publication(tuple(found), -1, space, changes, None)
    # Also when nothing was committed: an earlier run may have ended between its commit and this.
    # DeltaTable.generate() would write one for each folder, and leave those of files that are gone.
    files.write_text(MANIFEST, "".join(f"{files.full_path(path)}\n" for path in live_files(table)))
    contract = renew(contract, files, last_versions(table), dt.datetime.now(dt.UTC))
    collect(table, files, config.latents.retention_days)
    return Publication(tuple(found), table.version(), space, changes, contract.version)


def _bring_up_to_date(
    day: str,
    paths: DatasetPaths,
    bundle: ModelBundle,
    model_version: int,
    files: TableFiles,
    there: set[str],
    contract: OpenDataContractStandard,
) -> LatentDay:
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
    built = path not in there
    if built:
        score_file(bundle, model_version, source, path, files)
    flagged = verify_file(
        path, files, rows, latent_schema(bundle.model.latent_dim), space, partial(broken_rules, contract)
    )
    return LatentDay(day, rows, flagged, path, built)


def _create(files: TableFiles, paths: DatasetPaths, bundle: ModelBundle, config: PipelineConfig) -> DeltaTable:
    files.prepare()
    try:
        return DeltaTable.create(
            files.place,
            latent_schema(bundle.model.latent_dim),
            name=f"{paths.dataset}_latents",
            configuration=retention_properties(config.latents.retention_days),
        )
    except DeltaError as error:
        if files.open() is not None:
            raise PublicationError(_too_late(files)) from error
        raise


def _commit(
    table: DeltaTable,
    files: TableFiles,
    bundle: ModelBundle,
    entering: Sequence[str],
    leaving: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    schema = latent_schema(bundle.model.latent_dim)
    now = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = [add_action(path, files, now) for path in entering]
    actions += [RemoveAction(path, data_change=True, deletion_timestamp=now) for path in leaving]
    # Another width means another schema, which only an overwrite may bring; it removes all files that are not added.
    columns: list[str] = [field.name for field in table.schema().fields]
    mode = "append" if columns == list(schema.names) else "overwrite"
    if mode == "overwrite":
        actions = [action for action in actions if isinstance(action, AddAction)]
    # Tried again, it would add to what another publication has made of the table meanwhile.
    properties = CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0)
    try:
        table.create_write_transaction(actions, mode, schema, commit_properties=properties)
    except CommitFailedError as error:
        raise PublicationError(_too_late(files)) from error
    table.update_incremental()


def _too_late(files: TableFiles) -> str:
    return f"another publication changed {files.place} meanwhile; this one changed nothing there: run it again"
