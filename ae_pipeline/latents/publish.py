"""Publication of latents and scores: Parquet files that one commit adds to a Delta Lake table."""

import datetime as dt
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deltalake import DeltaTable
from open_data_contract_standard.model import OpenDataContractStandard

from ae_pipeline.common.signals import critical_section
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.ingestion.removal import is_accepted
from ae_pipeline.latent_space.names import latent_space_name
from ae_pipeline.latents.commit import ConflictError, commit_files, create_table
from ae_pipeline.latents.contract_versions import read_contract, update_contract
from ae_pipeline.latents.data_contract import CONTRACT, PAGE, build_contract
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import day_key, spaces_of
from ae_pipeline.latents.log import record_digests, restore_texts
from ae_pipeline.latents.read import MANIFEST, last_versions, published_days
from ae_pipeline.latents.retention import vacuum
from ae_pipeline.latents.table_update import LatentDay, TableUpdate
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.locks import locks, publication_lock
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.paths import DatasetPaths

logger = logging.getLogger(__name__)

_RETRIES = 8
"""How often a publication that lost against another one is tried again."""

_RETRY_SECONDS = 0.05
"""Longest pause before the first retry. It doubles with each of the next four."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Result of a publication.

    Attributes:
        days: Requested days, and days that were scored again because the table changed its latent space.
        table_version: Version of the Delta table after the publication; -1 if there is no table yet.
        latent_space: Latent space of the rows in the table.
        committed: Whether the table changed.
        contract: Version of the data contract; None if there is no table yet.
    """

    days: tuple[LatentDay, ...]
    table_version: int
    latent_space: str
    committed: bool
    contract: str | None


def stale_days(days: Iterable[str], paths: DatasetPaths, fingerprint: str, model_version: int) -> list[str]:
    """Return the days whose rows in the table do not come from their current features and this model.

    Days without features are not stale.

    Args:
        days: Days to look at.
        paths: Paths of the dataset.
        fingerprint: Fingerprint of the champion.
        model_version: Version of the champion.
    """
    published = published_days(paths)
    space = latent_space_name(model_version, fingerprint)
    stale = []
    for day in days:
        if facts := read_facts(paths.features(day)):
            key = day_key(facts["content_hash"], fingerprint)
            expected = f"{space}/{day}/{key}" if facts["rows"] != "0" else None
            actual = published[day].identity if day in published else None
            stale += [day] if actual != expected else []
    return stale


def publish(
    days: Sequence[str],
    dataset: Dataset,
    bundle: ModelBundle,
    model_version: int,
    origin: Mapping[str, str],
    before_commit: Callable[[], None] = lambda: None,
    *,
    accepts_removal: bool = False,
    bundle_folder: Path | None = None,
) -> Publication:
    """Publish the rows of some days under a model, in one commit.

    A version of the table never mixes two latent spaces. If the table has rows of another model, all its days are
    scored again and change in the same commit. The commit is based on the version of the table at the start. After a
    concurrent publication it is tried again, up to eight times, with the files that are written already; unless that
    publication has moved the table to a model that this one does not know of.

    After the commit, the list of current files (Delta's symlink manifest, for engines that only read Parquet) and the
    data contract are updated, and old files are vacuumed.

    Args:
        days: Days to publish. Their features must exist.
        dataset: Configuration and paths of the dataset.
        bundle: Champion.
        model_version: Version of the champion.
        origin: Ids of the runs that this commit comes from, for its metadata.
        before_commit: Function to call after scoring, directly before each try of the commit, also if there is nothing
            to commit.
        accepts_removal: Whether more than `max_removed_share` of the rows may leave the table.
        bundle_folder: Folder of the bundle, from which the workers of the engine load it. By default, this process
            scores all days.

    Raises:
        RemovalError: Too many rows would leave the table. It is unchanged.
        PublicationError: Features of a day are missing, a written file does not have the expected rows, or other
            publications have committed at the same time.
    """
    files, lock = TableFiles(dataset.paths.latents), publication_lock(dataset.paths)
    if files.is_folder:
        restore_texts(Path(files.location))
    contract = build_contract(dataset.config, bundle, model_version, files)
    accepts_removal = accepts_removal or is_accepted(dataset.paths)
    spaces_at_start: set[str] | None = None
    built: set[str] = set()
    for retry in range(_RETRIES + 1):
        # The first attempt scores without the lock, because that takes long. The others find their files written.
        with locks().hold(lock) if retry else nullcontext():
            table = files.open()
            update = TableUpdate(dataset, bundle, model_version, files, contract, table, bundle_folder)
            spaces_at_start = update.spaces if spaces_at_start is None else spaces_at_start
            if not update.spaces <= {*spaces_at_start, update.space}:
                raise ConflictError(files)  # nothing undoes a publication under another model
            planned = update.plan(days)
            if not accepts_removal:
                update.check_removal(planned)
            published = update.write(planned)
            built |= {day.day for day in published if day.built}
            try:
                with locks().hold(lock):
                    table, committed = _commit(update, planned, table, origin, before_commit)
                break
            except ConflictError:
                if retry == _RETRIES:
                    raise
                logger.info(f"another publication changed {files.location}; trying again")
        time.sleep(random.uniform(0, _RETRY_SECONDS * 2 ** min(retry, 4)))  # noqa: S311 - no secret
    result = Publication(
        days=tuple(replace(day, built=day.day in built) for day in published),
        table_version=-1,
        latent_space=update.space,
        committed=committed,
        contract=None,
    )
    if table is None:
        return result
    with locks().hold(lock):
        # Also without a commit, because an earlier run may have been interrupted between its commit and these steps.
        current = _describe(table, update.space, contract, files)
        vacuum(table, files, dataset.config.latents.retention_days)
        if files.is_folder:
            record_digests(Path(files.location), texts=(CONTRACT, PAGE), files=(MANIFEST,))
    return replace(result, table_version=table.version(), contract=current.version if current else None)


def _commit(
    update: TableUpdate,
    planned: Mapping[str, Mapping[str, str]],
    table: DeltaTable | None,
    origin: Mapping[str, str],
    before_commit: Callable[[], None],
) -> tuple[DeltaTable | None, bool]:
    """Commit the written files. Return the table, and whether it changed.

    Raises:
        ConflictError: The table has changed since it was read.
    """
    files, bundle = update.files, update.bundle
    version_at_start = table.version() if table else None
    added, removed = sorted({*planned} - update.live | update.resized), sorted(update.live - set(planned))
    changes = bool(added or removed)
    with critical_section():  # what `before_commit` does and the commit belong together
        before_commit()
        if changes:
            table = table or create_table(files, update.dataset, bundle)
            metadata = {**origin, "model_version": str(update.model_version), "latent_space": update.space}
            commit_files(table, files, bundle, added, removed, metadata)
    if not changes and (current := files.open()) and current.version() != version_at_start:
        raise ConflictError(files)
    return table, changes


def _describe(
    table: DeltaTable, space: str, contract: OpenDataContractStandard, files: TableFiles
) -> OpenDataContractStandard | None:
    """Write the list of current files and the data contract, until both describe the version that stands.

    A publication of another host, which does not know the lock, may commit meanwhile.

    Args:
        table: Table after the commit; on return, its newest version.
        space: Latent space of the commit.
        contract: Contract of a table with this latent space.
        files: Files of the table.

    Returns:
        The contract in force. After a publication in another latent space, it is the contract of that publication.
    """
    current = None
    for _ in range(_RETRIES + 1):
        version, live = table.version(), live_files(table)
        # DeltaTable.generate() would write one manifest per folder, and keep manifests of files that were removed.
        files.write_text(MANIFEST, "".join(f"{files.full_path(path)}\n" for path in live))
        if spaces_of(live) <= {space}:
            current = update_contract(contract, files, partial(last_versions, table), dt.datetime.now(dt.UTC))
        elif current is not None:
            logger.warning(f"{files.location} moved to another model; its next publication writes the data contract")
        table.update_incremental()
        if table.version() == version:
            break
    return current or read_contract(files)
