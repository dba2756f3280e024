"""From landed files to the raw rows of each day.

Every landed file is read once into a staged Parquet copy of typed rows; the ledger remembers which file gave which
days. A day is then the upsert of all staged rows of that day, the newest file last. A file landed again under its name
replaces its staged copy, which withdraws its old rows; a file that has since left the landing place keeps its rows.
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
from ae_pipeline.ingestion.batch import RAW_VERSION, Rules, StagingBatch, rules_in_force
from ae_pipeline.ingestion.contract import SchemaContract, contract_in_force, save_contract
from ae_pipeline.ingestion.deduplicate import by_identity
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.ledger import LandedFile, Ledger, landing_order
from ae_pipeline.ingestion.readers import read_file, suffixes
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, PLACE, UnreadableFileError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import detach, read_facts
from ae_pipeline.storage.paths import DatasetPaths

_SAMPLED_FILES, _SAMPLED_CELLS = 64, 2**21
"""What types are inferred from: so many files, or up to twice as many, and so many rows times columns of them all."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestResult:
    """What reading the landing place came to.

    Attributes:
        ledger: As it now stands.
        contract: The contract in force.
        read: Files read now, since they were new or changed.
        moved: Identities by the day that has lost them: a newer file gives them another event time.
    """

    ledger: Ledger
    contract: SchemaContract
    read: tuple[str, ...]
    moved: dict[str, list[str]]

    def pending_days(self, dataset: Dataset) -> list[str]:
        """Lists days whose raw rows are not what the landed files now give, also days that have lost all theirs."""
        config, paths = dataset.config, dataset.paths
        built = {path.stem for path in paths.raw("_").parent.glob("*.parquet")}
        days = (day for day in sorted({*self.ledger.days, *built}) if config.has_day(day))
        return [day for day in days if read_facts(paths.raw(day)).get("input_hash") != self.input_hash(day)]

    def input_hash(self, day: str) -> str:
        """Changes when other staged rows make up the day."""
        staged = [entry.staged for _, entry in self.ledger.sources(day)]
        return hash_json([RAW_VERSION, staged, self.moved.get(day), self.contract.fingerprint])


def landing_folder(dataset: Dataset) -> Path:
    """Where the dataset's files land."""
    config, paths = dataset.config, dataset.paths
    return paths.root / config.source.path if config.source.path else paths.landing


def landed_files(dataset: Dataset) -> dict[str, Path]:
    """Lists the landed files by their path below the landing place; hidden ones are still being written.

    Raises:
        StorageError: There is no such folder, or it holds no file of the dataset.
    """
    config, _paths = dataset.config, dataset.paths
    folder, endings = landing_folder(dataset), suffixes(config.images)
    kinds = "PNG, JPEG, CSV or Parquet" if config.images else "CSV or Parquet"
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"{folder} is a file where the folder of {config.dataset!r}'s landed files must be; move it away"
        )
    if not folder.exists():
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {folder} does not exist; put {kinds} files there"
        )
    found = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.glob(config.source.pattern))
        if path.suffix.lower() in endings and path.is_file() and not path.name.startswith((".", "_"))
    }
    if not found:
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {folder} holds no {' or '.join(endings)} file that matches "
            f"{config.source.pattern!r}; put some there"
        )
    return found


def unread_files(dataset: Dataset, today: dt.date) -> dict[str, tuple[int, int]]:
    """Lists landed files that are new or have changed since they were read, with their size and time in ns.

    It looks at names, sizes and times alone, and so is cheap enough to be asked again and again.

    Returns:
        Also none where nothing has landed yet.
    """
    config, paths = dataset.config, dataset.paths
    try:
        landed = landed_files(dataset)
    except StorageError:
        return {}
    known = Ledger.load(paths.ledger).files
    rules = (
        rules_in_force(contract_in_force(paths.contract, config), config, today) if paths.contract.exists() else None
    )
    stats = {name: path.stat() for name, path in landed.items() if not _is_known(known.get(name), path, rules)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def last_ingest(dataset: Dataset) -> IngestResult | None:
    """Gives what reading the landing place came to last; None where it was never read."""
    config, paths = dataset.config, dataset.paths
    if not paths.contract.exists():
        return None
    ledger = Ledger.load(paths.ledger)
    return IngestResult(ledger, contract_in_force(paths.contract, config), (), _moved(ledger, dataset))


def _is_known(entry: LandedFile | None, path: Path, rules: Rules | None) -> bool:
    if entry is None or rules is None:
        return False
    stat = path.stat()
    held = entry.contract in {rules.lasting, rules.until_last_day}
    return held and (entry.size, entry.modified_ns) == (stat.st_size, stat.st_mtime_ns)


def ingest(dataset: Dataset, today: dt.date) -> IngestResult:
    """Reads every new or changed landed file into its staged copy and quarantine, and brings the ledger up to date.

    A contract is inferred where there is none. Whatever fails, files already read stay read.

    Raises:
        StorageError: Nothing has landed, or the disk is full.
        SchemaError: A file's columns have changed; all other files are read first.
    """
    config, paths = dataset.config, dataset.paths
    landed = landed_files(dataset)
    if not paths.contract.exists():
        _infer(dataset, landed)
    contract = contract_in_force(paths.contract, config)
    previous = Ledger.load(paths.ledger)
    rules = rules_in_force(contract, config, today)
    new = [name for name, path in landed.items() if not _is_known(previous.files.get(name), path, rules)]
    # A refused file that has left and gave no rows leaves nothing to remember.
    files = {
        name: entry for name, entry in previous.files.items() if name in landed or not entry.refused or entry.staged
    }
    changed_columns = []
    progress = ProgressLogger(logger)
    batch = StagingBatch(contract, dataset, today)
    try:
        for done, name in enumerate(new):
            progress.update(done, len(new), "files read")
            try:
                entry = batch.add(name, landed[name], files.get(name))
            except SchemaError as error:
                changed_columns.append(error)
                continue
            files.update({name: entry} if entry else {})
            if batch.is_full:
                files.update(batch.stage())
        files.update(batch.stage())
    finally:
        ledger = Ledger(files)
        if files != previous.files:
            ledger.save(paths.ledger)
        _sweep(ledger, paths)
    if changed_columns:
        more = f" ({len(changed_columns) - 1} further files likewise)" if len(changed_columns) > 1 else ""
        raise SchemaError(f"{changed_columns[0]}{more}") from changed_columns[0]
    changed = tuple(name for name in new if files[name] != previous.files.get(name))
    return IngestResult(ledger, contract, changed, _moved(ledger, dataset))


def _moved(ledger: Ledger, dataset: Dataset) -> dict[str, list[str]]:
    """Finds identities that a newer file has moved to another day; none can where event time is part of them."""
    config, paths = dataset.config, dataset.paths
    if config.event_time is None or config.event_time in config.identity:
        return {}
    files = [entry for _, entry in sorted(ledger.files.items(), key=landing_order) if entry.staged]
    staged = [str(entry.staged) for entry in files]
    if not staged:
        return {}
    # It takes reading every identity there is, which a look at whether there is something to do cannot afford.
    found, of = paths.ledger.with_name("moved.json"), hash_json([RAW_VERSION, staged])
    if found.exists() and (known := json.loads(found.read_text(encoding="utf-8")))["of"] == of:
        return dict(known["moved"])
    rows = (pl.read_parquet(paths.staged(name), columns=["row_id", "_day"]) for name in staged)
    newest = pl.col("_day").last().over("row_id")  # the newest file comes last
    parts = by_identity(rows, sum(entry.rows for entry in files), paths.scratch)
    lost = pl.concat([part.filter(pl.col("_day") != newest).unique() for part in parts]).sort("row_id")
    moved = {str(day): part["row_id"].to_list() for (day,), part in lost.group_by("_day", maintain_order=True)}
    write_text(found, json.dumps({"of": of, "moved": moved}))
    return moved


def _infer(dataset: Dataset, landed: dict[str, Path]) -> None:
    config, paths = dataset.config, dataset.paths
    names = list(landed)
    chosen = names[:: max(1, len(names) // _SAMPLED_FILES)]
    samples: list[pl.DataFrame] = []
    refused = ""
    for name in chosen:
        try:
            file = read_file(name, landed[name].read_bytes(), config.images)
        except UnreadableFileError as error:
            refused = refused or f" ({name}: {error})"
            continue
        if file.rows.is_empty() and file.rejected.height:
            refused = refused or f" ({name}: {file.rejected['reason'][0]})"
        # What images are is looked at here, and not their bytes, which would fill the memory.
        images = [column for column, dtype in file.rows.schema.items() if dtype == IMAGE_STRUCT]
        bare = (pl.col(column).struct.with_fields(data=pl.lit(None, pl.Binary)) for column in images)
        # Spread over the file and taken out of it: the first rows would keep all others in memory.
        step = math.ceil(file.rows.height * max(file.rows.width, 1) * len(chosen) / _SAMPLED_CELLS)
        samples.append(detach(file.rows.drop(*PLACE).gather_every(max(step, 1)).with_columns(*bare)))
    filled = [sample for sample in samples if sample.height]
    if not filled:
        raise SchemaError(
            f"none of the {len(landed)} landed files of {config.dataset!r} holds a row that can be read{refused}, so "
            "no schema contract can be inferred; land one that does"
        )
    contract = infer_contract(filled, config)
    total = sum(sample.height for sample in filled)
    save_contract(contract, paths.contract, f"{total:,} rows of {len(filled)} files")


def _sweep(ledger: Ledger, paths: DatasetPaths) -> None:
    """Removes staged copies that no ledger entry names any more, and what a killed run left half written."""
    entries = ledger.files.values()
    for folder, current in (
        (paths.staged("_").parent, {entry.staged for entry in entries}),
        (paths.quarantined("_").parent, {entry.rejected_copy for entry in entries}),
    ):
        for path in folder.glob("*"):
            if path.stem not in current or path.name.startswith("."):
                path.unlink(missing_ok=True)
