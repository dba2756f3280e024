"""Landed files that were deleted, and days that a dataset no longer has."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.ingestion.contract import OnDelete, SchemaContract
from ae_pipeline.ingestion.ledger import LandedFile, Ledger
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import MEMBER, DatasetPaths

logger = logging.getLogger(__name__)

_NAMED_FILES = 20
"""Deleted files that the log names."""


def deleted_files(
    files: Mapping[str, LandedFile], landed: Collection[str], contract: SchemaContract, folder: Path
) -> dict[str, LandedFile]:
    """Return the deleted files that were not handled yet, by their path below the landing folder.

    A file that may exist in a folder that cannot be read does not count.

    Args:
        files: Ledger entries.
        landed: Files in the landing folder.
        contract: Schema contract with the choice `on_delete`.
        folder: Landing folder.
    """
    withdraws = contract.on_delete == OnDelete.WITHDRAW
    return {
        name: entry
        for name, entry in files.items()
        if name not in landed and entry.staged and (withdraws or not entry.deleted) and _is_readable(folder / name)
    }


def refused_and_gone(files: Mapping[str, LandedFile], landed: Collection[str], folder: Path) -> list[str]:
    """Return the refused files without rows that have left the landing folder, which the next ingestion forgets.

    Args:
        files: Ledger entries.
        landed: Files in the landing folder.
        folder: Landing folder.
    """
    return [
        name
        for name, entry in files.items()
        if entry.refused and not entry.staged and name not in landed and _is_readable(folder / name)
    ]


def _is_readable(path: Path) -> bool:
    """Return whether it can be found out if a file exists."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return True


def handle_deletions(
    files: Mapping[str, LandedFile], landed: Collection[str], contract: SchemaContract, dataset: Dataset, folder: Path
) -> dict[str, LandedFile]:
    """Return the ledger entries after the choice `on_delete` of the schema contract, and log what happens.

    Args:
        files: Ledger entries.
        landed: Files in the landing folder; at least one.
        contract: Schema contract with the choice.
        dataset: Dataset of the files.
        folder: Landing folder.
    """
    deleted = deleted_files(files, landed, contract, folder)
    result = {
        name: replace(entry, deleted=False) if entry.deleted and name in landed else entry
        for name, entry in files.items()
    }
    if not deleted:
        return result
    noun = noun_of_rows(dataset.config)
    rows, count = pluralize(sum(entry.rows for entry in deleted.values()), noun), pluralize(len(deleted), "file")
    names = [f"{name} ({pluralize(entry.rows, noun)})" for name, entry in sorted(deleted.items())]
    more = f" and {len(names) - _NAMED_FILES:,} more" if len(names) > _NAMED_FILES else ""
    left = f"{count} left the landing folder of {dataset.name!r}: {', '.join(names[:_NAMED_FILES])}{more}"
    if contract.on_delete == OnDelete.WITHDRAW:
        logger.warning(f"{left}; on_delete=withdraw removes their {rows}, and their days are built again")
        return {name: entry for name, entry in result.items() if name not in deleted}
    logger.warning(
        f"{left}; on_delete=keep keeps their {rows}. To remove them, set 'on_delete: withdraw' in "
        f"{dataset.paths.contract}"
    )
    return {**result, **{name: replace(entry, deleted=True) for name, entry in deleted.items()}}


def empty_landing(dataset: Dataset, folder: Path) -> str:
    """Return an error text if the landing folder is empty although files were read from it.

    An unmounted disk looks like this, so nothing is withdrawn.
    """
    if not dataset.paths.ledger.exists():
        return ""
    staged = [entry for entry in Ledger.load(dataset.paths.ledger).files.values() if entry.staged]
    if not staged:
        return ""
    noun = noun_of_rows(dataset.config)
    rows = pluralize(sum(entry.rows for entry in staged), noun)
    return (
        f"{folder} is missing or has no file of {dataset.name!r}, although {rows} of {pluralize(len(staged), 'file')} "
        f"were read from it. An unmounted disk looks like this, so their {plural(noun)} stay: restore the folder or "
        f"one of its files, or remove all state with `ae-pipeline forget {dataset.name}`"
    )


def remove_foreign_days(dataset: Dataset) -> None:
    """Delete raw rows and features of days that the dataset does not have as configured now.

    Their rows are in the staged copies, or in quarantine since `start`, `end` or `timezone` changed.
    """
    for path in _files_of_days(dataset.paths):
        if not dataset.config.has_day(path.stem):
            path.unlink(missing_ok=True)


def _files_of_days(paths: DatasetPaths) -> list[Path]:
    return [path for stage in (paths.raw, paths.features) for path in stage("_").parent.glob("[!.]*.parquet")]


def remove_unused_copies(ledger: Ledger, paths: DatasetPaths) -> None:
    """Delete staged copies and quarantine files that no ledger entry references, and partial files of killed runs."""
    entries = ledger.files.values()
    for folder, current in (
        (paths.staged("_").parent, {str(entry.staged).partition(MEMBER)[0] for entry in entries}),
        (paths.quarantined("_").parent, {entry.rejected_copy for entry in entries}),
    ):
        for path in folder.glob("*"):
            if path.stem not in current or path.name.startswith("."):
                path.unlink(missing_ok=True)
