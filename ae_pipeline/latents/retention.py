"""How long earlier versions of a latent table stay readable, and what goes after that."""

import datetime as dt

from deltalake import DeltaTable

from ae_pipeline.latents.files import TableFiles, live_files

_ABANDONED = dt.timedelta(hours=1)
"""Age from which a file that no commit knows is one that no publication will commit."""


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
    wanted = retention_properties(days)
    properties = table.metadata().configuration
    if any(properties.get(name) != value for name, value in wanted.items()):
        table.alter.set_table_properties(wanted)
    # Only where there is something to do: it adds two commits.
    if table.vacuum(24 * days, dry_run=True, enforce_retention_duration=False):
        table.vacuum(24 * days, dry_run=False, enforce_retention_duration=False)
        table.update_incremental()
    known = {*live_files(table), *set_aside(table)}
    before = dt.datetime.now(dt.UTC) - _ABANDONED
    files.remove(
        path
        for path, written in files.written().items()
        if written < before and (_is_half_written(path) or not (path.startswith("_") or path in known))
    )


def _is_half_written(path: str) -> bool:
    """Whether it is what a killed `atomic_write` left; Delta's own log is left alone."""
    return path.rpartition("/")[2].startswith(".") and path.endswith(".tmp") and not path.startswith("_delta_log")
