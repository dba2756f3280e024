"""`ae-pipeline forget`: remove everything that is stored of a dataset."""

import re
from typing import TYPE_CHECKING

from ae_pipeline.cli.confirm import confirm
from ae_pipeline.cli.project import Project
from ae_pipeline.common.errors import ConfigError
from ae_pipeline.storage.session import forget_state

if TYPE_CHECKING:
    import dagster as dg

    from ae_pipeline.lifecycle.forget import StoredPart

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def forget(name: str, *, confirmed: bool, landing_too: bool) -> int:
    """List and remove what is stored of a dataset, after a confirmation. Return the exit status.

    The dataset need not be defined any more.

    Args:
        name: Name of the dataset.
        confirmed: Whether to remove without a question.
        landing_too: Whether to remove the landed files too.

    Raises:
        ConfigError: The name is not valid, the confirmation does not match, or nobody can confirm.
        StorageError: A part cannot be removed. Another attempt goes on with the rest.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"{name!r} is not the name of a dataset; write it as in its YAML, with lower-case letters, digits and '_'"
        )
    project = Project.load()
    project.workspace.refresh(name, accepts_loss=True)
    parts, kept = _parts(project, name, landing_too)
    if not parts:
        print(f"Nothing to remove: nothing is stored of {name!r}.")
        return 0
    print(f"This removes everything that is stored of {name!r}:\n")
    print("\n".join(_lines(parts)))
    if kept:
        print(f"\nIt keeps (--landing-too removes them as well):\n\n{_lines([kept])[0]}")
    if not confirmed:
        question = f"This cannot be undone. Write the name of the dataset ({name}) to remove it: "
        confirm(question, name, "nothing was removed", f"--yes to forget {name!r}")
    with project.workspace.locked(name, accepts_loss=True):
        for part in _parts(project, name, landing_too)[0]:
            part.remove()
            print(f"removed {part.name}", flush=True)
        forget_state(project.workspace.paths(name))
    if name in project.datasets:
        print(f"\n{name!r} is still defined: `ae-pipeline run {name}` and its sensors start from scratch.")
    return 0


def _parts(project: Project, name: str, landing_too: bool) -> "tuple[list[StoredPart], StoredPart | None]":
    """Return what is removed, and the landed files if they are kept."""
    from ae_pipeline.lifecycle.forget import landed_part, stored_parts

    paths = project.workspace.paths(name)
    parts = [*_dagster_parts(project, name), *stored_parts(paths, project.tracker)]
    landed = landed_part(paths, project.datasets.get(name))
    if landed and landing_too:
        return [*parts, landed], None
    return parts, landed


def _dagster_parts(project: Project, name: str) -> "list[StoredPart]":
    from ae_pipeline.lifecycle.forget import StoredPart

    instance = project.instance
    project.end_dead_runs(name)
    keys = [key for key in instance.get_asset_keys() if key.path[0] == name]
    runs = [run for run in instance.get_runs() if _belongs_to(run, name)]
    if active := [run for run in runs if not run.is_finished]:
        raise ConfigError(
            f"run {active[0].run_id} of {name!r} is {active[0].status.value.lower()}; wait for its end or cancel it, "
            f"`ae-pipeline unblock {name}` says what executes it; then run this again"
        )
    if not keys and not runs:
        return []

    def remove() -> None:
        if keys:
            instance.wipe_assets(keys)
        for run in runs:
            instance.delete_run(run.run_id)

    label = f"materializations and partitions of {len(keys)} assets, and {len(runs)} runs in Dagster"
    return [StoredPart(name=label, address=instance.root_directory, size=None, remove=remove)]


def _belongs_to(run: "dg.DagsterRun", name: str) -> bool:
    """Return whether a run belongs to the dataset alone: by its tag, or by the assets that a person selected."""
    from ae_pipeline.orchestration.tags import DATASET_TAG

    if DATASET_TAG in run.tags:
        return run.tags[DATASET_TAG] == name
    return bool(run.asset_selection) and all(key.path[0] == name for key in run.asset_selection or ())


def _lines(parts: "list[StoredPart]") -> list[str]:
    return [f"  {_size(part.size):>10}  {part.name}: {part.address}" for part in parts]


def _size(count: int | None) -> str:
    """Return a size as text.

    >>> _size(950), _size(12_345_678), _size(None)
    ('950 bytes', '12.3 MB', '')
    """
    if count is None:
        return ""
    size, unit = float(count), 0
    while size >= 1000 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
