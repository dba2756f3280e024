"""What is told of the rows that a page lists: their values, why they stand out, which ordinary rows are near."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import Contribution
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.reports.latent_map import columns_of, near
from ae_pipeline.reports.ranking import RankedRow, because, features_of
from ae_pipeline.storage.parquet import detach
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_VALUES, _LONGEST = 20, 40
"""Columns of a row whose values are shown, and their longest text: two hundred rows are to stay below 400 kB."""

MOST_TOLD = 20
"""Rows that are not flagged and are explained none the less."""


@dataclass(frozen=True)
class RowDetails:
    """Looks up what a page tells of rows.

    Attributes:
        files: The published days.
        paths: The dataset's.
        bundle: The model that the table was scored with.
        config: The settings of now.
        reference: Ordinary rows.
    """

    files: Mapping[str, PublishedDay]
    paths: DatasetPaths
    bundle: ModelBundle
    config: PipelineConfig
    reference: pl.DataFrame

    @cached_property
    def _told(self) -> dict[str, tuple[Contribution, ...]]:
        """Explanations of rows that are not flagged, since several pages list the same ones."""
        return {}

    def values(self, rows: Sequence[RankedRow]) -> dict[str, list[tuple[str, str]]]:
        """Gives columns and values of rows as text, by row_id."""
        seen = set(self.bundle.columns) if isinstance(self.bundle.encoder, TableEncoder) else set()
        told = {}
        for day, row_ids in self._by_day(rows).items():
            found = features_of(pl.Series(row_ids), day, self.paths)
            plain = [name for name, dtype in found.schema.items() if not dtype.is_nested() and dtype != pl.Binary]
            wanted = [name for name in plain if name not in {"row_id", LABEL}][:_VALUES]
            for row_id, values in zip(found["row_id"], found.select(wanted).iter_rows(), strict=True):
                told[row_id] = [
                    (name, self._spoken(name, value, seen)) for name, value in zip(wanted, values, strict=True)
                ]
        return told

    def _spoken(self, name: str, value: Any, seen: Collection[str]) -> str:
        if isinstance(value, dt.datetime):
            return f"{value:%Y-%m-%d %H:%M}"
        # Numbers of a day whose features were made under other settings may stand there as text.
        is_known = name in seen and not isinstance(value, str)
        text = cast("TableEncoder", self.bundle.encoder).speak(name, value) if is_known else str(value)
        return "missing" if value is None else text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

    def explanations(self, strangest: Sequence[RankedRow]) -> tuple[RankedRow, ...]:
        """Explains the first rows that are not flagged too, which the ranked files do not.

        Args:
            strangest: Ranked rows, those that are flagged explained.
        """
        silent = [row for row in strangest if not row.contributions][:MOST_TOLD]
        by_day = self._by_day([row for row in silent if row.row_id not in self._told])
        found = [features_of(pl.Series(ids), day, self.paths) for day, ids in by_day.items()]
        wanted = ["row_id", *self.bundle.columns]
        # Days whose features were made under other settings are scored anew before long.
        usable = [detach(part.select(wanted)) for part in found if set(wanted) <= set(part.columns)]
        if usable:
            rows = pl.concat(usable, how="vertical_relaxed")
            explanations = self.bundle.explain(rows.select(self.bundle.columns))
            self._told.update(zip(rows["row_id"], map(tuple, explanations), strict=True))
        told = {row.row_id: parts for row in silent if (parts := self._told.get(row.row_id))}
        return tuple(
            replace(row, contributions=told[row.row_id], because=because(told[row.row_id]))
            if row.row_id in told
            else row
            for row in strangest
        )

    def nearest(self, rows: Sequence[RankedRow]) -> dict[str, list[tuple[str, float]]]:
        """Names the ordinary rows nearest to each in the latent space, with their distances, by row_id."""
        wanted, found = self._by_day(rows), []
        for day in sorted(wanted.keys() & self.files.keys()):
            of_day = published_day(self.files[day], self.paths, columns_of(self.bundle))
            found.append(detach(of_day.filter(pl.col("row_id").is_in(wanted[day]))))
        return near(pl.concat(found), self.reference, self.bundle) if found else {}

    def _by_day(self, rows: Sequence[RankedRow]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(self.day_of(row), []).append(row.row_id)
        return found

    def day_of(self, row: RankedRow) -> str:
        """Names the day that has a row."""
        return row.event_time.date().isoformat() if self.config.is_daily and row.event_time else ALL_ROWS
