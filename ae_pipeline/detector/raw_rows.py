"""Rows as they land, validated and turned into features by the schema contract that a bundle holds."""

import datetime as dt
import io
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

import polars as pl

from ae_pipeline.common.errors import SchemaError, StorageError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.source import ImagesConfig
from ae_pipeline.detector.explanation import CONTRIBUTIONS, Contribution, because
from ae_pipeline.ingestion.contract import SchemaContract, required_columns
from ae_pipeline.ingestion.rows import ORIGIN_COLUMNS, UnreadableFileError, plain_text, with_occurrence

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Table = Union[pl.DataFrame, "pa.Table", "pd.DataFrame"]
"""A table in memory: polars, pyarrow or pandas. The index of a pandas table is not read."""

ROW_NUMBER = "row_number"
"""Column with the line of a text file, or the row of a table from 1. The patches of an image share a number."""


@dataclass(frozen=True)
class RawScores:
    """Scores of rows as they land. Each row is in one of the two tables.

    Attributes:
        scored: One row for each valid row, in their order: `row_number`, `row_id`, `event_time`, `score`, `p_value`,
            `is_anomaly`, `because` and `contributions` as in the ranked rows of the report, and the latents `z_000`, ….
        rejected: One row for each row that could not be read or violates the schema contract: `row_number`, `rule`,
            `reason`, and `record`, which is the row as it landed.
    """

    scored: pl.DataFrame
    rejected: pl.DataFrame

    @property
    def rows(self) -> int:
        """Number of rows that were given."""
        return self.scored.height + self.rejected.height


@dataclass(frozen=True)
class RawFeatures:
    """Valid rows and rejected rows.

    Attributes:
        features: Features with `ROW_NUMBER`.
        exact: The same rows with the exact values of integers and decimals, for explanations.
        rejected: As in `RawScores`.
    """

    features: pl.DataFrame
    exact: pl.DataFrame
    rejected: pl.DataFrame

    def with_scores(
        self,
        scores: pl.DataFrame,
        fitted: pl.DataFrame,
        explain: Callable[[pl.DataFrame], list[list[Contribution]]],
        limit: int,
    ) -> RawScores:
        """Add scores and latents of the valid rows, and explanations of the flagged rows with the highest scores.

        Args:
            scores: Scores and latents, in the order of the features.
            fitted: The columns that the model was fitted on, with exact values.
            explain: Function that explains some of these rows.
            limit: Upper limit on the number of explained rows.
        """
        table = self.features.select(ROW_NUMBER, "row_id", "event_time").hstack(scores)
        flagged = table.with_row_index().filter("is_anomaly").sort(["score", "row_id"], descending=[True, False])
        indices = flagged["index"].head(limit)
        parts = dict(zip(indices, explain(fitted[indices]) if indices.len() else [], strict=True))
        by_row = [parts.get(index, []) for index in range(table.height)]
        texts = pl.Series("because", [because(each) if each else "" for each in by_row], dtype=pl.String)
        records = [[part.record() for part in each] for each in by_row]
        scored = table.with_columns(texts, pl.Series("contributions", records, dtype=CONTRIBUTIONS))
        first = (ROW_NUMBER, "row_id", "event_time", "score", "p_value", "is_anomaly", "because", "contributions")
        return RawScores(scored.select(*first, pl.exclude(first)), self.rejected)


def read_rows(rows: Table | Path, landing: Path | None) -> tuple[str, bytes]:
    """Return name and content of a file, or of a table as a file.

    Args:
        rows: Table, or path of a file.
        landing: Folder below which the name of the file is given; only its last part by default.

    Raises:
        StorageError: The file cannot be read.
        SchemaError: The table cannot become a file.
    """
    if not isinstance(rows, Path):
        return "table.parquet", _as_file(rows)
    inside = landing is not None and rows.resolve().is_relative_to(landing.resolve())
    name = str(rows.resolve().relative_to(landing.resolve())) if landing and inside else rows.name
    try:
        return name, rows.read_bytes()
    except OSError as error:
        raise StorageError(f"{rows} cannot be read: {error.strerror}; name a file with rows to score") from error


def _as_file(table: Table) -> bytes:
    """Return a table as a Parquet file in memory, so that it goes through the reader of landed files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = (
            table
            if isinstance(table, pa.Table)
            else table.to_arrow()
            if isinstance(table, pl.DataFrame)
            else pa.Table.from_pandas(table, preserve_index=False)
        )
        buffer = io.BytesIO()
        pq.write_table(arrow, buffer)
    except (pa.ArrowException, TypeError) as error:
        raise SchemaError(
            f"the table cannot be read as columns of one type each ({error}); convert the column to one type"
        ) from error
    return buffer.getvalue()


def build_raw_features(
    name: str,
    data: bytes,
    contract: SchemaContract,
    config: PipelineConfig,
    days: tuple[dt.date | None, dt.date | None],
) -> RawFeatures:
    """Parse a file, validate its rows and compute their features, like the ingestion of a landed file.

    Columns that only the label needs may be missing, because new rows have no label yet.

    Args:
        name: Name of the file; its suffix determines the format.
        data: Content of the file.
        contract: Schema contract of the rows.
        config: Configuration of the dataset.
        days: First and last valid day.

    Raises:
        SchemaError: The file cannot be read, or a column is missing or unknown.
        ConfigError: A derived column cannot be computed.
    """
    from ae_pipeline.features.build import build_features, with_exact_values
    from ae_pipeline.ingestion.conform import check_columns, conform
    from ae_pipeline.ingestion.readers.files import ReadOptions, read_file

    contract = _without_label(contract, config)
    options = ReadOptions.under(contract, config)
    if config.images and not _needs_path(name, config.images, required_columns(contract, config)):
        options = replace(options, images=config.images.model_copy(update={"path": None}))
    try:
        file = read_file(name, data, options)
    except UnreadableFileError as error:
        raise SchemaError(f"{name} cannot be read: {error}") from error
    file = replace(file, rows=plain_text(file.rows))
    columns = [column for column in file.rows.columns if column not in ORIGIN_COLUMNS]
    check_columns(columns, contract, name, required_columns(contract, config))
    first, last = days
    config = config.model_copy(update={"start": first, "end": last})
    valid = conform(file, contract, config, config.today())
    rows = valid.rows if config.identity else with_occurrence(valid.rows)
    features = build_features(rows, config, contract).with_columns(rows["_row_number"].alias(ROW_NUMBER))
    rejected = valid.rejected.select(ROW_NUMBER, "rule", "reason", "record")
    return RawFeatures(features, with_exact_values(features, rows), rejected)


def _needs_path(name: str, images: ImagesConfig, required: Collection[str]) -> bool:
    """Return whether the path of an image has to match `images.path`, or does.

    An image to score may be anywhere. The columns that its path would give are then missing, unless it needs them.
    """
    expression = re.compile(images.path or "")
    return bool(expression.search(name) or expression.groupindex.keys() & required)


def _without_label(contract: SchemaContract, config: PipelineConfig) -> SchemaContract:
    """Return the same contract, in which values that only the label needs may be missing.

    The model of images looks at the image alone, so that their other columns may be missing too.
    """
    from ae_pipeline.features.build import label_columns

    unneeded = (label_columns(config) | (set(contract.columns) if config.images else set())) - required_columns(
        contract, config
    )
    optional = {"required": False, "optional": True}
    rules = {
        name: rule.model_copy(update=optional) if name in unneeded else rule for name, rule in contract.columns.items()
    }
    return contract.model_copy(update={"columns": rules})
