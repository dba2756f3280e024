"""ModelBundle: everything that was fitted, in one directory without pickle; encodes and scores."""

import copy
import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
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
from ae_pipeline.config import PipelineConfig
from ae_pipeline.errors import BundleError, ConfigError
from ae_pipeline.models.base import AutoEncoder, Pass
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.preprocessing.encoder import Encoder, read_encoder
from ae_pipeline.preprocessing.table_encoder import Matrix, TableEncoder
from ae_pipeline.preprocessing.window import PARTS, Window
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.scoring.tails import ColumnTails
from ae_pipeline.storage import atomic_write, hash_json, make_folder

FORMAT = 2
"""Raised when a bundle of before can no longer be read as it is."""

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"
_SCORING_ROWS, _SCORING_ELEMENTS = 8192, 2**24


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
        column: Of the features; of images `image`, the whole, or `spot`, its strangest window.
        surprise: −ln of the share of rows whose loss in this part is as high, nats.
        actual: Its value.
        expected: What the model makes of the row as a whole.
    """

    column: str
    surprise: float
    actual: str
    expected: str


@dataclass(frozen=True)
class Pictures:
    """What a person looks at of n images.

    Attributes:
        image: As the network sees it, on the scale 0 to 1, (n, height, width, channels).
        reconstruction: What the network makes of it, likewise.
        residual: How far the residual around each pixel is from the usual, 1 on average of normal images,
            (n, height, width).
    """

    image: npt.NDArray[np.float64]
    reconstruction: npt.NDArray[np.float64]
    residual: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModelBundle:
    """A fitted pipeline from features to latents and scores.

    Attributes:
        config: Under which it was fitted.
        encoder: Features to what the network sees.
        model: The network, in evaluation mode.
        loss: Of reconstructions, by `loss.columns`, which scores are attributed to.
        tails: Losses to surprise.
        calibration: Scores to p-values.
        window: Days it was fitted on.
        facts: Versions of code and libraries, and figures of the training.
    """

    config: PipelineConfig
    encoder: Encoder
    model: AutoEncoder
    loss: ReconstructionLoss
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

    def encode(self, features: pl.DataFrame) -> Matrix:
        """Maps n rows of features to latents, (n, latent_dim), float32."""
        parts = [np.empty((0, self.model.latent_dim), np.float32)]
        with torch.inference_mode():
            parts += [self._exact[0].encode(batch).float().cpu().numpy() for _, batch in self._batches(features)]
        return np.concatenate(parts)

    def score(self, features: pl.DataFrame) -> ScoredRows:
        """Scores n rows; the same rows in the same batches give the same bytes.

        Raises:
            BundleError: A column is missing or of another type.
        """
        latents, losses = self._latents_and_losses(features)
        score = combine(self.tails(losses))
        p_value = self.calibration.p_values(score)
        return ScoredRows(latents, score, p_value, self.calibration.flags(p_value))

    def explain(self, features: pl.DataFrame, columns: int = 3) -> list[list[Contribution]]:
        """Says for each row what made it strange, the strangest first: columns, or the spot and the whole of an image.

        Args:
            features: The rows, few of them.
            columns: How many to name at most.
        """
        explained: list[list[Contribution]] = []
        for rows, batch, passed in self._passes(features):
            surprise, expected = self.tails(self._parts(passed, batch)), self._exact[1].to_scale(passed.output)
            for place, row in enumerate(rows.iter_rows(named=True)):
                one = slice(place, place + 1)
                if isinstance(self.encoder, TableEncoder):
                    parts = self._of_columns(row, surprise[place, :-1], expected[one])
                else:
                    parts = self._of_image(surprise[place], expected[one], batch[one])
                explained.append(sorted(parts, key=lambda part: -part.surprise)[:columns])
        return explained

    def _of_columns(
        self, row: Mapping[str, Any], surprise: npt.NDArray[np.float64], expected: torch.Tensor
    ) -> list[Contribution]:
        encoder, output = cast("TableEncoder", self.encoder), expected[0].cpu().numpy()
        named = sorted(zip(self.loss.columns, surprise.tolist(), strict=True), key=lambda part: -part[1])
        return [Contribution(name, nats, *encoder.describe(row, output, name)) for name, nats in named]

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
            Contribution("image", float(surprise[1]), f"{spots.mean():.1f} times the usual residual", usual[1]),
        ]

    def losses(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Gives what scores are made of: the loss of each of `loss.columns` and last of the row as a whole.

        Args:
            features: The fitted columns, n rows.

        Returns:
            Shape (n, columns + 1).
        """
        return self._latents_and_losses(features)[1]

    def reconstruct(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Gives what the network makes of n rows, on the scale of the encoded inputs, (n, …)."""
        passes = (passed for *_, passed in self._passes(features))
        expected = [self._exact[1].to_scale(passed.output).cpu().numpy() for passed in passes]
        return np.concatenate([np.empty((0, *self.encoder.shape)), *expected])

    def denoise(self, features: pl.DataFrame) -> pl.DataFrame:
        """Puts what the network makes of n rows in place of their fitted columns, in the columns' own terms.

        A network that has learnt with corruption, or whose latent space is too narrow for noise, keeps what columns or
        pixels have in common and drops the rest. Dates, event times and unknown categories stay as they are.

        Raises:
            BundleError: A column is missing or of another type.
        """
        return features.with_columns(self.encoder.decode(self.reconstruct(features), features).get_columns())

    def pictures(self, features: pl.DataFrame) -> Pictures | None:
        """Gives image, reconstruction and residual map of n rows, few of them; None where rows are no images."""
        if isinstance(self.encoder, TableEncoder):
            return None
        loss = cast("ImageLoss", self._exact[1])
        low, high = self.encoder.ends
        images, residuals = [], []
        for _, x, (_, output, _) in self._passes(features):
            images.append(torch.stack([x, output]).permute(0, 1, 3, 4, 2).sub(low).div(high - low).clamp(0, 1))
            residuals.append(loss.spots(output, x, to_the_edge=True))
        pairs = torch.cat(images, 1).cpu().numpy()
        return Pictures(pairs[0], pairs[1], torch.cat(residuals).cpu().numpy())

    def _latents_and_losses(self, features: pl.DataFrame) -> tuple[Matrix, npt.NDArray[np.float64]]:
        latents = [np.empty((0, self.model.latent_dim), np.float32)]
        losses = [np.empty((0, len(self.loss.columns) + 1))]
        for _, batch, passed in self._passes(features):
            latents.append(passed.latents.float().cpu().numpy())
            losses.append(self._parts(passed, batch))
        return np.concatenate(latents), np.concatenate(losses)

    def _parts(self, passed: Pass, batch: torch.Tensor) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            parts: npt.NDArray[np.float64] = self._exact[1].parts(passed, batch).cpu().numpy()
        return parts

    @cached_property
    def _exact(self) -> tuple[AutoEncoder, ReconstructionLoss]:
        """Network and loss in float64.

        In float32 a row's output depends on the rows beside it by 1e-7, which fine scales and steep tails enlarge to
        more than 1e-5 of a score.
        """
        return copy.deepcopy(self.model).double().eval(), copy.deepcopy(self.loss).double().eval()

    def _batches(self, features: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, torch.Tensor]]:
        device = next(self.model.parameters()).device
        rows = max(1, min(_SCORING_ROWS, _SCORING_ELEMENTS // math.prod(self.encoder.shape)))
        for part in features.iter_slices(rows):
            yield part, torch.from_numpy(self.encoder.encode(part)).to(device).double()

    def _passes(self, features: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, torch.Tensor, Pass]]:
        """Rows, the same encoded, and what the network makes of them, batch by batch."""
        for rows, batch in self._batches(features):
            with torch.inference_mode():
                passed: Pass = self._exact[0](batch)
            yield rows, batch, passed

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
            tails = ColumnTails(*(tensors[f"tails.{name}"].numpy() for name in ("knots", "levels", "excess")))
            calibration = Calibration(tensors["calibration.scores"].numpy(), config.alerts.budget)
            days, facts = manifest["window"], manifest["facts"]
            train, validation, calibrated = (tuple(days[part]) for part in PARTS)
            cut = (tuple(days["split_by"]), days["only_normal"])
            window = Window(train, validation, calibrated, days["fingerprint"], *cut)
        except (ConfigError, KeyError, RuntimeError, TypeError, ValidationError) as error:
            raise BundleError(f"the bundle in {folder} does not fit together: {error}; train anew") from error
        return cls(
            config,
            encoder,
            model.to(device).eval(),
            loss.to(device).eval(),
            tails,
            calibration,
            window,
            facts,
        )


def combine(surprise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Makes one score of a row's surprise: that of its strangest column, or of the row as a whole where that is more.

    Of k columns the strangest is held against k chances to be strange (Bonferroni), so that both are on one scale.

    Args:
        surprise: Of each column and last of the whole, nats, (n, columns + 1).

    Returns:
        Shape (n,).
    """
    columns = surprise[:, :-1].max(axis=1, initial=0.0) - np.log(surprise.shape[1] - 1)
    highest: npt.NDArray[np.float64] = np.maximum(columns, surprise[:, -1])
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
