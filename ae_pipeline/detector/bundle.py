"""ModelBundle: everything that was fitted, in one directory without pickle; encodes and scores."""

import hashlib
import json
import platform
from collections.abc import Mapping, Set
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

from ae_pipeline.common.deprecation import warn_deprecated
from ae_pipeline.common.errors import BundleError, ConfigError
from ae_pipeline.common.version import __version__
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector import legacy_bundle
from ae_pipeline.detector.detector import Detector
from ae_pipeline.encoding.encoder import read_encoder
from ae_pipeline.encoding.table_encoder import Matrix
from ae_pipeline.features.split import GATE, PARTS, Window
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.scoring.drift import Distribution
from ae_pipeline.scoring.ensemble import Ensemble
from ae_pipeline.scoring.mahalanobis import MahalanobisDistance
from ae_pipeline.scoring.tails import TailCalibrator
from ae_pipeline.storage.files import atomic_write, make_folder
from ae_pipeline.storage.hashing import hash_json

FORMAT = 7
"""Format that `save` writes. `load` also reads the format before it, with a warning."""

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"


@dataclass(frozen=True)
class ScoredRows:
    """What a bundle says of n rows.

    Attributes:
        latents: z, (n, latent_dim), float32.
        score: Surprise of each row, nats, (n,): see `Detector.combine`; the higher, the stranger.
        p_value: Share of rows like those of the calibration days that score as high, (n,).
        is_anomaly: Whether p_value lies within the alert budget, (n,).
    """

    latents: Matrix
    score: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]
    is_anomaly: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelBundle(Detector):
    """A fitted pipeline from features to latents and scores.

    Attributes:
        calibration: Scores to p-values.
        window: Days it was fitted on.
        facts: Versions of code and libraries, and figures of the training.
        reference: What days to come are held against to see drift; none without event time.
        stored_fingerprint: Fingerprint of the files of a bundle of the format before; None for the present format.
    """

    calibration: Calibration
    window: Window
    facts: Mapping[str, Any]
    reference: tuple[Distribution, ...] = ()
    stored_fingerprint: str | None = None

    @property
    def columns(self) -> list[str]:
        """Feature columns that it needs."""
        return [column.name for column in self.encoder.columns]

    @cached_property
    def fingerprint(self) -> str:
        """Names this model: the same weights, statistics and calibration give the same text."""
        return self.stored_fingerprint or _fingerprint(self._manifest(), self._tensors())

    def score(self, features: pl.DataFrame) -> ScoredRows:
        """Scores n rows; the same rows in the same batches give the same bytes.

        Raises:
            BundleError: A column is missing or of another type.
        """
        latents, score = self.latents_and_scores(features)
        p_value = self.calibration.p_values(score)
        return ScoredRows(latents, score, p_value, self.calibration.flags(p_value))

    def save(self, folder: Path) -> None:
        """Writes the bundle into a folder: weights and statistics as safetensors, all else as JSON."""
        make_folder(folder)
        with atomic_write(folder / WEIGHTS) as temporary:
            save_file(self._tensors(), temporary)
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(self._manifest(), indent=1, sort_keys=True), encoding="utf-8")

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
            "facts": dict(self.facts),
            "reference": [known.model_dump(mode="json") for known in self.reference],
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        statistics = {
            "mean_input": self.mean_input,
            "mahalanobis.mean": self.mahalanobis.mean,
            "mahalanobis.whitening": self.mahalanobis.whitening,
            "calibration.scores": self.calibration.scores,
            **{f"tails.{name}": value for name, value in self.tails.arrays().items()},
            **{f"ensemble.{name}": value for name, value in (self.ensemble.arrays() if self.ensemble else {}).items()},
        }
        tensors |= {name: torch.from_numpy(value) for name, value in statistics.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "ModelBundle":
        """Reads a bundle, and refuses what it does not know.

        Args:
            folder: Written by `save`.
            device: Where to score.

        Raises:
            BundleError: It is no bundle, or one of another format.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS, device="cpu")
        except FileNotFoundError as error:
            raise BundleError(
                f"{folder} is not a model bundle: it has no {Path(str(error.filename or WEIGHTS)).name}; train "
                "anew, or name the folder that holds both files"
            ) from error
        except (ValueError, OSError, SafetensorError) as error:
            raise BundleError(f"the bundle in {folder} cannot be read ({error}); train anew") from error
        if not isinstance(manifest, dict):
            raise BundleError(f"the bundle in {folder} cannot be read ({MANIFEST} holds no JSON object); train anew")
        stored_fingerprint = None
        if manifest.get("format") == legacy_bundle.FORMAT:
            warn_deprecated(f"format {legacy_bundle.FORMAT}", f"format {FORMAT}", f"the bundle {folder}")
            stored_fingerprint = _fingerprint(manifest, tensors)
            tensors = legacy_bundle.upgrade_tensors(tensors)
        elif manifest.get("format") != FORMAT:
            raise BundleError(
                f"the bundle in {folder} has format {manifest.get('format')!r}, and this version of ae_pipeline "
                f"reads formats {legacy_bundle.FORMAT} and {FORMAT}; train a new model, or use the version "
                "that wrote it"
            )
        try:
            config = PipelineConfig.model_validate(manifest["config"])
            encoder = read_encoder(manifest["encoder"])
            model, loss = build_model(config, encoder.shape), build_loss(config, encoder)
            model.load_state_dict(_under("model.", tensors))
            loss.load_state_dict(_under("loss.", tensors))
            mean_input = tensors["mean_input"].numpy()
            mahalanobis = MahalanobisDistance(
                *(tensors[f"mahalanobis.{name}"].numpy() for name in ("mean", "whitening"))
            )
            tails = TailCalibrator(**_arrays_under("tails.", tensors))
            ensemble_arrays = _arrays_under("ensemble.", tensors)
            ensemble = Ensemble.from_arrays(ensemble_arrays) if ensemble_arrays else None
            calibration = Calibration(tensors["calibration.scores"].numpy(), config.alerts.budget)
            days, facts = manifest["window"], manifest["facts"]
            train, validation, calibrated = (tuple(days[part]) for part in PARTS)
            cut = (tuple(days["split_by"]), days["only_normal"])
            window = Window(train, validation, calibrated, days["fingerprint"], *cut, tuple(days[GATE]))
            model, loss = model.to(device).eval(), loss.to(device).eval()
            parts = (encoder, model, loss, config, mean_input, mahalanobis, ensemble, tails)
            reference = tuple(Distribution.model_validate(known) for known in manifest["reference"])
            bundle = cls(
                *parts,
                calibration=calibration,
                window=window,
                facts=facts,
                reference=reference,
                stored_fingerprint=stored_fingerprint,
            )
            bundle._check_parts(tensors.keys())
        except (ConfigError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise BundleError(f"the bundle in {folder} does not fit together: {error}; train anew") from error
        return bundle

    def _check_parts(self, names: Set[str]) -> None:
        """Checks that all parts are there, no other, and of the shapes that one row needs on its way to a score."""
        if self.has_ensemble and self.ensemble is None:
            raise ValueError("its score rests on an ensemble, and it has none")
        if surplus := sorted(names - self._tensors().keys()):
            raise ValueError(f"nothing needs its {surplus[0]!r}")
        latent_dim, ensemble = self.model.latent_dim, self.ensemble
        if self.mahalanobis.whitening.shape != (latent_dim, latent_dim):
            raise ValueError(f"mahalanobis.whitening is {self.mahalanobis.whitening.shape} of {latent_dim} latents")
        if ensemble is not None and ensemble.first.shape != self.mean_input.shape:
            raise ValueError(f"ensemble.first has {ensemble.first.shape} columns, and rows {self.mean_input.shape}")
        row = torch.from_numpy(self.mean_input).double().unsqueeze(0).to(next(self.model.parameters()).device)
        self.tails(self._losses(self._pass(row), row))


def library_versions() -> dict[str, str]:
    """Versions that a bundle was made with."""
    return {
        "ae_pipeline": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
    }


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _arrays_under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {name: value.numpy() for name, value in _under(prefix, tensors).items()}


def _fingerprint(manifest: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    return hash_json([manifest, {name: _digest(value) for name, value in tensors.items()}])


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
