"""A tiny dataset of sensor rows, the model that is fitted on it, and variants of that model."""

import datetime as dt
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.features.split import Window
from ae_pipeline.gate.results import GateResult
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.scoring.calibration import calibrate
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.loop import TrainingResult

DATASET = "sensors"
FIRST_DAY = dt.date(2024, 1, 1)
DAYS, ROWS_A_DAY = 40, 60

NO_ENSEMBLE = ("columns", "latent", "row")
"""Evidence without the ensemble, for tests of something else: an ensemble takes most of the time of a fit."""

FitFrame = Callable[..., tuple[ModelBundle, TrainingResult]]
"""Type of the fixture `fit_frame`."""

LOSS_ROSE = GateResult(rule="loss_fell", passed=False, figure=2.0, threshold=1.0, message="it rose")
"""A rule that a challenger does not meet."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Dataset):
    """A dataset with features of every day, and a bundle that is fitted on them."""

    columns: tuple[FeatureColumn, ...]
    days: tuple[str, ...]
    window: Window
    bundle: ModelBundle
    result: TrainingResult

    def features(self, day: str) -> pl.DataFrame:
        """Return the features of a day."""
        return pl.read_parquet(self.paths.features(day))

    def at(self, root: Path) -> "Fitted":
        """Return the same dataset with a copy of its features under another root, which a test may change."""
        paths = DatasetPaths(root, DATASET)
        shutil.copytree(self.paths.features("_").parent, paths.features("_").parent)
        return replace(self, paths=paths)


def sensor_config(**changes: Any) -> PipelineConfig:
    """Return the configuration of the tiny dataset. Keyword arguments replace whole sections."""
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
    """Return rows of a machine: power follows from load, and temperature from mode."""
    rng = np.random.default_rng(seed)
    n = DAYS * ROWS_A_DAY
    load = rng.lognormal(1, 0.4, n).round(3)
    mode = rng.choice(["idle", "run", "boost", "service"], n, p=[0.45, 0.4, 0.14, 0.01])
    mean_temperature = np.select([mode == "idle", mode == "run", mode == "boost"], [20.0, 45.0, 70.0], 30.0)
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
            "temperature": pl.Series((mean_temperature + rng.normal(0, 1, n)).round(2)).set(pl.Series(gaps[0]), None),
            "mode": mode,
            "is_open": np.where(rng.random(n) < 0.3, "true", "false"),
            "scheduled": pl.Series(minutes // 60 * 100 + minutes % 60 // 15 * 15).set(pl.Series(gaps[1]), None),
            "site": "north",
        }
    )


def with_config(bundle: ModelBundle, config: PipelineConfig) -> ModelBundle:
    """Return the same model under another configuration."""
    return replace(bundle, detector=replace(bundle.detector, config=config))


def with_evidence(bundle: ModelBundle, *evidence: Evidence) -> ModelBundle:
    """Return the same model, scored by other kinds of evidence."""
    alerts = bundle.config.alerts.model_copy(update={"evidence": evidence})
    return with_config(bundle, bundle.config.model_copy(update={"alerts": alerts}))


def within_budget(dataset: Fitted) -> ModelBundle:
    """Return the bundle, calibrated on validation days too: both parts are then within its alert budget."""
    days = (*dataset.window.validation, *dataset.window.calibration)
    scores = np.concatenate([dataset.bundle.score(dataset.features(day)).score for day in days])
    return replace(dataset.bundle, calibration=calibrate(scores, dataset.bundle.calibration.budget, len(days)))


def with_encoder(bundle: ModelBundle, encoder: Encoder) -> ModelBundle:
    """Return the same model with another encoder."""
    return _with_network_part(bundle, encoder=encoder)


def with_model(bundle: ModelBundle, model: AutoEncoder) -> ModelBundle:
    """Return the same bundle with another autoencoder."""
    return _with_network_part(bundle, model=model)


def _with_network_part(bundle: ModelBundle, **part: Any) -> ModelBundle:
    """Return the same bundle with another encoder, model or loss."""
    return bundle.with_network(replace(bundle.network, **part), bundle.detector.mahalanobis)
