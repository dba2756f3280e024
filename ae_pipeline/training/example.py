"""A tiny bundle for the examples in the documentation."""

import numpy as np
import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import TrainingFacts, library_versions
from ae_pipeline.features.split import Window
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.scoring.calibration import calibrate
from ae_pipeline.storage.paths import ALL_ROWS
from ae_pipeline.training.fit import fit_detector

_SIZES = {"train": 600, "validation": 200, "calibration": 200}


def fit_example_bundle() -> tuple[ModelBundle, pl.DataFrame]:
    """Return a bundle and three rows to score. It is fitted in about a second on rows whose power is twice their load.

    The power of the last row is wrong.
    """
    from ae_pipeline.features.build import feature_columns

    config = PipelineConfig.model_validate(
        {
            "dataset": "example",
            "exclude": ["reading"],
            "identity": ["reading"],
            "model": {"latent_dim": 1, "hidden": [16]},
            "training": {"epochs": 10, "batch_size": 64, "learning_rate": 0.02, "device": "cpu"},
            "alerts": {"budget": 0.01, "evidence": ["columns", "latent", "row"]},
        }
    )
    contract = SchemaContract.model_validate(
        {
            "dataset": "example",
            "columns": {
                "reading": {"type": "integer", "required": True},
                "load": {"type": "number"},
                "power": {"type": "number"},
            },
        }
    )
    columns = feature_columns(config, contract)
    rng = np.random.default_rng(0)
    load = rng.lognormal(1, 0.4, sum(_SIZES.values()))
    features = pl.DataFrame({"load": load, "power": 2 * load + rng.normal(0, 0.05, len(load))})
    train_rows, validation_rows, calibration_rows = (
        features.slice(sum(list(_SIZES.values())[:index]), size) for index, size in enumerate(_SIZES.values())
    )
    detector, result = fit_detector(config, columns, train_rows, validation_rows)
    bundle = ModelBundle(
        detector=detector,
        calibration=calibrate(detector.scores([calibration_rows]), 0.01, None),
        window=Window(train=(ALL_ROWS,), validation=(ALL_ROWS,), calibration=(ALL_ROWS,), fingerprint="example"),
        facts=TrainingFacts(
            versions=library_versions(),
            rows=_SIZES,
            epochs=result.epochs,
            best_epoch=result.best_epoch,
            untrained_loss=result.first_loss,
            validation_loss=result.best_loss,
        ),
        contract=contract,
    )
    return bundle, pl.DataFrame({"load": [2.0, 3.0, 3.0], "power": [4.0, 6.0, 9.0]})
