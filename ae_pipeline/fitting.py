"""From a window of features to a ModelBundle: encoder, network, tails and calibration, each on its own days."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.bundle import ModelBundle, library_versions
from ae_pipeline.config import ColumnType, PipelineConfig
from ae_pipeline.detector import Detector
from ae_pipeline.drift import (
    Distribution,
    Effect,
    Part,
    describe_columns,
    describe_numbers,
    measure_columns,
    measure_numbers,
    with_usual,
)
from ae_pipeline.models.base import Pass, rows_at_once
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.network import FittedNetwork
from ae_pipeline.preprocessing.encoder import fit_encoder
from ae_pipeline.preprocessing.features import FeatureColumn
from ae_pipeline.preprocessing.table_encoder import TableEncoder
from ae_pipeline.preprocessing.window import PARTS, Window
from ae_pipeline.scoring.calibration import calibrate, check_budget
from ae_pipeline.scoring.density import fit_density
from ae_pipeline.scoring.ensemble import fit_ensemble
from ae_pipeline.scoring.tails import ColumnTails, fit_tails
from ae_pipeline.service_config import DriftConfig, Evidence
from ae_pipeline.storage import DatasetPaths
from ae_pipeline.training import Epoch, TrainingResult, choose_device, evaluate, train
from ae_pipeline.warm_start import anchor_to, inherit

_REFERENCE_ROWS = 20_000
"""Rows whose latents are remembered."""

_LEAST_DAY_ROWS = 20
"""Rows that a day needs to tell what is usual of one."""

LEAST_TAIL_ROWS = 500
"""Validation rows that tell the tails of losses; where there are fewer, the training rows are taken with them."""


def fit_bundle(
    config: PipelineConfig,
    columns: Sequence[FeatureColumn],
    window: Window,
    paths: DatasetPaths,
    report: Callable[[Epoch], None] = lambda _: None,
    before: ModelBundle | None = None,
) -> tuple[ModelBundle, TrainingResult]:
    """Fits everything that a model is.

    On the CPU the same window, configuration, model before and machine give the same bundle, bit for bit.

    Args:
        config: The pipeline's.
        columns: Features that the model may look at.
        window: Days for each part.
        paths: Where the features are.
        report: Called after each epoch.
        before: The model that serves, to go on from as `training.warm_start` and `anchor` say.

    Raises:
        TrainingError: There are too few rows, no column to learn from, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not there.
    """
    days = len(window.calibration) if config.is_daily else None
    # Before anything is fitted: what cannot be calibrated need not be trained.
    check_budget(window.rows("calibration", paths, ["row_id"]).height, config.alerts.budget, days)
    train_rows, validation_rows = window.rows("train", paths), window.rows("validation", paths)
    detector, result = fit_detector(config, columns, train_rows, validation_rows, report, before)
    facts: dict[str, Any] = {
        "versions": library_versions(),
        "rows": {"train": train_rows.height, "validation": validation_rows.height},
        "best_epoch": result.best_epoch,
        "untrained_loss": result.first_loss,
        "validation_loss": result.best_loss,
        "is_warm": result.is_warm,
        "is_anchored": result.is_anchored,
    }
    del train_rows, validation_rows
    held_out = window.rows("calibration", paths)
    facts["rows"]["calibration"] = held_out.height
    scores = detector.latents_and_scores(held_out)[1]
    calibration = calibrate(scores, config.alerts.budget, days)
    fitted = {field.name: getattr(detector, field.name) for field in dataclasses.fields(detector)}
    return ModelBundle(**fitted, calibration=calibration, window=window, facts=facts), result


def with_reference(bundle: ModelBundle, columns: Sequence[FeatureColumn], paths: DatasetPaths) -> ModelBundle:
    """Adds what days to come are held against: columns over the window, scores and latents over its calibration days.

    Of the rows that it has learnt from a model thinks too well. Latents are told in the axes that the bundle has now.

    Args:
        bundle: A fitted model; one without event time is given back as it is, since no day comes after its rows.
        columns: Features and their types.
        paths: Where the features are.
    """
    if not bundle.config.is_daily:
        return bundle
    seen = [column for column in columns if column.name in bundle.columns and column.type != ColumnType.IMAGE]
    names = [column.name for column in seen]
    found: list[Distribution] = []
    if names:
        parts = [bundle.window.rows(part, paths, names) for part in PARTS]
        found += describe_columns(pl.concat(parts, how="diagonal"), seen, newest=parts[-1].height)
        del parts
    held_out = bundle.window.rows("calibration", paths)
    if held_out.height > _REFERENCE_ROWS:
        held_out = held_out[held_out["row_id"].hash(seed=0).arg_sort().head(_REFERENCE_ROWS).sort()]
    latents = bundle.encode(held_out).astype(np.float64)
    for place, values in enumerate(latents.T):
        found.append(describe_numbers(Part.LATENT, f"z_{place:03d}", values))
    usual: dict[tuple[Part, str], list[Effect]] = {}
    for effect in _effects_of_days(found, held_out, latents, bundle.config.drift):
        usual.setdefault((effect.part, effect.name), []).append(effect)
    found = [with_usual(known, usual.get((known.part, known.name), ())) for known in found]
    found.append(describe_numbers(Part.SCORE, "score", bundle.calibration.scores))
    return dataclasses.replace(bundle, reference=tuple(found))


def _effects_of_days(
    known: Sequence[Distribution], rows: pl.DataFrame, latents: npt.NDArray[np.float64], config: DriftConfig
) -> Iterator[Effect]:
    """Measures each day of some rows beside what is remembered of the window; days of few rows are left out."""
    days = rows["event_time"].dt.date()
    for day in days.unique().sort():
        own = days == day
        if own.sum() < _LEAST_DAY_ROWS:
            continue
        yield from measure_columns(rows.filter(own), known, config)
        its_latents = latents[own.to_numpy()]
        for distribution in known:
            if distribution.part == Part.LATENT:
                values = its_latents[:, int(distribution.name.removeprefix("z_"))]
                yield measure_numbers(distribution, values, len(values), config)


def fit_detector(
    config: PipelineConfig,
    columns: Sequence[FeatureColumn],
    train_rows: pl.DataFrame,
    validation_rows: pl.DataFrame,
    report: Callable[[Epoch], None] = lambda _: None,
    before: ModelBundle | None = None,
) -> tuple[Detector, TrainingResult]:
    """Fits all of a model but its calibration.

    Args:
        config: The pipeline's.
        columns: Features that the model may look at.
        train_rows: Features that the encoder, the weights and the ensemble are fitted on.
        validation_rows: Features for early stopping, the tails of the losses, and the ensemble, which looks at both.
        report: Called after each epoch.
        before: The model that serves, to go on from.

    Raises:
        TrainingError: There are too few rows, no column to learn from, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not there.
    """
    device = choose_device(config.training.device)
    torch.set_num_threads(config.training.threads)
    encoder = fit_encoder(config, train_rows, columns)
    generator = torch.Generator().manual_seed(config.training.seed)
    model = build_model(config, encoder.shape, generator).to(device)
    loss = build_loss(config, encoder).to(device)
    matrix = encoder.encode(train_rows)
    encoded, validation = (torch.from_numpy(rows).to(device) for rows in (matrix, encoder.encode(validation_rows)))
    groups = torch.from_numpy(encoder.groups) if isinstance(encoder, TableEncoder) else None
    corrupt = build_corruption(config.training, groups, encoder.ends)
    untrained, anchor, is_warm = evaluate(model, loss, validation, config.training.beta), None, False
    if before is not None:
        if config.training.warm_start and config.model == before.config.model:
            is_warm = inherit(model, loss, encoder, before)
        anchor = anchor_to(before, train_rows, config, model.latent_dim)
    result = train(model, loss, encoded, validation, config.training, generator, report, corrupt=corrupt, anchor=anchor)
    result = dataclasses.replace(result, first_loss=untrained, is_warm=is_warm, is_anchored=anchor is not None)
    typical = encoded.mean(0, dtype=torch.float64).float().cpu().numpy()
    del encoded
    with torch.inference_mode():
        passes = [model(batch) for batch in validation.split(rows_at_once(encoder.shape))]
        loss.fit_scores(Pass(*(torch.cat(part) for part in zip(*passes, strict=True))), validation)
    del passes, validation
    ensemble = None
    if isinstance(encoder, TableEncoder) and Evidence.ENSEMBLE in config.alerts.evidence:
        both = np.concatenate([matrix, encoder.encode(validation_rows)])
        ensemble = fit_ensemble(both, encoder.bent, config.training.seed)
        del both
    del matrix
    network = FittedNetwork(encoder, model, loss.eval())
    density = fit_density(network.encode(train_rows).astype(np.float64))
    unfitted = Detector(encoder, model, loss, config, typical, density, ensemble, ColumnTails.none())
    enough = validation_rows.height >= LEAST_TAIL_ROWS
    seen = validation_rows if enough else pl.concat([train_rows, validation_rows], how="diagonal")
    tails = fit_tails(unfitted.latents_and_losses(seen)[1])
    return dataclasses.replace(unfitted, tails=tails), result
