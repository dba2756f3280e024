"""Raw rows of a day with images: their order is decided without the pixels, which are then read part by part."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.ingestion.deduplicate import MAX_PARTITIONS, sort_in_partitions
from ae_pipeline.ingestion.packs import NUMBER
from ae_pipeline.ingestion.rows import ORIGIN_COLUMNS
from ae_pipeline.storage.files import atomic_write
from ae_pipeline.storage.parquet import rows_per_batch
from ae_pipeline.storage.parquet_parts import ParquetParts

_KEYS = ("event_time", "row_id")
"""Columns that rows are sorted by. Without event time, it is null in all rows."""

_COPY, _PART, _INDEX = "_copy", "_part", "_index"

_RANK = ORIGIN_COLUMNS[1]
"""Column with the rank of a row. No landed column has this name, and Arrow can write it, unlike one with a NUL."""


class CopyReader(Protocol):
    """Function that yields the rows of a staged copy in parts, which are the same whatever the columns."""

    def __call__(self, copy: str, columns: Sequence[str] = ()) -> Iterator[pl.DataFrame]:
        """Yield all columns of the raw rows, or some columns and `NUMBER`."""


def rows_at_once(contract: SchemaContract) -> int:
    """Return how many rows with images are in memory at once.

    Args:
        contract: Schema contract with the shapes of the images.
    """
    shapes = contract.images.values()
    size = sum(each.height * each.width * each.channels * np.dtype(each.dtype).itemsize for each in shapes)
    return rows_per_batch(len(contract.columns), size)


@dataclass(frozen=True)
class ImageDay:
    """The rows of a day with images, and how they are deduplicated.

    Attributes:
        copies: Names of the staged copies with rows of the day.
        read: Function that reads a copy.
        deduplicate: Function that removes replaced rows, in the order in which they landed.
        rows_at_once: Number of rows that are in memory at once.
        scratch: Folder for temporary files.
    """

    copies: Sequence[str]
    read: CopyReader
    deduplicate: Callable[[pl.DataFrame], pl.DataFrame]
    rows_at_once: int
    scratch: Path

    def write(self, target: Path, none: pl.DataFrame, facts: Callable[[int], dict[str, str]]) -> tuple[str, int]:
        """Write the rows that stay, sorted by event time and `row_id`, and return their content hash and number.

        Args:
            target: File of the day.
            none: No rows, with the columns of the file.
            facts: Function that returns the facts of the file from its number of rows.
        """
        keys, heights = self._keys(none)
        kept = self.deduplicate(keys.sort(NUMBER, maintain_order=True)).sort(_KEYS).with_row_index(_RANK)
        ranks = np.full(keys.height, -1, dtype=np.int64)
        ranks[kept[_INDEX].to_numpy()] = np.arange(kept.height)
        spans = kept.group_by(_COPY, _PART).agg(first=pl.col(_RANK).min(), last=pl.col(_RANK).max())
        spans = spans.sort(pl.col("first").min().over(_COPY), _PART)
        rows = self._ranked(spans[_COPY].unique(maintain_order=True).to_list(), heights, ranks, kept["row_id"])
        if not all(last < first for last, first in zip(spans["last"], spans["first"][1:], strict=False)):
            step = max(self.rows_at_once, math.ceil(kept.height / MAX_PARTITIONS))
            bounds = [(rank,) for rank in range(step, kept.height, step)]
            rows = sort_in_partitions(rows, [_RANK], bounds, self.scratch)
        with atomic_write(target) as temporary:
            parts = ParquetParts(temporary, hashed=True)
            for part in rows:
                parts.add(part.drop(_RANK).to_arrow())
            if not parts.rows:  # all rows have moved to another day
                parts.add(none.to_arrow())
            parts.finish(facts(parts.rows))
        return parts.content_hash, parts.rows

    def _keys(self, none: pl.DataFrame) -> tuple[pl.DataFrame, list[int]]:
        """Return the keys of all rows, copy by copy, and the number of rows of each copy."""
        frames: list[pl.DataFrame] = []
        heights: list[int] = []
        for copy in self.copies:
            parts = list(self.read(copy, _KEYS))
            copy_number = pl.lit(len(heights), pl.Int64).alias(_COPY)
            frames += [
                part.with_columns(copy_number, pl.lit(number, pl.Int64).alias(_PART))
                for number, part in enumerate(parts)
            ]
            heights.append(sum(part.height for part in parts))
        numbers = (pl.lit(0, pl.Int64).alias(name) for name in (NUMBER, _COPY, _PART))
        empty = none.select(_KEYS).with_columns(*numbers)
        return pl.concat([empty, *frames]).with_row_index(_INDEX), heights

    def _ranked(
        self, copies: Sequence[int], heights: Sequence[int], ranks: npt.NDArray[np.int64], row_ids: pl.Series
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows that stay with their rank, each part in the order of the ranks.

        Args:
            copies: Numbers of the copies with such rows.
            heights: Number of rows of each copy.
            ranks: Rank of each row, copy by copy; -1 for the rows that were removed.
            row_ids: `row_id` by rank.
        """
        starts = list(accumulate(heights, initial=0))
        for copy in copies:
            start = starts[copy]
            for part in self.read(self.copies[copy]):
                part_ranks = ranks[start : start + part.height]
                start += part.height
                order = np.argsort(part_ranks)
                order = order[part_ranks[order] >= 0]
                is_whole = np.array_equal(order, np.arange(part.height))  # a selection would copy all pixels
                kept = pl.Series(_RANK, part_ranks[order], pl.Int64)
                yield (part if is_whole else part[order]).with_columns(row_ids.gather(kept).alias("row_id"), kept)
