"""Generate rows for measuring speed: numbers that depend on a few hidden numbers, in daily feature files."""

import datetime as dt
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import cut_window
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle

DATASET, FIRST = "generated", dt.date(2024, 1, 1)
DAY_ROWS = 100_000
HIDDEN = 6
"""Number of hidden numbers behind each row."""


def config(evidence: Sequence[str]) -> PipelineConfig:
    """Return the settings of the generated dataset: the defaults, with short validation and calibration parts."""
    return PipelineConfig.model_validate(
        {
            "dataset": DATASET,
            "identity": ["row_id"],
            "event_time": "event_time",
            "start": FIRST.isoformat(),
            "exclude": ["event_time"],
            "training": {"validation_days": 1, "calibration_days": 1, "epochs": 3},
            "gate": {"days": 0},
            "alerts": {"evidence": list(evidence)},
        }
    )


def features_of(columns: int) -> list[FeatureColumn]:
    """Return the columns that a model uses."""
    return [FeatureColumn(f"c{index:03d}", ColumnType.NUMBER) for index in range(columns)]


def numbers(rows: int, columns: int, seed: int) -> npt.NDArray[np.float64]:
    """Return random rows, (rows, columns). The same seed returns the same rows."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(HIDDEN, columns))
    hidden = rng.normal(size=(rows, HIDDEN))
    values: npt.NDArray[np.float64] = np.tanh(hidden @ weights) + 0.1 * rng.normal(size=(rows, columns))
    return values


def day_of(index: int) -> str:
    """Return the day with an index, as an ISO date."""
    return (FIRST + dt.timedelta(days=index)).isoformat()


def day_rows(index: int, columns: int, rows: int = DAY_ROWS) -> pl.DataFrame:
    """Return the features of a day."""
    day, values = day_of(index), numbers(rows, columns, index)
    midnight = dt.datetime.combine(FIRST + dt.timedelta(days=index), dt.time(), dt.UTC)
    moments = np.sort(np.random.default_rng(index).integers(0, 86_400_000_000, rows))
    return pl.DataFrame(
        {
            "row_id": [f"{day}-{row:07d}" for row in range(rows)],
            "event_time": pl.Series(moments).cast(pl.Duration("us")) + midnight,
            **{column.name: values[:, position] for position, column in enumerate(features_of(columns))},
        }
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def write_day(paths: DatasetPaths, index: int, columns: int, rows: int = DAY_ROWS) -> str:
    """Write the features of a day and return the day."""
    day = day_of(index)
    write_parquet(paths.features(day), day_rows(index, columns, rows).to_arrow(), {"input_hash": day})
    return day


def fitted(paths: DatasetPaths, columns: int, evidence: Sequence[str]) -> ModelBundle:
    """Fit a model on the first three days. Their files must exist."""
    settings = config(evidence)
    window = cut_window({day_of(index): "generated" for index in range(3)}, settings)
    return fit_bundle(Dataset(settings, paths), features_of(columns), window)[0]
