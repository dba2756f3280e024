"""The landing folder of a dataset: which files are read, and why the others are not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ae_pipeline.common.deprecation import warn_deprecated
from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import pluralize, printable_path
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import SourceConfig
from ae_pipeline.ingestion.links import LinkChecker, is_link, surplus_files
from ae_pipeline.ingestion.masks import is_mask
from ae_pipeline.ingestion.readers.files import can_read
from ae_pipeline.ingestion.readers.image_metadata import is_metadata
from ae_pipeline.ingestion.readers.json_lines import starts_with_array
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.storage.dataset import Dataset

_NAMED_FILES = 5
"""Number of files that a log line names."""

_FOREIGN_FOLDERS = {
    "__MACOSX": "archives of macOS",
    "@eaDir": "a network storage, which keeps thumbnails there",
    "#recycle": "a network storage, which keeps deleted files there",
    "$RECYCLE.BIN": "Windows, which keeps deleted files there",
    "RECYCLER": "Windows, which keeps deleted files there",
    "System Volume Information": "Windows",
    "lost+found": "the file system",
}
"""Folders that programs create beside the files of people."""


def landing_folder(dataset: Dataset) -> Path:
    """Return the folder in which the dataset's files land.

    A relative `source.path` is below the project's folder. Until version 0.3 it may be below the data folder instead.
    """
    path, paths = dataset.config.source.path, dataset.paths
    if path is None:
        return paths.landing
    folder, former = paths.project / path, paths.root / path
    if not folder.exists() and former.exists():
        warn_deprecated(path, os.path.relpath(former, paths.project), "source.path, relative to the data folder,")
        return former
    return folder


def landing_address(dataset: Dataset) -> str:
    """Return where people put the dataset's files: the landing folder, or its address in an object store."""
    folder, paths = landing_folder(dataset), dataset.paths
    return f"{paths.store}/landing/{paths.dataset}" if paths.store and folder == paths.landing else str(folder)


@dataclass(frozen=True)
class LandingFolder:
    """What lies in the landing folder of a dataset.

    Attributes:
        files: Files to read, by their printable path below the folder.
        others: Reason for each file that is not read.
    """

    files: dict[str, Path]
    others: dict[str, str]

    def describe_others(self) -> str:
        """Return how many files are not read, with the first names and the reasons."""
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.others.items())[:_NAMED_FILES])
        more = f"; and {len(self.others) - _NAMED_FILES:,} more" if len(self.others) > _NAMED_FILES else ""
        return f"{pluralize(len(self.others), 'file')} not read ({named}{more})"


def list_landing(dataset: Dataset) -> LandingFolder:
    """Return the files in the landing folder: those to read, and the others with the reason.

    Raises:
        StorageError: The folder does not exist.
    """
    config, folder = dataset.config, landing_folder(dataset)
    if folder.exists() and not folder.is_dir():
        raise StorageError(
            f"expected the landing folder of {config.dataset!r} at {folder}, found a file; move or delete it"
        )
    if not folder.exists():
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {landing_address(dataset)} does not exist; put "
            f"{_kinds(config)} files there"
        )
    files: dict[str, Path] = {}
    others: dict[str, str] = {}
    links = LinkChecker(folder)
    for entry in _find(folder, config.source.pattern):
        name, path = printable_path(entry.relative), folder / entry.relative
        if is_mask(name, config.images) or is_metadata(name, config.images):
            continue
        reason = None if entry.matches else f"it does not match {config.source.pattern!r}"
        reason = reason or _reason_to_ignore(entry.relative, path, config)
        if reason is None and entry.is_regular:
            files[name] = path
            continue
        reason = reason or links.reason_to_ignore(path)
        if reason is None and path.is_file():
            files[name] = path
        elif is_link(path) and path.is_dir():
            others[name] = "it is a linked folder, which is not followed; copy it, or set source.path"
        elif not path.is_dir():
            others[name] = reason or "it is no regular file"
    others |= surplus_files(files, config.source.limits.files)
    return LandingFolder({name: path for name, path in files.items() if name not in others}, others)


class _Entry(NamedTuple):
    """Something in a landing folder that is no folder, except perhaps a link to one.

    Attributes:
        relative: Path below the landing folder.
        is_regular: Whether it is known to be a regular file that no link has led to.
        matches: Whether it matches the pattern.
    """

    relative: str
    is_regular: bool
    matches: bool = True


def _find(folder: Path, pattern: str) -> list[_Entry]:
    """Return everything below a folder, sorted by the parts of the path."""
    entries = [_Entry(*each) for each in _walk(str(folder), "")]
    if pattern != SourceConfig().pattern:
        matching = {str(path.relative_to(folder)) for path in folder.glob(pattern)}
        beside = matching - {each.relative for each in entries}  # in a linked folder that the pattern names
        entries = [each._replace(matches=each.relative in matching) for each in entries]
        entries += [_Entry(path, is_regular=False) for path in beside]
    return sorted(entries, key=lambda each: each.relative.split("/"))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield the relative path of everything below a folder but folders, and whether it is a regular file.

    Links are not followed. A path object for each of 200,000 files, and a look at its kind, would take seconds.
    """
    try:
        entries = os.scandir(folder)
    except (PermissionError, FileNotFoundError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.is_file(follow_symlinks=False)


def is_read(relative: str, folder: Path, config: PipelineConfig) -> bool:
    """Return whether a regular file of a landing folder with the default pattern is read.

    Args:
        relative: Path of the file below the folder.
        folder: Landing folder.
        config: Configuration of the dataset.
    """
    return _reason_to_ignore(relative, folder / relative, config) is None


def _reason_to_ignore(relative: str, path: Path, config: PipelineConfig) -> str | None:
    """Return why a file is not read, or None. Cameras give the names of some pictures a leading `_`."""
    *folders, name = relative.split("/")
    for folder in folders:
        if folder.startswith("."):
            return f"the folder {printable_path(folder)!r} is hidden"
        if folder in _FOREIGN_FOLDERS:
            return f"the folder {folder!r} belongs to {_FOREIGN_FOLDERS[folder]}"
    if name.startswith("."):
        return "its name starts with '.', as that of a file that is still being written"
    if not can_read(name, config.images):
        return f"its suffix {path.suffix!r} is not one of a known format" if path.suffix else "it has no suffix"
    if name.lower().endswith(".json") and path.is_file() and not _is_array(path):
        return "its content is no JSON array; rename it to .jsonl if each line is an object"
    if name.startswith("_") and not is_image(name):
        return "its name starts with '_', as that of a file that is still being written; rename it"
    return None


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return starts_with_array(file.read(64))


def _kinds(config: PipelineConfig) -> str:
    tables = "CSV, JSON, JSON Lines, Excel, Parquet, Arrow or Avro"
    return f"PNG, JPEG, WebP, BMP, TIFF, {tables}" if config.images else tables


def landed_files(dataset: Dataset) -> dict[str, Path]:
    """Return the landed files to read, by their printable path below the landing folder; see `list_landed`."""
    return list_landed(dataset).files


def list_landed(dataset: Dataset) -> LandingFolder:
    """Return what `list_landing` returns, and require a file to read.

    Raises:
        StorageError: The folder does not exist, or contains no file of the dataset.
    """
    config, folder, landing = dataset.config, landing_address(dataset), list_landing(dataset)
    if landing.others and not landing.files:
        raise StorageError(
            f"none of the files in {folder} can be read for {config.dataset!r}: {landing.describe_others()}; put "
            f"{_kinds(config)} files there"
        )
    if not landing.files:
        raise StorageError(
            f"no files have landed for {config.dataset!r}: {folder} is empty; put {_kinds(config)} files there that "
            f"match {config.source.pattern!r}"
        )
    return landing
