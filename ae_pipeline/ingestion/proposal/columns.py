"""Landed columns, and what their values look like."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ae_pipeline.config.columns import RESERVED_COLUMNS, ColumnType
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.contract import ColumnRule
from ae_pipeline.ingestion.inference import infer_contract
from ae_pipeline.ingestion.proposal.names import is_time_name
from ae_pipeline.ingestion.proposal.times import EpochUnit, Times, epoch_unit, read_times

TIME_TYPES = {ColumnType.TIMESTAMP, ColumnType.DATE}
TEXT_TYPES = {ColumnType.TEXT, ColumnType.CATEGORY}


@dataclass(frozen=True)
class Choice:
    """A proposed value of a key.

    Attributes:
        value: The value as it stands in YAML.
        reason: Why, for a person.
        is_live: Whether the key is set. Otherwise it is a comment that a person can uncomment.
    """

    value: object
    reason: str
    is_live: bool = True


class LandedColumns:
    """Landed columns, with what their values look like."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self.rows, self.names = rows, rows.columns
        self._reserved = RESERVED_COLUMNS & set(rows.columns)
        # Reserved names are an error of the inference, but one of them may be the event time.
        probe = PipelineConfig.model_construct(dataset="proposal", identity=())
        plain = rows.drop(self._reserved)
        self.rules: dict[str, ColumnRule] = dict(infer_contract([plain], probe).columns) if plain.width else {}
        self._distinct = rows.unique(maintain_order=True)

    def kind(self, name: str) -> ColumnType:
        """Return the inferred type; text for a reserved name."""
        return self.rules[name].type if name in self.rules else ColumnType.TEXT

    def present(self, name: str) -> pl.Series:
        """Return the values that are not missing; texts without surrounding spaces."""
        values = self.rows[name].drop_nulls()
        if values.dtype != pl.String:
            return values
        missing = ["", *(self.rules[name].null_values if name in self.rules else ())]
        texts = values.str.strip_chars()
        return texts.filter(~texts.is_in(missing))

    def times(self, name: str) -> Times | None:
        """Return the times of a column, or None if it does not hold times."""
        if unit := self.epoch_unit(name):
            numbers = self.rows[name].cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False)
            return read_times(pl.from_epoch(numbers.alias(name), unit))
        is_time = self.kind(name) in TIME_TYPES
        return read_times(self.rows[name]) if is_time or name in self._reserved else None

    def epoch_unit(self, name: str) -> EpochUnit | None:
        """Return the unit of a column of numbers since 1970, or None for another column."""
        numbers = self.whole_numbers(name)
        return None if numbers is None or not is_time_name(name) else epoch_unit(numbers)

    def is_unique(self, names: Sequence[str]) -> bool:
        """Return whether columns have a value in each row, and no values twice but in rows that are exact repeats."""
        if any(self.present(name).len() < self.rows.height for name in names):
            return False
        return self._distinct.select(names).n_unique() == self._distinct.height

    def whole_numbers(self, name: str) -> pl.Series | None:
        """Return the values of an integer column, or None for another column."""
        if self.kind(name) != ColumnType.INTEGER:
            return None
        return self.present(name).cast(pl.Int64, strict=False).drop_nulls()
