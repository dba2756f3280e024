"""Checks of what serves: model store, bundles, history, latent table, report and alerts."""

from collections.abc import Iterator
from pathlib import Path

from ae_pipeline.common.errors import BundleError, PipelineError, PublicationError, StorageError
from ae_pipeline.common.timestamps import now
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latents.files import TableFiles, live_files
from ae_pipeline.latents.log import repair_log
from ae_pipeline.lifecycle.doctor.problem import Problem, remove, set_aside
from ae_pipeline.registry.bundles import verified_folder
from ae_pipeline.registry.history import Change, HistoryEntry, history, record
from ae_pipeline.registry.names import CHALLENGER, CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.files import damaged_report_files
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.integrity import move_aside
from ae_pipeline.storage.jsonl import read_lines, sealed_line
from ae_pipeline.storage.parquet import damage_of
from ae_pipeline.storage.sqlite import copy_database, is_empty, sqlite_damage


def store_problems(tracker: Tracker) -> Iterator[Problem]:
    """Yield what is wrong with the database of the model store."""
    database, backup = tracker.database, tracker.backup
    if database is None or backup is None:
        return
    damage = sqlite_damage(database, thorough=True)
    can_restore = backup.exists() and not sqlite_damage(backup, thorough=True) and not is_empty(backup)
    if damage is None and backup.exists() and not can_restore:
        yield Problem(
            kind="model store",
            subject=str(backup),
            message=sqlite_damage(backup) or "it is empty",
            remedy="delete it; the next training writes another",
            repair=remove(backup),
        )
    if damage is None:
        return
    remedy = "move it aside; trainings and versions so far are lost to the registry, and the next run trains anew"
    if can_restore:
        remedy = "move it aside and restore its backup; what happened after the last training or decision is lost"

    def repair() -> None:
        for path in (database, *(database.with_name(f"{database.name}-{end}") for end in ("journal", "wal", "shm"))):
            if path.exists():
                move_aside(path)
        if can_restore:
            copy_database(backup, database)

    yield Problem(kind="model store", subject=str(database), message=damage, remedy=remedy, repair=repair)


def version_problems(dataset: Dataset, tracker: Tracker) -> Iterator[Problem]:
    """Yield versions whose bundles are not those that were registered."""
    champion, challenger = (tracker.version(dataset.name, alias) for alias in (CHAMPION, CHALLENGER))
    for version in tracker.versions(dataset.name):
        try:
            ModelBundle.load(verified_folder(tracker, version), "cpu")  # nothing is scored
        except (BundleError, StorageError) as error:
            subject = f"version {version.version}"
            if champion is not None and champion.version == version.version:
                remedy = "the next run trains a new version; until then nothing is scored with this one"
                yield Problem(kind="bundle", subject=subject, message=str(error), remedy=remedy)
            elif challenger is not None and challenger.version == version.version:
                yield Problem(
                    kind="bundle", subject=subject, message=str(error), remedy="the next run trains a new version"
                )
            else:
                yield Problem(
                    kind="bundle",
                    subject=subject,
                    message=str(error),
                    remedy="delete the version from the registry; nobody can roll back to it",
                    repair=lambda version=version: _delete(tracker, version),  # type: ignore[misc]
                )


def _delete(tracker: Tracker, version: TrackedVersion) -> None:
    tracker.client.delete_model_version(version.dataset, str(version.version))
    tracker.back_up()


def history_problems(dataset: Dataset, tracker: Tracker) -> Iterator[Problem]:
    """Yield damaged lines of the logs of a dataset, and a history that does not know which version serves."""
    paths = dataset.paths
    logs = {"history": paths.history, "alerts": paths.alerts, "withdrawals": paths.withdrawals, "marks": paths.marks}
    for kind, path in logs.items():
        if path.exists() and (not path.is_file() or read_lines(path)[1]):
            numbers = read_lines(path)[1]
            yield Problem(
                kind=kind,
                subject=str(path),
                message=f"lines {', '.join(map(str, numbers[:5]))} are damaged" if numbers else "it is not a file",
                remedy="move it aside and keep the other lines; the damaged ones are lost",
                repair=lambda path=path: _keep_lines(path, dataset),  # type: ignore[misc]
            )
            return
    champion = tracker.version(dataset.name, CHAMPION)
    served = [entry.version for entry in history(paths) if entry.change != Change.REJECTED]
    if champion is not None and (not served or served[-1] != champion.version):
        known = f"the last entry says that version {served[-1]} does" if served else "no entry says so"
        missing = "" if paths.history.exists() else "the file is missing, so earlier decisions are lost: "
        yield Problem(
            kind="history",
            subject=str(paths.history),
            message=f"{missing}version {champion.version} serves, but {known}",
            remedy="add an entry for the version that serves; who decided it, and why, is lost",
            repair=lambda: _add_entry(dataset, champion, served[-1] if served else None),
        )


def _keep_lines(path: Path, dataset: Dataset) -> None:
    lines = read_lines(path)[0]
    set_aside(path, dataset.paths)
    if lines:
        write_text(path, "".join(f"{sealed_line(line)}\n" for line in lines))


def _add_entry(dataset: Dataset, champion: TrackedVersion, previous: int | None) -> None:
    entry = HistoryEntry(
        at=now(),
        change=Change.PROMOTED,
        version=champion.version,
        previous=previous,
        who="ae-pipeline doctor",
        why="it serves, and the history had no entry that says so",
        runs={"mlflow_run_id": champion.run_id},
    )
    record(dataset.paths, entry)


def table_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield what is wrong with the latent table: its log, its files and its texts."""
    files = TableFiles(dataset.paths.latents)
    if files.is_folder and Path(files.location).exists() and not Path(files.location).is_dir():
        yield Problem(
            kind="latents",
            subject=files.location,
            message="it is not a folder",
            remedy="move it aside; the next run publishes all days again",
            repair=lambda: set_aside(Path(files.location), dataset.paths),
        )
        return
    try:
        table = files.open()
    except (PublicationError, OSError) as error:
        yield Problem(
            kind="latents",
            subject=f"{files.location}/_delta_log",
            message=str(error),
            remedy="repair nothing in an object store"
            if not files.is_folder
            else "move the damaged commits and those after them aside; those versions of the table are lost, and the "
            "next run publishes what is missing",
            repair=lambda: repair_log(Path(files.location), files.delta_location) if files.is_folder else None,
        )
        return
    for path in live_files(table) if table else ():
        if damage := files.damage(path):
            yield Problem(
                kind="latents",
                subject=files.full_path(path),
                message=damage,
                remedy="the next run publishes its days again",
                repair=remove(Path(files.full_path(path))),
            )
    for name in files.damaged_texts():
        yield Problem(
            kind="latents",
            subject=files.full_path(name),
            message="it is missing or was changed",
            remedy="the next run writes it again",
        )


def report_problems(dataset: Dataset) -> Iterator[Problem]:
    """Yield damaged and missing files of the report."""
    paths = dataset.paths
    if paths.reports.exists() and not paths.reports.is_dir():
        yield Problem(
            kind="report",
            subject=str(paths.reports),
            message="it is not a folder",
            remedy="move it aside; the next run writes the report again",
            repair=lambda: set_aside(paths.reports, paths),
        )
        return
    days = sorted((paths.reports / "days").glob("[!.]*.parquet"))
    damaged = {path: damage for path in days if (damage := damage_of(path))}
    damaged |= dict.fromkeys(damaged_report_files(paths), "it is missing or was changed")
    for path, message in damaged.items():
        yield Problem(
            kind="report",
            subject=str(path),
            message=message,
            remedy="the next run writes it again",
        )


def readable(dataset: Dataset, tracker: Tracker) -> PipelineError | None:
    """Return why the model store cannot be opened; None if it can."""
    try:
        tracker.version(dataset.name, CHAMPION)
    except PipelineError as error:
        return error
    return None
