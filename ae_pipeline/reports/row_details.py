"""Details of the rows that a page lists: values, explanations and nearest normal rows."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import Contribution, because
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.reports.latent_map import columns_of, nearest_neighbors
from ae_pipeline.reports.ranking import RankedRow, features_of
from ae_pipeline.storage.parquet import detach
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

_MAX_VALUES, _MAX_LENGTH = 20, 40
"""Number of values of a row, and length of a value, so that two hundred rows stay below 400 kB."""

MAX_EXPLAINED = 20
"""Number of rows that a page explains although they are not flagged."""


@dataclass(frozen=True, kw_only=True)
class RowDetails:
    """Look up details of rows.

    Attributes:
        files: Published days.
        paths: Paths of the dataset.
        bundle: Model that scored the published table.
        config: Current configuration.
        reference: Normal rows.
    """

    files: Mapping[str, PublishedDay]
    paths: DatasetPaths
    bundle: ModelBundle
    config: PipelineConfig
    reference: pl.DataFrame

    @cached_property
    def _explanations(self) -> dict[str, tuple[Contribution, ...]]:
        """Explanations by row_id, because several pages list the same rows."""
        return {}

    def values(self, rows: Sequence[RankedRow]) -> dict[str, list[tuple[str, str]]]:
        """Return the columns and values of rows as text, by row_id."""
        known = set(self.bundle.columns) if isinstance(self.bundle.encoder, TableEncoder) else set()
        values_of = {}
        for day, row_ids in self._by_day(rows).items():
            features = features_of(pl.Series(row_ids), day, self.paths)
            plain = [name for name, dtype in features.schema.items() if not dtype.is_nested() and dtype != pl.Binary]
            columns = [name for name in plain if name not in {"row_id", LABEL}][:_MAX_VALUES]
            for row_id, values in zip(features["row_id"], features.select(columns).iter_rows(), strict=True):
                values_of[row_id] = [
                    (name, self._as_text(name, value, known)) for name, value in zip(columns, values, strict=True)
                ]
        return values_of

    def _as_text(self, name: str, value: Any, known: Collection[str]) -> str:
        if isinstance(value, dt.datetime):
            local = value.astimezone(self.config.zone) if value.tzinfo else value
            return f"{local:%Y-%m-%d %H:%M}"
        # In features of other settings, a column of numbers may contain text.
        is_known = name in known and not isinstance(value, str)
        text = cast("TableEncoder", self.bundle.encoder).speak(name, value) if is_known else str(value)
        return "missing" if value is None else text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"

    def explanations(self, strangest: Sequence[RankedRow]) -> tuple[RankedRow, ...]:
        """Return the same rows, with an explanation of the first ones that the ranked files do not explain.

        Args:
            strangest: Ranked rows, the highest score first.
        """
        unexplained = [row for row in strangest if not row.contributions][:MAX_EXPLAINED]
        by_day = self._by_day([row for row in unexplained if row.row_id not in self._explanations])
        features = [features_of(pl.Series(ids), day, self.paths) for day, ids in by_day.items()]
        columns = ["row_id", *self.bundle.columns]
        # Days with features of other settings may lack columns. They are scored again soon.
        usable = [detach(part.select(columns)) for part in features if set(columns) <= set(part.columns)]
        if usable:
            rows = pl.concat(usable, how="vertical_relaxed")
            explanations = self.bundle.explain(rows.select(self.bundle.columns))
            self._explanations.update(zip(rows["row_id"], map(tuple, explanations), strict=True))
        parts_of = {row.row_id: parts for row in unexplained if (parts := self._explanations.get(row.row_id))}
        return tuple(
            replace(row, contributions=parts_of[row.row_id], because=because(parts_of[row.row_id]))
            if row.row_id in parts_of
            else row
            for row in strangest
        )

    def nearest(self, rows: Sequence[RankedRow]) -> dict[str, list[tuple[str, float]]]:
        """Return the nearest normal rows of each row in the latent space, with their distances, by row_id."""
        row_ids, parts = self._by_day(rows), []
        for day in sorted(row_ids.keys() & self.files.keys()):
            of_day = published_day(self.files[day], self.paths, columns_of(self.bundle))
            parts.append(detach(of_day.filter(pl.col("row_id").is_in(row_ids[day]))))
        return nearest_neighbors(pl.concat(parts), self.reference, self.bundle) if parts else {}

    def _by_day(self, rows: Sequence[RankedRow]) -> dict[str, list[str]]:
        by_day: dict[str, list[str]] = {}
        for row in rows:
            by_day.setdefault(self.day_of(row), []).append(row.row_id)
        return by_day

    def day_of(self, row: RankedRow) -> str:
        """Return the day of a row, or `ALL_ROWS` without event time."""
        return row.event_time.date().isoformat() if self.config.is_daily and row.event_time else ALL_ROWS
