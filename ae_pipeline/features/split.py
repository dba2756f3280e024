"""Split the rows of a dataset into training, validation, calibration and gate."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.sizes import RANKED_ROWS, choose_days
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import detach, footer_of, row_bytes, rows_per_batch, scans
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

PARTS = ("train", "validation", "calibration")
"""Parts of the training window, on which a model is fitted."""

GATE = "gate"
"""The part on which no model is fitted. Challenger and champion are compared on it."""

LABEL = "is_known_anomaly"
"""Feature column that is true for known anomalies."""

USABLE = "is_for_training"
"""Feature column that is true for rows that fulfil `training.where`."""

_LARGE_ROW_BYTES = 1 << 16
"""Size of a row, such as an image, from which rows are read in batches."""
_SAMPLING_SEED = 2
"""Seed of the hash that samples rows. It differs from the seed of the split, so that the two are independent."""


def split_columns(config: PipelineConfig) -> tuple[str, ...]:
    """Return the columns that define groups of rows that stay in one part; none if each row is assigned by itself.

    Patches are grouped by the identity of their image: they overlap, so that a patch in another part would contain the
    same pixels.
    """
    if config.training.split_by or not (config.images and config.images.patch):
        return config.training.split_by
    return tuple(name for name in config.identity if name not in PATCH_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The days of a training, split by time into disjoint parts.

    No row is in two parts. Otherwise early stopping, p-values and the gate would be too optimistic.

    Attributes:
        train: Days on which encoder and weights are fitted. Without event time it is `ALL_ROWS`, and a hash assigns
            each row to a part. So it does for very few days, all of which are then in each part.
        validation: Later days, for early stopping and the tails of the losses. The ensemble uses them too.
        calibration: Newest days of the window, for p-values. If the data has changed, training takes every other of the
            validation and calibration days (see `interleaved`).
        fingerprint: Hash of the content of these days.
        split_by: Columns that define groups of rows that a hash assigns; each row is assigned by itself if empty.
        only_normal: Whether known anomalies are left out of all parts.
        gate: Days after the window, for the gate; all days if a hash assigns rows.
        where: Whether only rows with `USABLE` are in the parts.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    fingerprint: str
    split_by: tuple[str, ...] = ()
    only_normal: bool = False
    gate: tuple[str, ...] = ()
    where: bool = False

    @property
    def days(self) -> tuple[str, ...]:
        """All days on which a model is fitted, the oldest first."""
        return tuple(sorted({*self.train, *self.validation, *self.calibration}))

    @property
    def is_by_row(self) -> bool:
        """Whether a hash assigns rows to parts, so that each part has the same days."""
        return self.train == self.calibration

    def interleaved(self) -> "Window":
        """Return the window with every other validation and calibration day given to training.

        A model is fitted on the oldest days, so it learns a change of the data only weeks later. With this split it
        learns the change at once. Validation keeps its share of the days that remain, evenly spread.
        """
        newest = sorted((*self.validation, *self.calibration))
        rest = newest[1::2]
        share = len(self.validation) / len(newest)
        is_validation = [math.floor((index + 1) * share) > math.floor(index * share) for index in range(len(rest))]
        return dataclasses.replace(
            self,
            train=(*self.train, *newest[::2]),
            validation=tuple(day for day, chosen in zip(rest, is_validation, strict=True) if chosen),
            calibration=tuple(day for day, chosen in zip(rest, is_validation, strict=True) if not chosen),
        )

    def rows(
        self, part: str, paths: DatasetPaths, columns: Sequence[str] | None = None, most: int | None = None
    ) -> pl.DataFrame:
        """Return the features of a part, in the order of time.

        Without event time, rows are split 14 : 2 : 3 : 1 into training, validation, calibration and gate. A hash of its
        identity assigns each row, so that a row stays in its part when other rows land.

        Groups of `split_by` can be few, and a hash of each could leave a part empty. They are ranked by their hash
        instead, and the ranking is cut at 70, 80 and 95 %. When new groups land, a group near a cut can change its
        part; within one training the parts are still disjoint. The gate is at the end of the ranking, far from the
        training part, so that its groups were not in the training part of the previous model either.

        Args:
            part: One of `PARTS`, or `GATE`.
            paths: Paths of the dataset.
            columns: Columns to read; all by default.
            most: Approximate maximum number of rows. A larger part is sampled by a hash of the identity.

        Raises:
            TrainingError: The part has no rows, or the features lack a required column.
        """
        count = self.count(part, paths) if most is not None else 0
        if most is None or count <= most:
            # A batch has the rows of all parts, of which only some stay.
            size = row_bytes(footer_of(paths.features(ALL_ROWS)), columns) if self.train == (ALL_ROWS,) else 0.0
            rows = pl.concat(self.batches(part, paths, columns, 0 if size > _LARGE_ROW_BYTES else None))
        else:
            with_identity = None if columns is None else ("row_id", *columns)
            samples = [sample_by_hash(batch, most / count) for batch in self.batches(part, paths, with_identity)]
            rows = pl.concat(samples, how="diagonal")
            rows = rows if columns is None else rows.select(columns)
        if rows.is_empty():
            raise TrainingError(self._empty_part(part, paths))
        return rows

    def count(self, part: str, paths: DatasetPaths) -> int:
        """Return the number of rows of a part.

        Raises:
            TrainingError: The features lack a required column.
        """
        days: tuple[str, ...] = getattr(self, part)
        if self.is_by_row or self.only_normal or self.where:
            return sum(rows.height for rows in self.batches(part, paths, ["row_id"]))
        return sum(footer_of(paths.features(day)).num_rows for day in days)

    def batches(
        self,
        part: str,
        paths: DatasetPaths,
        columns: Sequence[str] | None = None,
        at_once: int | None = 0,
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows of `rows` in the same order in batches, so that memory stays bounded.

        Args:
            part: One of `PARTS`, or `GATE`.
            paths: Paths of the dataset.
            columns: Columns to read; all by default.
            at_once: Approximate number of rows of a batch; None for a single batch. By default it depends on the size
                of a row.

        Raises:
            TrainingError: The features lack a required column.
        """
        days: tuple[str, ...] = getattr(self, part)
        width = self._check_columns(days, paths)
        if at_once == 0:
            bytes_per_row = row_bytes(footer_of(paths.features(days[-1])), columns) if days else 0.0
            at_once = rows_per_batch(width if columns is None else len(columns), bytes_per_row)
        groups = self._groups_of(part, paths) if self.is_by_row and self.split_by else None
        for scan in scans([paths.features(day) for day in days], at_once):
            selected = scan
            if columns is not None:
                selected = scan.select(*dict.fromkeys(("row_id", *columns, *self._split_columns)))
            rows = self._usable(selected).collect()
            if self.is_by_row:
                is_in_part = self._is_in(part, rows) if groups is None else self._group_hash(rows).is_in(groups)
                rows = rows.filter(is_in_part)
            yield rows if columns is None else rows.select(dict.fromkeys(columns).keys())

    @property
    def _split_columns(self) -> tuple[str, ...]:
        return (*self.split_by, *([LABEL] if self.only_normal else []), *([USABLE] if self.where else []))

    def _usable(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        rows = rows.filter(pl.col(USABLE)) if self.where else rows
        return rows.filter(~pl.col(LABEL).fill_null(value=False)) if self.only_normal else rows

    def _check_columns(self, days: Sequence[str], paths: DatasetPaths) -> int:
        """Check that all days have the same columns, and return their number."""
        names = {day: footer_of(paths.features(day)).schema.to_arrow_schema().names for day in days}
        needed = {name for columns in names.values() for name in columns if name not in {LABEL, USABLE}} | set(
            self._split_columns
        )
        for day, columns in names.items():
            if missing := sorted(needed - set(columns)):
                raise TrainingError(
                    f"features of {paths.dataset!r} lack column {missing[0]!r} on {day}, because they were built with "
                    "other settings; materialize features of all days first"
                )
        return len(needed)

    def _empty_part(self, part: str, paths: DatasetPaths) -> str:
        all_rows = pl.concat(
            [pl.scan_parquet(paths.features(day), glob=False) for day in getattr(self, part)], how="diagonal"
        )
        count, kept = (rows.select(pl.len()).collect().item() for rows in (all_rows, self._usable(all_rows)))
        condition = "fulfil the conditions of the training" if self.where else "are not known anomalies"
        normal = f", of which {kept:,} {condition}" if self.where or self.only_normal else ""
        return (
            f"the {part} part of {paths.dataset!r} has no rows: {count:,} rows{normal}; land more rows, or change "
            "label, training.only_normal, training.where or the days of training in the YAML"
        )

    def _is_in(self, part: str, features: pl.DataFrame) -> pl.Series:
        """Return whether the hash of its identity assigns a row to a part."""
        hashes = features["row_id"].hash(seed=0)
        twentieth = hashes % 10 * 2 + hashes // 10 % 2
        low, high = {"train": (0, 13), "validation": (14, 15), "calibration": (16, 18), GATE: (19, 19)}[part]
        return twentieth.is_between(low, high)

    def _group_hash(self, features: pl.DataFrame) -> pl.Series:
        return features.select(self.split_by).hash_rows(seed=0)

    def _groups_of(self, part: str, paths: DatasetPaths) -> pl.Series:
        """Return the hashes of the groups of `split_by` that belong to a part."""
        rows = pl.scan_parquet([paths.features(day) for day in self.train], glob=False)
        groups = self._usable(rows.select(*dict.fromkeys(self._split_columns))).unique().collect(engine="streaming")
        ranking = self._group_hash(groups).unique().sort()
        count = ranking.len()
        if count < len((*PARTS, GATE)):
            raise TrainingError(
                f"{paths.dataset!r} has {count} groups of rows by {', '.join(self.split_by)}, but train, validation, "
                "calibration and gate need at least one each; land more groups, or choose split_by columns with more "
                "values"
            )
        train, validation, calibration, gate = split_sizes(count)
        start, length = {
            "train": (0, train),
            "validation": (train, validation),
            "calibration": (train + validation, calibration),
            GATE: (count - gate, gate),
        }[part]
        return ranking.slice(start, length).implode()


def split_sizes(count: int) -> tuple[int, int, int, int]:
    """Return how many of some groups are for training, validation, calibration and gate.

    >>> split_sizes(150)
    (105, 15, 22, 8)
    """
    validation, calibration, gate = (max(1, round(count * share)) for share in (0.1, 0.15, 0.05))
    return count - validation - calibration - gate, validation, calibration, gate


def sample_by_hash(rows: pl.DataFrame, share: float, by: pl.Expr | None = None) -> pl.DataFrame:
    """Return a random share of rows. A hash of its identity decides about each row, so that other rows do not matter.

    Args:
        rows: Rows with `row_id`.
        share: Approximate share of the rows; 1 or more returns all.
        by: What is hashed; `row_id` by default.
    """
    key = pl.col("row_id") if by is None else by
    limit = int(share * (2**64 - 1))
    return rows if share >= 1 else detach(rows.filter(key.hash(seed=_SAMPLING_SEED) <= limit))


def sample_rows(rows: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """Return a random sample of rows in their order, chosen by a hash of their identity.

    Args:
        rows: Rows with `row_id`.
        most: Maximum number of rows.
        seed: Seed of the hash. Another seed gives another sample.
    """
    if rows.height <= most:
        return rows
    return detach(rows[rows["row_id"].hash(seed=seed).arg_sort().head(most).sort()])


def cut_window(
    content: Mapping[str, str],
    config: PipelineConfig,
    gate_days: int | None = 0,
    rows: Mapping[str, int] | None = None,
) -> Window:
    """Split the days that have features into the parts of a training window.

    Args:
        content: Content hash of each day with rows.
        config: Configuration with the lengths of the parts, in days that have rows. Those that it leaves out are
            chosen; see `sizes`.
        gate_days: Number of newest days for the gate; chosen if it is None.
        rows: Number of rows of each day; by default any part has enough.

    Raises:
        TrainingError: There are too few days, or no rows.
    """
    training = config.training
    if not config.is_daily:
        if ALL_ROWS not in content:
            raise TrainingError(f"features of {config.dataset!r} hold no rows; materialize raw_data and features first")
        by_row = ("row_id",) if rows is not None and rows.get(ALL_ROWS, 0) < RANKED_ROWS else ()
        return _window_by_row((ALL_ROWS,), content, config, split_columns(config) or by_row)
    all_days = sorted(content)
    parts = choose_days([rows[day] if rows is not None else 2**31 for day in all_days], config, gate_days)
    if parts.by_row and all_days:
        return _window_by_row(tuple(all_days), content, config, split_columns(config) or ("row_id",))
    window_end = max(len(all_days) - parts.gate, 0)
    days, gate = all_days[:window_end][-training.window_days :], all_days[window_end:]
    train_end = parts.train
    if train_end <= 0:
        gate_part = f" plus the gate's {parts.gate}" if parts.gate else ""
        raise TrainingError(
            f"{config.dataset!r} has {len(all_days)} days with features, but "
            f"validation_days={parts.validation} plus calibration_days={parts.calibration}{gate_part} "
            "leave none to train on; materialize more days, or choose smaller values"
        )
    validation_end = train_end + parts.validation
    return Window(
        train=tuple(days[:train_end]),
        validation=tuple(days[train_end:validation_end]),
        calibration=tuple(days[validation_end:]),
        fingerprint=hash_json([(day, content[day]) for day in days]),
        only_normal=training.only_normal,
        gate=tuple(gate),
        where=training.where is not None,
    )


def _window_by_row(
    days: tuple[str, ...], content: Mapping[str, str], config: PipelineConfig, split_by: tuple[str, ...]
) -> Window:
    """Return a window in which a hash assigns the rows of all days to the parts."""
    is_daily = days != (ALL_ROWS,)
    return Window(
        train=days,
        validation=days,
        calibration=days,
        fingerprint=hash_json([(day, content[day]) for day in days] if is_daily else content),
        split_by=split_by,
        only_normal=config.training.only_normal,
        gate=days,
        where=config.training.where is not None,
    )
