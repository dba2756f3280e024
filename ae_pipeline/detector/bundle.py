"""ModelBundle: everything that a training fitted, in one directory without pickle."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ae_pipeline.common.deprecation import REMOVED_IN, warn
from ae_pipeline.common.errors import BundleError, ConfigError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector import legacy_bundle
from ae_pipeline.detector.detector import Array, Detector
from ae_pipeline.detector.explanation import Contribution, explain
from ae_pipeline.detector.facts import TrainingFacts
from ae_pipeline.detector.network import FittedNetwork, Pictures
from ae_pipeline.detector.tensors import Tensors, check_detector, read_detector, tensors_of
from ae_pipeline.encoding.encoder import Encoder
from ae_pipeline.encoding.table_encoder import Matrix
from ae_pipeline.features.split import GATE, PARTS, Window
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.scoring.drift import Distribution
from ae_pipeline.scoring.mahalanobis import MahalanobisDistance
from ae_pipeline.storage.files import atomic_write, make_folder
from ae_pipeline.storage.hashing import hash_json

FORMAT = 7
"""Format that `save` writes. `load` also reads the previous format, with a warning."""

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"


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


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """A detector with its calibration, training window and facts: all that scoring a new day needs.

    Attributes:
        detector: Fitted network and the statistics of its scores.
        calibration: Calibration of scores to p-values.
        window: Days of each part of the training window.
        facts: Versions, row counts and losses of the training.
        reference: Distributions that drift is measured against; empty without event time.
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
    def columns(self) -> list[str]:
        """Names of the feature columns that the model needs."""
        return [column.name for column in self.encoder.columns]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model: equal weights, statistics and calibration have equal fingerprints."""
        return self.stored_fingerprint or _fingerprint(self._manifest(), self._tensors())

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
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(self._manifest(), indent=1, sort_keys=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "ModelBundle":
        """Read a bundle of format 7, or of format 6 with a DeprecationWarning.

        Args:
            folder: Directory that `save` wrote.
            device: Device to score on.

        Raises:
            BundleError: The directory holds no bundle, one of another format, or one whose parts do not fit together.
        """
        manifest, tensors = _read_files(folder)
        stored_fingerprint = _fingerprint(manifest, tensors)
        if manifest.get("format") == legacy_bundle.FORMAT:
            warn(
                f"the bundle in {folder} has format {legacy_bundle.FORMAT}, whose reader will be removed in version "
                f"{REMOVED_IN}; train a new model, which has format {FORMAT}"
            )
            manifest = {**manifest, "config": legacy_bundle.upgrade_config(manifest["config"])}
            tensors = legacy_bundle.upgrade_tensors(tensors)
        elif manifest.get("format") != FORMAT:
            raise BundleError(
                f"the bundle in {folder} has format {manifest.get('format')!r}, but this version of ae_pipeline reads "
                f"only formats {legacy_bundle.FORMAT} and {FORMAT}; train a new model, or use the version of "
                "ae_pipeline that wrote the bundle"
            )
        try:
            detector = read_detector(manifest, tensors, device)
            bundle = cls(
                detector=detector,
                calibration=Calibration(tensors["calibration.scores"].numpy(), detector.config.alerts.budget),
                window=_read_window(manifest["window"]),
                facts=TrainingFacts.model_validate(manifest["facts"]),
                reference=tuple(map(Distribution.model_validate, manifest["reference"])),
                stored_fingerprint=stored_fingerprint,
            )
            check_detector(detector, surplus=tensors.keys() - bundle._tensors().keys())
        except (ConfigError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BundleError(
                f"the parts of the bundle in {folder} do not match: {error}; train a new model"
            ) from error
        return bundle

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": self.config.model_dump(mode="json"),
            "encoder": self.encoder.model_dump(mode="json"),
            "calibration": {"rows": len(self.calibration.scores), "threshold": self.calibration.threshold},
            "window": {
                **{part: list(getattr(self.window, part)) for part in (*PARTS, GATE)},
                "fingerprint": self.window.fingerprint,
                "split_by": list(self.window.split_by),
                "only_normal": self.window.only_normal,
            },
            "facts": self.facts.to_json(),
            "reference": [distribution.model_dump(mode="json") for distribution in self.reference],
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        scores = torch.from_numpy(self.calibration.scores).contiguous()
        return {**tensors_of(self.detector), "calibration.scores": scores}


def _read_files(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return manifest and tensors of a bundle of any format.

    Raises:
        BundleError: A file is missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS, device="cpu")
    except FileNotFoundError as error:
        missing = Path(str(error.filename or WEIGHTS)).name
        raise BundleError(
            f"{folder} is not a model bundle: it has no {missing}; train a new model, or name the directory that holds "
            f"{MANIFEST} and {WEIGHTS}"
        ) from error
    except (ValueError, OSError, SafetensorError) as error:
        raise BundleError(f"cannot read the bundle in {folder} ({error}); train a new model") from error
    if not isinstance(manifest, dict):
        raise BundleError(
            f"cannot read the bundle in {folder} ({MANIFEST} does not hold a JSON object); train a new model"
        )
    return manifest, tensors


def _read_window(days: Mapping[str, Any]) -> Window:
    return Window(
        **{part: tuple(days[part]) for part in (*PARTS, GATE)},
        fingerprint=days["fingerprint"],
        split_by=tuple(days["split_by"]),
        only_normal=days["only_normal"],
    )


def _fingerprint(manifest: Mapping[str, Any], tensors: Tensors) -> str:
    return hash_json([manifest, {name: _digest(value) for name, value in tensors.items()}])


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
