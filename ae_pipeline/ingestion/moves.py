"""Identities that a newer file has moved to another day."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.deduplicate import partition_by_identity
from ae_pipeline.ingestion.fingerprints import RAW_VERSION
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
    files = [file for file in sorted(ledger.files.items(), key=landing_order) if file[1].staged]
    staged = [str(entry.staged) for _, entry in files]
    if not staged:
        return {}
    withdrawn = {str(entry.staged): sorted(entry.withdrawn) for _, entry in files if entry.withdrawn}
    # Cached, because it needs the identities of all rows, and sensors call last_ingest often.
    cache = paths.ledger.with_name("moved.json")
    key = hash_json([RAW_VERSION, staged, *([withdrawn] if withdrawn else [])])
    if (known := _cached_moves(cache, key)) is not None:
        return known
    rows = (
        read_many_staged(group, paths, ["row_id", "_day"]).filter(~pl.col("_day").is_in(sorted(group[0][1].withdrawn)))
        for group in _groups(files)
    )
    newest = pl.col("_day").last().over("row_id")  # files are in landing order
    parts = partition_by_identity(rows, sum(entry.rows for _, entry in files), paths.scratch)
    repeated = (part.filter(pl.col("row_id").is_duplicated()) for part in parts)
    lost = pl.concat([part.filter(pl.col("_day") != newest).unique() for part in repeated]).sort("row_id")
    moved = {str(day): part["row_id"].to_list() for (day,), part in lost.group_by("_day", maintain_order=True)}
    write_text(cache, json.dumps({"of": key, "moved": moved, "digest": hash_json([key, moved])}))
    return moved


def _groups(files: Sequence[tuple[str, LandedFile]]) -> Iterator[list[tuple[str, LandedFile]]]:
    """Yield the landed files to read at once: many small ones, but each one with withdrawn rows alone."""
    group: list[tuple[str, LandedFile]] = []
    rows = 0
    for name, entry in files:
        if group and (entry.withdrawn or rows + entry.rows > _ROWS_AT_ONCE):
            yield group
            group, rows = [], 0
        group.append((name, entry))
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
