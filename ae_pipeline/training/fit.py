"""From a window of features to a ModelBundle: encoder, network, tails and calibration, each on its own days."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ae_pipeline.common.memory import machine_memory
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import DriftConfig, Evidence
from ae_pipeline.detector.bundle import ModelBundle, library_versions
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.encoder import Encoder, fit_encoder
from ae_pipeline.encoding.packing import Packing
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.split import PARTS, Window, sample_by_hash, sample_rows
from ae_pipeline.models.base import AutoEncoderOutput, rows_at_once
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.scoring.calibration import calibrate, check_budget
from ae_pipeline.scoring.drift import (
    Distribution,
    Effect,
    Part,
    describe_columns,
    describe_numbers,
    measure_columns,
    measure_numbers,
    with_usual,
)
from ae_pipeline.scoring.ensemble import FITTED_ROWS, fit_ensemble
from ae_pipeline.scoring.mahalanobis import fit_mahalanobis
from ae_pipeline.scoring.tails import TailCalibrator, fit_tails
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.loop import Epoch, TrainingResult, choose_device, evaluate, train
from ae_pipeline.training.rows import InMemory, OnDisk, TrainingRows, blocks_for
from ae_pipeline.training.warm_start import build_latent_regularizer, load_matching_weights

_REFERENCE_ROWS = 20_000
"""Rows whose latents are remembered."""

_LEAST_DAY_ROWS = 20
"""Rows that a day needs to tell what is usual of one."""

_LEAST_LOOKED_AT = 4096
"""Rows that are looked at whatever the memory budget says, where there are as many."""

_MOST_CALIBRATED = 2**20
"""Calibration rows that are scored, unless the alert budget needs more."""

_LOOKED_AT = 3
"""Seed of the hash that draws from what was drawn already."""

LEAST_TAIL_ROWS = 500
"""Validation rows that tell the tails of losses; where there are fewer, the training rows are taken with them."""


def fit_bundle(
    dataset: Dataset,
    columns: Sequence[FeatureColumn],
    window: Window,
    report: Callable[[Epoch], None] = lambda _: None,
    previous: ModelBundle | None = None,
) -> tuple[ModelBundle, TrainingResult]:
    """Fits everything that a model is.

    On the CPU the same window, configuration, model before and machine give the same bundle, bit for bit.

    Args:
        dataset: Configuration and paths of the dataset.
        columns: Features that the model may look at.
        window: Days for each part.
        report: Called after each epoch.
        previous: The model that serves, to go on from as `training.warm_start` and `anchor` say.

    Raises:
        TrainingError: There are too few rows, no column to learn from, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not there.
    """
    config, paths = dataset.config, dataset.paths
    days = len(window.calibration) if config.is_daily else None
    counts = {part: window.count(part, paths) for part in PARTS}
    # Before anything is fitted: what cannot be calibrated need not be trained.
    check_budget(counts["calibration"], config.alerts.budget, days)
    share = _share(config)
    most = _most_rows(window, paths, share)
    train_rows, validation_rows = (window.rows(part, paths, most=most) for part in ("train", "validation"))
    all_rows = AllRows(
        counts["train"], counts["validation"], lambda: window.batches("train", paths), paths.scratch, share
    )
    detector, result = fit_detector(config, columns, train_rows, validation_rows, report, previous, all_rows)
    facts: dict[str, Any] = {
        "versions": library_versions(),
        "rows": counts,
        "rows_looked_at": {"train": train_rows.height, "validation": result.validation_rows},
        "epochs": [dataclasses.asdict(epoch) for epoch in result.epochs],
        "best_epoch": result.best_epoch,
        "untrained_loss": result.first_loss,
        "validation_loss": result.best_loss,
        "is_warm": result.is_warm,
        "is_anchored": result.is_anchored,
        "is_streamed": result.is_streamed,
    }
    del train_rows, validation_rows
    scores = detector.scores(_held_out(window, paths, config.alerts.budget, counts["calibration"]))
    calibration = calibrate(scores, config.alerts.budget, days)
    fitted = {field.name: getattr(detector, field.name) for field in dataclasses.fields(detector)}
    return ModelBundle(**fitted, calibration=calibration, window=window, facts=facts), result


def _held_out(window: Window, paths: DatasetPaths, budget: float, count: int) -> Iterator[pl.DataFrame]:
    """Gives the calibration rows, of very many those that a hash draws: they are exchangeable with new rows too."""
    most = max(_MOST_CALIBRATED, math.ceil(100 / budget))
    share = min(most / max(count, 1), 1.0)
    for rows in window.batches("calibration", paths):
        yield sample_by_hash(rows, share)


def _share(config: PipelineConfig) -> int:
    """Gives the bytes for each of four: features to learn from, the same encoded, validation, what is computed."""
    return (config.training.memory_budget or machine_memory() // 4) // 4


def _most_rows(window: Window, paths: DatasetPaths, share: int) -> int:
    """Says how many rows of features may be held."""
    first = next((rows for rows in window.batches("train", paths) if rows.height), pl.DataFrame())
    return max(_LEAST_LOOKED_AT, share * first.height // max(int(first.estimated_size()), 1))


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
        most = _most_rows(bundle.window, paths, _share(bundle.config))
        counts = {part: bundle.window.count(part, paths) for part in PARTS}
        # One share of all parts: as many of each would weigh its newest days as heavily as the many before them.
        share = min(most / max(sum(counts.values()), 1), 1.0)
        parts = [bundle.window.rows(part, paths, names, math.ceil(share * count)) for part, count in counts.items()]
        found += describe_columns(pl.concat(parts, how="diagonal"), seen, newest=parts[-1].height)
        del parts
    held_out = sample_rows(bundle.window.rows("calibration", paths, most=2 * _REFERENCE_ROWS), _REFERENCE_ROWS, seed=0)
    latents = bundle.encode(held_out).astype(np.float64)
    for index, values in enumerate(latents.T):
        found.append(describe_numbers(Part.LATENT, f"z_{index:03d}", values))
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


@dataclass(frozen=True)
class AllRows:
    """Rows of a training of which only a sample may be held in memory.

    Attributes:
        train: How many there are to learn from.
        validation: How many there are to stop on.
        batches: Reads the former, some at a time.
        folder: Where they may be put, encoded.
        share: Bytes that the encoded rows may take in memory.
    """

    train: int
    validation: int
    batches: Callable[[], Iterator[pl.DataFrame]]
    folder: Path
    share: int


def fit_detector(
    config: PipelineConfig,
    columns: Sequence[FeatureColumn],
    train_rows: pl.DataFrame,
    validation_rows: pl.DataFrame,
    report: Callable[[Epoch], None] = lambda _: None,
    previous: ModelBundle | None = None,
    all_rows: AllRows | None = None,
) -> tuple[Detector, TrainingResult]:
    """Fits all of a model but its calibration.

    Args:
        config: The pipeline's.
        columns: Features that the model may look at.
        train_rows: Features that the encoder, the weights and the ensemble are fitted on.
        validation_rows: Features for early stopping, the tails of the losses, and the ensemble, which looks at both.
        report: Called after each epoch.
        previous: The model that serves, to go on from.
        all_rows: What both are a sample of, where there is more than may be held: the weights learn from all of it.

    Raises:
        TrainingError: There are too few rows, no column to learn from, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not there.
        StorageError: There is no room for the encoded rows.
    """
    device = choose_device(config.training.device)
    torch.set_num_threads(config.training.threads)
    encoder = fit_encoder(config, train_rows, columns)
    generator = torch.Generator().manual_seed(config.training.seed)
    model = build_model(config, encoder.shape, generator).to(device)
    loss = build_loss(config, encoder).to(device)
    row_bytes = 4 * (math.prod(encoder.shape) + model.latent_dim)
    is_streamed = all_rows is not None and (
        train_rows.height < all_rows.train or train_rows.height * row_bytes > all_rows.share
    )
    if all_rows is not None and is_streamed:
        validation_rows = sample_rows(validation_rows, max(_LEAST_LOOKED_AT, all_rows.share // row_bytes), _LOOKED_AT)
    held = encoder.encode(validation_rows)
    validation = torch.from_numpy(held).to(device)
    groups = torch.from_numpy(encoder.groups) if isinstance(encoder, TableEncoder) else None
    corrupt = build_corruption(config.training, groups, encoder.ends)
    untrained, anchor, is_warm = evaluate(model, loss, validation, config.training.beta), None, False
    if previous is not None:
        if config.training.warm_start and config.model == previous.config.model:
            is_warm = load_matching_weights(model, loss, encoder, previous)
        anchor = build_latent_regularizer(previous, train_rows, config, model.latent_dim)
    if all_rows is not None and is_streamed:
        encoded: TrainingRows = _on_disk(all_rows, encoder, config, previous if anchor else None, device)
        for_ensemble = [encoder.encode(rows) for rows in _as_mixed(train_rows, validation_rows, all_rows)]
    else:
        for_ensemble = [encoder.encode(train_rows), held]
        encoded = InMemory(torch.from_numpy(for_ensemble[0]).to(device), anchor.latents if anchor else None)
    result = train(model, loss, encoded, validation, config.training, generator, report, corrupt=corrupt, anchor=anchor)
    result = dataclasses.replace(
        result, first_loss=untrained, is_warm=is_warm, is_anchored=anchor is not None, is_streamed=is_streamed
    )
    mean_input = encoded.mean()
    del encoded
    with torch.inference_mode():
        passes = [model(batch) for batch in validation.split(rows_at_once(encoder.shape))]
        loss.fit_scores(AutoEncoderOutput(*(torch.cat(part) for part in zip(*passes, strict=True))), validation)
    del passes, validation, held
    ensemble = None
    if isinstance(encoder, TableEncoder) and Evidence.ENSEMBLE in config.alerts.evidence:
        ensemble = fit_ensemble(np.concatenate(for_ensemble), encoder.asinh_mask, config.training.seed)
    del for_ensemble
    network = FittedNetwork(encoder, model, loss.eval())
    mahalanobis = fit_mahalanobis(network.encode(train_rows).astype(np.float64))
    unfitted = Detector(encoder, model, loss, config, mean_input, mahalanobis, ensemble, TailCalibrator.none())
    enough = validation_rows.height >= LEAST_TAIL_ROWS
    seen = validation_rows if enough else pl.concat([train_rows, validation_rows], how="diagonal")
    tails = fit_tails(unfitted.latents_and_losses(seen)[1])
    return dataclasses.replace(unfitted, tails=tails), result


def _on_disk(
    all_rows: AllRows, encoder: Encoder, config: PipelineConfig, previous: ModelBundle | None, device: torch.device
) -> OnDisk:
    """Puts all rows to learn from into a file, encoded, with the latents that they had before."""
    packing = Packing.of(encoder)
    row_bytes = 4 * (packing.width + (previous.model.latent_dim if previous else 0))
    # Beside the block that is at work there are the same in another order, what was left of the last, and the next.
    blocks = blocks_for(all_rows.train, row_bytes, all_rows.share // 4, config.training.batch_size)
    encoded = ((encoder.encode(rows), previous.encode(rows) if previous else None) for rows in all_rows.batches())
    return OnDisk(all_rows.folder, encoded, packing, blocks, config.training.seed, device)


def _as_mixed(train_rows: pl.DataFrame, validation_rows: pl.DataFrame, all_rows: AllRows) -> list[pl.DataFrame]:
    """Draws from both samples as many rows as an ensemble looks at, in the proportion of what they are drawn from."""
    share = FITTED_ROWS / (all_rows.train + all_rows.validation)
    counts = [math.ceil(share * count) for count in (all_rows.train, all_rows.validation)]
    return [
        sample_rows(rows, count, _LOOKED_AT) for rows, count in zip((train_rows, validation_rows), counts, strict=True)
    ]
