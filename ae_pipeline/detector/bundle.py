"""ModelBundle: everything that a training fitted, in one directory without pickle."""

import dataclasses
import datetime as dt
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors.torch import save_file

from ae_pipeline.common.deprecation import REMOVED_IN, warn
from ae_pipeline.common.device import choose_device, device_errors
from ae_pipeline.common.errors import BundleError, ConfigError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector import legacy_bundle
from ae_pipeline.detector.bundle_files import LEFT_OUT, MANIFEST, WEIGHTS, fingerprint_of, read_files
from ae_pipeline.detector.detector import Array, Detector
from ae_pipeline.detector.digests import check_digests, with_digests, without_digests
from ae_pipeline.detector.explanation import Contribution, explain
from ae_pipeline.detector.facts import TrainingFacts
from ae_pipeline.detector.image_verdicts import ImageJudge
from ae_pipeline.detector.network import FittedNetwork, Pictures
from ae_pipeline.detector.raw_rows import RawScores, Table, build_raw_features, read_rows
from ae_pipeline.detector.stored_window import read_window, window_facts
from ae_pipeline.detector.tensors import check_detector, read_detector, tensors_of
from ae_pipeline.encoding.blocks import Matrix
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.features.split import Window
from ae_pipeline.ingestion.contract import SchemaContract
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.scoring.drift import Distribution
from ae_pipeline.scoring.mahalanobis import MahalanobisDistance
from ae_pipeline.storage.files import atomic_write, make_folder

FORMAT = 12
"""Format that `save` writes. `load` also reads formats 11 to 7, and format 6 with a warning."""

_EARLIER = {11, 10, 9, 8}
"""Formats with fewer parts: 11 has a fingerprint over all settings, 10 no flat scores of images, 9 no combinations of
categories, 8 five measures."""

_IMAGES = "image_calibration.scores"

WITHOUT_CONTRACT = 7
"""Format that has no schema contract either."""


@dataclass(frozen=True)
class ScoredRows:
    """Latents and scores of n rows.

    Attributes:
        latents: Latents z, (n, latent_dim), float32.
        score: Score of each row in nats, (n,); see `Detector.combine`. Higher is more anomalous.
        p_value: Share of normal rows that score as high, (n,).
        is_anomaly: Whether p_value is within the alert budget, (n,).
    """

    latents: Matrix
    score: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]
    is_anomaly: npt.NDArray[np.bool_]

    def to_frame(self) -> pl.DataFrame:
        """Return the columns `score`, `p_value`, `is_anomaly`, and the latents as `z_000`, …."""
        scores = {"score": self.score, "p_value": self.p_value, "is_anomaly": self.is_anomaly}
        return pl.DataFrame({**scores, **{f"z_{index:03d}": column for index, column in enumerate(self.latents.T)}})


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """A detector with its calibration, training window and facts: all that scoring a new day needs.

    Attributes:
        detector: Fitted network and the statistics of its scores.
        calibration: Calibration of scores to p-values.
        window: Days of each part of the training window.
        facts: Versions, row counts and losses of the training.
        reference: Distributions that drift is measured against; empty without event time.
        contract: Schema contract of the rows, for `score_raw`; None in bundles of earlier formats.
        image_calibration: Calibration of the scores of images; None unless rows are patches.
        pixel_threshold: Heat above which a pixel is anomalous, by the alert budget; None for tables.
        stored_fingerprint: Fingerprint of the files that a bundle was read from; None for one that was just fitted. A
            later version of the package may write further keys, which must not change it.

    Examples:
        >>> import tempfile
        >>> from ae_pipeline.training.example import fit_example_bundle
        >>> bundle, rows = fit_example_bundle()
        >>> bundle.score(rows).is_anomaly.tolist()
        [False, False, True]
        >>> bundle.explain(rows)[2][0].column
        'power'
        >>> bundle.encode(rows).shape
        (3, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bundle.save(Path(folder))
        ...     ModelBundle.load(Path(folder)).fingerprint == bundle.fingerprint
        True
    """

    detector: Detector
    calibration: Calibration
    window: Window
    facts: TrainingFacts
    reference: tuple[Distribution, ...] = ()
    contract: SchemaContract | None = None
    image_calibration: Calibration | None = None
    pixel_threshold: float | None = None
    stored_fingerprint: str | None = None

    @property
    def network(self) -> FittedNetwork:
        """Encoder, autoencoder and loss."""
        return self.detector.network

    @property
    def config(self) -> PipelineConfig:
        """Configuration of the pipeline that fitted the model."""
        return self.detector.config

    @property
    def encoder(self) -> Encoder:
        """Encoder of features into network inputs."""
        return self.network.encoder

    @property
    def model(self) -> AutoEncoder:
        """Autoencoder, in evaluation mode."""
        return self.network.model

    @property
    def loss(self) -> ReconstructionLoss:
        """Reconstruction loss."""
        return self.network.loss

    @property
    def mahalanobis(self) -> MahalanobisDistance:
        """Distance of a latent from the latents of the training rows."""
        return self.detector.mahalanobis

    @property
    def judge_images(self) -> ImageJudge | None:
        """Verdicts on images from the scores of their patches; None unless rows are patches."""
        calibration, config = self.image_calibration, self.config
        return ImageJudge(calibration, config.alerts.image_patches, config.identity) if calibration else None

    @property
    def columns(self) -> list[str]:
        """Names of the feature columns that the model needs."""
        return [column.name for column in self.encoder.inputs]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, statistics, calibration, and the settings that can change a row."""
        return self.stored_fingerprint or fingerprint_of(self._manifest(), self._tensors())

    def encode(self, features: pl.DataFrame) -> Matrix:
        """Return latents of n rows, (n, latent_dim), float32; see `FittedNetwork.encode`."""
        return self.network.encode(features)

    def reconstruct(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Return reconstructions of n rows on the scale of the network inputs; see `FittedNetwork.reconstruct`."""
        return self.network.reconstruct(features)

    def denoise(self, features: pl.DataFrame) -> pl.DataFrame:
        """Return n rows with the fitted columns replaced by their reconstructions; see `FittedNetwork.denoise`."""
        return self.network.denoise(features)

    def pictures(self, features: pl.DataFrame) -> Pictures | None:
        """Return images, reconstructions and residual maps, or None for tables; see `FittedNetwork.pictures`."""
        return self.network.pictures(features)

    def latents_and_scores(self, features: pl.DataFrame) -> tuple[Matrix, Array]:
        """Return latents and scores of n rows; see `Detector.latents_and_scores`."""
        return self.detector.latents_and_scores(features)

    def explain(self, features: pl.DataFrame, columns: int = 3) -> list[list[Contribution]]:
        """Return the parts that contribute most to the score of each row; see `explanation.explain`."""
        return explain(self.detector, features, columns)

    def score(self, features: pl.DataFrame) -> ScoredRows:
        """Return latents, scores and p-values of n rows. The same rows in the same batches give the same bytes.

        Args:
            features: Rows with the fitted columns.

        Raises:
            BundleError: A column is missing or has another type.
        """
        latents, score = self.latents_and_scores(features)
        p_value = self.calibration.p_values(score)
        return ScoredRows(latents, score, p_value, self.calibration.flags(p_value))

    def score_raw(
        self,
        rows: Table | Path,
        *,
        landing: Path | None = None,
        days: tuple[dt.date | None, dt.date | None] | None = None,
    ) -> RawScores:
        """Return scores, reasons and latents of rows as they land, and the rows that the schema contract rejects.

        Rows with the same identity are all scored. Of the flagged rows, those with the highest scores are explained, at
        most `alerts.report_rows`. Columns that only the label needs may be missing.

        Args:
            rows: Table of polars, pyarrow or pandas, or path of a file in a format that the ingestion reads.
            landing: Landing folder, for columns that come from the path of a file below it.
            days: First and last valid day; by default `start` and `end` of the configuration.

        Raises:
            BundleError: The bundle has no schema contract, because an earlier version trained it.
            SchemaError: The file or table cannot be read, or a column is missing or unknown.
            StorageError: The file does not exist.

        Examples:
            >>> from ae_pipeline.training.example import fit_example_bundle
            >>> bundle, _ = fit_example_bundle()
            >>> rows = pl.DataFrame({"reading": [1, 2, 3], "load": ["2.0", "3.0", "many"], "power": [4.0, 9.0, 6.0]})
            >>> scores = bundle.score_raw(rows)
            >>> scores.scored.select("row_id", "is_anomaly", "because").rows()
            [('1', False, ''), ('2', True, 'power is 9, expected 6.1...')]
            >>> scores.rejected.select("row_number", "rule").rows()
            [(3, 'load: number')]
        """
        if self.contract is None:
            raise BundleError(
                f"the bundle has no schema contract, because its format is {WITHOUT_CONTRACT} or older, so that it "
                "scores only features; train a new model to score rows as they land"
            )
        name, data = read_rows(rows, landing)
        period = days or (self.config.start, self.config.end)
        raw = build_raw_features(name, data, self.contract, self.config, period)
        scores = self.score(raw.features.select(self.columns)).to_frame()
        return raw.with_scores(scores, raw.exact.select(self.columns), self.explain, self.config.alerts.report_rows)

    def with_network(self, network: FittedNetwork, mahalanobis: MahalanobisDistance) -> "ModelBundle":
        """Return the same bundle with another network, such as one whose latents were transformed.

        Args:
            network: Network that gives the same scores with `mahalanobis`.
            mahalanobis: Distance in the latent space of that network.
        """
        detector = dataclasses.replace(self.detector, network=network, mahalanobis=mahalanobis)
        return dataclasses.replace(self, detector=detector, stored_fingerprint=None)

    def save(self, folder: Path) -> None:
        """Write the bundle into a directory: tensors as safetensors, everything else as JSON."""
        make_folder(folder)
        with atomic_write(folder / WEIGHTS) as temporary:
            save_file(self._tensors(), temporary)
        manifest = with_digests(self._manifest(), folder / WEIGHTS)
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str | None = None) -> "ModelBundle":
        """Read a bundle of format 12 to 7, or of format 6 with a DeprecationWarning.

        Args:
            folder: Directory that `save` wrote.
            device: Device to score on: a device, or `auto`, `cpu` or `cuda`. Any bundle loads onto any device. By
                default it is `training.device` of its configuration, or the CPU if this machine has no such device.

        Raises:
            BundleError: The directory holds no bundle, one of another format, or one whose parts do not fit together.
            ConfigError: `cuda` is asked for, but no CUDA device is available.
            DeviceError: The device failed, or has too little memory.
        """
        if isinstance(device, str):
            device = choose_device(device)
        stored, tensors = read_files(folder)
        manifest = without_digests(stored)
        stored_fingerprint = fingerprint_of(manifest, tensors)
        if manifest.get("format") == legacy_bundle.FORMAT:
            warn(
                f"the bundle in {folder} has format {legacy_bundle.FORMAT}, whose reader will be removed in version "
                f"{REMOVED_IN}; train a new model, which has format {FORMAT}"
            )
            manifest = {**manifest, "config": legacy_bundle.upgrade_config(manifest["config"]), "contract": None}
            tensors = legacy_bundle.upgrade_tensors(tensors)
        elif manifest.get("format") == WITHOUT_CONTRACT:
            manifest = {**manifest, "contract": None}
        elif manifest.get("format") not in {FORMAT, *_EARLIER}:
            raise BundleError(
                f"the bundle in {folder} has format {manifest.get('format')!r}, but this version of ae_pipeline reads "
                f"only formats {legacy_bundle.FORMAT} to {FORMAT}; train a new model, or use the version of "
                "ae_pipeline that wrote the bundle"
            )
        try:
            manifest = {**manifest, "config": legacy_bundle.with_defaults_of_format_7(manifest["config"])}
            with device_errors():  # a busy device is no damage of the bundle
                detector = read_detector(manifest, tensors, device)
            contract = manifest["contract"]
            budget = manifest["calibration"].get("budget", detector.config.alerts.budget)
            images = manifest.get("image_calibration")
            bundle = cls(
                detector=detector,
                calibration=Calibration(tensors["calibration.scores"].numpy(), float(budget)),
                window=read_window(manifest["window"]),
                facts=TrainingFacts.model_validate(manifest["facts"]),
                reference=tuple(map(Distribution.model_validate, manifest["reference"])),
                contract=None if contract is None else SchemaContract.model_validate(contract),
                image_calibration=images and Calibration(tensors[_IMAGES].numpy(), float(images["budget"])),
                pixel_threshold=manifest.get("pixel_threshold"),
                stored_fingerprint=stored_fingerprint,
            )
            with device_errors():
                check_detector(detector, surplus=tensors.keys() - bundle._tensors().keys())
            check_digests(stored, folder / WEIGHTS)
        except (ConfigError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BundleError(
                f"the parts of the bundle in {folder} do not match: {error}; train a new model"
            ) from error
        return bundle

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **LEFT_OUT,
            "config": self.config.model_dump(mode="json"),
            "encoder": self.encoder.model_dump(mode="json"),
            "calibration": _calibration_facts(self.calibration),
            **({} if self.pixel_threshold is None else {"pixel_threshold": self.pixel_threshold}),
            **({"image_calibration": _calibration_facts(self.image_calibration)} if self.image_calibration else {}),
            "window": window_facts(self.window),
            "facts": self.facts.to_json(),
            "contract": self.contract and self.contract.model_dump(mode="json"),
            "reference": [distribution.model_dump(mode="json") for distribution in self.reference],
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        scores = {"calibration.scores": self.calibration.scores}
        scores |= {_IMAGES: self.image_calibration.scores} if self.image_calibration else {}
        return tensors_of(self.detector) | {name: torch.from_numpy(each).contiguous() for name, each in scores.items()}


def _calibration_facts(calibration: Calibration) -> dict[str, float]:
    return {"rows": len(calibration.scores), "threshold": calibration.threshold, "budget": calibration.budget}
