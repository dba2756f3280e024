"""Other paths to a folder, for libraries that take a path for a URL."""

import contextlib
import os
import tempfile
from pathlib import Path

from ae_pipeline.common.errors import StorageError
from ae_pipeline.storage.files import make_folder
from ae_pipeline.storage.hashing import hash_json


def alias_of(folder: Path) -> Path:
    """Return a link to a folder. Its path has letters and digits only.

    Raises:
        StorageError: Another user has the folder for the links.
    """
    alias = _links() / hash_json(["link", str(folder.absolute())])
    with contextlib.suppress(FileExistsError):
        alias.symlink_to(folder.absolute(), target_is_directory=True)
    return alias


def alias_of_entries(folder: Path) -> Path:
    """Return a folder with links to the entries of a folder, for libraries that resolve links in the path of a folder.

    Raises:
        StorageError: Another user has the folder for the links.
    """
    alias = make_folder(_links() / hash_json(["entries", str(folder.absolute())]))
    for link in alias.iterdir():
        if not link.exists():  # its entry was deleted
            link.unlink(missing_ok=True)
    for entry in folder.absolute().iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileExistsError):
            (alias / entry.name).symlink_to(entry)
    return alias


def _links() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    links = Path(tempfile.gettempdir(), f"ae_pipeline-{user}")
    links.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and links.stat().st_uid != user:
        raise StorageError(f"{links} belongs to another user; move it away, or set TMPDIR to another folder")
    return links
