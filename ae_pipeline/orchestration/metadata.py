"""Metadata that Dagster shows of a materialization."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.registry.history import history
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import DatasetPaths

if TYPE_CHECKING:
    from ae_pipeline.reports.charts import Chart


def add_partition_metadata(
    context: dg.AssetExecutionContext, config: PipelineConfig, day: str, content_hash: str, uri: str, **figures: int
) -> None:
    """Attaches to a partition its own row count, file and content hash; the hash decides what is new.

    A run over a range gives all its partitions one data version, so each needs facts of its own.

    Args:
        context: Of the asset.
        config: The dataset's; without partitions there is nothing to attach to.
        day: The partition.
        content_hash: Of its rows.
        uri: Of its file.
        figures: Further counts; `rows` is the partition's row count.
    """
    if config.is_daily:
        facts = {"dagster/partition_row_count" if name == "rows" else name: value for name, value in figures.items()}
        context.add_asset_metadata({**facts, "content_hash": content_hash, "dagster/uri": uri}, partition_key=day)


def add_latest_metadata(
    context: dg.AssetExecutionContext, config: PipelineConfig, day: str, metadata: Mapping[str, Any]
) -> None:
    """Attaches what a person looks at to one partition of a run: Dagster would store it once for each of them.

    Args:
        context: Of the asset.
        config: The dataset's.
        day: The partition.
        metadata: Plots, tables and links.
    """
    context.add_asset_metadata(metadata, partition_key=day if config.is_daily else None)


def joint_version(hashes: Iterable[str]) -> dg.DataVersion:
    """Makes one data version of the content of all partitions of a run."""
    return dg.DataVersion(hash_json(list(hashes)))


def parquet_schema(path: Path, described: Mapping[str, str | None] | None = None) -> dg.TableSchema:
    """Reads the columns of a Parquet file, with what each is where that is known."""
    return column_schema(pq.read_schema(path), described)


def column_schema(schema: pa.Schema, described: Mapping[str, str | None] | None = None) -> dg.TableSchema:
    """Tells the columns of a schema, with what each is where that is known."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=(described or {}).get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """Makes a Markdown table, or the word none."""
    from ae_pipeline.reports.markdown import markdown_table

    return dg.MetadataValue.md(markdown_table(heads, rows))


def plot(chart: "Chart") -> dg.MarkdownMetadataValue:
    """Makes a chart a picture with its words below."""
    from ae_pipeline.reports.pictures import as_address
    from ae_pipeline.reports.render import render_png

    return dg.MetadataValue.md(f"![{chart.title}]({as_address(render_png(chart))})\n\n{chart.message}")


def history_table(paths: DatasetPaths, rows: int = 20) -> dg.MarkdownMetadataValue:
    """Tells what became of the models of a dataset, the newest first."""
    told = [
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
    return table(["at (UTC)", "version", "what", "before", "who", "why"], told)


def counted(counts: Mapping[str, int], what: str) -> dg.MarkdownMetadataValue:
    """Makes a Markdown table of counts."""
    return table([what, "rows"], list(counts.items()))
