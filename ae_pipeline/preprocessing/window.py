"""Which days a training learns from, stops on and calibrates on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import TrainingError
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.storage import ALL_ROWS, DatasetPaths, hash_json

PARTS = ("train", "validation", "calibration")
"""What a model is fitted on."""

GATE = "gate"
"""What no part of a model is fitted on: there it faces the version that serves."""

LABEL = "is_known_anomaly"
"""Column of features that is true for known anomalies."""


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

    def rows(self, part: str, paths: DatasetPaths, columns: Sequence[str] | None = None) -> pl.DataFrame:
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

        Raises:
            TrainingError: No row is left for the part, or the features lack a column that this takes.
        """
        days: tuple[str, ...] = getattr(self, part)
        each = [pl.scan_parquet(paths.features(day)) for day in days]
        self._check_columns({day: scan.collect_schema().names() for day, scan in zip(days, each, strict=True)}, paths)
        scanned = pl.concat(each, how="diagonal")
        if columns is not None:
            scanned = scanned.select(*dict.fromkeys(("row_id", *columns, *self._cut_by)))
        features = scanned.collect()
        all_rows = features.height
        if self.only_normal:
            features = features.filter(~pl.col(LABEL).fill_null(value=False))
        found = features if days != (ALL_ROWS,) else self._cut(features, part, paths)
        if found.is_empty():
            normal = f", of which {features.height:,} are not known anomalies" if self.only_normal else ""
            raise TrainingError(
                f"no row is left for the {part} part of {paths.dataset!r}: {all_rows:,} rows{normal}; land more, or "
                "change label, only_normal or the days of training in the YAML"
            )
        return found if columns is None else found.select(columns)

    @property
    def _cut_by(self) -> tuple[str, ...]:
        return (*self.split_by, *([LABEL] if self.only_normal else []))

    def _check_columns(self, names: Mapping[str, Sequence[str]], paths: DatasetPaths) -> None:
        needed = {name for columns in names.values() for name in columns if name != LABEL} | set(self._cut_by)
        for day, columns in names.items():
            if missing := sorted(needed - set(columns)):
                raise TrainingError(
                    f"features of {paths.dataset!r} lack column {missing[0]!r} on {day}: they were made under other "
                    "settings than the rest; materialize features of all days first"
                )

    def _cut(self, features: pl.DataFrame, part: str, paths: DatasetPaths) -> pl.DataFrame:
        if not self.split_by:
            hashes = features["row_id"].hash(seed=0)
            twentieth = hashes % 10 * 2 + hashes // 10 % 2
            low, high = {"train": (0, 13), "validation": (14, 15), "calibration": (16, 18), GATE: (19, 19)}[part]
            return features.filter(twentieth.is_between(low, high))
        group = features.select(self.split_by).hash_rows(seed=0)
        ranking = group.unique().sort()
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
        return features.filter(group.is_in(ranking.slice(start, length).implode()))


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
