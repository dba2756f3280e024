"""Fit a ModelBundle on a window of features: encoder, network, score statistics and calibration."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ae_pipeline.common.device import choose_device, device_errors
from ae_pipeline.common.text import plural
from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.facts import Epoch, TrainingFacts, library_versions
from ae_pipeline.detector.image_verdicts import count_images
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.encoding.encoder import Encoder, context_width, fit_encoder
from ae_pipeline.encoding.packing import Packing
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.sizes import choose_batch_size, choose_budget
from ae_pipeline.features.split import Window, sample_rows
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.corruption import Corruption, build_corruption
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.scoring.calibration import IMAGE_BUDGET, calibrate, check_budget
from ae_pipeline.scoring.ensemble import FITTED_ROWS, Ensemble, fit_ensemble
from ae_pipeline.scoring.mahalanobis import fit_mahalanobis
from ae_pipeline.scoring.tails import TailCalibrator
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training import memory_budget
from ae_pipeline.training.calibration_scores import score_calibration
from ae_pipeline.training.data_parallel import refuse_streaming, require_workers, train_on_workers
from ae_pipeline.training.encoder_weights import load_encoder_weights, read_encoder_weights
from ae_pipeline.training.loop import TrainingResult, evaluate, train
from ae_pipeline.training.loss_statistics import fit_loss_statistics, statistics_rows
from ae_pipeline.training.pixel_threshold import fit_pixel_threshold
from ae_pipeline.training.regularizer import LatentRegularizer
from ae_pipeline.training.reviewed import NOTHING_REVIEWED, Reviewed, copied, with_distinct_ids
from ae_pipeline.training.rows import InMemory, OnDisk, TrainingRows, blocks_for
from ae_pipeline.training.screened import Screened
from ae_pipeline.training.screening import screen_by_serving
from ae_pipeline.training.size_rules import chosen_sizes
from ae_pipeline.training.tails import encoded_slices, fit_categories, with_tails
from ae_pipeline.training.warm_start import build_latent_regularizer, load_matching_weights

logger = logging.getLogger(__name__)

_SLOW_ELEMENTS = 2e7
"""Encoded values from which the fit of the scores takes long enough to say so."""

_SAMPLE_SEED = 3
"""Seed of the hash that samples rows again that another hash sampled already."""


def fit_bundle(
    dataset: Dataset,
    columns: Sequence[FeatureColumn],
    window: Window,
    report: Callable[[Epoch], None] = lambda _: None,
    previous: ModelBundle | None = None,
    reviewed: Reviewed = NOTHING_REVIEWED,
) -> tuple[ModelBundle, TrainingResult]:
    """Fit a model bundle on the features of a window.

    On the CPU, the same window, configuration, previous model and machine give the same bundle, bit for bit.

    Bad days and rows are left out of validation and calibration first; see `screening`.

    Args:
        dataset: Configuration and paths of the dataset.
        columns: Feature columns that the model may use.
        window: Days of each part.
        report: Callback after each epoch.
        previous: Model that serves, from which `training.warm_start` and `training.anchor` start. It screens the rows.
        reviewed: Marks of people. Real anomalies are left out, and false alarms are learned.

    Returns:
        The bundle, without a drift reference (see `reference.with_reference`), and the result of the training.

    Raises:
        TrainingError: There are too few rows, there is no usable column, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not available.
        StorageError: There is no disk space for the encoded rows.
    """
    config, paths = dataset.config, dataset.paths
    require_workers(config.training, choose_device(config.training.device))
    screened = screen_by_serving(window, dataset, previous, reviewed)
    window, counts = screened.window, screened.counts(dataset)
    days = len(window.calibration) if config.is_daily else None
    budget = config.alerts.budget or choose_budget(counts["calibration"])
    check_budget(counts["calibration"], budget, days)  # before the training, which takes long
    incomplete = screened.incomplete_images("calibration", config)
    images = count_images("calibration", window, dataset, incomplete)
    if images is not None:
        check_budget(images, config.alerts.image_budget or choose_budget(images), days, IMAGE_BUDGET)
    memory = memory_budget.share_of(config)
    limit = memory_budget.max_rows(window, paths, memory)
    train_rows, validation_rows = (
        screened.keep(part, window.rows(part, paths, most=limit)) for part in ("train", "validation")
    )
    learned = reviewed.learned(dataset, train_rows.columns)
    of_sample, of_all = copied(learned, train_rows.height), copied(learned, counts["train"])
    train_rows = pl.concat([train_rows, of_sample]) if of_sample.height else train_rows
    all_rows = AllRows(
        train=counts["train"] + of_all.height,
        validation=counts["validation"],
        batches=lambda: _training_batches(screened, of_all, dataset),
        folder=paths.scratch,
        memory=memory,
    )
    given = functools.partial(read_encoder_weights, dataset)
    detector, result = fit_detector(config, columns, train_rows, validation_rows, report, previous, all_rows, given)
    encoder = detector.encoder
    looked_at = {"train": train_rows.height - of_sample.height, "validation": result.validation_rows}
    del train_rows, validation_rows
    calibrated = score_calibration(detector, screened, dataset, budget, counts["calibration"], images)
    if calibrated.screened is not screened:
        screened, window = calibrated.screened, calibrated.screened.window
        batches = window.batches("calibration", paths, ["row_id"])
        counts["calibration"] = sum(screened.keep("calibration", rows).height for rows in batches)
        budget = config.alerts.budget or choose_budget(counts["calibration"])
    of_images = calibrated.images
    images = None if of_images is None else len(of_images)
    facts = TrainingFacts(
        versions=library_versions(),
        rows=counts,
        chosen=chosen_sizes(config, window, counts, math.prod(encoder.shape) - context_width(encoder), images),
        rows_looked_at=looked_at,
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        untrained_loss=result.first_loss,
        validation_loss=result.best_loss,
        is_warm=result.is_warm,
        is_anchored=result.is_anchored,
        is_streamed=result.is_streamed,
        screening=screened.facts,
    )
    bundle = ModelBundle(
        detector=calibrated.detector,
        calibration=calibrate(calibrated.scores, budget, days),
        window=window,
        facts=facts,
        pixel_threshold=fit_pixel_threshold(detector, screened, dataset, budget),
        image_calibration=None
        if of_images is None
        else calibrate(of_images, config.alerts.image_budget or choose_budget(len(of_images)), days, IMAGE_BUDGET),
    )
    return bundle, result


def _training_batches(screened: Screened, learned: pl.DataFrame, dataset: Dataset) -> Iterator[pl.DataFrame]:
    for rows in screened.window.batches("train", dataset.paths):
        yield screened.keep("train", rows)
    if learned.height:
        yield learned


@dataclass(frozen=True, kw_only=True)
class AllRows:
    """All rows of a training of which only a sample fits into memory.

    Attributes:
        train: Number of training rows.
        validation: Number of validation rows.
        batches: Iterator over the training rows, in batches.
        folder: Directory for the encoded training rows.
        memory: Bytes that the encoded training rows may take in memory.
    """

    train: int
    validation: int
    batches: Callable[[], Iterator[pl.DataFrame]]
    folder: Path
    memory: int

    def exceed_memory(self, sample: pl.DataFrame, row_bytes: int) -> bool:
        """Return whether the training rows must be read from disk.

        Args:
            sample: Training rows that are in memory.
            row_bytes: Bytes of an encoded row.
        """
        return sample.height < self.train or sample.height * row_bytes > self.memory


@device_errors()
def fit_detector(
    config: PipelineConfig,
    columns: Sequence[FeatureColumn],
    train_rows: pl.DataFrame,
    validation_rows: pl.DataFrame,
    report: Callable[[Epoch], None] = lambda _: None,
    previous: ModelBundle | None = None,
    all_rows: AllRows | None = None,
    given: Callable[[], Mapping[str, torch.Tensor]] = dict,
) -> tuple[Detector, TrainingResult]:
    """Fit a detector: all of a model except its calibration.

    Args:
        config: Configuration of the pipeline.
        columns: Feature columns that the model may use.
        train_rows: Features that the encoder, the weights and the ensemble are fitted on.
        validation_rows: Features for early stopping and the tails of the losses. The ensemble is fitted on them too.
        report: Callback after each epoch.
        previous: Model that serves, to start from.
        all_rows: All rows that the two tables are a sample of. If they exceed the memory budget, the weights are
            trained on all of them, in blocks from disk.
        given: Function that reads weights of the encoder, from which it starts without those of a previous model.

    Raises:
        TrainingError: There are too few rows, there is no usable column, or the loss is not finite.
        ConfigError: The latent space is too wide, or the device is not available.
        StorageError: There is no disk space for the encoded rows.
        DeviceError: The CUDA device failed, or has too little memory.
    """
    device = choose_device(config.training.device)
    torch.set_num_threads(config.training.threads)
    encoder = fit_encoder(config, train_rows, columns)
    generator = torch.Generator().manual_seed(config.training.seed)
    model = build_model(config, encoder.shape, generator, context_width(encoder)).to(device)
    loss = build_loss(config, encoder).to(device)

    row_bytes = 4 * (math.prod(encoder.shape) + model.latent_dim)
    streamed = all_rows if all_rows is not None and all_rows.exceed_memory(train_rows, row_bytes) else None
    if streamed is not None:
        refuse_streaming(config.training)
        limit = memory_budget.rows_within(streamed.memory, row_bytes)
        validation_rows = sample_rows(validation_rows, limit, _SAMPLE_SEED)
    validation = torch.from_numpy(encoder.encode(validation_rows)).to(device)
    untrained_loss = evaluate(model, loss, validation, config.training.beta)

    is_warm, regularizer = _start_from(previous, model, loss, encoder, train_rows, config)
    load_encoder_weights(model, {} if is_warm else given())
    encoded: TrainingRows
    settings, is_table = config.training, isinstance(encoder, TableEncoder)
    # Workers hold the rows on their devices, and this process does not train.
    training_device = device if settings.workers == 1 else torch.device("cpu")
    if streamed is not None:
        encoded = _encode_to_disk(streamed, encoder, config, previous if regularizer else None, device)
        samples = _ensemble_rows(train_rows, validation_rows, streamed) if is_table else []
        for_ensemble = [encoder.encode(rows) for rows in samples]
    else:
        for_ensemble = [encoder.encode(train_rows), validation.cpu().numpy()]
        latents = regularizer.latents if regularizer else None
        encoded = InMemory.on(training_device, torch.from_numpy(for_ensemble[0]), latents)
    corrupt = _corruption(config, encoder, training_device)
    if settings.workers > 1:
        result = train_on_workers(
            model, loss, for_ensemble[0], validation, settings, generator, report, corrupt, regularizer
        )
    else:
        result = train(model, loss, encoded, validation, settings, generator, report, corrupt, regularizer)
    result = dataclasses.replace(
        result,
        first_loss=untrained_loss,
        is_warm=is_warm,
        is_anchored=regularizer is not None,
        is_streamed=streamed is not None,
    )
    if (rows := train_rows.height + validation_rows.height) * math.prod(encoder.shape) > _SLOW_ELEMENTS:
        logger.info(f"fitting scores on {rows:,} {plural(noun_of_rows(config))}")
    mean_input = encoded.mean()
    if not is_table:
        for_ensemble.clear()  # images have no ensemble, and would stay in memory while the scores are fitted
    del encoded
    fit_loss_statistics(model, loss, statistics_rows(encoder, train_rows, validation))
    del validation
    ensemble = _fit_ensemble(encoder, for_ensemble, config)
    cooccurrence = fit_categories(
        encoder, for_ensemble[:1] if streamed is None else encoded_slices(encoder, train_rows), config
    )
    del for_ensemble
    network = FittedNetwork(encoder, model, loss.eval())
    detector = Detector(
        network=network,
        config=config,
        mean_input=mean_input,
        mahalanobis=fit_mahalanobis(network.encode(train_rows).astype(np.float64)),
        ensemble=ensemble,
        tails=TailCalibrator.none(),
        cooccurrence=cooccurrence,
    )
    return with_tails(detector, train_rows, validation_rows), result


def _start_from(
    previous: ModelBundle | None,
    model: AutoEncoder,
    loss: ReconstructionLoss,
    encoder: Encoder,
    rows: pl.DataFrame,
    config: PipelineConfig,
) -> tuple[bool, LatentRegularizer | None]:
    """Load the weights of the previous model, as configured.

    Returns:
        Whether weights were loaded, and the regularizer that keeps the latents near those of the previous model.
    """
    if previous is None:
        return False, None
    can_copy = config.training.warm_start and config.model == previous.config.model
    is_warm = can_copy and load_matching_weights(model, loss, encoder, previous.network)
    return is_warm, build_latent_regularizer(previous, rows, config, model.latent_dim)


def _corruption(config: PipelineConfig, encoder: Encoder, device: torch.device) -> Corruption | None:
    groups = torch.from_numpy(encoder.groups).to(device) if isinstance(encoder, TableEncoder) else None
    return build_corruption(config.training, groups, encoder.ends, context_width(encoder))


def _encode_to_disk(
    all_rows: AllRows, encoder: Encoder, config: PipelineConfig, previous: ModelBundle | None, device: torch.device
) -> OnDisk:
    """Write all training rows to disk, encoded, with their latents under the previous model if there is one."""
    packing = Packing.of(encoder)
    row_bytes = 4 * (packing.width + (previous.model.latent_dim if previous else 0))
    # Four blocks are in memory: the present one, its shuffled copy, the rest of the last one, and the prefetched one.
    batch_size = config.training.batch_size or choose_batch_size(all_rows.train, math.prod(encoder.shape))
    blocks = blocks_for(all_rows.train, row_bytes, all_rows.memory // 4, batch_size)
    encoded = ((encoder.encode(rows), previous.encode(rows) if previous else None) for rows in all_rows.batches())
    return OnDisk(all_rows.folder, encoded, packing, blocks, config.training.seed, device)


def _ensemble_rows(train_rows: pl.DataFrame, validation_rows: pl.DataFrame, all_rows: AllRows) -> list[pl.DataFrame]:
    """Return samples of both tables for the ensemble, in the proportion of all training and validation rows."""
    share = FITTED_ROWS / (all_rows.train + all_rows.validation)
    return [
        sample_rows(with_distinct_ids(train_rows), math.ceil(share * all_rows.train), _SAMPLE_SEED),
        sample_rows(validation_rows, math.ceil(share * all_rows.validation), _SAMPLE_SEED),
    ]


def _fit_ensemble(encoder: Encoder, matrices: list[Matrix], config: PipelineConfig) -> Ensemble | None:
    if not isinstance(encoder, TableEncoder) or Evidence.ENSEMBLE not in config.alerts.evidence:
        return None
    width = encoder.target_width  # the context is not evidence
    rows = np.concatenate([matrix[:, :width] for matrix in matrices])
    training = config.training
    return fit_ensemble(rows, encoder.asinh_mask[:width], training.seed, training.contamination)
