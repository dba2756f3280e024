"""Read one landed file of any format. Rows that cannot be read are kept with a reason."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from ae_pipeline.common.text import first_line
from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import Dialect, ImagesConfig, SourceConfig
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.readers.columnar import COLUMNAR_SUFFIXES, read_columnar
from ae_pipeline.ingestion.readers.compression import COMPRESSED_SUFFIXES, decompress
from ae_pipeline.ingestion.readers.delimited import read_delimited
from ae_pipeline.ingestion.readers.excel import read_excel
from ae_pipeline.ingestion.readers.failures import library_errors_as
from ae_pipeline.ingestion.readers.image_metadata import ImageMetadata
from ae_pipeline.ingestion.readers.json_lines import read_json_array, read_json_lines
from ae_pipeline.ingestion.readers.large_text import read_delimited_parts, reads_in_parts
from ae_pipeline.ingestion.readers.path_columns import add_path_columns
from ae_pipeline.ingestion.readers.pictures import is_image, prepare_images, read_image
from ae_pipeline.ingestion.rows import FileRows, UnreadableFileError

_DELIMITED = (".csv", ".tsv", ".txt")
_JSON_LINES = (".jsonl", ".ndjson")
_JSON = ".json"
_EXCEL = (".xlsx",)

TEXT_SUFFIXES = (*_DELIMITED, *_JSON_LINES, _JSON, *_EXCEL)
"""Suffixes of the formats of tables whose values are texts, which hold no images."""

TABLE_SUFFIXES = (*TEXT_SUFFIXES, *COLUMNAR_SUFFIXES)
"""Suffixes of the formats of tables."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How the files of a dataset are read.

    Attributes:
        source: Settings of the source.
        images: Settings for images, or None for tables.
        image_dtype: Type of the images' values in the schema contract, if there is a contract.
        dialects: Dialects of text files in the schema contract; empty if every dialect is accepted.
        columns: Columns of the schema contract; None if there is no contract.
        left_out: Columns that are never read.
        needed: Identity and event time.
        metadata: Columns of image files from files beside them.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    images: ImagesConfig | None = None
    image_dtype: str | None = None
    dialects: Sequence[Dialect] = ()
    columns: frozenset[str] | None = None
    left_out: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    metadata: ImageMetadata = field(default_factory=ImageMetadata)

    @classmethod
    def of(cls, config: PipelineConfig) -> "ReadOptions":
        """Return the options of a dataset without a schema contract."""
        needed = frozenset({*config.identity, *([config.event_time] if config.event_time else [])})
        left_out = frozenset(RESERVED_COLUMNS & {*config.exclude} - needed)
        return cls(source=config.source, images=config.images, left_out=left_out, needed=needed)

    @classmethod
    def under(cls, contract: SchemaContract, config: PipelineConfig) -> "ReadOptions":
        """Return the options of a dataset with a schema contract."""
        options = cls.of(config)
        shape = contract.images.get(config.images.column) if config.images else None
        return replace(
            options,
            image_dtype=shape.dtype if shape else None,
            dialects=contract.dialects,
            columns=frozenset(contract.columns),
            left_out=options.left_out | {*contract.skipped},
        )


def format_of(name: str) -> tuple[str, str]:
    """Return the suffix of a file's format and the suffix of its compression, in lower case; empty if there is none.

    >>> format_of("a/B.CSV.gz"), format_of("b.parquet"), format_of("readme")
    (('.csv', '.gz'), ('.parquet', ''), ('', ''))
    """
    stem, suffix = _split_suffix(name.rpartition("/")[2])
    if suffix.lower() in COMPRESSED_SUFFIXES:
        return _split_suffix(stem)[1].lower(), suffix.lower()
    return suffix.lower(), ""


def _split_suffix(name: str) -> tuple[str, str]:
    """Return stem and suffix as a path has them. A path object would take ten times as long, for each landed file."""
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if 0 < dot < len(name) - 1 else (name, "")


def can_read(name: str, images: ImagesConfig | None) -> bool:
    """Return whether the suffix of a file belongs to a format that the dataset reads."""
    kind, compression = format_of(name)
    if compression == ".zip" and kind not in TABLE_SUFFIXES:
        return True  # its only file has the format
    return kind in TABLE_SUFFIXES or bool(images and is_image(name))


def read_file(name: str, data: bytes, options: ReadOptions | None = None) -> FileRows:
    """Read a landed file.

    Args:
        name: Path of the file below the landing folder. Its suffix determines the format.
        data: Content of the file.
        options: How the file is read.

    Raises:
        UnreadableFileError: No row of the file can be read.
    """
    options = options or ReadOptions()
    with library_errors_as(UnreadableFileError, _unreadable):
        return completed(name, _read(name, data, options), options)


def is_in_parts(name: str, path: Path, options: ReadOptions) -> bool:
    """Return whether `read_parts` reads a file, because it is too large to be in memory: a CSV, TSV or TXT file.

    Args:
        name: Path of the file below the landing folder.
        path: Path of the file.
        options: How the file is read.

    Raises:
        UnreadableFileError: The encoding of the file is not the declared one, or cannot be told.
    """
    kind, compression = format_of(name)
    if kind not in _DELIMITED or compression or options.images:
        return False
    return reads_in_parts(path, options.source, options.dialects)


def read_parts(name: str, path: Path, options: ReadOptions) -> Generator[FileRows]:
    """Read a large landed file, and yield the rows that `read_file` would return part by part, at least one part.

    Args:
        name: Path of the file below the landing folder.
        path: Path of the file; see `is_in_parts`.
        options: How the file is read.

    Raises:
        UnreadableFileError: No row of the file can be read.
    """
    with closing(read_delimited_parts(format_of(name)[0], path, options.source, options.dialects)) as parts:
        while True:
            failure: OSError | None = None
            with library_errors_as(UnreadableFileError, _unreadable):
                try:
                    part = next(parts, None)
                except OSError as error:  # of the disk; the file is not to blame
                    part, failure = None, error
                part = completed(name, part, options) if part else None
            if failure:
                raise failure
            if part is None:
                return
            yield part


def _unreadable(error: BaseException) -> str:
    return f"it cannot be read ({type(error).__name__}: {first_line(error)}); it may be damaged: land it again"


def completed(name: str, file: FileRows, options: ReadOptions) -> FileRows:
    """Return rows of a file with the columns that its path and the files beside it give."""
    file = leave_out(file, options)
    file = add_path_columns(name, file, options.source.path_columns, options.columns, options.needed)
    if options.images:
        if options.metadata.columns and is_image(name):
            file = options.metadata.add_to(name, file)
        file = prepare_images(file, options.images, options.source.limits.pixels)
    rejected = file.rejected.with_columns(source_file=pl.lit(name)) if file.rejected.height else file.rejected
    source = pl.Series("_source_file", [name], pl.String).new_from_index(0, file.rows.height)
    return replace(file, rows=file.rows.hstack([source]), rejected=rejected)


def leave_out(file: FileRows, options: ReadOptions) -> FileRows:
    """Return a file without the columns that are never read."""
    skipped = {column: why for column, why in file.skipped.items() if column not in options.left_out}
    if options.columns is None:  # the first contract must know of it
        reason = "its name is reserved for the pipeline, and it is excluded; rename it at the source to have it"
        skipped |= {column: reason for column in file.rows.columns if column in options.left_out}
    rows = file.rows.drop(options.left_out, strict=False) if options.left_out else file.rows
    return replace(file, rows=rows, skipped=skipped)


def _read(name: str, data: bytes, options: ReadOptions) -> FileRows:
    kind, compression = format_of(name)
    if options.images and is_image(name):
        return read_image(name, data, options.images, options.source.limits.pixels)
    limits = options.source.limits
    if data and compression:
        kind, data = decompress(kind, compression, data, TABLE_SUFFIXES, limits)
    if not data:
        raise UnreadableFileError("the file is empty (0 bytes); land it again, at least with a header")
    if kind in COLUMNAR_SUFFIXES:
        return read_columnar(kind, data, limits, options.images, options.image_dtype)
    if kind in _JSON_LINES:
        return read_json_lines(data, options.source)
    if kind == _JSON:
        return read_json_array(data, options.source)
    if kind in _EXCEL:
        return read_excel(data, options.source)
    return read_delimited(kind, data, options.source, options.dialects)
