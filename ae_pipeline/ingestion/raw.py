"""The raw rows of a day: the upsert of what all landed files have for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ae_pipeline.common.errors import SchemaError
from ae_pipeline.ingestion.batch import IMAGE_FACT
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.deduplicate import by_identity
from ae_pipeline.ingestion.landing import IngestResult
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import DatasetPaths


@dataclass(frozen=True)
class DayResult:
    """One day's file of a stage.

    Attributes:
        day: ISO date, or `ALL_ROWS`.
        rows: Rows in it.
        content_hash: Of these rows.
        built: Whether it was written now; otherwise it was up to date.
        superseded: Raw only: rows that a newer row of the same identity replaced.
    """

    day: str
    rows: int
    content_hash: str
    built: bool
    superseded: int = 0


def build_raw_day(day: str, intake: IngestResult, paths: DatasetPaths) -> DayResult:
    """Writes the raw rows of a day, unless they are up to date.

    Columns are the contract's, `row_id` and `event_time`; rows are sorted by event time and identity, each identity
    once.
    """
    target = paths.raw(day)
    facts, input_hash = read_facts(target), intake.input_hash(day)
    if facts.get("input_hash") == input_hash:
        return DayResult(day, int(facts["rows"]), facts["content_hash"], False, int(facts["superseded"]))
    schema = {**intake.contract.polars_schema, "row_id": pl.String(), "event_time": pl.Datetime("us", "UTC")}
    empty = pl.DataFrame(schema=schema)
    parts = [
        _typed(_staged(paths.staged(entry.staged), intake.contract, name).filter(pl.col("_day") == day), schema, name)
        for name, entry in intake.ledger.sources(day)
        if entry.staged
    ]
    # Diagonal: a copy staged before an optional column was declared lacks it.
    rows = pl.concat([empty, *parts], how="diagonal").select(*schema)
    kept = rows.unique(subset="row_id", keep="last", maintain_order=True)
    kept = kept.filter(~pl.col("row_id").is_in(intake.moved.get(day, []))).sort("event_time", "row_id")
    superseded = rows.height - kept.height
    content_hash = write_parquet(target, kept.to_arrow(), {"input_hash": input_hash, "superseded": str(superseded)})
    return DayResult(day, kept.height, content_hash, True, superseded)


def _staged(path: Path, contract: SchemaContract, source: str) -> pl.DataFrame:
    """Reads the staged copy of a file; bytes do not tell what an image is, so its footer must."""
    staged = read_facts(path) if contract.images else {}
    for name, shape in contract.images.items():
        found = staged.get(IMAGE_FACT + name, "of no known shape")
        if found != str(shape):
            raise SchemaError(
                f"images of column {name!r} read from {source} under an earlier schema contract are {found}, and the "
                f"one in force says {shape}; land {source} again, or take the edit back"
            )
    return pl.read_parquet(path)


def _typed(rows: pl.DataFrame, schema: Mapping[str, pl.DataType], source: str) -> pl.DataFrame:
    """Brings rows of a file that cannot be read again, since it has left or is broken, to the contract's types."""
    try:
        return rows.cast({name: dtype for name, dtype in schema.items() if name in rows.columns})
    except pl.exceptions.PolarsError as error:
        raise SchemaError(
            f"rows read from {source} under an earlier schema contract do not fit the types of the one in force "
            f"({str(error).splitlines()[0]}); land {source} again, or take the edit back"
        ) from error


def count_duplicates(days: Sequence[str], paths: DatasetPaths) -> int:
    """Counts rows of days whose identity stands a second time among them."""
    there = [path for day in days if (path := paths.raw(day)).exists()]
    if not there:
        return 0
    rows = sum(pq.read_metadata(path).num_rows for path in there)
    batches = (pl.read_parquet(path, columns=["row_id"], glob=False) for path in there)
    return sum(part.height - part["row_id"].n_unique() for part in by_identity(batches, rows, paths.scratch))
