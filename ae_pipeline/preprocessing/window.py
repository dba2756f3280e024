"""Which days a training learns from, stops on and calibrates on."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import TrainingError
from ae_pipeline.storage import ALL_ROWS, DatasetPaths, hash_json

PARTS = ("train", "validation", "calibration")


@dataclass(frozen=True)
class Window:
    """Days of a training, cut by time into disjoint parts.

    One slice that serves two of them would void what they promise.

    Attributes:
        train: Days whose rows the encoder and the weights are fitted on; `ALL_ROWS` for a dataset without event time,
            whose rows are cut by a hash of their identity instead.
        validation: Later days, for early stopping and the tails of the losses.
        calibration: The newest days, for p-values.
        fingerprint: Of the content of all these days.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    fingerprint: str

    @property
    def days(self) -> tuple[str, ...]:
        """All days, the oldest first."""
        return tuple(dict.fromkeys((*self.train, *self.validation, *self.calibration)))

    def rows(self, part: str, paths: DatasetPaths) -> pl.DataFrame:
        """Reads the features of one of `PARTS`, in the order of time."""
        days: tuple[str, ...] = getattr(self, part)
        features = pl.concat([pl.read_parquet(paths.features(day)) for day in days])
        if days != (ALL_ROWS,):
            return features
        # 7 : 1 : 2, by identity, so that a row stays in its part whatever lands beside it.
        tenth = features["row_id"].hash(seed=0) % 10
        low, high = {"train": (0, 6), "validation": (7, 7), "calibration": (8, 9)}[part]
        return features.filter(tenth.is_between(low, high))


def cut_window(content: Mapping[str, str], config: PipelineConfig) -> Window:
    """Cuts the days that have features into the parts of a training window.

    Args:
        content: Content hash of each day with rows.
        config: Lengths of the parts, in days of the calendar that have rows.

    Raises:
        TrainingError: There are too few days.
    """
    training = config.training
    if not config.is_daily:
        if ALL_ROWS not in content:
            raise TrainingError(f"features of {config.dataset!r} hold no rows; materialize raw_data and features first")
        whole = (ALL_ROWS,)
        return Window(whole, whole, whole, hash_json(content))
    days = sorted(content)[-training.window_days :]
    held = training.validation_days + training.calibration_days
    if len(days) <= held:
        raise TrainingError(
            f"{config.dataset!r} has {len(days)} days with features, and validation_days={training.validation_days} "
            f"plus calibration_days={training.calibration_days} leave none to train on; materialize more days, or "
            "shorten these"
        )
    cut = len(days) - held
    validation_end = cut + training.validation_days
    return Window(
        tuple(days[:cut]),
        tuple(days[cut:validation_end]),
        tuple(days[validation_end:]),
        hash_json([(day, content[day]) for day in days]),
    )
