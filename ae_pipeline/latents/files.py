"""The files of a latent table, in a folder or under a prefix of an object store."""

import contextlib
import datetime as dt
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from pyarrow import fs

from ae_pipeline.storage.files import atomic_write, make_folder


def live_files(table: DeltaTable) -> list[str]:
    """Lists the files of a table as it stands, relative to it."""
    # From the log itself: file_uris() writes blanks and other signs of the folder's name as %20.
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist())


class TableFiles:
    """Files below the place of a table, by their paths relative to it.

    Folders are reached as such, and object stores by what the `deltalake` package has for them, with the same
    credentials: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and their like of the environment. Either way a file is there
    whole or not at all.

    Args:
        index: A folder, or an address such as s3://bucket/latents/flights.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return not re.match(r"[a-z][a-z0-9+.-]*://", self.location)

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """The place as pyarrow sees it."""
        if self.is_folder:
            return fs.SubTreeFileSystem(self.location, fs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return fs.PyFileSystem(DeltaStorageHandler(self.location))

    def prepare(self) -> None:
        """Makes the folder, where it is one.

        Raises:
            StorageError: A file stands in its way.
        """
        if self.is_folder:
            make_folder(Path(self.location))

    def open(self) -> DeltaTable | None:
        """Opens the table, or gives None where nothing was published yet."""
        return DeltaTable(self.location) if DeltaTable.is_deltatable(self.location) else None

    def full_path(self, path: str) -> str:
        """Gives what others open a file by."""
        return f"{self.location}/{path}"

    def address(self, path: str = "") -> str:
        """Gives the address of a file, or of the table itself."""
        return (Path(self.location) / path).as_uri() if self.is_folder else self.full_path(path).rstrip("/")

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self.filesystem.get_file_info(path).type == fs.FileType.File)

    def written(self, folder: str = "") -> dict[str, dt.datetime]:
        """Lists all files, with the time at which each was written, UTC."""
        found = self.filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        return {info.path: info.mtime.astimezone(dt.UTC) for info in found if info.type == fs.FileType.File}

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Gives a local path to write to; on success it becomes the file in one step.

        Raises:
            StorageError: The disk is full, or the place cannot be written.
        """
        if self.is_folder:
            with atomic_write(Path(self.location) / path) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "file"
            yield temporary
            fs.copy_files(str(temporary), path, fs.LocalFileSystem(), self.filesystem)

    def write_text(self, path: str, text: str) -> None:
        """Writes a text file in one step."""
        with self.writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_text(self, path: str) -> str | None:
        """Reads a text file, or gives None where there is none."""
        if not self.has(path):
            return None
        with self.filesystem.open_input_stream(path) as stream:
            return str(stream.read().decode("utf-8"))

    def read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Reads a Parquet file, its pages held against their checksums."""
        return pq.read_table(path, columns=columns, filesystem=self.filesystem, page_checksum_verification=True)

    def remove(self, paths: Iterable[str]) -> None:
        """Removes files; those that are not there are passed over."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(path)
