"""Identities that a newer file has moved to another day."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.batch import RAW_VERSION
from ae_pipeline.ingestion.deduplicate import partition_by_identity
from ae_pipeline.ingestion.ledger import LandedFile, Ledger, landing_order
from ae_pipeline.ingestion.staged import read_many_staged
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.paths import DatasetPaths

_ROWS_AT_ONCE = 100_000
"""Rows of small files that are read at once, because each read takes milliseconds."""

logger = logging.getLogger(__name__)


def moved_identities(ledger: Ledger, paths: DatasetPaths, config: PipelineConfig) -> dict[str, list[str]]:
    """Return the identities that a newer file has moved to another day, by their old day.

    There are none if the event time is part of the identity, or there is no identity.
    """
    if config.event_time is None or not config.identity or config.event_time in config.identity:
        return {}
    files = [entry for _, entry in sorted(ledger.files.items(), key=landing_order) if entry.staged]
    staged = [str(entry.staged) for entry in files]
    if not staged:
        return {}
    sources = {str(entry.staged): name for name, entry in ledger.files.items()}
    withdrawn = {str(entry.staged): sorted(entry.withdrawn) for entry in files if entry.withdrawn}
    # Cached, because it needs the identities of all rows, and sensors call last_ingest often.
    cache = paths.ledger.with_name("moved.json")
    key = hash_json([RAW_VERSION, staged, *([withdrawn] if withdrawn else [])])
    if (known := _cached_moves(cache, key)) is not None:
        return known
    rows = (
        read_many_staged({paths.staged(name): sources[name] for name in names}, ["row_id", "_day"]).filter(
            ~pl.col("_day").is_in(withdrawn.get(names[0], []))
        )
        for names in _groups(files)
    )
    newest = pl.col("_day").last().over("row_id")  # files are in landing order
    parts = partition_by_identity(rows, sum(entry.rows for entry in files), paths.scratch)
    repeated = (part.filter(pl.col("row_id").is_duplicated()) for part in parts)
    lost = pl.concat([part.filter(pl.col("_day") != newest).unique() for part in repeated]).sort("row_id")
    moved = {str(day): part["row_id"].to_list() for (day,), part in lost.group_by("_day", maintain_order=True)}
    write_text(cache, json.dumps({"of": key, "moved": moved, "digest": hash_json([key, moved])}))
    return moved


def _groups(files: Sequence[LandedFile]) -> Iterator[list[str]]:
    """Yield the names of staged copies to read at once: many small ones, but each one with withdrawn rows alone."""
    group: list[str] = []
    rows = 0
    for entry in files:
        if group and (entry.withdrawn or rows + entry.rows > _ROWS_AT_ONCE):
            yield group
            group, rows = [], 0
        group.append(str(entry.staged))
        rows += entry.rows
        if entry.withdrawn:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _cached_moves(cache: Path, key: str) -> dict[str, list[str]] | None:
    """Return the cached result of `moved_identities`, or None if it is missing, of other files, or damaged."""
    if not cache.exists():
        return None
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        of, moved, digest = content["of"], dict(content["moved"]), content.get("digest")
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning(f"{cache} is damaged and computed again")
        return None
    return moved if of == key and digest == hash_json([key, moved]) else None
