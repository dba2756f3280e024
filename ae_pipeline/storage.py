"""Paths of what a dataset owns, files that appear whole or not at all, and Parquet files that know their content."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ae_pipeline.errors import StorageError

ALL_ROWS = "all"
"""What stands for the day of a dataset without event time."""

ROW_GROUP = 122_880
"""Rows of a row group at most: many enough for the codec, few enough to be read in pieces."""

_LEAST_TOGETHER, _CELLS_TOGETHER, _BYTES_TOGETHER = 1024, 2**22, 2**25

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_METADATA_PREFIX = b"ae_pipeline."


@dataclass(frozen=True)
class DatasetPaths:
    """Where one dataset keeps what.

    Attributes:
        root: The data folder, shared by all datasets.
        dataset: Name of the dataset.
        tables: Folder, or prefix of an object store, that holds the latent tables of all datasets; `latents` in the
            data folder by default.
    """

    root: Path
    dataset: str
    tables: str | None = None

    @property
    def landing(self) -> Path:
        """Where files land unless the configuration says otherwise."""
        return self.root / "landing" / self.dataset

    @property
    def contract(self) -> Path:
        """The schema contract: inferred once, then a person's to edit."""
        return self.root / "contracts" / f"{self.dataset}.yaml"

    @property
    def ledger(self) -> Path:
        """What has been read from which landed file."""
        return self.root / "staging" / self.dataset / "ledger.json"

    @property
    def history(self) -> Path:
        """What became of the dataset's models, a line each."""
        return self.root / "history" / f"{self.dataset}.jsonl"

    @property
    def alerts(self) -> Path:
        """What was raised for a person to look at, a line each."""
        return self.root / "history" / f"{self.dataset}.alerts.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the one run of this dataset."""
        return self.root / "locks" / f"{self.dataset}.lock"

    @property
    def scratch(self) -> Path:
        """Where a training puts what does not fit into memory, in files that go with it."""
        return self.root / "scratch"

    @property
    def cache(self) -> Path:
        """What can be made anew at any time and takes a while."""
        return self.root / "cache"

    @property
    def latents(self) -> str:
        """The published Delta table: a folder, or an address of an object store."""
        if self.tables and "://" in self.tables:
            return f"{self.tables.rstrip('/')}/{self.dataset}"
        return str((Path(self.tables) if self.tables else self.root / "latents").absolute() / self.dataset)

    @property
    def reports(self) -> Path:
        """Reports of the dataset."""
        return self.root / "reports" / self.dataset

    def staged(self, name: str) -> Path:
        """Typed rows of one landed file, by the name of its staged copy."""
        return self.root / "staging" / self.dataset / "files" / f"{name}.parquet"

    def quarantined(self, name: str) -> Path:
        """Rows of one landed file that break the contract, by the name of its staged copy."""
        return self.root / "quarantine" / self.dataset / f"{name}.parquet"

    def raw(self, day: str) -> Path:
        """Rows of one day, typed and deduplicated."""
        return self.root / "raw" / self.dataset / f"{day}.parquet"

    def features(self, day: str) -> Path:
        """Cleaned and derived columns of one day."""
        return self.root / "features" / self.dataset / f"{day}.parquet"


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents.

    Raises:
        StorageError: A file stands where the folder must be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        blocking = next(p for p in (path, *path.parents) if p.exists() and not p.is_dir())
        raise StorageError(f"{blocking} is a file where a folder must be; move it away") from error
    except OSError as error:
        raise explained(error, path) from error
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; on success it becomes `path` in one step.

    Whatever goes wrong in between leaves `path` as it was and no temporary file.

    Raises:
        StorageError: The disk is full, or the place cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def rows_together(columns: int, row_bytes: float = 0.0) -> int:
    """Says how many rows are read, written and held together: fewer of wide ones, and of images.

    Args:
        columns: How many they have.
        row_bytes: What one takes, where that is known.
    """
    by_columns = max(_LEAST_TOGETHER, min(ROW_GROUP, _CELLS_TOGETHER // max(columns, 1)))
    return max(1, min(by_columns, int(_BYTES_TOGETHER / max(row_bytes, 1.0))))


def bytes_of_row(metadata: pq.FileMetaData, columns: Collection[str] | None = None) -> float:
    """Says what a row of a Parquet file takes as it was written, before it was compressed; texts that repeat take more.

    Args:
        metadata: Of the file.
        columns: Of which columns, all when left out.
    """
    chunks = (
        metadata.row_group(group).column(place)
        for group in range(metadata.num_row_groups)
        for place in range(metadata.num_columns)
    )
    wanted = (c for c in chunks if columns is None or c.path_in_schema.split(".")[0] in columns)
    held: int = sum(chunk.total_uncompressed_size for chunk in wanted)
    return held / max(int(metadata.num_rows), 1)


def apart(rows: pl.DataFrame) -> pl.DataFrame:
    """Copies rows that were chosen among many: texts are views, and few would keep the bytes of all others."""
    return pl.DataFrame(rows.to_arrow(compat_level=pl.CompatLevel.oldest()), schema=rows.schema)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(path: Path, table: pa.Table, facts: dict[str, str] | None = None) -> str:
    """Writes a table in one step, with the hash of its content and further facts in the footer.

    Args:
        path: Where to.
        table: What.
        facts: Short texts to keep in the footer, read again by `read_facts`.

    Returns:
        The content hash: the same rows in the same order give the same hash.
    """
    content_hash = hash_table(table)
    footer = {"content_hash": content_hash, "rows": str(table.num_rows), **(facts or {})}
    table = table.replace_schema_metadata({_METADATA_PREFIX + k.encode(): v.encode() for k, v in footer.items()})
    together = rows_together(table.num_columns, table.nbytes / max(table.num_rows, 1))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=together)
    return content_hash


def read_facts(path: Path) -> dict[str, str]:
    """Gives the facts in the footer of a file that `write_parquet` wrote, or none where there is no such file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        return {}
    prefix = len(_METADATA_PREFIX)
    return {k[prefix:].decode(): v.decode() for k, v in metadata.items() if k.startswith(_METADATA_PREFIX)}


def hash_table(table: pa.Table) -> str:
    """Hashes names, types and values of a table, whatever its chunks and the bytes behind missing values."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    # Parquet stores no bytes for a missing value, as Arrow's own format does.
    pq.write_table(plain, sink, compression="none", use_dictionary=False, write_statistics=False)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def hash_json(value: object) -> str:
    """Hashes anything that JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def explained(error: OSError, path: Path) -> OSError | StorageError:
    """Makes an error that says what to do of one that writing at `path` gave."""
    if error.errno in _NO_SPACE:
        return StorageError(
            f"no space left while writing {path}; nothing was changed there: free some space and run again"
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StorageError(f"{path} cannot be written ({error.strerror}); give this user the right to")
    return error
