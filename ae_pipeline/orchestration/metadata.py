"""Metadata that Dagster shows of a materialization."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from ae_pipeline.common.escape import escape_markdown
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.registry.history import history
from ae_pipeline.storage.blobs import uri_of_content
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.ingestion.contract import ColumnRule
    from ae_pipeline.ingestion.raw import DayResult
    from ae_pipeline.reports.charts import Chart
    from ae_pipeline.storage.dataset import Dataset

_ALLOWED = 10
"""Valid texts that the description of a column lists."""


def add_partition_metadata(
    context: dg.AssetExecutionContext, config: PipelineConfig, day: str, content_hash: str, uri: str, **figures: int
) -> None:
    """Add row count, file and content hash to a partition.

    A run over a range gives all its partitions one data version, so each needs metadata of its own.

    Args:
        context: Context of the asset.
        config: Configuration of the dataset; without partitions nothing is added.
        day: The partition.
        content_hash: Hash of its rows.
        uri: Address of its file.
        figures: More counts; `rows` is the row count of the partition.
    """
    if config.is_daily:
        counts = {"dagster/partition_row_count" if name == "rows" else name: value for name, value in figures.items()}
        context.add_asset_metadata({**counts, "content_hash": content_hash, "dagster/uri": uri}, partition_key=day)


def add_days_metadata(
    context: dg.AssetExecutionContext,
    dataset: "Dataset",
    path: Callable[[str], Path],
    days: Iterable["DayResult"],
) -> None:
    """Add row count, file and content hash to the partitions of raw rows or features.

    Args:
        context: Context of the asset.
        dataset: Configuration and paths of the dataset.
        path: Function that returns the file of a day.
        days: Days of the run.
    """
    for day in days if dataset.config.is_daily else ():
        uri = uri_of_content(dataset.paths, path(day.day))
        add_partition_metadata(context, dataset.config, day.day, day.content_hash, uri, rows=day.rows)


def add_latest_metadata(
    context: dg.AssetExecutionContext, config: PipelineConfig, day: str, metadata: Mapping[str, Any]
) -> None:
    """Add plots, tables and links to one partition of a run, because Dagster would store them once for each partition.

    Args:
        context: Context of the asset.
        config: Configuration of the dataset.
        day: The partition.
        metadata: Plots, tables and links.
    """
    context.add_asset_metadata(metadata, partition_key=day if config.is_daily else None)


def joint_version(hashes: Iterable[str]) -> dg.DataVersion:
    """Return one data version for the content of all partitions of a run."""
    return dg.DataVersion(hash_json(list(hashes)))


def column_descriptions(dataset: "Dataset") -> dict[str, str]:
    """Return what the schema contract and the YAML say about the columns of raw data and features, by name.

    Args:
        dataset: Configuration and paths of the dataset; its contract exists.
    """
    from ae_pipeline.features.split import LABEL
    from ae_pipeline.ingestion.contract import contract_in_force

    config = dataset.config
    rules = contract_in_force(dataset.paths.contract, config).columns
    described = {name: _rule_message(rule) for name, rule in rules.items()}
    described |= {name: f"Derived: {expression}" for name, expression in config.derive.items()}
    described["row_id"] = f"Identity of the row: {', '.join(config.identity)}."
    if config.event_time:
        described["event_time"] = f"Event time, UTC, from {config.event_time}."
    if config.label:
        described[LABEL] = f"Whether the row is a known anomaly: {config.label}"
    return described


def _rule_message(rule: "ColumnRule") -> str:
    """Return the rule of a column as a sentence."""
    low, high = rule.minimum, rule.maximum
    limits = {
        "a value is required": rule.required,
        "files may lack it": rule.optional,
        f"at least {low:.15g}" if low is not None else "": low is not None,
        f"at most {high:.15g}" if high is not None else "": high is not None,
        f"one of {', '.join(rule.allowed[:_ALLOWED])}" if rule.allowed else "": bool(rule.allowed),
    }
    return "; ".join([f"Type {rule.type.value}", *(text for text, holds in limits.items() if holds)]) + "."


def parquet_schema(path: Path, descriptions: Mapping[str, str | None] | None = None) -> dg.TableSchema:
    """Return the columns of a Parquet file, with descriptions where there are any."""
    return column_schema(pq.read_schema(path), descriptions)


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str | None] | None = None) -> dg.TableSchema:
    """Return the columns of an Arrow schema, with descriptions where there are any."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=(descriptions or {}).get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """Return a Markdown table, or the word none if there are no rows."""
    from ae_pipeline.reports.markdown import markdown_table

    return dg.MetadataValue.md(markdown_table(header, rows))


def count_table(counts: Mapping[str, int], noun: str) -> dg.MarkdownMetadataValue:
    """Return a Markdown table of row counts."""
    return table([noun, "rows"], list(counts.items()))


def plot(chart: "Chart") -> dg.MarkdownMetadataValue:
    """Return a chart as a picture, with its message below."""
    from ae_pipeline.reports.pictures import as_address
    from ae_pipeline.reports.render import render_png

    return dg.MetadataValue.md(
        f"![{escape_markdown(chart.title)}]({as_address(render_png(chart))})\n\n{escape_markdown(chart.message)}"
    )


def history_table(paths: DatasetPaths, rows: int = 20) -> dg.MarkdownMetadataValue:
    """Return the history of a dataset's models as a table, the newest entry first."""
    entries = [
        (
            entry.at,
            entry.version,
            entry.change.value,
            "" if entry.previous is None else entry.previous,
            entry.who,
            entry.why,
        )
        for entry in reversed(history(paths)[-rows:])
    ]
    return table(["at (UTC)", "version", "change", "previous", "who", "why"], entries)
