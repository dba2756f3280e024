"""Build the raw rows of a day: the upsert of the staged rows of all landed files."""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ae_pipeline.common.cores import cores
from ae_pipeline.common.errors import SchemaError
from ae_pipeline.common.text import first_line
from ae_pipeline.engine.mapping import engine_map
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.deduplicate import partition_by_identity
from ae_pipeline.ingestion.image_days import ImageDay, rows_at_once
from ae_pipeline.ingestion.landing import IngestResult
from ae_pipeline.ingestion.large_days import BATCH_ROWS, LARGE_ROWS, LargeDay
from ae_pipeline.ingestion.packs import IMAGE_FACT, in_packs, is_packed, numbered_rows
from ae_pipeline.ingestion.rows import with_occurrence
from ae_pipeline.ingestion.staged import kept_rows, require_staged
from ae_pipeline.storage.parquet import damage_of, read_facts, scans, write_parquet
from ae_pipeline.storage.paths import DatasetPaths

_KEPT_BYTES = 64 << 20
"""Maximum size of a staged copy that is kept in memory from one day to the next."""


_MAX_THREADS = 4
"""Maximum number of days that are in memory at once."""

_one_reader = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class DayResult:
    """The file of one day in one stage.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Number of rows.
        content_hash: Hash of the rows.
        built: Whether the file was written now. Otherwise it was up to date.
        superseded: Number of rows that a newer row with the same identity has replaced; raw rows only.
        repeated: Number of rows that repeat an earlier row exactly, in a dataset without identity; raw rows only.
    """

    day: str
    rows: int
    content_hash: str
    built: bool
    superseded: int = 0
    repeated: int = 0


def write_raw_days(days: Sequence[str], ingested: IngestResult, paths: DatasetPaths) -> Generator[DayResult]:
    """Write the raw rows of days as `build_raw_day` does, several at once, and yield their results in order."""
    parts = (ingested.of_day(day) for day in days)  # a worker needs no more of the ledger than that
    work = partial(_build_raw_day, paths=paths)
    yield from engine_map(work, zip(days, parts, strict=True), threads=min(_MAX_THREADS, cores()))


def _build_raw_day(part: tuple[str, IngestResult], paths: DatasetPaths) -> DayResult:
    day, ingested = part
    return build_raw_day(day, ingested, paths)


def build_raw_day(day: str, ingested: IngestResult, paths: DatasetPaths) -> DayResult:
    """Write the raw rows of a day, unless the file is up to date.

    The columns are those of the schema contract, `row_id` and `event_time`. The rows are deduplicated by identity, and
    sorted by event time and identity. Without identity all rows stay, and `row_id` is a hash of the values of the row
    and the number of its occurrence, such as 1f3a…-2, over all files in the order in which they landed.

    Args:
        day: ISO date, or `ALL_ROWS`.
        ingested: Result of the last ingestion.
        paths: Paths of the dataset.

    Raises:
        SchemaError: Staged rows of a file that has left the landing folder do not fit the edited contract.
    """
    target = paths.raw(day)
    facts, input_hash = read_facts(target), ingested.input_hash(day)
    if facts.get("input_hash") == input_hash:
        return DayResult(
            day=day,
            rows=int(facts["rows"]),
            content_hash=facts["content_hash"],
            built=False,
            superseded=int(facts["superseded"]),
            repeated=int(facts.get("repeated", 0)),
        )
    schema = {**ingested.contract.polars_schema, "row_id": pl.String(), "event_time": pl.Datetime("us", "UTC")}
    sources = [(name, entry) for name, entry in ingested.ledger.sources(day) if entry.staged]
    landed = sum(entry.days.get(day, 0) for _, entry in sources)
    repeated = 0

    def deduplicate(rows: pl.DataFrame) -> pl.DataFrame:
        nonlocal repeated
        if not ingested.has_identity:
            repeated += rows.height - rows["row_id"].n_unique()
            return with_occurrence(rows)
        is_unique = rows["row_id"].n_unique() == rows.height
        kept = rows if is_unique else rows.unique(subset="row_id", keep="last", maintain_order=True)
        return kept.filter(~pl.col("row_id").is_in(moved)) if (moved := ingested.moved.get(day)) else kept

    def facts_of(rows: int) -> dict[str, str]:
        return {"input_hash": input_hash, "superseded": str(landed - rows), "repeated": str(repeated)}

    def complete(*rows: pl.DataFrame) -> pl.DataFrame:
        # "diagonal", because a copy lacks optional columns that were declared after it was staged.
        return pl.concat([pl.DataFrame(schema=schema), *rows], how="diagonal").select(*schema)

    copies = in_packs(sources)

    def read(copy: str, at_once: int | None = None, columns: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
        name = copies[copy][0][1]
        for rows in _read_staged(paths.staged(copy), ingested.contract, name, day, at_once, columns):
            yield _cast(rows, schema, name)

    def read_images(copy: str, columns: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
        packed = [(number, entry) for number, _, entry in copies[copy]]
        entry, most = copies[copy][0][2], rows_at_once(ingested.contract)
        # A small copy is kept in memory for the next day. A pack is not larger than the batch that it comes from.
        at_once = None if is_packed(entry) or entry.rows <= 2 * most else most
        for rows in read(copy, at_once, columns):
            numbered = numbered_rows(rows, packed)
            yield numbered if columns else complete(numbered)

    def read_all(at_once: int | None = None) -> Iterator[pl.DataFrame]:
        return chain.from_iterable(read(copy, at_once) for copy in copies)

    if ingested.contract.images:
        images = ImageDay(list(copies), read_images, deduplicate, rows_at_once(ingested.contract), paths.scratch)
        content_hash, height = images.write(target, complete(), facts_of)
    elif landed > LARGE_ROWS:
        large = LargeDay(lambda: map(complete, read_all(BATCH_ROWS)), landed, deduplicate, paths.scratch)
        content_hash, height = large.write(target, facts_of)
    else:
        kept = deduplicate(complete(*read_all())).sort("event_time", "row_id")
        height = kept.height
        content_hash = write_parquet(target, kept.to_arrow(), facts_of(height))
    return DayResult(
        day=day, rows=height, content_hash=content_hash, built=True, superseded=landed - height, repeated=repeated
    )


def _read_staged(
    path: Path, contract: SchemaContract, source: str, day: str, at_once: int | None, columns: Sequence[str] = ()
) -> Iterator[pl.DataFrame]:
    """Read the rows of a day in a staged copy, at most `at_once` of them at once, and all columns or some.

    The footer shows the shape of its images, because their bytes do not.
    """
    facts = read_facts(path) if contract.images else {}
    for name, shape in contract.images.items():
        staged_shape = facts.get(IMAGE_FACT + name, "of unknown shape")
        if staged_shape != str(shape):
            raise SchemaError(
                f"images of column {name!r} from {source} were staged under an earlier schema contract and are "
                f"{staged_shape}, but the current one says {shape}; land {source} again, or undo the edit"
            )
    require_staged(path, source)
    if columns or at_once or (path.stat().st_size > _KEPT_BYTES and kept_rows(path) is None):
        for scan in scans([path], at_once):
            rows = scan.filter(pl.col("_day") == day)
            yield (rows.select(columns) if columns else rows).collect()
        return
    with _one_reader:
        days = _staged_days(path, path.stat().st_mtime_ns)
    yield days[(day,)] if (day,) in days else pl.read_parquet(path, n_rows=0, glob=False)


@lru_cache(maxsize=1)
def _staged_days(path: Path, modified_ns: int) -> dict[tuple[object, ...], pl.DataFrame]:  # noqa: ARG001
    """Read a staged copy by day, and keep it, because the next day is often in the same one."""
    kept = kept_rows(path)
    rows = pl.read_parquet(path, glob=False) if kept is None else kept
    if rows.height and rows["_day"].n_unique() == 1:  # a partition would be a copy
        return {(rows["_day"][0],): rows}
    return rows.partition_by("_day", as_dict=True)


def _cast(rows: pl.DataFrame, schema: Mapping[str, pl.DataType], source: str) -> pl.DataFrame:
    """Cast staged rows to the current types, for files that have left the landing folder or are now unreadable."""
    try:
        return rows.cast({name: dtype for name, dtype in schema.items() if name in rows.columns})
    except pl.exceptions.PolarsError as error:
        raise SchemaError(
            f"rows from {source} were staged under an earlier schema contract and do not fit the types of the current "
            f"one ({first_line(error)}); land {source} again, or undo the edit"
        ) from error


def count_duplicates(days: Sequence[str], paths: DatasetPaths) -> int:
    """Return the number of rows on some days whose identity occurs in an earlier row of these days."""
    files = [path for day in days if (path := paths.raw(day)).exists() and not damage_of(path)]
    if not files:
        return 0
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    batches = (scan.select("row_id").collect() for scan in scans(files, BATCH_ROWS))
    return sum(part.height - part["row_id"].n_unique() for part in partition_by_identity(batches, rows, paths.scratch))
