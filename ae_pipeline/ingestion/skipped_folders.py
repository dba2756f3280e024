"""Folders below a landing folder whose files are not read: hidden ones, and those that programs create."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from ae_pipeline.common.text import printable_path

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


def reason_to_skip(folders: Sequence[str]) -> str | None:
    """Return why the files of a folder are not read, or None.

    Args:
        folders: Names of the folders on the path below the landing folder.

    >>> reason_to_skip(["2024", ".git"]), reason_to_skip(["2024"])
    ("the folder '.git' is hidden", None)
    """
    for folder in folders:
        if folder.startswith("."):
            return f"the folder {printable_path(folder)!r} is hidden"
        if folder in _FOREIGN_FOLDERS:
            return f"the folder {folder!r} belongs to {_FOREIGN_FOLDERS[folder]}"
    return None


def is_skipped(path: Path, folder: Path) -> bool:
    """Return whether a file is hidden, or in a folder whose files are not read.

    Args:
        path: Path of the file.
        folder: Landing folder.
    """
    relative: PurePath = path.relative_to(folder)
    return relative.name.startswith(".") or reason_to_skip(relative.parts[:-1]) is not None
