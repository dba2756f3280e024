"""Everything that is stored of a dataset, and its removal."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import first_line, pluralize
from ae_pipeline.ingestion.landing_folder import landed_files, landing_folder
from ae_pipeline.latents.files import TableFiles
from ae_pipeline.registry.forget import delete_models, model_state
from ae_pipeline.registry.store import Tracker
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import forget_landed


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """A part of what is stored of a dataset.

    Attributes:
        name: What it is.
        address: Path or address.
        size: Size in bytes; None if it is unknown.
        remove: Removes it.
    """

    name: str
    address: str
    size: int | None
    remove: Callable[[], None]


def stored_parts(paths: DatasetPaths, tracker: Tracker) -> list[StoredPart]:
    """Return everything that is stored of a dataset, except for its landed files and its lock.

    The order is that of the removal: what others read comes first, and the files that could build it again come last.

    Args:
        paths: Paths of the dataset.
        tracker: The model store.
    """
    folders = {
        "reports": paths.reports,
        "features": paths.features("_").parent,
        "raw rows": paths.raw("_").parent,
        "quarantine": paths.quarantined("_").parent,
        "staged copies and ledger": paths.ledger.parent,
        "schema contract": paths.contract,
        "marks of people": paths.marks.parent,
        "damaged files that were moved aside": paths.root / "damaged" / paths.dataset,
    }
    # Names of datasets have no dot, so these are its files: history, alerts, and the identity of the folder.
    files = sorted(paths.history.parent.glob(f"{paths.dataset}.*"))
    return [
        *_table(TableFiles(paths.latents)),
        *_models(tracker, paths.dataset),
        *(_path(name, path) for name, path in folders.items() if path.exists()),
        *(_path(f"history, {path.name}", path) for path in files),
    ]


def landed_part(paths: DatasetPaths, dataset: Dataset | None) -> StoredPart | None:
    """Return the landed files of a dataset; None if there are none.

    Args:
        paths: Paths of the dataset.
        dataset: Dataset as its YAML defines it; None without a YAML, and then its landing folder is the usual one.
    """
    if dataset is None or dataset.config.source.path is None:
        folder = _path("landed files", paths.landing)

        def remove_landed() -> None:
            folder.remove()
            forget_landed(paths)

        return replace(folder, remove=remove_landed) if paths.landing.exists() else None
    try:
        files = list(landed_files(dataset).values())
    except StorageError:
        return None

    def remove() -> None:  # the folder can hold files of others
        for file in files:
            file.unlink(missing_ok=True)

    size, address = sum(file.stat().st_size for file in files), str(landing_folder(dataset))
    return StoredPart(name=pluralize(len(files), "landed file"), address=address, size=size, remove=remove)


def _path(name: str, path: Path) -> StoredPart:
    def remove() -> None:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be removed ({error.strerror}); grant this user write permission, and run it again"
            ) from error

    return StoredPart(name=name, address=str(path), size=_size([path]), remove=remove)


def _size(paths: Sequence[Path]) -> int:
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.lstat().st_size for file in files if file.is_file())


def _table(files: TableFiles) -> list[StoredPart]:
    if files.is_folder:
        path = Path(files.location)
        return [_path("latent table", path)] if path.exists() else []
    try:
        infos = files.filesystem.get_file_info(fs.FileSelector("", recursive=True, allow_not_found=True))
    except OSError as error:
        raise StorageError(
            f"{files.location} cannot be read ({first_line(error)}); set the credentials of the object store, and run "
            "it again"
        ) from error
    stored = [info for info in infos if info.type == fs.FileType.File]
    if not stored:
        return []
    size = sum(info.size for info in stored)
    # The log goes first, so that no reader finds a table with missing files.
    names = sorted((info.path for info in stored), key=lambda path: ("_delta_log" not in path, path))
    return [StoredPart(name="latent table", address=files.location, size=size, remove=lambda: files.remove(names))]


def _models(tracker: Tracker, dataset: str) -> list[StoredPart]:
    state = model_state(tracker, dataset)
    if state.experiment is None and not state.folders:
        return []
    numbers = f" ({', '.join(map(str, state.versions))})" if state.versions else ""
    name = f"{pluralize(len(state.versions), 'model version')}{numbers} and {pluralize(len(state.runs), 'MLflow run')}"
    return [
        StoredPart(
            name=name,
            address=tracker.web_url or str(tracker.root),
            size=None if tracker.is_remote else _size(state.folders),
            remove=lambda: delete_models(tracker, dataset, state),
        )
    ]
