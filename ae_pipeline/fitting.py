"""From a window of features to a ModelBundle: encoder, network, tails and calibration, each on its own days."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ae_pipeline.bundle import ModelBundle, combine, library_versions, score_parts
from ae_pipeline.config import PipelineConfig
from ae_pipeline.models.base import Pass, rows_at_once
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.network import FittedNetwork
from ae_pipeline.preprocessing.encoder import fit_encoder
from ae_pipeline.preprocessing.features import FeatureColumn
from ae_pipeline.preprocessing.table_encoder import TableEncoder
from ae_pipeline.preprocessing.window import Window
from ae_pipeline.scoring.calibration import calibrate
from ae_pipeline.scoring.density import fit_density
from ae_pipeline.scoring.tails import fit_tails
from ae_pipeline.storage import DatasetPaths
from ae_pipeline.training import Epoch, TrainingResult, choose_device, train


def fit_bundle(
    config: PipelineConfig,
    columns: Sequence[FeatureColumn],
    window: Window,
    paths: DatasetPaths,
    report: Callable[[Epoch], None] = lambda _: None,
) -> tuple[ModelBundle, TrainingResult]:
    """Fits everything that a model is.

    On the CPU the same window, configuration and machine give the same bundle, bit for bit.

    Args:
        config: The pipeline's.
        columns: Features that the model may look at.
        window: Days for each part.
        paths: Where the features are.
        report: Called after each epoch.

    Raises:
        TrainingError: There are too few rows, no column to learn from, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not there.
    """
    device = choose_device(config.training.device)
    torch.set_num_threads(config.training.threads)
    train_rows, validation_rows = window.rows("train", paths), window.rows("validation", paths)
    encoder = fit_encoder(config, train_rows, columns)
    generator = torch.Generator().manual_seed(config.training.seed)
    model = build_model(config, encoder.shape, generator).to(device)
    loss = build_loss(config, encoder).to(device)
    encoded = torch.from_numpy(encoder.encode(train_rows)).to(device)
    validation = torch.from_numpy(encoder.encode(validation_rows)).to(device)
    groups = torch.from_numpy(encoder.groups) if isinstance(encoder, TableEncoder) else None
    corrupt = build_corruption(config.training, groups, encoder.ends)
    result = train(model, loss, encoded, validation, config.training, generator, report, corrupt)
    facts: dict[str, Any] = {
        "versions": library_versions(),
        "rows": {"train": train_rows.height, "validation": validation_rows.height},
        "best_epoch": result.best_epoch,
        "validation_loss": result.best_loss,
    }
    typical = encoded.mean(0, dtype=torch.float64).float().cpu().numpy()
    del encoded
    with torch.inference_mode():
        passes = [model(batch) for batch in validation.split(rows_at_once(encoder.shape))]
        loss.fit_scores(Pass(*(torch.cat(part) for part in zip(*passes, strict=True))), validation)
    del passes, validation
    network = FittedNetwork(encoder, model, loss.eval())
    density = fit_density(network.encode(train_rows).astype(np.float64))
    del train_rows
    tails = fit_tails(score_parts(*network.latents_and_losses(validation_rows), density))
    held_out = window.rows("calibration", paths)
    surprise = tails(score_parts(*network.latents_and_losses(held_out), density))
    scores = combine(surprise, config.alerts.evidence)
    calibration = calibrate(scores, config.alerts.budget, len(window.calibration) if config.is_daily else None)
    facts["rows"]["calibration"] = held_out.height
    return ModelBundle(encoder, model, loss, config, typical, density, tails, calibration, window, facts), result
