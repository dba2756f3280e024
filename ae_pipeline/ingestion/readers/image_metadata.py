"""Metadata of images: CSV files beside them, whose columns are joined by the path of each image."""

import datetime as dt
import logging
import posixpath
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path, PurePosixPath

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.common.text import abbreviate, pluralize, printable_path
from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import ImagesConfig, SourceConfig
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.ingestion.readers.delimited import read_delimited
from ae_pipeline.ingestion.readers.path_columns import path_texts
from ae_pipeline.ingestion.rows import ORIGIN_COLUMNS, FileRows, UnreadableFileError, rejected_rows
from ae_pipeline.ingestion.skipped_folders import is_skipped
from ae_pipeline.storage.hashing import hash_json

logger = logging.getLogger(__name__)

FILE_COLUMNS = ("file", "file_name")
"""Columns of a metadata file that can hold the path of an image."""

_LONGEST_DAY = len("2024-03-01")
"""Length from which a date in ISO 8601 has a time."""


@dataclass(frozen=True)
class ImageMetadata:
    """Metadata of the images of a dataset.

    Attributes:
        columns: Names of the columns, without the path.
        rows: Values of each described image, in the order of `columns`, by its path below the landing folder.
        problems: Reason for each image that is described in two different ways.
        sources: Metadata file that describes each image.
    """

    columns: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self, name: str) -> str | None:
        """Return a hash of everything that an image gets from the metadata; None if there are no metadata."""
        if not self.columns:
            return None
        key = _key(name)
        return hash_json([self.columns, self.rows.get(key), self.problems.get(key)])

    def values_of(self, name: str) -> dict[str, str | None] | None:
        """Return the texts of an image by their column; None if it is described in two different ways.

        Args:
            name: Path of the image below the landing folder.
        """
        if not self.columns:
            return {}
        if (key := _key(name)) in self.problems:
            return None
        return dict(zip(self.columns, self.rows.get(key, (None,) * len(self.columns)), strict=True))

    def add_to(self, name: str, file: FileRows) -> FileRows:
        """Return the rows of an image file with the columns of the metadata. Images that they do not name get nulls.

        Args:
            name: Path of the image below the landing folder.
            file: Its rows.
        """
        key = _key(name)
        values = dict(zip(self.columns, self.rows.get(key, (None,) * len(self.columns)), strict=True))
        of_path = file.rows.row(0, named=True) if file.rows.height else {}
        merged = merged_texts({column: of_path[column] for column in self.columns if column in of_path}, values)
        rows = file.rows.with_columns(*(pl.lit(value, pl.String).alias(column) for column, value in merged.items()))
        if reason := self.problems.get(key):
            rejected = rejected_rows([(1, "file: metadata", reason, name)])
            return replace(file, rows=rows.clear(), rejected=pl.concat([file.rejected, rejected]))
        return replace(file, rows=rows)

    def log_missing(self, images: Collection[str], expressions: Sequence[str | None] = ()) -> None:
        """Log how many images have no metadata or contradict them, and which metadata have no image.

        Args:
            images: Paths of all landed images.
            expressions: Regular expressions whose named groups give columns from the path.
        """
        if not self.columns:
            return
        landed = {_key(name): name for name in images}
        self._log_contradictions(landed, expressions)
        described = {*self.rows, *self.problems}
        without = sorted(landed[key] for key in landed.keys() - described)
        if without:
            logger.warning(
                f"there are no metadata for {len(without):,} of {pluralize(len(landed), 'image')} "
                f"({abbreviate(without)}); their columns are missing values: add a line for each, if that is not "
                "intended"
            )
        if unknown := sorted(described - landed.keys()):
            stems = {PurePosixPath(name).stem.casefold(): name for name in reversed(without)}
            meant = ((name, stems.get(PurePosixPath(name).stem.casefold())) for name in unknown)
            hint = next((f", such as {path} for {name}" for name, path in meant if path), "")
            logger.warning(
                f"the metadata name {pluralize(len(unknown), 'image')} that did not land ({abbreviate(unknown)}; first "
                f"in {self.sources[unknown[0]]}); write paths relative to the folder of the metadata file{hint}"
            )

    def _log_contradictions(self, landed: Mapping[str, str], expressions: Sequence[str | None]) -> None:
        count, example = 0, ""
        for key, name in landed.items():
            if key not in self.rows or key in self.problems:
                continue
            of_path = path_texts(name, expressions, self.columns)
            described = dict(zip(self.columns, self.rows[key], strict=True))
            for column, text in of_path.items():
                if text and (other := described[column]) is not None and not _agree(text, other):
                    count += 1
                    difference = f"{column} is {text!r} in the path of {name}, and {other!r} in {self.sources[key]}"
                    example = example or difference
                    break
        if count:
            logger.warning(
                f"the metadata contradict the path of {pluralize(count, 'image')}, and count: {example}; correct "
                "one of them, or rename the column"
            )


def merged_texts(of_path: Mapping[str, str | None], described: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the texts of an image by their column. Metadata count, except where the path has a time of the same day.

    Args:
        of_path: Texts that its path gives.
        described: Texts of its metadata. None is no text.

    >>> merged_texts({"line": "L1", "day": "2024-03-01T08:00"}, {"line": None, "day": "2024-03-01", "shift": "2"})
    {'line': 'L1', 'day': '2024-03-01T08:00', 'shift': '2'}
    """
    merged = dict(of_path)
    for column, text in described.items():
        given = of_path.get(column)
        if text is not None and not (given and given != text and _refines(given, text)):
            merged[column] = text
        else:
            merged.setdefault(column, text)
    return merged


def _agree(one: str, other: str) -> bool:
    """Return whether two texts are the same value: equal texts, numbers or times, or a day and a time on it.

    >>> _agree("000", "0"), _agree("2024-03-01", "2024-03-01 08:00"), _agree("L1", "L2")
    (True, True, False)
    """
    if one.strip() == other.strip() or _refines(one, other) or _refines(other, one):
        return True
    with suppress(ArithmeticError):
        return Decimal(one) == Decimal(other)
    with suppress(ValueError):
        return dt.datetime.fromisoformat(one.strip()) == dt.datetime.fromisoformat(other.strip())
    return False


def _refines(one: str, other: str) -> bool:
    """Return whether a text is a time in ISO 8601 on the day that another one is."""
    with suppress(ValueError):
        day, time = dt.date.fromisoformat(other.strip()), dt.datetime.fromisoformat(one.strip())
        return time.date() == day and len(one.strip()) > _LONGEST_DAY
    return False


def is_metadata(name: str, images: ImagesConfig | None) -> bool:
    """Return whether a landed file describes images, by its path below the landing folder.

    >>> is_metadata("line/metadata.csv", ImagesConfig()), is_metadata("line/rows.csv", ImagesConfig())
    (True, False)
    """
    return bool(images and images.metadata and name.rpartition("/")[2] == images.metadata)


def load_image_metadata(folder: Path, config: PipelineConfig) -> ImageMetadata:
    """Read all metadata files of a landing folder; they are read again only if they changed.

    Args:
        folder: Landing folder.
        config: Configuration of the dataset.

    Raises:
        SchemaError: A metadata file cannot be read, or has no column with paths, or a reserved one.
    """
    if config.images is None or config.images.metadata is None:
        return ImageMetadata()
    named = folder.rglob(config.images.metadata)
    paths = sorted(path for path in named if not is_skipped(path, folder) and path.is_file())
    stats = tuple((path, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths)
    return _load(folder, stats, config.images, config.event_time, config.source) if stats else ImageMetadata()


@lru_cache(maxsize=4)
def _load(
    folder: Path,
    files: Sequence[tuple[Path, int, int]],
    images: ImagesConfig,
    event_time: str | None,
    source: SourceConfig,
) -> ImageMetadata:
    entries: list[tuple[str, str, dict[str, str | None]]] = []
    for path, *_ in files:
        name = printable_path(str(path.relative_to(folder)))
        for number, key, values in _entries(path, name, images, event_time, source):
            entries.append((key, f"{name}, line {number:,}", values))
    columns = tuple(dict.fromkeys(column for _, _, values in entries for column in values))
    rows: dict[str, tuple[str | None, ...]] = {}
    problems: dict[str, str] = {}
    sources: dict[str, str] = {}
    for key, where, values in entries:
        row = tuple(values.get(column) for column in columns)
        if rows.setdefault(key, row) != row:
            problems[key] = f"its metadata are in {sources[key]}, and others in {where}; keep one line for each image"
        sources.setdefault(key, where)
    return ImageMetadata(columns, rows, problems, sources)


def _entries(
    path: Path, name: str, images: ImagesConfig, event_time: str | None, source: SourceConfig
) -> Iterator[tuple[int, str, dict[str, str | None]]]:
    """Yield line number, path of the image and values of each line."""
    try:
        file = read_delimited(path.suffix.lower(), path.read_bytes(), source)
    except (OSError, UnreadableFileError) as error:
        raise SchemaError(f"the metadata of images in {name} cannot be read: {error}") from error
    if file.rejected.height:
        first = file.rejected.row(0, named=True)
        raise SchemaError(f"line {first['row_number']:,} of {name} cannot be read: {first['reason']}")
    names = [column for column in file.rows.columns if column not in ORIGIN_COLUMNS]
    key = next((column for column in FILE_COLUMNS if column in names), None)
    if key is None:
        raise SchemaError(
            f"{name} has the columns {', '.join(names)}, but needs {' or '.join(FILE_COLUMNS)} with the path of each "
            "image; rename the column, or set images.metadata in the YAML to null if the file holds no metadata"
        )
    reserved = {*FILE_COLUMNS, *PATCH_COLUMNS, images.column, *(RESERVED_COLUMNS - {event_time})} - {key}
    if taken := sorted(reserved & set(names)):
        raise SchemaError(f"column {taken[0]!r} of {name} has a reserved name; rename it")
    folder = PurePosixPath(name).parent
    for row in file.rows.iter_rows(named=True):
        if row[key] is None:
            raise SchemaError(f"line {row['_row_number']:,} of {name} names no image; write its path as {key}")
        values = {column: row[column] for column in names if column != key}
        image = posixpath.normpath(folder / printable_path(row[key].strip().replace("\\", "/")))
        yield row["_row_number"], _key(image), values


def _key(name: str) -> str:
    """Return a path in the form in which paths are compared, whichever system wrote it."""
    return unicodedata.normalize("NFC", PurePosixPath(name).as_posix())
