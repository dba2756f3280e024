"""How long earlier versions of a latent table stay readable, and what goes after that."""

import datetime as dt
import re

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.layout import parse_path

ABANDONED = dt.timedelta(days=1)
"""Age from which a file that no commit knows is one that no publication will commit."""

_OURS = re.compile(r"(v\d+_\w+/[\w-]+|_contract(/versions)?|_symlink_format_manifest)/\.[^/]+\.tmp")


def retention_properties(days: int) -> dict[str, str]:
    """Gives the properties that tell Delta's own tools to keep what we keep.

    Args:
        days: For how long the files of earlier versions stay; the log that names them stays longer.
    """
    return {
        "delta.deletedFileRetentionDuration": f"interval {days} days",
        "delta.logRetentionDuration": f"interval {2 * days + 30} days",
    }


def set_aside(table: DeltaTable) -> set[str]:
    """Lists the files of earlier versions."""
    return set(table.vacuum(0, dry_run=True, enforce_retention_duration=False))


def collect(table: DeltaTable, files: TableFiles, days: int) -> None:
    """Removes files that left the table long ago, and those that never entered it.

    Args:
        table: As it is now.
        files: Its files.
        days: For how long the files of earlier versions stay.
    """
    # Listed first: what enters the table from here on is no file of this list.
    written = files.written()
    try:
        table.update_incremental()
        _remove_old(table, days)
    except CommitFailedError:
        return  # another publication came between, and the next one collects
    known = {*live_files(table), *set_aside(table)}
    previous = dt.datetime.now(dt.UTC) - ABANDONED
    # Only what a publication calls its files: others may keep theirs here.
    files.remove(
        path
        for path, when in written.items()
        if when < previous and path not in known and (parse_path(path) or _OURS.fullmatch(path))
    )


def _remove_old(table: DeltaTable, days: int) -> None:
    wanted = retention_properties(days)
    properties = table.metadata().configuration
    if any(properties.get(name) != value for name, value in wanted.items()):
        table.alter.set_table_properties(wanted)
    # Only where there is something to do: it adds two commits.
    if table.vacuum(24 * days, dry_run=True, enforce_retention_duration=False):
        table.vacuum(24 * days, dry_run=False, enforce_retention_duration=False)
        table.update_incremental()
