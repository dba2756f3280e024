"""ModelBundle: everything that was fitted, in one directory without pickle; encodes and scores."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ae_pipeline
from ae_pipeline.config import Evidence, PipelineConfig
from ae_pipeline.errors import BundleError, ConfigError
from ae_pipeline.models.base import Pass
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.network import FittedNetwork
from ae_pipeline.preprocessing.encoder import read_encoder
from ae_pipeline.preprocessing.table_encoder import Matrix, TableEncoder
from ae_pipeline.preprocessing.window import PARTS, Window
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.scoring.density import LatentDensity
from ae_pipeline.scoring.tails import ColumnTails
from ae_pipeline.storage import atomic_write, hash_json, make_folder

FORMAT = 2
"""Raised when a bundle of before can no longer be read as it is."""

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"


@dataclass(frozen=True)
class ScoredRows:
    """What a bundle says of n rows.

    Attributes:
        latents: z, (n, latent_dim), float32.
        score: Surprise of each row, nats, (n,): see `combine`; the higher, the stranger.
        p_value: Share of rows like those of the calibration days that score as high, (n,).
        is_anomaly: Whether p_value lies within the alert budget, (n,).
    """

    latents: Matrix
    score: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]
    is_anomaly: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Contribution:
    """One part of a row's score.

    Attributes:
        column: Of the features; of images `image`, the whole, or `spot`, its strangest window; or `latent`.
        surprise: Of a column by how much the surprise of all columns would fall without its value; of an image −ln of
            the share of rows with a residual as high. Nats.
        actual: Its value.
        expected: What the model makes of the row otherwise.
    """

    column: str
    surprise: float
    actual: str
    expected: str


@dataclass(frozen=True)
class ModelBundle(FittedNetwork):
    """A fitted pipeline from features to latents and scores.

    Attributes:
        config: Under which it was fitted.
        typical: Mean of the encoded training rows, (…).
        density: How far latents lie from those of the training rows.
        tails: Losses and distance to surprise.
        calibration: Scores to p-values.
        window: Days it was fitted on.
        facts: Versions of code and libraries, and figures of the training.
    """

    config: PipelineConfig
    typical: Matrix
    density: LatentDensity
    tails: ColumnTails
    calibration: Calibration
    window: Window
    facts: Mapping[str, Any]

    @property
    def columns(self) -> list[str]:
        """Feature columns that it needs."""
        return [column.name for column in self.encoder.columns]

    @cached_property
    def fingerprint(self) -> str:
        """Names this model: the same weights, statistics and calibration give the same text."""
        return hash_json([self._manifest(), {name: _digest(value) for name, value in self._tensors().items()}])

    def score(self, features: pl.DataFrame) -> ScoredRows:
        """Scores n rows; the same rows in the same batches give the same bytes.

        Raises:
            BundleError: A column is missing or of another type.
        """
        latents, losses = self._latents_and_parts(features)
        score = combine(self.tails(losses), self.config.alerts.evidence)
        p_value = self.calibration.p_values(score)
        return ScoredRows(latents.astype(np.float32), score, p_value, self.calibration.flags(p_value))

    def explain(self, features: pl.DataFrame, columns: int = 3) -> list[list[Contribution]]:
        """Says for each row what made it strange, the strangest first: columns, or the spot and the whole of an image.

        Where the score is that of the latent, this is said first: the row is an unusual whole.
        One odd value spoils what the network makes of the others. So each column is tried with the typical value of
        training in its place: the one that is to blame takes the others' surprise along.

        Args:
            features: The rows, few of them.
            columns: How many to name at most.
        """
        explained: list[list[Contribution]] = []
        for rows, batch, passed in self._passes(features):
            surprise, far = self._surprise(passed, batch), self.density(passed.latents.cpu().numpy())
            if isinstance(self.encoder, TableEncoder):
                named = self._of_columns(rows, batch, surprise[:, :-2], columns)
            else:
                expected, each = self._exact[1].to_scale(passed.output), range(len(batch))
                images = [self._of_image(surprise[i], expected[i : i + 1], batch[i : i + 1]) for i in each]
                named = [sorted(parts, key=lambda part: -part.surprise) for parts in images]
            governs = combine(surprise, self.config.alerts.evidence) == surprise[:, -2]
            for parts, of_row, distance, is_far in zip(named, surprise, far, governs, strict=True):
                latent = [self._of_latent(float(of_row[-2]), float(distance))] if is_far else []
                explained.append([*latent, *parts][:columns])
        return explained

    def _of_latent(self, surprise: float, distance: float) -> Contribution:
        usual = f"{self.tails.knots[-2, -1]:.1f} times at most in 99 %"
        return Contribution(
            "latent", surprise, f"{distance:.1f} times the usual distance from those of training", usual
        )

    def _of_columns(
        self, rows: pl.DataFrame, batch: torch.Tensor, surprise: npt.NDArray[np.float64], columns: int
    ) -> list[list[Contribution]]:
        encoder, groups = cast("TableEncoder", self.encoder), cast("TableEncoder", self.encoder).groups
        typical = torch.from_numpy(self.typical).to(batch)
        blame, expected = np.empty_like(surprise), np.empty(batch.shape)
        for place in range(surprise.shape[1]):
            own = groups == place
            tried = torch.where(torch.from_numpy(own).to(batch.device), typical, batch)
            passed = self._pass(tried)
            fall = surprise - self._surprise(passed, tried)[:, :-2]
            blame[:, place] = surprise[:, place] + fall.sum(axis=1) - fall[:, place]
            expected[:, own] = self._exact[1].to_scale(passed.output).cpu().numpy()[:, own]
        explained = []
        for row, output, nats in zip(rows.iter_rows(named=True), expected, blame, strict=True):
            best = np.argsort(-nats, kind="stable")[:columns]
            names = [(self.loss.columns[i], float(nats[i])) for i in best]
            explained.append([Contribution(name, nat, *encoder.describe(row, output, name)) for name, nat in names])
        return explained

    def _of_image(
        self, surprise: npt.NDArray[np.float64], expected: torch.Tensor, x: torch.Tensor
    ) -> list[Contribution]:
        loss = cast("ImageLoss", self._exact[1])
        spots = loss.spots(expected, x)
        usual = [f"{knot:.1f} times at most in 99 %" for knot in self.tails.knots[:, -1]]
        place = "row {}, column {}".format(*loss.strangest_spot(expected, x))
        return [
            Contribution(
                "spot", float(surprise[0]), f"{spots.max():.1f} times the usual residual at {place}", usual[0]
            ),
            Contribution("image", float(surprise[-1]), f"{spots.mean():.1f} times the usual residual", usual[-1]),
        ]

    def losses(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Gives what scores are made of: the loss of each of `loss.columns`, the latent's distance, the row's loss.

        Args:
            features: The fitted columns, n rows.

        Returns:
            Shape (n, columns + 2).
        """
        return self._latents_and_parts(features)[1]

    def _latents_and_parts(self, features: pl.DataFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        latents, losses = self.latents_and_losses(features)
        return latents, score_parts(latents, losses, self.density)

    def _surprise(self, passed: Pass, x: torch.Tensor) -> npt.NDArray[np.float64]:
        """Gives the surprise of each column, the latent and the whole, (n, columns + 2), for a pass and its inputs."""
        losses = self._exact[1].parts(passed, x).cpu().numpy()
        return self.tails(score_parts(passed.latents.cpu().numpy(), losses, self.density))

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
                **{part: list(getattr(self.window, part)) for part in PARTS},
                "fingerprint": self.window.fingerprint,
                "split_by": list(self.window.split_by),
                "only_normal": self.window.only_normal,
            },
            "facts": dict(self.facts),
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        statistics = {
            "typical": self.typical,
            "density.mean": self.density.mean,
            "density.whitening": self.density.whitening,
            "tails.knots": self.tails.knots,
            "tails.levels": self.tails.levels,
            "tails.excess": self.tails.excess,
            "calibration.scores": self.calibration.scores,
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
        if manifest.get("format") != FORMAT:
            raise BundleError(
                f"the bundle in {folder} has format {manifest.get('format')!r}, and this version of ae_pipeline "
                f"reads format {FORMAT}; train anew, or use the version that wrote it"
            )
        try:
            config = PipelineConfig.model_validate(manifest["config"])
            encoder = read_encoder(manifest["encoder"])
            model, loss = build_model(config, encoder.shape), build_loss(config, encoder)
            model.load_state_dict(_under("model.", tensors))
            loss.load_state_dict(_under("loss.", tensors))
            typical = tensors["typical"].numpy()
            density = LatentDensity(*(tensors[f"density.{name}"].numpy() for name in ("mean", "whitening")))
            tails = ColumnTails(*(tensors[f"tails.{name}"].numpy() for name in ("knots", "levels", "excess")))
            calibration = Calibration(tensors["calibration.scores"].numpy(), config.alerts.budget)
            days, facts = manifest["window"], manifest["facts"]
            train, validation, calibrated = (tuple(days[part]) for part in PARTS)
            cut = (tuple(days["split_by"]), days["only_normal"])
            window = Window(train, validation, calibrated, days["fingerprint"], *cut)
        except (ConfigError, KeyError, RuntimeError, TypeError, ValidationError) as error:
            raise BundleError(f"the bundle in {folder} does not fit together: {error}; train anew") from error
        model, loss = model.to(device).eval(), loss.to(device).eval()
        return cls(encoder, model, loss, config, typical, density, tails, calibration, window, facts)


def score_parts(
    latents: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], density: LatentDensity
) -> npt.NDArray[np.float64]:
    """Puts the distance of the latents between the losses of columns and that of the whole row, (n, columns + 2)."""
    return np.column_stack([losses[:, :-1], density(latents), losses[:, -1]])


def combine(
    surprise: npt.NDArray[np.float64], evidence: Sequence[Evidence] = tuple(Evidence)
) -> npt.NDArray[np.float64]:
    """Makes one score of a row's surprise: the highest of its strangest column, its latent, and the row as a whole.

    Of k columns the strangest is held against k chances to be strange (Bonferroni), so that all are on one scale.

    Args:
        surprise: Of each column, the latent and the whole, nats, (n, columns + 2).
        evidence: Which of them count.

    Returns:
        Shape (n,).
    """
    columns = surprise[:, :-2].max(axis=1, initial=0.0) - np.log(surprise.shape[1] - 2)
    parts = {Evidence.COLUMNS: columns, Evidence.LATENT: surprise[:, -2], Evidence.ROW: surprise[:, -1]}
    highest: npt.NDArray[np.float64] = np.max([parts[name] for name in evidence], axis=0, initial=0.0)
    return highest


def library_versions() -> dict[str, str]:
    """Versions that a bundle was made with."""
    return {
        "ae_pipeline": ae_pipeline.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
    }


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
