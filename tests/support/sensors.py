"""A tiny dataset of sensor rows, and what a fitted copy of it consists of."""

import datetime as dt
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import Window
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.loop import TrainingResult

DATASET = "sensors"
FIRST_DAY = dt.date(2024, 1, 1)
DAYS, ROWS_A_DAY = 40, 60

NO_ENSEMBLE = ("columns", "latent", "row")
"""Evidence of fits whose subject is something else: an ensemble would take most of their time."""


@dataclass(frozen=True)
class Fitted:
    """A dataset with features of every day, and a bundle fitted on them."""

    config: PipelineConfig
    paths: DatasetPaths
    columns: tuple[FeatureColumn, ...]
    days: tuple[str, ...]
    window: Window
    bundle: ModelBundle
    result: TrainingResult

    def features(self, day: str) -> pl.DataFrame:
        """Features of a day."""
        return pl.read_parquet(self.paths.features(day))

    def at(self, root: Path) -> "Fitted":
        """The same with a copy of the features under another root, which a test may write to."""
        paths = DatasetPaths(root, DATASET)
        shutil.copytree(self.paths.features("_").parent, paths.features("_").parent)
        return replace(self, paths=paths)


def sensor_config(**changes: Any) -> PipelineConfig:
    """Configuration of the tiny dataset; keyword arguments replace whole sections."""
    settings: dict[str, Any] = {
        "dataset": DATASET,
        "identity": ("serial",),
        "event_time": "measured_at",
        "start": FIRST_DAY,
        "end": FIRST_DAY + dt.timedelta(days=DAYS - 1),
        "columns": {"scheduled": "clock_hhmm", "mode": "category"},
        "derive": {"balance": "load - power / 2"},
        "model": {"latent_dim": 3, "hidden": (24,), "activation": "silu"},
        "training": {
            "validation_days": 6,
            "calibration_days": 8,
            "epochs": 8,
            "batch_size": 128,
            "learning_rate": 0.02,
            "device": "cpu",
        },
        "alerts": {"budget": 0.01},
    }
    return PipelineConfig.model_validate({**settings, **changes})


def sensor_rows(seed: int = 0) -> pl.DataFrame:
    """Rows as a machine would log them: load and power belong together, and so do mode and temperature."""
    rng = np.random.default_rng(seed)
    n = DAYS * ROWS_A_DAY
    load = rng.lognormal(1, 0.4, n).round(3)
    mode = rng.choice(["idle", "run", "boost", "service"], n, p=[0.45, 0.4, 0.14, 0.01])
    warmth = np.select([mode == "idle", mode == "run", mode == "boost"], [20.0, 45.0, 70.0], 30.0)
    minutes = rng.integers(0, 1440, n)
    gaps = rng.random((2, n)) < 0.05
    return pl.DataFrame(
        {
            "serial": np.arange(n) + 100_000,
            "measured_at": [
                f"{FIRST_DAY + dt.timedelta(days=i // ROWS_A_DAY)}T{m // 60:02d}:{m % 60:02d}:{i % 60:02d}Z"
                for i, m in enumerate(minutes.tolist())
            ],
            "load": load,
            "power": (2 * load + rng.normal(0, 0.05, n)).round(3),
            "temperature": pl.Series((warmth + rng.normal(0, 1, n)).round(2)).set(pl.Series(gaps[0]), None),
            "mode": mode,
            "is_open": np.where(rng.random(n) < 0.3, "true", "false"),
            "scheduled": pl.Series(minutes // 60 * 100 + minutes % 60 // 15 * 15).set(pl.Series(gaps[1]), None),
            "site": "north",
        }
    )
