"""Infer the first schema contract of a dataset from some of its landed files."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.columns import RESERVED_COLUMNS
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import Dialect
from ae_pipeline.ingestion.already_read import AlreadyRead
from ae_pipeline.ingestion.contract import is_needed, save_contract
from ae_pipeline.ingestion.images import image_bytes
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.landing_folder import landing_folder
from ae_pipeline.ingestion.read_ahead import NewFile, images_at_once, read_ahead, reads_ahead
from ae_pipeline.ingestion.readers.bounds import read_bounded
from ae_pipeline.ingestion.readers.files import ReadOptions, is_in_parts, read_file, read_parts
from ae_pipeline.ingestion.readers.image_metadata import load_image_metadata
from ae_pipeline.ingestion.readers.image_rows import ImageRow, frame_of, read_image_row
from ae_pipeline.ingestion.readers.large_text import scan_text
from ae_pipeline.ingestion.readers.pictures import is_image
from ae_pipeline.ingestion.rows import IMAGE_STRUCT, ORIGIN_COLUMNS, FileRows, UnreadableFileError
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import detach

_SAMPLED_FILES, _SAMPLED_CELLS = 64, 2**21
"""Size of the sample that a contract is inferred from: files (up to twice as many), and rows × columns of all."""

_KEPT_CELLS, _KEPT_IMAGE_BYTES = 2**23, 32 << 20
"""Maximum rows × columns of the files, and size of the images, that are kept until they are validated."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """Some rows of a file.

    Attributes:
        name: Path of the file below the landing folder.
        rows: Rows without the bytes of images.
        skipped: Reason for each column that was not read.
        dialect: How a text file is written.
        file: All rows, as far as they fit into memory.
    """

    name: str
    rows: pl.DataFrame
    skipped: Mapping[str, str]
    dialect: Dialect | None
    file: AlreadyRead | None


def infer_and_save_contract(dataset: Dataset, landed: Mapping[str, Path]) -> dict[str, AlreadyRead]:
    """Infer a schema contract from some of the landed files, and write it.

    A file that lacks an identity, event time or image column does not count if others have them. It is refused later.

    Args:
        dataset: Dataset without a contract.
        landed: Landed files by their path below the landing folder.

    Returns:
        Rows of files that need not be read again, as far as they fit into memory.

    Raises:
        SchemaError: No file has a readable row, or the rows do not fit the configuration.
    """
    config = dataset.config
    metadata = load_image_metadata(landing_folder(dataset), config)
    chosen = list(landed)[:: max(1, len(landed) // _SAMPLED_FILES)]
    options = replace(ReadOptions.of(config), metadata=metadata)
    samples, problem = _samples(chosen, landed, config, options, len(chosen))
    if not samples:
        others = [name for name in landed if name not in set(chosen)]
        samples, problem = _samples(others, landed, config, options, 1, problem)
    if not samples:
        raise SchemaError(
            f"none of the {len(landed)} landed files of {config.dataset!r} has a readable row{problem}, so that no "
            "schema contract can be inferred; land a file with readable rows"
        )
    usable = [sample for sample in samples if _fits(sample, config)]
    samples = usable or samples
    readable = {name for sample in samples for name in sample.rows.columns}
    skipped = {name: why for sample in samples for name, why in sample.skipped.items() if name not in readable}
    dialects = {sample.dialect: sample.name for sample in reversed(samples) if sample.dialect}
    excluded = tuple(name for name in config.exclude if name not in skipped)
    contract = infer_contract(
        [sample.rows for sample in samples], config.model_copy(update={"exclude": excluded})
    ).model_copy(update={"dialects": tuple(reversed(dialects)), "skipped": tuple(skipped)})
    rows = pluralize(sum(sample.rows.height for sample in samples), "row")
    save_contract(contract, dataset.paths.contract, f"{rows} of {pluralize(len(samples), 'file')}")
    for dialect, name in reversed(dialects.items()):
        logger.info(f"text files: {dialect}, as found in {name}; the schema contract now expects it")
    for column, why in skipped.items():
        logger.warning(f"column {column!r} is not read: {why}")
    return {sample.name: sample.file for sample in samples if sample.file}


def _samples(
    names: Sequence[str],
    landed: Mapping[str, Path],
    config: PipelineConfig,
    options: ReadOptions,
    count: int,
    problem: str = "",
) -> tuple[list[_Sample], str]:
    """Return samples of up to `count` files with rows, and the first problem."""
    samples: list[_Sample] = []
    kept_bytes = 0

    def read(file: NewFile) -> tuple[_Sample | None, str]:
        try:
            return _sample(file.name, file.path, options, config, count)
        except UnreadableFileError as error:
            return None, f" ({file.name}: {error})"

    files = [NewFile(name, landed[name], None) for name in names]
    is_ahead = count == len(files) and reads_ahead(files)
    threads = images_at_once(config.source.limits.pixels)
    results = read_ahead(read, files, lambda result: _image_bytes(result[0]), threads) if is_ahead else map(read, files)
    for sample, reason in results:
        problem = problem or reason
        if sample:
            kept_bytes += _image_bytes(sample)
            samples.append(sample if kept_bytes <= _KEPT_IMAGE_BYTES else replace(sample, file=None))
        if len(samples) == count:
            break
    return samples, problem


def _image_bytes(sample: _Sample | None) -> int:
    """Return the size of the images of a file that is kept."""
    file = sample.file.file if sample and sample.file else None
    if isinstance(file, ImageRow):
        return file.pixels.nbytes
    return sum(image_bytes(file.rows[name]) for name in _image_columns(file)) if file else 0


def _image_columns(file: FileRows) -> list[str]:
    return [column for column, dtype in file.rows.schema.items() if dtype == IMAGE_STRUCT]


def _sample(
    name: str, path: Path, options: ReadOptions, config: PipelineConfig, count: int
) -> tuple[_Sample | None, str]:
    if is_in_parts(name, path, options):
        return _sample_of_parts(name, path, options, config, count)
    data = read_bounded(path, config.source.limits)
    read = read_image_row(name, data, options) or read_file(name, data, options)
    if isinstance(read, ImageRow):
        rows = frame_of([read], pl.Series([None], dtype=pl.Binary)).drop(*ORIGIN_COLUMNS)
        return _Sample(name, rows, {}, None, AlreadyRead.of(name, read, data, options)), ""
    _check_skipped(read, config)
    if read.rows.is_empty():
        return None, f" ({name}: {read.rejected['reason'][0]})" if read.rejected.height else ""
    # The inference needs the shape of images only; their bytes would fill the memory.
    images = _image_columns(read)
    without_bytes = (pl.col(column).struct.with_fields(data=pl.lit(None, pl.Binary)) for column in images)
    # Sampled over the whole file and detached, because a slice would keep all rows in memory.
    step = _step(read.rows.height, read.rows.width, count)
    rows = read.rows.drop(*ORIGIN_COLUMNS).gather_every(step).with_columns(*without_bytes)
    is_small = read.rows.height * read.rows.width * count < _KEPT_CELLS
    # Arrays in tables are read with their type in the schema contract.
    is_kept = is_small and (is_image(name) or not config.images)
    whole = AlreadyRead.of(name, read, data, options) if is_kept else None
    return _Sample(name, rows if is_kept and not images else detach(rows), read.skipped, read.dialect, whole), ""


def _sample_of_parts(
    name: str, path: Path, options: ReadOptions, config: PipelineConfig, count: int
) -> tuple[_Sample | None, str]:
    """Return the same sample of a file that is read in parts.

    The step between two rows depends on their number. If that is not about the number of lines, they are read again.
    """
    rows, wanted = scan_text(path).lines, 0
    while True:
        height, step, reason = 0, 0, ""
        samples: list[pl.DataFrame] = []
        for part in read_parts(name, path, options):
            _check_skipped(part, config)
            step = step or _step(wanted or rows, part.rows.width, count)
            samples.append(detach(part.rows.drop(*ORIGIN_COLUMNS).gather_every(step, -height % step)))
            height += part.rows.height
            reason = reason or (part.rejected["reason"][0] if part.rejected.height else "")
            skipped, dialect, width = part.skipped, part.dialect, part.rows.width
        if not height:
            return None, f" ({name}: {reason})" if reason else ""
        if step == _step(height, width, count):
            return _Sample(name, pl.concat(samples), skipped, dialect, None), ""
        wanted = height


def _step(rows: int, columns: int, count: int) -> int:
    """Return the step between two rows of the sample of one of several files."""
    return max(math.ceil(rows * max(columns, 1) * count / _SAMPLED_CELLS), 1)


def _check_skipped(file: FileRows, config: PipelineConfig) -> None:
    if needed := [column for column in file.skipped if is_needed(column, config)]:
        raise UnreadableFileError(f"column {needed[0]!r} is needed, but {file.skipped[needed[0]]}")


def _fits(sample: _Sample, config: PipelineConfig) -> bool:
    """Return whether a file has the columns that every row needs, and no reserved one."""
    image = {config.images.column} if config.images else set()
    names = set(sample.rows.columns)
    time = {config.event_time} if config.event_time else set()
    return {*config.identity, *time, *image} <= names and not names & (RESERVED_COLUMNS - time)
