"""Raw rows of a day that has too many of them to be in memory: they are sorted in parts, on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ae_pipeline.ingestion.deduplicate import partition_bounds, partition_by_identity, sort_in_partitions
from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.parquet_parts import ParquetParts

LARGE_ROWS = 1 << 20
"""Number of rows above which a day is sorted on disk."""

BATCH_ROWS = 1 << 18
"""Rows that are read at once."""

_SAMPLED_ROWS = 1 << 16


@dataclass
class LargeDay:
    """The rows of a large day, and how they are deduplicated.

    Attributes:
        batches: Function that reads the rows in the order in which they landed, with a row index in the whole day.
        rows: Number of rows before they are deduplicated.
        deduplicate: Function that removes replaced rows among all rows of some identities.
        scratch: Folder for temporary files.
    """

    batches: Callable[[], Iterator[pl.DataFrame]]
    rows: int
    deduplicate: Callable[[pl.DataFrame], pl.DataFrame]
    scratch: Path

    def write(self, target: Path, facts: Callable[[int], dict[str, str]]) -> tuple[str, int]:
        """Write the rows that stay, sorted by event time and `row_id`, and return their content hash and number.

        Args:
            target: File of the day.
            facts: Function that returns the facts of the file from its number of rows.
        """
        keys, sample = self._sample()
        bounds = partition_bounds(sample, keys, self.rows)
        none = pl.DataFrame()

        def kept() -> Iterator[pl.DataFrame]:
            nonlocal none
            for rows in map(self.deduplicate, partition_by_identity(self.batches(), self.rows, self.scratch)):
                none = rows.clear()
                yield rows

        with atomic_write(target) as temporary:
            parts = ParquetParts(temporary, hashed=True)
            for rows in sort_in_partitions(kept(), keys, bounds, self.scratch):
                parts.add(rows.to_arrow())
            if not parts.rows:  # all rows have moved to another day
                parts.add(none.to_arrow())
            parts.finish(facts(parts.rows))
        return parts.content_hash, parts.rows

    def _sample(self) -> tuple[Sequence[str], pl.DataFrame]:
        """Return the columns to sort by, and some of their values: without event time, `row_id` alone."""
        step = max(self.rows // _SAMPLED_ROWS, 1)
        sample = pl.concat([batch.select("event_time", "row_id").gather_every(step) for batch in self.batches()])
        return (["row_id"] if sample["event_time"].null_count() else ["event_time", "row_id"]), sample
