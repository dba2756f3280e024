"""Holds landed files against the schema contract many at a time, and stages their typed rows."""

import datetime as dt
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.conform import AFTER_LAST_DAY, check_columns, conform
from ae_pipeline.ingestion.contract import SchemaContract, keys_of
from ae_pipeline.ingestion.ledger import LandedFile
from ae_pipeline.ingestion.readers import read_file
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, PLACE, FileRows, UnreadableFileError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import write_parquet

RAW_VERSION = "1"
"""Raised when the same files would give other raw rows."""

IMAGE_FACT = "image."
"""Begins the fact in a staged copy's footer that says what the images of a column are."""

_BATCH_ROWS, _BATCH_CELLS = 50_000, 2**21
_BATCH_IMAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class Rules:
    """Fingerprints of all that rows are held against: of what lasts, and of that with the last day allowed.

    A file bears the second one while rows of it lie after the last day, so that they are read again when it has passed.
    """

    lasting: str
    until_last_day: str


def rules_in_force(contract: SchemaContract, config: PipelineConfig, today: dt.date) -> Rules:
    """Gives the fingerprints of the contract and the settings."""
    settings: list[object] = [config.identity, config.event_time, config.start, config.end]
    if config.images:  # alone, so that the files of datasets without images are not read again
        settings.append(config.images.model_dump(mode="json"))
    lasting = hash_json([RAW_VERSION, contract.fingerprint, settings])
    return Rules(lasting, hash_json([lasting, config.end or today]))


class StagingBatch:
    """Holds files against the contract many at a time, since a pass costs the same for 10 rows as for 10,000."""

    def __init__(self, contract: SchemaContract, dataset: Dataset, today: dt.date) -> None:
        config, paths = dataset.config, dataset.paths
        self._contract, self._config, self._paths, self._today = contract, config, paths, today
        self._rules = rules_in_force(contract, config, today)
        self._waiting: dict[str, tuple[FileRows, LandedFile, LandedFile | None]] = {}
        self._rows, self._cells, self._image_bytes = 0, 0, 0

    @property
    def _image_dtype(self) -> str | None:
        images = self._config.images
        shape = self._contract.images.get(images.column) if images else None
        return shape.dtype if shape else None

    @property
    def is_full(self) -> bool:
        """Whether enough rows wait to be worth a pass, or as much as memory should hold."""
        waiting = ((self._rows, _BATCH_ROWS), (self._cells, _BATCH_CELLS), (self._image_bytes, _BATCH_IMAGE_BYTES))
        return any(held >= most for held, most in waiting)

    def add(self, name: str, path: Path, previous: LandedFile | None) -> LandedFile | None:
        """Reads a file; gives its ledger entry if that is settled already, and otherwise lets its rows wait.

        Raises:
            SchemaError: Its columns are not the contract's.
        """
        stat = path.stat()
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        again = previous is not None and previous.sha256 == digest
        landed = previous.landed_ns if previous and again else stat.st_mtime_ns
        seen = LandedFile(stat.st_size, stat.st_mtime_ns, digest, landed, self._rules.lasting, None)
        held = {self._rules.lasting, self._rules.until_last_day}
        if previous and again and previous.contract in held:
            return replace(previous, size=seen.size, modified_ns=seen.modified_ns)
        try:
            file = read_file(name, data, self._config.images, self._image_dtype)
        except UnreadableFileError as error:
            return _refused(seen, previous, str(error))
        columns = [column for column in file.rows.columns if column not in PLACE]
        check_columns(columns, self._contract, name, keys_of(self._contract, self._config))
        self._waiting[name] = (file, seen, previous)
        self._rows += file.rows.height
        self._cells += file.rows.height * file.rows.width
        if self._config.images and file.rows.schema.get(self._config.images.column) == IMAGE_STRUCT:
            sizes = file.rows[self._config.images.column].struct.field("data").bin.size()
            self._image_bytes += int(sizes.sum() or 0)
        return None

    def stage(self) -> dict[str, LandedFile]:
        """Writes the staged copies of all files that wait; gives their ledger entries."""
        alike: dict[tuple[tuple[str, pl.DataType], ...], list[str]] = {}
        for name, (file, *_) in self._waiting.items():
            alike.setdefault(tuple(file.rows.schema.items()), []).append(name)
        entries = {}
        for names in alike.values():
            files = [self._waiting[name][0] for name in names]
            together = FileRows(pl.concat([f.rows for f in files]), pl.concat([f.rejected for f in files]))
            result = conform(together, self._contract, self._config, self._today)
            rows = result.rows.partition_by("_source_file", as_dict=True)
            rejected = result.rejected.partition_by("source_file", as_dict=True)
            for name in names:
                found = FileRows(rows.get((name,), result.rows.clear()), rejected.get((name,), result.rejected.clear()))
                entries[name] = self._stage_file(name, found)
        self._waiting.clear()
        self._rows, self._cells, self._image_bytes = 0, 0, 0
        return entries

    def _stage_file(self, name: str, file: FileRows) -> LandedFile:
        _, seen, previous = self._waiting[name]
        if file.rejected["rule"].str.ends_with(AFTER_LAST_DAY).any():
            seen = replace(seen, contract=self._rules.until_last_day)
        copy = hash_json([name, seen.sha256, seen.contract])
        if file.rejected.height:
            write_parquet(self._paths.quarantined(copy), file.rejected.to_arrow())
            by_rule = Counter(file.rejected["rule"].to_list())
            seen = replace(seen, quarantined=dict(sorted(by_rule.items())), rejected_copy=copy)
        if file.rows.is_empty() and file.rejected.height:
            first = file.rejected["reason"][0]
            return _refused(
                seen, previous, f"none of its {file.rejected.height:,} rows keeps the contract; the first one: {first}"
            )
        shapes = {IMAGE_FACT + column: str(shape) for column, shape in self._contract.images.items()}
        write_parquet(self._paths.staged(copy), file.rows.to_arrow(), shapes)
        days = file.rows["_day"].value_counts()
        return replace(
            seen,
            staged=copy,
            rows=file.rows.height,
            days=dict(sorted(zip(days["_day"].to_list(), days["count"].to_list(), strict=True))),
        )


def _refused(seen: LandedFile, previous: LandedFile | None, reason: str) -> LandedFile:
    """The entry of a file that cannot be used: what an earlier version of it gave stands.

    The same content that breaks rules edited since is no other version: what it gave under the old ones is withdrawn.
    """
    if previous is None or (previous.sha256 == seen.sha256 and previous.refused is None):
        return replace(seen, refused=reason)
    return replace(seen, staged=previous.staged, rows=previous.rows, days=previous.days, refused=reason)
