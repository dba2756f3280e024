"""Ingest landed files.

Each landed file is read once into a staged Parquet copy of typed rows. The ledger records which file has rows for which
days. The rows of a day are the upsert of all staged rows of that day, the newest file last. A file that lands again
under its name replaces its staged copy, which withdraws its previous rows. A file that has left the landing folder
keeps its rows, unless the schema contract says `on_delete: withdraw`.
"""

import datetime as dt
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import SchemaError, StorageError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.batch import RAW_VERSION, RuleFingerprints, StagingBatch, rule_fingerprints
from ae_pipeline.ingestion.contract import SchemaContract, contract_in_force, save_contract
from ae_pipeline.ingestion.deduplicate import partition_by_identity
from ae_pipeline.ingestion.deletions import deleted_files, empty_landing, handle_deletions, remove_foreign_days
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.ledger import LandedFile, Ledger, landing_order
from ae_pipeline.ingestion.readers import read_file, suffixes
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, ORIGIN_COLUMNS, UnreadableFileError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import detach, read_facts
from ae_pipeline.storage.paths import DatasetPaths

_SAMPLED_FILES, _SAMPLED_CELLS = 64, 2**21
"""Size of the sample that a contract is inferred from: files (up to twice as many), and rows × columns of all."""

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

    def input_hash(self, day: str) -> str:
        """Return a hash of everything that the raw rows of a day are made from."""
        staged = [entry.staged for _, entry in self.ledger.sources(day)]
        return hash_json([RAW_VERSION, staged, self.moved.get(day), self.contract.fingerprint])


def landing_folder(dataset: Dataset) -> Path:
    """Return the folder in which the dataset's files land."""
    path = dataset.config.source.path
    return dataset.paths.root / path if path else dataset.paths.landing


def landed_files(dataset: Dataset) -> dict[str, Path]:
    """Return the landed files by their path below the landing folder. Hidden files are still being written.

    Raises:
        StorageError: The folder does not exist, or contains no file of the dataset.
    """
    config = dataset.config
    folder, endings = landing_folder(dataset), suffixes(config.images)
    kinds = "PNG, JPEG, CSV or Parquet" if config.images else "CSV or Parquet"
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"expected the landing folder of {config.dataset!r} at {folder}, found a file; move or delete it"
        )
    if not folder.exists():
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {folder} does not exist; put {kinds} files there"
        )
    files = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.glob(config.source.pattern))
        if path.suffix.lower() in endings and path.is_file() and not path.name.startswith((".", "_"))
    }
    if not files:
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {folder} has no {' or '.join(endings)} file that matches "
            f"{config.source.pattern!r}; put some there"
        )
    return files


def require_landed(dataset: Dataset) -> dict[str, Path]:
    """Return the landed files as `landed_files` does, and refuse to go on if all files that were read are missing.

    Raises:
        StorageError: No file of the dataset is in the landing folder.
    """
    try:
        return landed_files(dataset)
    except StorageError as error:
        if message := empty_landing(dataset, landing_folder(dataset)):
            raise StorageError(message) from error
        raise


def unread_files(dataset: Dataset, today: dt.date) -> dict[str, tuple[int, int]]:
    """Return the landed files that are new, or have changed since they were read.

    The function compares only names, sizes and times, so that a sensor can call it often.

    Args:
        dataset: Dataset whose landing folder is checked.
        today: Last valid day if the configuration has no `end`.

    Returns:
        Size in bytes and modification time in ns of each file. Empty if nothing has landed yet.
    """
    config, paths = dataset.config, dataset.paths
    try:
        landed = landed_files(dataset)
    except StorageError:
        return {}
    entries = Ledger.load(paths.ledger).files
    rules = (
        rule_fingerprints(contract_in_force(paths.contract, config), config, today) if paths.contract.exists() else None
    )
    stats = {name: path.stat() for name, path in landed.items() if not _is_current(entries.get(name), path, rules)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def unhandled_deletions(dataset: Dataset) -> dict[str, int]:
    """Return the deleted landed files that the next ingestion handles, and when something left their folder, in ns.

    Empty if no file is left, because an unmounted disk looks like that.
    """
    paths, folder = dataset.paths, landing_folder(dataset)
    try:
        landed = landed_files(dataset)
    except StorageError:
        return {}
    if not paths.contract.exists():
        return {}
    deleted = deleted_files(
        Ledger.load(paths.ledger).files, landed, contract_in_force(paths.contract, dataset.config), folder
    )
    parents = {name: next(path for path in (folder / name).parents if path.exists()) for name in deleted}
    return {name: parent.stat().st_mtime_ns for name, parent in parents.items()}


def idle_landing(dataset: Dataset) -> str:
    """Return why the landing folder needs a look, although no file is new; empty if it does not."""
    try:
        landed_files(dataset)
    except StorageError:
        return empty_landing(dataset, landing_folder(dataset))
    return ""


def last_ingest(dataset: Dataset) -> IngestResult | None:
    """Return the result of the last ingestion without reading files, or None if there was no ingestion yet."""
    config, paths = dataset.config, dataset.paths
    if not paths.contract.exists():
        return None
    ledger = Ledger.load(paths.ledger)
    moved = _moved_identities(ledger, paths, config)
    return IngestResult(ledger, contract_in_force(paths.contract, config), (), moved, bool(config.identity))


def _is_current(entry: LandedFile | None, path: Path, rules: RuleFingerprints | None) -> bool:
    """Return whether the ledger has this version of a file under the current rules."""
    if entry is None or rules is None:
        return False
    stat = path.stat()
    has_current_rules = entry.contract in {rules.lasting, rules.until_last_day}
    return has_current_rules and (entry.size, entry.modified_ns) == (stat.st_size, stat.st_mtime_ns)


def ingest(dataset: Dataset, today: dt.date) -> IngestResult:
    """Read each new or changed landed file into a staged copy and quarantine, and update the ledger.

    A missing schema contract is inferred first. If the function fails, files that it has read stay read.

    Args:
        dataset: Dataset to ingest.
        today: Last valid day if the configuration has no `end`.

    Raises:
        StorageError: Nothing has landed, or the disk is full.
        SchemaError: The columns of a file have changed. All other files are read first.
    """
    config, paths = dataset.config, dataset.paths
    landed = require_landed(dataset)
    if not paths.contract.exists():
        _infer_and_save_contract(dataset, landed)
    contract = contract_in_force(paths.contract, config)
    previous = Ledger.load(paths.ledger)
    rules = rule_fingerprints(contract, config, today)
    new = [name for name, path in landed.items() if not _is_current(previous.files.get(name), path, rules)]
    # Forget refused files that have left the landing folder and gave no rows.
    files = {
        name: entry for name, entry in previous.files.items() if name in landed or not entry.refused or entry.staged
    }
    files = handle_deletions(files, landed, contract, dataset, landing_folder(dataset))
    errors = []
    progress = ProgressLogger(logger)
    batch = StagingBatch(contract, dataset, today)
    try:
        for done, name in enumerate(new):
            progress.update(done, len(new), "files read")
            try:
                entry = batch.add(name, landed[name], files.get(name))
            except SchemaError as error:
                errors.append(error)
                continue
            files.update({name: entry} if entry else {})
            if batch.is_full:
                files.update(batch.stage())
        files.update(batch.stage())
    finally:
        ledger = Ledger(files)
        if files != previous.files:
            ledger.save(paths.ledger)
        _vacuum(ledger, paths)
        remove_foreign_days(dataset)
    if errors:
        more = f" (and {pluralize(len(errors) - 1, 'more file')} with other columns)" if len(errors) > 1 else ""
        raise SchemaError(f"{errors[0]}{more}") from errors[0]
    changed = tuple(name for name in new if files[name] != previous.files.get(name))
    return IngestResult(ledger, contract, changed, _moved_identities(ledger, paths, config), bool(config.identity))


def _moved_identities(ledger: Ledger, paths: DatasetPaths, config: PipelineConfig) -> dict[str, list[str]]:
    """Return the identities that a newer file has moved to another day, by their old day.

    There are none if the event time is part of the identity, or there is no identity.
    """
    if config.event_time is None or not config.identity or config.event_time in config.identity:
        return {}
    files = [entry for _, entry in sorted(ledger.files.items(), key=landing_order) if entry.staged]
    staged = [str(entry.staged) for entry in files]
    if not staged:
        return {}
    # Cached, because it needs the identities of all rows, and sensors call last_ingest often.
    cache, key = paths.ledger.with_name("moved.json"), hash_json([RAW_VERSION, staged])
    if cache.exists() and (content := json.loads(cache.read_text(encoding="utf-8")))["of"] == key:
        return dict(content["moved"])
    rows = (pl.read_parquet(paths.staged(name), columns=["row_id", "_day"]) for name in staged)
    newest = pl.col("_day").last().over("row_id")  # files are in landing order
    parts = partition_by_identity(rows, sum(entry.rows for entry in files), paths.scratch)
    lost = pl.concat([part.filter(pl.col("_day") != newest).unique() for part in parts]).sort("row_id")
    moved = {str(day): part["row_id"].to_list() for (day,), part in lost.group_by("_day", maintain_order=True)}
    write_text(cache, json.dumps({"of": key, "moved": moved}))
    return moved


def _infer_and_save_contract(dataset: Dataset, landed: dict[str, Path]) -> None:
    config = dataset.config
    chosen = list(landed)[:: max(1, len(landed) // _SAMPLED_FILES)]
    samples: list[pl.DataFrame] = []
    first_problem = ""
    for name in chosen:
        try:
            file = read_file(name, landed[name].read_bytes(), config.images)
        except UnreadableFileError as error:
            first_problem = first_problem or f" ({name}: {error})"
            continue
        if file.rows.is_empty() and file.rejected.height:
            first_problem = first_problem or f" ({name}: {file.rejected['reason'][0]})"
        # The inference needs the shape of images only; their bytes would fill the memory.
        images = [column for column, dtype in file.rows.schema.items() if dtype == IMAGE_STRUCT]
        without_bytes = (pl.col(column).struct.with_fields(data=pl.lit(None, pl.Binary)) for column in images)
        # Sampled over the whole file and detached, because a slice would keep all rows in memory.
        step = math.ceil(file.rows.height * max(file.rows.width, 1) * len(chosen) / _SAMPLED_CELLS)
        sample = file.rows.drop(*ORIGIN_COLUMNS).gather_every(max(step, 1)).with_columns(*without_bytes)
        samples.append(detach(sample))
    samples = [sample for sample in samples if sample.height]
    if not samples:
        raise SchemaError(
            f"none of the {len(landed)} landed files of {config.dataset!r} has a readable row{first_problem}, so that "
            "no schema contract can be inferred; land a file with readable rows"
        )
    rows = pluralize(sum(sample.height for sample in samples), "row")
    save_contract(
        infer_contract(samples, config), dataset.paths.contract, f"{rows} of {pluralize(len(samples), 'file')}"
    )


def _vacuum(ledger: Ledger, paths: DatasetPaths) -> None:
    """Delete staged copies and quarantine files that no ledger entry references, and partial files of killed runs."""
    entries = ledger.files.values()
    for folder, current in (
        (paths.staged("_").parent, {entry.staged for entry in entries}),
        (paths.quarantined("_").parent, {entry.rejected_copy for entry in entries}),
    ):
        for path in folder.glob("*"):
            if path.stem not in current or path.name.startswith("."):
                path.unlink(missing_ok=True)
