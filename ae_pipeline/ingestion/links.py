"""Files of a landing folder that are not read: links to other folders, and files beyond the limit."""

import os
from collections.abc import Mapping
from pathlib import Path

from ae_pipeline.common.text import pluralize


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
