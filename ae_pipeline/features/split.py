"""Which days a training learns from, stops on and calibrates on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import detach, rows_per_batch, uncompressed_row_bytes
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths

PARTS = ("train", "validation", "calibration")
"""What a model is fitted on."""

GATE = "gate"
"""What no part of a model is fitted on: there it faces the version that serves."""

LABEL = "is_known_anomaly"
"""Column of features that is true for known anomalies."""

_DRAWN = 2
"""Seed of the hash that a part is thinned by; that of its cut is another, so that the one says nothing of the other."""


def split_columns(config: PipelineConfig) -> tuple[str, ...]:
    """Lists the columns whose values keep rows together in one part; none where each row goes by its identity.

    Patches go by the identity of their image: they overlap, and a patch in another part would show the same pixels.
    """
    if config.is_daily:
        return ()
    if config.training.split_by or not (config.images and config.images.patch):
        return config.training.split_by
    return tuple(name for name in config.identity if name not in PATCH_COLUMNS)


@dataclass(frozen=True)
class Window:
    """Days of a training, cut by time into disjoint parts.

    One slice that serves two of them would void what they promise.

    Attributes:
        train: Days whose rows the encoder and the weights are fitted on; `ALL_ROWS` for a dataset without event time,
            whose rows are cut by a hash instead.
        validation: Later days, for early stopping and the tails of the losses; with those before, for the ensemble.
        calibration: The newest days, for p-values.
        fingerprint: Of the content of all these days.
        split_by: Without event time: columns whose values keep rows together in one part; their identity where none.
        only_normal: Whether rows that the label calls anomalies are left out of all parts.
        gate: Days after all these, which belong to the gate; without event time `ALL_ROWS`.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    fingerprint: str
    split_by: tuple[str, ...] = ()
    only_normal: bool = False
    gate: tuple[str, ...] = ()

    @property
    def days(self) -> tuple[str, ...]:
        """All days that a model is fitted on, the oldest first."""
        return tuple(dict.fromkeys((*self.train, *self.validation, *self.calibration)))

    def rows(
        self, part: str, paths: DatasetPaths, columns: Sequence[str] | None = None, most: int | None = None
    ) -> pl.DataFrame:
        """Reads the features of one of `PARTS` or of the gate, in the order of time.

        Rows without event time are cut 14 : 2 : 3 : 1, the last of them for the gate. By identity a hash alone decides,
        so that a row stays in its part whatever lands beside it: there are many rows, and chance evens them out. Groups
        of `split_by` may be few, and a hash alone would now and then leave a part with one of them or none. So they are
        ranked by their hash, and the ranking is cut. As groups land, one near a cut may change its part from one
        training to the next; a training is whole in itself, so that its parts are disjoint is what counts. The gate
        lies at the end of the ranking, far from the training part, so that its groups have not been in that of the
        model before either.

        Args:
            part: Which.
            paths: Where the features are.
            columns: The columns to give, all when left out; images are not read where they are not asked for.
            most: About how many rows to give, drawn by a hash of their identity where there are more.

        Raises:
            TrainingError: No row is left for the part, or the features lack a column that this takes.
        """
        count = self.count(part, paths) if most is not None else 0
        if most is None or count <= most:
            found = pl.concat(self.batches(part, paths, columns, at_once=None))
        else:
            wanted = None if columns is None else ("row_id", *columns)
            batches = [sample_by_hash(rows, most / count) for rows in self.batches(part, paths, wanted)]
            found = pl.concat(batches, how="diagonal")
            found = found if columns is None else found.select(columns)
        if found.is_empty():
            raise TrainingError(self._nothing_left(part, paths))
        return found

    def count(self, part: str, paths: DatasetPaths) -> int:
        """Counts the rows of a part.

        Raises:
            TrainingError: The features lack a column that this takes.
        """
        days: tuple[str, ...] = getattr(self, part)
        if days == (ALL_ROWS,) or self.only_normal:
            return sum(rows.height for rows in self.batches(part, paths, ["row_id"]))
        return sum(pq.read_metadata(paths.features(day)).num_rows for day in days)

    def batches(
        self,
        part: str,
        paths: DatasetPaths,
        columns: Sequence[str] | None = None,
        at_once: int | None = 0,
    ) -> Iterator[pl.DataFrame]:
        """Reads the same rows as `rows` in the same order, some at a time, so that memory does not grow with them.

        Args:
            part: Which.
            paths: Where the features are.
            columns: The columns to give, all when left out.
            at_once: How many to read at once, about; all when None, and by default as many as are held together.

        Raises:
            TrainingError: The features lack a column that this takes.
        """
        days: tuple[str, ...] = getattr(self, part)
        width = self._check_columns(days, paths)
        if at_once == 0:
            row_bytes = uncompressed_row_bytes(pq.read_metadata(paths.features(days[-1])), columns) if days else 0.0
            at_once = rows_per_batch(width if columns is None else len(columns), row_bytes)
        groups = self._ranked(part, paths) if days == (ALL_ROWS,) and self.split_by else None
        for scanned in _scans([paths.features(day) for day in days], at_once):
            wanted = scanned
            if columns is not None:
                wanted = scanned.select(*dict.fromkeys(("row_id", *columns, *self._cut_by)))
            found = self._normal(wanted).collect()
            if days == (ALL_ROWS,):
                found = found.filter(self._cut(found, part) if groups is None else self._group(found).is_in(groups))
            yield found if columns is None else found.select(dict.fromkeys(columns).keys())

    @property
    def _cut_by(self) -> tuple[str, ...]:
        return (*self.split_by, *([LABEL] if self.only_normal else []))

    def _normal(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        return rows.filter(~pl.col(LABEL).fill_null(value=False)) if self.only_normal else rows

    def _check_columns(self, days: Sequence[str], paths: DatasetPaths) -> int:
        """Checks that all days have the same columns, and counts these."""
        names = {day: pq.read_schema(paths.features(day)).names for day in days}
        needed = {name for columns in names.values() for name in columns if name != LABEL} | set(self._cut_by)
        for day, columns in names.items():
            if missing := sorted(needed - set(columns)):
                raise TrainingError(
                    f"features of {paths.dataset!r} lack column {missing[0]!r} on {day}: they were made under other "
                    "settings than the rest; materialize features of all days first"
                )
        return len(needed)

    def _nothing_left(self, part: str, paths: DatasetPaths) -> str:
        all_rows = pl.concat([pl.scan_parquet(paths.features(day)) for day in getattr(self, part)], how="diagonal")
        count, kept = (rows.select(pl.len()).collect().item() for rows in (all_rows, self._normal(all_rows)))
        normal = f", of which {kept:,} are not known anomalies" if self.only_normal else ""
        return (
            f"no row is left for the {part} part of {paths.dataset!r}: {count:,} rows{normal}; land more, or change "
            "label, only_normal or the days of training in the YAML"
        )

    def _cut(self, features: pl.DataFrame, part: str) -> pl.Series:
        """Marks the rows of a part by the hash of their identity."""
        hashes = features["row_id"].hash(seed=0)
        twentieth = hashes % 10 * 2 + hashes // 10 % 2
        low, high = {"train": (0, 13), "validation": (14, 15), "calibration": (16, 18), GATE: (19, 19)}[part]
        return twentieth.is_between(low, high)

    def _group(self, features: pl.DataFrame) -> pl.Series:
        return features.select(self.split_by).hash_rows(seed=0)

    def _ranked(self, part: str, paths: DatasetPaths) -> pl.Series:
        """Gives the groups of `split_by` that belong to a part, by their hash."""
        there = pl.scan_parquet(paths.features(ALL_ROWS)).select(*dict.fromkeys(self._cut_by))
        ranking = self._group(self._normal(there).unique().collect(engine="streaming")).unique().sort()
        count = ranking.len()
        if count < len((*PARTS, GATE)):
            raise TrainingError(
                f"{paths.dataset!r} has {count} groups of rows by {', '.join(self.split_by)}, and train, validation, "
                "calibration and gate each need one of their own; land more, or choose columns of more values as "
                "split_by"
            )
        validation, calibration, gate = (max(1, round(count * share)) for share in (0.1, 0.15, 0.05))
        train = count - validation - calibration - gate
        start, length = {
            "train": (0, train),
            "validation": (train, validation),
            "calibration": (train + validation, calibration),
            GATE: (count - gate, gate),
        }[part]
        return ranking.slice(start, length).implode()


def sample_by_hash(rows: pl.DataFrame, share: float) -> pl.DataFrame:
    """Draws about a share of some rows by a hash of their identity, whatever stands beside them."""
    return rows if share >= 1 else detach(rows.filter(pl.col("row_id").hash(seed=_DRAWN) <= int(share * (2**64 - 1))))


def sample_rows(rows: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """Draws so many rows, in their order, by a hash of their identity; gives all where there are no more.

    Args:
        rows: With `row_id`.
        most: How many.
        seed: Of the hash; another one draws others.
    """
    if rows.height <= most:
        return rows
    return detach(rows[rows["row_id"].hash(seed=seed).arg_sort().head(most).sort()])


def _scans(files: Sequence[Path], at_once: int | None) -> Iterator[pl.LazyFrame]:
    """Scans files in their order, several small ones together and large ones in pieces."""
    together: list[pl.LazyFrame] = []
    rows = 0
    for file in files:
        scanned = pl.scan_parquet(file)
        height = pq.read_metadata(file).num_rows if at_once is not None else 0
        if at_once is not None and together and rows + height > at_once:
            yield pl.concat(together, how="diagonal")
            together, rows = [], 0
        if at_once is not None and height > at_once:
            yield from (scanned.slice(start, at_once) for start in range(0, height, at_once))
        else:
            together.append(scanned)
            rows += height
    if together:
        yield pl.concat(together, how="diagonal")


def cut_window(content: Mapping[str, str], config: PipelineConfig, gate_days: int = 0) -> Window:
    """Cuts the days that have features into the parts of a training window.

    Args:
        content: Content hash of each day with rows.
        config: Lengths of the parts, in days of the calendar that have rows.
        gate_days: The newest days, which are kept for the gate.

    Raises:
        TrainingError: There are too few days.
    """
    training = config.training
    if not config.is_daily:
        if ALL_ROWS not in content:
            raise TrainingError(f"features of {config.dataset!r} hold no rows; materialize raw_data and features first")
        whole = (ALL_ROWS,)
        return Window(whole, whole, whole, hash_json(content), split_columns(config), training.only_normal, whole)
    newest = sorted(content)
    last = max(len(newest) - gate_days, 0)
    days, gate = newest[:last][-training.window_days :], newest[last:]
    held = training.validation_days + training.calibration_days
    if len(days) <= held:
        kept = f" plus the gate's {gate_days}" if gate_days else ""
        raise TrainingError(
            f"{config.dataset!r} has {len(newest)} days with features, and validation_days={training.validation_days} "
            f"plus calibration_days={training.calibration_days}{kept} leave none to train on; materialize more days, "
            "or shorten these"
        )
    cut = len(days) - held
    validation_end = cut + training.validation_days
    return Window(
        tuple(days[:cut]),
        tuple(days[cut:validation_end]),
        tuple(days[validation_end:]),
        hash_json([(day, content[day]) for day in days]),
        only_normal=training.only_normal,
        gate=tuple(gate),
    )
