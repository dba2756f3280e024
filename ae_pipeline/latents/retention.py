"""Retention: how long earlier versions of a latent table stay readable, and which files are vacuumed."""

import datetime as dt
import re

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import parse_path

ORPHAN_AGE = dt.timedelta(days=1)
"""Age after which a file that no commit references is orphaned: no publication that is running will commit it."""

_TEMPORARY = re.compile(r"(v\d+_\w+/[\w-]+|_contract(/versions)?|_images|_symlink_format_manifest)/\.[^/]+\.tmp")


def retention_properties(days: int) -> dict[str, str]:
    """Return the table properties that make other Delta tools keep files as long as this project does.

    Args:
        days: Days for which the files of earlier versions stay. The log that references them stays longer.
    """
    return {
        "delta.deletedFileRetentionDuration": f"interval {days} days",
        "delta.logRetentionDuration": f"interval {2 * days + 30} days",
    }


def earlier_files(table: DeltaTable) -> set[str]:
    """Return the paths of the files that only earlier versions of a table have."""
    return set(table.vacuum(0, dry_run=True, enforce_retention_duration=False))


def vacuum(table: DeltaTable, files: TableFiles, days: int) -> None:
    """Delete files that left the table before the retention, and orphaned files that never entered it.

    Only files with names that a publication gives are deleted. Files of other tools stay.

    Args:
        table: Newest version of the table.
        files: Files of the table.
        days: Days for which the files of earlier versions stay.
    """
    # Listed first, so that files which enter the table from now on are not in the list.
    written = files.written()
    try:
        table.update_incremental()
        _delete_expired(table, days)
    except CommitFailedError:
        return  # another publication has committed at the same time; the next one vacuums
    referenced = {*live_files(table), *earlier_files(table)}
    newest_orphan = dt.datetime.now(dt.UTC) - ORPHAN_AGE
    files.remove(
        path
        for path, modified in written.items()
        if modified < newest_orphan and path not in referenced and (parse_path(path) or _TEMPORARY.fullmatch(path))
    )


def _delete_expired(table: DeltaTable, days: int) -> None:
    expected = retention_properties(days)
    properties = table.metadata().configuration
    if any(properties.get(name) != value for name, value in expected.items()):
        table.alter.set_table_properties(expected)
    # A vacuum adds two commits, so it only runs if a file has expired.
    if table.vacuum(24 * days, dry_run=True, enforce_retention_duration=False):
        table.vacuum(24 * days, dry_run=False, enforce_retention_duration=False)
        table.update_incremental()
