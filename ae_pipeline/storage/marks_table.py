"""The marks of people as a Parquet table, for other programs."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ae_pipeline.storage.jsonl import parse_lines

_REQUIRED = ("kind", "subject", "state", "day")
"""Keys without which a line is no mark."""


def write_marks_table(lines: Path, table: Path) -> None:
    """Write all marks to a table.

    Args:
        lines: Marks as JSON Lines.
        table: Parquet file to write.
    """
    _write(lines.read_bytes(), table)


def marks_parquet(lines: bytes) -> bytes:
    """Return the table of marks as the bytes of a Parquet file.

    Args:
        lines: Marks as JSON Lines.
    """
    with TemporaryDirectory() as folder:
        table = Path(folder, "marks.parquet")
        _write(lines, table)
        return table.read_bytes()


def _write(lines: bytes, table: Path) -> None:
    import polars as pl

    from ae_pipeline.storage.parquet import write_parquet

    schema = {
        "at": pl.String(),
        "who": pl.String(),
        "kind": pl.String(),
        "subject": pl.String(),
        "entity": pl.String(),
        "day": pl.String(),
        "state": pl.String(),
        "note": pl.String(),
        "model_version": pl.Int64(),
        "columns": pl.List(pl.String()),
        "row_ids": pl.List(pl.String()),
    }
    records = [_record(line, schema) for line in parse_lines(lines)[0] if all(name in line for name in _REQUIRED)]
    frame = pl.DataFrame(records, schema=schema, strict=False)
    frame = frame.with_columns(pl.col("at").str.to_datetime(time_unit="us", time_zone="UTC", strict=False))
    write_parquet(table, frame.to_arrow())


def _record(line: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    return {name: list(line.get("rows") or ()) if name == "row_ids" else line.get(name) for name in names}
