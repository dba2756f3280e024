"""Versions of a model on the command line: list, compare, roll back, and the history."""

from typing import TYPE_CHECKING

from ae_pipeline.cli.project import Project, current_user
from ae_pipeline.common.escape import terminal_line
from ae_pipeline.common.text import align, pluralize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ae_pipeline.lifecycle.comparison import ComparedRow
    from ae_pipeline.registry.store import Tracker
    from ae_pipeline.storage.dataset import Dataset


def roll_back(name: str, version: int | None, why: str, even_if_rejected: bool) -> int:
    """Let another version serve, or list the versions; return the exit status.

    Args:
        name: Name of the dataset.
        version: Version that shall serve; None to list them.
        why: Reason.
        even_if_rejected: Whether a version that the gate rejected may serve.

    Raises:
        PromotionError: The version does not exist, the gate rejected it, or the reason is missing.
        PipelineError: A run failed.
    """
    from ae_pipeline.lifecycle.plan import plan_serving
    from ae_pipeline.lifecycle.promote import RollbackRequest, rollback_target
    from ae_pipeline.orchestration.assets.champion import ChampionConfig
    from ae_pipeline.orchestration.jobs import rollback_run_config

    project = Project.load()
    dataset = project.dataset(name)
    if version is None:
        _list_versions(dataset, project.tracker)
        return 0
    who = current_user()
    # Before a run starts, which would fail and raise an alert.
    request = RollbackRequest(version=version, why=why, who=who, even_if_rejected=even_if_rejected)
    rollback_target(dataset, project.tracker, request)
    project.end_dead_runs(name)
    champion = ChampionConfig(version=version, why=why, who=who, even_if_rejected=even_if_rejected)
    project.run_job(dataset, "rollback", run_config=rollback_run_config(dataset.config, champion))
    for work in plan_serving(dataset, project.tracker).work:
        for days in work.ranges or (None,):
            project.run_job(dataset, work.step, days)
    return 0


def _list_versions(dataset: "Dataset", tracker: "Tracker") -> None:
    from ae_pipeline.lifecycle.versions import list_versions

    versions = list_versions(dataset, tracker)
    if not versions:
        print(f"No version of {dataset.name!r} is registered so far; `ae-pipeline run {dataset.name}` trains one.")
        return
    rows = [("version", "window", "state", "gate")]
    rows += [
        (
            str(each.version),
            f"{each.first_day} to {each.last_day}" if each.last_day else "",
            "serves" if each.serves else "",
            terminal_line(each.gate),
        )
        for each in versions
    ]
    for line in align(rows):
        print(line)
    print(f"\nTo let one of them serve: ae-pipeline rollback {dataset.name} VERSION --why REASON")


def compare(name: str, new: int, old: int | None) -> int:
    """Print what one version flags on the newest days that another does not; return the exit status.

    Args:
        name: Name of the dataset.
        new: Version that is considered.
        old: Version to compare it with; None for the one that serves.

    Raises:
        PromotionError: A version does not exist, or there is nothing to score.
        BundleError: A bundle cannot be read, or cannot score the present features.
    """
    from ae_pipeline.lifecycle.comparison import compare_versions

    project = Project.load()
    compared = compare_versions(project.dataset(name), project.tracker, new, old)
    print(f"{compared.message[0].upper()}{compared.message[1:]}.")
    if compared.correlation is not None:
        print(f"Rank correlation of their scores: {compared.correlation:.3f}.")
    for version, count, rows in (
        (compared.new, compared.gained, compared.only_new),
        (compared.old, compared.lost, compared.only_old),
    ):
        _print_rows(version, pluralize(count, compared.unit), rows)
    return 0


def _print_rows(version: int, count: str, rows: "Sequence[ComparedRow]") -> None:
    print(f"\nOnly version {version} flags {count}{':' if rows else '.'}")
    table = [(f"{row.score:.1f}", f"({row.other_score:.1f})", row.row_id, row.because) for row in rows]
    for line in align([tuple(map(terminal_line, each)) for each in table], right=()):
        print(f"  {line}")


def show_history(name: str) -> int:
    """Print which versions served, since when and why; return the exit status.

    Args:
        name: Name of the dataset.
    """
    from ae_pipeline.registry.history import Change, history

    entries = history(Project.load().dataset(name).paths)
    for entry in entries:
        relation = "; serving" if entry.change == Change.REJECTED else ", replaces"
        previous = "" if entry.previous is None else f"{relation} version {entry.previous}"
        version = f"version {entry.version}"
        change = f"rolled back to {version}" if entry.change == Change.ROLLED_BACK else f"{version} {entry.change}"
        print(terminal_line(f"{entry.at}  {change}{previous}, by {entry.who}: {entry.why}"))
    if not entries:
        print(f"No version of {name!r} has served so far; `ae-pipeline run {name}` trains one.")
    return 0
