"""Files of a landing folder that are not read: by their name, their folder, a link, or the limit of files."""

import os
from collections.abc import Mapping
from pathlib import Path

from ae_pipeline.common.text import pluralize, printable_path
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.readers.files import can_read
from ae_pipeline.ingestion.readers.json_lines import starts_with_array
from ae_pipeline.ingestion.readers.pictures import is_image

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


class LinkChecker:
    """Finds links that leave a folder. The folder itself may be a link.

    Args:
        folder: Landing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._root = folder, folder.resolve()
        self._is_inside: dict[Path, bool] = {folder: True}

    def reason_to_ignore(self, path: Path) -> str | None:
        """Return why a file is not read, or None if it is in the folder.

        Args:
            path: Path below the folder.
        """
        if self._leads_inside(path.parent) and (not is_link(path) or self._resolves_inside(path)):
            return None
        return "it is a link, or in a linked folder, outside of the landing folder; copy it, or set source.path"

    def _leads_inside(self, folder: Path) -> bool:
        if folder not in self._is_inside:
            self._is_inside[folder] = self._resolves_inside(folder)
        return self._is_inside[folder]

    def _resolves_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):  # a loop of links
            return False


def is_link(path: Path) -> bool:
    """Return whether a path is a link; False if the file system fails."""
    return os.path.islink(path)  # noqa: PTH114 - Path.is_symlink raises then


def surplus_files(files: Mapping[str, Path], limit: int) -> dict[str, str]:
    """Return the reason for each file that is not read because there are too many: the newest ones.

    Args:
        files: Files of a landing folder.
        limit: Number of files that are read.
    """
    if len(files) <= limit:
        return {}
    newest = sorted(files, key=lambda name: (files[name].stat().st_mtime_ns, name))[limit:]
    reason = f"there are {pluralize(len(files), 'file')}, but source.limits.files is {limit:,}; raise it, or join files"
    return dict.fromkeys(newest, reason)


def reason_to_ignore(path: Path, landing: Path, config: PipelineConfig) -> str | None:
    """Return why a file is not read, or None. Cameras give the names of some pictures a leading `_`.

    Args:
        path: Path of the file.
        landing: Landing folder.
        config: Configuration of the dataset.
    """
    for folder in path.relative_to(landing).parts[:-1]:
        if folder.startswith("."):
            return f"the folder {printable_path(folder)!r} is hidden"
        if folder in _FOREIGN_FOLDERS:
            return f"the folder {folder!r} belongs to {_FOREIGN_FOLDERS[folder]}"
    if path.name.startswith("."):
        return "its name starts with '.', as that of a file that is still being written"
    if not can_read(path.name, config.images):
        return f"its suffix {path.suffix!r} is not one of a known format" if path.suffix else "it has no suffix"
    if path.suffix.lower() == ".json" and path.is_file() and not _is_array(path):
        return "its content is no JSON array; rename it to .jsonl if each line is an object"
    if path.name.startswith("_") and not is_image(path.name):
        return "its name starts with '_', as that of a file that is still being written; rename it"
    return None


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return starts_with_array(file.read(64))
