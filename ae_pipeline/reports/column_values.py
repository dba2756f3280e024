"""Values of one column by day, for its page: what they are, how many are missing, and how they are distributed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.columns import ColumnType
from ae_pipeline.storage.parquet import read_facts, whole
from ae_pipeline.storage.paths import DatasetPaths

MAX_DAYS, MAX_ROWS = 366, 2_000
"""Newest days, and rows of each of them, that a page of a column reads at most."""

_BINS, _VALUES = 24, 12
"""Bins of numbers, and the most frequent categories."""

_TAIL = 0.005
"""Share of the values at each end that the outermost bins take in."""

OTHER = "other values"
"""Name of the categories beyond the most frequent ones."""


@dataclass(frozen=True, kw_only=True)
class ColumnDays:
    """Values of a column on the newest days.

    Attributes:
        name: Name of the column.
        is_category: Whether the values are categories; otherwise they are numbers.
        values: Rows with `day`, `rows` of that day, and `value`: text, or a number; null if missing.
        window: Published days of the training window; empty without event time.
    """

    name: str
    is_category: bool
    values: pl.DataFrame
    window: tuple[str, ...]

    @property
    def days(self) -> list[str]:
        """Days with rows, the oldest first."""
        return self.values["day"].unique().sort().to_list()

    @property
    def in_window(self) -> pl.DataFrame:
        """Rows of the training window; empty if none of its days is among those read."""
        return self.values.filter(pl.col("day").is_in(self.window))

    @property
    def window_name(self) -> str:
        """What the rows of the training window are called; empty without any."""
        shown = self.in_window["day"].n_unique()
        if shown in {0, len(self.window)}:
            return "training window" if shown else ""
        return f"training window ({shown:,} of its {len(self.window):,} days)"

    def by_day(self) -> pl.DataFrame:
        """Return rows, missing share, and for numbers the median and the 10th and 90th percentile, by day."""
        measures = [pl.col("rows").first(), pl.col("value").is_null().mean().alias("missing")]
        if not self.is_category:
            shares = (("low", 0.1), ("median", 0.5), ("high", 0.9))
            measures += [pl.col("value").quantile(share, "linear").alias(name) for name, share in shares]
        return self.values.group_by("day").agg(measures).sort("day")

    def bins(self) -> pl.DataFrame:
        """Return the share of the values of each day in each bin: `day`, `bin`, `from`, `to` and `share`.

        The rows of the training window together have the day `window`, if there are any. A bin of categories has no
        `from` and `to`.
        """
        known = self.values.filter(pl.col("value").is_not_null())
        window = self.in_window.filter(pl.col("value").is_not_null())
        if known.is_empty():
            return pl.DataFrame(schema={"day": pl.String, "bin": pl.String, "share": pl.Float64})
        both = pl.concat([known, window.with_columns(day=pl.lit("window"))])
        binned = self._categories(both, known) if self.is_category else self._numbers(both, known)
        counts = binned.group_by("day", "bin").agg(pl.len().alias("count"))
        shares = counts.with_columns(share=pl.col("count") / pl.col("count").sum().over("day"))
        if not self.is_category:
            edges = self._edges(known)
            shares = shares.with_columns(
                **{
                    "from": pl.col("bin").replace_strict(dict(enumerate(edges[:-1].tolist()))),
                    "to": pl.col("bin").replace_strict(dict(enumerate(edges[1:].tolist()))),
                }
            )
        return shares.sort("day", "bin")

    def _categories(self, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
        frequent = known["value"].value_counts(sort=True).sort("count", "value", descending=[True, False])
        names = frequent["value"].head(_VALUES)
        named = pl.when(pl.col("value").is_in(names.implode())).then("value").otherwise(pl.lit(OTHER))
        return rows.with_columns(bin=named)

    def _numbers(self, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
        edges = self._edges(known)
        indices = np.clip(np.searchsorted(edges, rows["value"].to_numpy(), side="right") - 1, 0, len(edges) - 2)
        return rows.with_columns(bin=pl.Series(indices))

    def _edges(self, known: pl.DataFrame) -> npt.NDArray[np.float64]:
        values = known["value"].to_numpy()
        low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
        distinct = np.unique(values)
        if len(distinct) <= _BINS:  # a bin for each value
            return np.append(distinct, distinct[-1] + (np.diff(distinct).min() if len(distinct) > 1 else 1.0))
        return np.linspace(low, high if high > low else low + 1.0, _BINS + 1)


def read_column(
    name: str, days: Sequence[str], window: Sequence[str], kind: ColumnType, zone: str, paths: DatasetPaths
) -> ColumnDays:
    """Read a column of the features on the newest days, evenly spaced rows of large ones.

    Args:
        name: Name of the column.
        days: Days, the oldest first.
        window: Days of the training window.
        kind: Type of the column.
        zone: Time zone of the dataset.
        paths: Paths of the dataset.
    """
    parts = []
    is_category = kind in {ColumnType.CATEGORY, ColumnType.BOOLEAN, ColumnType.TEXT}
    for day in days[-MAX_DAYS:]:
        if not read_facts(paths.features(day)):
            continue
        file = pl.scan_parquet(whole(paths.features(day)), glob=False)
        if name not in file.collect_schema():
            continue
        values = file.select(pl.col(name).alias("value")).collect()["value"]
        if not values.len():
            continue
        chosen = values.gather_every(max(1, -(-values.len() // MAX_ROWS)))
        shown = chosen.cast(pl.String) if is_category else _as_number(chosen, zone)
        parts.append(shown.to_frame().select(pl.lit(day).alias("day"), pl.lit(values.len()).alias("rows"), "value"))
    empty = {"day": pl.String, "rows": pl.Int32, "value": pl.String if is_category else pl.Float64}
    values_of_days = pl.concat(parts) if parts else pl.DataFrame(schema=empty)
    return ColumnDays(name=name, is_category=is_category, values=values_of_days, window=tuple(window))


def _as_number(values: pl.Series, zone: str) -> pl.Series:
    """Return numbers, and times as days since 1970. Infinite numbers are missing."""
    if isinstance(dtype := values.dtype, pl.Datetime):
        local = values.dt.convert_time_zone(zone).dt.replace_time_zone(None) if dtype.time_zone else values
        values = local.dt.timestamp("ms") / 86_400_000
    elif values.dtype == pl.Date:
        values = values.to_physical()
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)
