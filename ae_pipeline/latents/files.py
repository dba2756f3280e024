"""Files of a latent table, in a folder or in an object store."""

import contextlib
import datetime as dt
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.text import first_line
from ae_pipeline.latents.log import damaged_commits, damaged_texts
from ae_pipeline.storage.aliases import alias_of_entries
from ae_pipeline.storage.files import atomic_write, make_folder
from ae_pipeline.storage.integrity import parquet_damage
from ae_pipeline.storage.object_store import http_remedy, settings_of

logger = logging.getLogger(__name__)

_SPECIAL = re.compile(r"[^\w /.,=+~@()-]")
"""Characters of a path that the `deltalake` package may misread."""


_FIRST_REQUEST = {"timeout": "4s", "connect_timeout": "3s", "max_retries": "1", "retry_timeout": "8s"}
"""Options of the request that finds out whether an object store answers. By default it is tried for minutes."""


def last_line(error: BaseException) -> str:
    """Return the cause in a message of the `deltalake` package: its last line, without colors and arrows."""
    lines = [re.sub(r"\x1b\[\d+m|↳", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)


def live_files(table: DeltaTable) -> list[str]:
    """Return the paths of the files in the loaded version of a table, relative to the table."""
    # From the log, because file_uris() percent-encodes spaces and other characters of the folder's name.
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist())


def sizes_in_log(table: DeltaTable) -> dict[str, int]:
    """Return the size in bytes of each file in the loaded version of a table, as its log has it."""
    actions = pa.table(table.get_add_actions())
    return dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))


def rows_in_log(table: DeltaTable) -> dict[str, int]:
    """Return the number of rows of each file in the loaded version of a table, as its log has it."""
    actions = pa.table(table.get_add_actions())
    return dict(
        zip(actions["path"].to_pylist(), [rows or 0 for rows in actions["num_records"].to_pylist()], strict=True)
    )


@lru_cache(maxsize=1 << 14)
def _damage(path: Path, *_state: int) -> str | None:
    damage = parquet_damage(path)
    if damage:
        logger.warning(f"{path} is damaged and not used: {damage}; the next publication writes it again")
    return damage


class TableFiles:
    """Files of a table, by their paths relative to the table.

    Object stores are accessed through the file system of the `deltalake` package. It takes credentials from environment
    variables such as `AWS_ACCESS_KEY_ID` or `AZURE_STORAGE_ACCOUNT_KEY`. A file appears in one step, so that no reader
    sees a part of it.

    Args:
        location: Folder, or address such as `s3://bucket/latents/flights`.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    @property
    def is_folder(self) -> bool:
        """Whether the table is in a folder of this machine."""
        return not re.match(r"[a-z][a-z0-9+.-]*://", self.location)

    @property
    def usage(self) -> str:
        """How to read the table at this location, for a person."""
        reader = f"deltalake.DeltaTable({self.location!r}).to_pandas()"
        snapshots = "Each version of the table is a consistent snapshot of all its rows."
        combine = "Read all rows that you combine from the same version."
        return f"Read it as a Delta Lake table, for example with {reader}. {snapshots} {combine}"

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """File system, of pyarrow, whose root is the table."""
        if self.is_folder:
            return fs.SubTreeFileSystem(self.location, fs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return fs.PyFileSystem(DeltaStorageHandler(self.location))

    def prepare(self) -> None:
        """Create the folder. An object store needs no folder.

        Raises:
            StorageError: The path of the folder is a file.
        """
        if self.is_folder:
            make_folder(Path(self.location, "_delta_log"))

    def open(self) -> DeltaTable | None:
        """Return the newest version of the table, or None if nothing was published yet.

        Raises:
            PublicationError: The log of the table is damaged, or the object store does not answer.
        """
        if self.is_folder and (damaged := damaged_commits(Path(self.location))):
            name, reason = next(iter(damaged.items()))
            raise self._damaged_log(f"{name}: {reason}")
        try:
            location = self.delta_location
            options = None if self.is_folder else _FIRST_REQUEST
            return DeltaTable(location) if DeltaTable.is_deltatable(location, storage_options=options) else None
        except OSError as error:
            if self.is_folder:
                raise
            raise PublicationError(
                f"the object store of {self.location} does not answer ({last_line(error)}); start it, or correct "
                f"AE_PIPELINE_TABLES, {settings_of(self.location)} or the credentials{http_remedy(self.location)}, and "
                "run again"
            ) from error
        except (DeltaError, ValueError, pa.ArrowException) as error:
            if self.is_folder:
                raise self._damaged_log(first_line(error)) from error
            raise PublicationError(
                f"the table {self.location} cannot be opened ({first_line(error)}); check its address and the "
                "credentials, or restore its log"
            ) from error

    def _damaged_log(self, reason: str) -> PublicationError:
        name = self.location.rstrip("/").rpartition("/")[2]
        return PublicationError(
            f"the log of the table {self.location} is damaged ({reason}); `ae-pipeline doctor {name} --repair` moves "
            f"the damaged part aside, and `ae-pipeline run {name}` publishes what is missing"
        )

    def damaged_texts(self) -> list[str]:
        """Return texts beside a table in a folder that are missing or changed, such as the data contract."""
        return damaged_texts(Path(self.location)) if self.is_folder else []

    def damage(self, path: str) -> str | None:
        """Return how a file of a table in a folder is damaged; None if it is whole, or in an object store."""
        if not self.is_folder:
            return None
        try:
            stat = (local := Path(self.location) / path).stat()
        except OSError:
            return "it is missing"
        return _damage(local, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def whole(self, paths: Iterable[str]) -> list[str]:
        """Return those of the files that exist and are not damaged."""
        if not self.is_folder:
            return [path for path in paths if self.has(path)]
        return [path for path in paths if self.damage(path) is None]

    @property
    def delta_location(self) -> str:
        """Location with which the `deltalake` package opens the table.

        The package takes paths for URLs, and fails on folders such as `data[1]`, `a%20b` or `what?`. It then gets a
        folder with plain characters whose entries are links to those of the table.
        """
        if not self.is_folder or not _SPECIAL.search(self.location):
            return self.location
        return str(alias_of_entries(Path(self.location)))

    def full_path(self, path: str) -> str:
        """Return the path or address with which other programs open a file."""
        return f"{self.location}/{path}"

    def address(self, path: str = "") -> str:
        """Return the URI of a file, or of the table itself."""
        return (Path(self.location) / path).as_uri() if self.is_folder else self.full_path(path).rstrip("/")

    def has(self, path: str) -> bool:
        """Return whether a file exists."""
        return bool(self.filesystem.get_file_info(path).type == fs.FileType.File)

    def written(self, folder: str = "") -> dict[str, dt.datetime]:
        """Return all files below a folder, with their modification times, UTC."""
        infos = self.filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
        return {info.path: info.mtime.astimezone(dt.UTC) for info in infos if info.type == fs.FileType.File}

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Yield a local path to write to. On success, the file is moved or copied to its path in one step.

        Raises:
            StorageError: The disk is full, or the folder is not writable.
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
        """Write a text file in one step."""
        with self.writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_text(self, path: str) -> str | None:
        """Return the content of a text file, or None if it does not exist."""
        if not self.has(path):
            return None
        with self.filesystem.open_input_stream(path) as stream:
            return str(stream.read().decode("utf-8"))

    def read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Return the rows of a Parquet file. The checksums of its pages are verified."""
        return pq.read_table(path, columns=columns, filesystem=self.filesystem, page_checksum_verification=True)

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files, and ignore files that do not exist."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(path)
