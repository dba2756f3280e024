"""Ingest landed files.

Each landed file is read once into a staged Parquet copy of typed rows. The ledger records which file has rows for which
days. The rows of a day are the upsert of all staged rows of that day, the newest file last. A file that lands again
under its name replaces its staged copy, which withdraws its previous rows. A file that has left the landing folder
keeps its rows, unless the schema contract says `on_delete: withdraw`.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.ingestion.contract import SchemaContract, contract_in_force
from ae_pipeline.ingestion.deletions import (
    deleted_files,
    empty_landing,
    handle_deletions,
    refused_and_gone,
    remove_foreign_days,
    remove_unused_copies,
)
from ae_pipeline.ingestion.fingerprints import RAW_VERSION, RuleFingerprints, rule_fingerprints
from ae_pipeline.ingestion.first_contract import infer_and_save_contract
from ae_pipeline.ingestion.landing_folder import (
    LandingFolder,
    landed_files,
    landing_address,
    landing_folder,
    list_landed,
)
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.ingestion.moves import moved_identities
from ae_pipeline.ingestion.packs import repack
from ae_pipeline.ingestion.read_ahead import NewFile
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.ingestion.removal import accept_removal, find_removal, keep_settings
from ae_pipeline.ingestion.stage_files import stage_files
from ae_pipeline.ingestion.staged import keep_contract
from ae_pipeline.ingestion.whole_copies import WholeCopies
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import read_facts
from ae_pipeline.storage.session import load_landed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestResult:
    """The result of an ingestion.

    Attributes:
        ledger: Current ledger.
        contract: Current schema contract.
        read: Files that this ingestion has read, because they were new or changed.
        moved: For each day, the identities that a newer file has moved to another day.
        has_identity: Whether columns identify a row. Otherwise equal rows are counted, and none is replaced.
    """

    ledger: Ledger
    contract: SchemaContract
    read: tuple[str, ...]
    moved: dict[str, list[str]]
    has_identity: bool = True

    def pending_days(self, dataset: Dataset) -> list[str]:
        """Return the days whose raw rows are out of date, including days that no longer have rows."""
        raw = dataset.paths.raw
        built = {path.stem for path in raw("_").parent.glob("*.parquet")}
        days = (day for day in sorted({*self.ledger.days, *built}) if dataset.config.has_day(day))
        return [day for day in days if read_facts(raw(day)).get("input_hash") != self.input_hash(day)]

    def of_day(self, day: str) -> "IngestResult":
        """Return what the raw rows of one day are made from."""
        moved = {day: self.moved[day]} if day in self.moved else {}
        return replace(self, ledger=Ledger(dict(self.ledger.sources(day))), read=(), moved=moved)

    def input_hash(self, day: str) -> str:
        """Return a hash of everything that the raw rows of a day are made from."""
        staged = [entry.staged for _, entry in self.ledger.sources(day)]
        return hash_json([RAW_VERSION, staged, self.moved.get(day), self.contract.fingerprint])


class Landing:
    """The landed files of a dataset, and its ledger. Each is looked up once, when it is needed first.

    Args:
        dataset: Dataset to look at.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @cached_property
    def files(self) -> dict[str, Path] | None:
        """The landed files to read, by their path below the landing folder; None if there are none."""
        try:
            return landed_files(self._dataset)
        except StorageError:
            return None

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger. It is large where many files have landed."""
        return Ledger.load(self._dataset.paths.ledger)


def require_landed(dataset: Dataset) -> LandingFolder:
    """Return what has landed as `list_landed` does, and refuse to go on if all files that were read are missing.

    Raises:
        StorageError: No file of the dataset is in the landing folder.
    """
    try:
        return list_landed(dataset)
    except StorageError as error:
        if message := empty_landing(dataset, landing_folder(dataset)):
            raise StorageError(message) from error
        raise


def unread_files(dataset: Dataset, today: dt.date, landing: Landing | None = None) -> dict[str, tuple[int, int]]:
    """Return the landed files that are new, or have changed since they were read.

    The function compares only names, sizes and times, so that a sensor can call it often.

    Args:
        dataset: Dataset whose landing folder is checked.
        today: Last valid day if the configuration has no `end`.
        landing: What has landed; looked up by default.

    Returns:
        Size in bytes and modification time in ns of each file. Empty if nothing has landed yet.
    """
    config, paths, landing = dataset.config, dataset.paths, landing or Landing(dataset)
    if landing.files is None:
        return {}
    entries = landing.ledger.files
    rules = (
        rule_fingerprints(contract_in_force(paths.contract, config), dataset, today)
        if paths.contract.exists()
        else None
    )
    copies = WholeCopies(paths)
    unread = [
        name
        for name, path in landing.files.items()
        if not _is_current(entries.get(name), path, rules and rules.of(name), copies)
    ]
    copies.keep()
    stats = {name: landing.files[name].stat() for name in unread}
    # An archive of another time zone, or a wrong clock, can date a file into the future. The system dates its change.
    return {name: (stat.st_size, min(stat.st_mtime_ns, stat.st_ctime_ns)) for name, stat in stats.items()}


def unhandled_deletions(dataset: Dataset, landing: Landing | None = None) -> dict[str, int]:
    """Return the deleted landed files that the next ingestion handles, and when something left their folder, in ns.

    Empty if no file is left, because an unmounted disk looks like that.

    Args:
        dataset: Dataset whose landing folder is checked.
        landing: What has landed; looked up by default.
    """
    paths, folder, landing = dataset.paths, landing_folder(dataset), landing or Landing(dataset)
    if landing.files is None or not paths.contract.exists():
        return {}
    contract = contract_in_force(paths.contract, dataset.config)
    entries = landing.ledger.files
    deleted = deleted_files(entries, landing.files, contract, folder)
    parents = {name: next(path for path in (folder / name).parents if path.exists()) for name in deleted}
    refused = dict.fromkeys(refused_and_gone(entries, landing.files, folder), 0)  # without rows, nothing can be lost
    return {**refused, **{name: parent.stat().st_mtime_ns for name, parent in parents.items()}}


def idle_landing(dataset: Dataset, landing: Landing | None = None) -> str:
    """Return why the landing folder needs a look, although no file is new; empty if it does not.

    Args:
        dataset: Dataset whose landing folder is checked.
        landing: What has landed; looked up by default.
    """
    return empty_landing(dataset, landing_folder(dataset)) if (landing or Landing(dataset)).files is None else ""


def last_ingest(dataset: Dataset, landing: Landing | None = None) -> IngestResult | None:
    """Return the result of the last ingestion without reading files, or None if there was no ingestion yet.

    Args:
        dataset: Dataset that was ingested.
        landing: What has landed; looked up by default.
    """
    config, paths = dataset.config, dataset.paths
    if not paths.contract.exists():
        return None
    ledger = (landing or Landing(dataset)).ledger
    moved = moved_identities(ledger, paths, config)
    return IngestResult(ledger, contract_in_force(paths.contract, config), (), moved, bool(config.identity))


def _is_current(entry: LandedFile | None, path: Path, rules: RuleFingerprints | None, copies: WholeCopies) -> bool:
    """Return whether the ledger has this version of a file under the current rules, and its copies are whole."""
    if entry is None or rules is None or entry.contract not in {rules.lasting, rules.until_last_day}:
        return False
    stat = path.stat()
    return (entry.size, entry.modified_ns) == (stat.st_size, stat.st_mtime_ns) and copies.has(entry)


def ingest(dataset: Dataset, today: dt.date, *, accepts_removal: bool = False) -> IngestResult:
    """Read each new or changed landed file into a staged copy and quarantine, and update the ledger.

    A missing schema contract is inferred first. If the function fails, files that it has read stay read.

    Args:
        dataset: Dataset to ingest.
        today: Last valid day if the configuration has no `end`.
        accepts_removal: Whether more than `max_removed_share` of the rows may go.

    Raises:
        StorageError: Nothing has landed, or the disk is full.
        SchemaError: No schema contract can be inferred, or the contract is not valid.
        RemovalError: Too many rows would go. Ledger, staged copies and raw rows are as before.
    """
    config, paths = dataset.config, dataset.paths
    landing = require_landed(dataset)
    landed = landing.files
    if landing.others:
        logger.warning(f"{landing_address(dataset)}: {landing.describe_others()}")
    if config.images and landing.masks:
        landing.log_masks(config.images)
    already_read = {}
    if not paths.contract.exists():
        load_landed(paths, landed.values())
        already_read = infer_and_save_contract(dataset, landed)
    contract = contract_in_force(paths.contract, config)
    previous = Ledger.load(paths.ledger)
    rules = rule_fingerprints(contract, dataset, today)
    expressions = (config.images.path if config.images else None, config.source.path_columns)
    rules.metadata.log_missing([name for name in landed if is_image(name)], expressions)
    copies = WholeCopies(paths)
    new = [
        name for name, path in landed.items() if not _is_current(previous.files.get(name), path, rules.of(name), copies)
    ]
    copies.keep()
    load_landed(paths, [landed[name] for name in new])
    gone = set(refused_and_gone(previous.files, landed, landing_folder(dataset)))
    files = {name: entry for name, entry in previous.files.items() if name not in gone}
    files = handle_deletions(files, landed, contract, dataset, landing_folder(dataset))
    progress = ProgressLogger(logger)
    unread = [NewFile(name, landed[name], files.get(name)) for name in new]
    is_refused = True
    try:
        with closing(stage_files(unread, contract, dataset, today, already_read)) as staged:
            for done, entries in staged:
                files.update(entries)
                progress.update(done, len(new), "files read")
    finally:
        try:
            removal = find_removal(previous, files, contract, dataset)
            is_removal = removal is not None and removal.exceeds(config.max_removed_share)
            if accepts_removal or not is_removal:
                files, is_refused = repack(files, previous.files.values(), paths), False
                _save(previous, Ledger(files), dataset, is_accepted=is_removal)
        finally:
            remove_unused_copies(previous if is_refused else Ledger(files), paths)
    if removal and is_refused:
        raise removal.as_error(dataset)
    _log_skipped_columns(new, ledger := Ledger(files))
    changed = tuple(name for name in new if files[name] != previous.files.get(name))
    return IngestResult(ledger, contract, changed, moved_identities(ledger, paths, config), bool(config.identity))


def _save(previous: Ledger, ledger: Ledger, dataset: Dataset, *, is_accepted: bool) -> None:
    """Save what an ingestion has read, and the schema contract that it used."""
    keep_contract(dataset.paths)
    keep_settings(dataset)
    if ledger != previous:
        ledger.save(dataset.paths.ledger)
    if is_accepted:
        accept_removal(ledger, dataset.paths)
    remove_foreign_days(dataset)


def _log_skipped_columns(names: Sequence[str], ledger: Ledger) -> None:
    files: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for item in ledger.files[name].skipped.items():
            files.setdefault(item, []).append(name)
    for (column, reason), sources in files.items():
        logger.warning(f"column {column!r} is not read in {pluralize(len(sources), 'file')} ({sources[0]}): {reason}")
