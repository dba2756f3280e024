"""ModelBundle: everything that was fitted, in one directory without pickle; encodes and scores."""

import copy
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.factory import build_model
from ae_pipeline.models.losses import TabularLoss
from ae_pipeline.preprocessing.encoder import Encoder, Matrix
from ae_pipeline.preprocessing.window import Window
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.scoring.tails import ColumnTails
from ae_pipeline.storage import atomic_write, hash_json, make_folder

FORMAT = 1
"""Raised when a bundle of before can no longer be read as it is."""

MANIFEST, WEIGHTS = "bundle.json", "weights.safetensors"
_SCORING_ROWS = 8192


@dataclass(frozen=True)
class ScoredRows:
    """What a bundle says of n rows.

    Attributes:
        latents: z, (n, latent_dim), float32.
        score: Surprise of each row's strangest column, nats, (n,); the higher, the stranger.
        p_value: Share of rows like those of the calibration days that score as high, (n,).
        is_anomaly: Whether p_value lies within the alert budget, (n,).
    """

    latents: Matrix
    score: npt.NDArray[np.float64]
    p_value: npt.NDArray[np.float64]
    is_anomaly: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Contribution:
    """One column's part in a row's score.

    Attributes:
        column: Of the features.
        surprise: −ln of the share of rows whose loss in this column is as high, nats.
        actual: Its value.
        expected: What the model makes of the row as a whole.
    """

    column: str
    surprise: float
    actual: str
    expected: str


@dataclass(frozen=True)
class ModelBundle:
    """A fitted pipeline from features to latents and scores.

    Attributes:
        config: Under which it was fitted.
        encoder: Features to matrix.
        model: The network, in evaluation mode.
        loss: Loss by block.
        tails: Column losses to surprise.
        calibration: Scores to p-values.
        window: Days it was fitted on.
        facts: Versions of code and libraries, and figures of the training.
    """

    config: PipelineConfig
    encoder: Encoder
    model: AutoEncoder
    loss: TabularLoss
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
            parts += [self._exact[0].encode(batch).float().cpu().numpy() for batch in self._batches(features)]
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
        """Says for each row which columns made it strange, the strangest first.

        Args:
            features: The rows, few of them.
            columns: How many columns to name.
        """
        passes = [(self._forward(batch)[1], batch) for batch in self._batches(features)]
        outputs = np.concatenate([_nothing(self.encoder.width), *(self._expected(output) for output, _ in passes)])
        surprise = self.tails(np.concatenate([_nothing(len(self.columns)), *(self._column_losses(*p) for p in passes)]))
        explained = []
        for row, output, parts in zip(features.iter_rows(named=True), outputs, surprise, strict=True):
            best = np.argsort(-parts, kind="stable")[:columns]
            explained.append(
                [
                    Contribution(self.columns[i], float(parts[i]), *self.encoder.describe(row, output, self.columns[i]))
                    for i in best
                ]
            )
        return explained

    def column_losses(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Gives the reconstruction loss of each row and column, nats, (n, columns)."""
        return self._latents_and_losses(features)[1]

    def _latents_and_losses(self, features: pl.DataFrame) -> tuple[Matrix, npt.NDArray[np.float64]]:
        latents, losses = [np.empty((0, self.model.latent_dim), np.float32)], [_nothing(len(self.columns))]
        for batch in self._batches(features):
            z, output = self._forward(batch)
            latents.append(z.float().cpu().numpy())
            losses.append(self._column_losses(output, batch))
        return np.concatenate(latents), np.concatenate(losses)

    def _column_losses(self, output: torch.Tensor, batch: torch.Tensor) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            losses: npt.NDArray[np.float64] = self._exact[1](output, batch).cpu().numpy()
        return losses @ _blocks_to_columns(self.loss, self.columns)

    def _expected(self, output: torch.Tensor) -> npt.NDArray[np.float64]:
        expected: npt.NDArray[np.float64] = self.loss.to_scale(output).cpu().numpy()
        return expected

    @cached_property
    def _exact(self) -> tuple[AutoEncoder, TabularLoss]:
        """Network and loss in float64.

        In float32 a row's output depends on the rows beside it by 1e-7, which fine scales and steep tails enlarge to
        more than 1e-5 of a score.
        """
        return copy.deepcopy(self.model).double().eval(), copy.deepcopy(self.loss).double().eval()

    def _batches(self, features: pl.DataFrame) -> Iterator[torch.Tensor]:
        device = next(self.model.parameters()).device
        for rows in features.iter_slices(_SCORING_ROWS):
            yield torch.from_numpy(self.encoder.encode(rows)).to(device).double()

    def _forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            z, output = self._exact[0](batch)
            return z, output

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
                **{part: list(getattr(self.window, part)) for part in ("train", "validation", "calibration")},
                "fingerprint": self.window.fingerprint,
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
            encoder = Encoder.model_validate(manifest["encoder"])
            model, loss = build_model(config.model, encoder.width), TabularLoss(encoder.blocks)
            model.load_state_dict(_under("model.", tensors))
            loss.load_state_dict(_under("loss.", tensors))
            tails = ColumnTails(*(tensors[f"tails.{name}"].numpy() for name in ("knots", "levels", "excess")))
            calibration = Calibration(tensors["calibration.scores"].numpy(), config.alerts.budget)
            days, facts = manifest["window"], manifest["facts"]
            window = Window(
                tuple(days["train"]), tuple(days["validation"]), tuple(days["calibration"]), days["fingerprint"]
            )
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
    """Makes one score of the surprise of all columns, (n, columns) → (n,): that of the strangest (Tippett 1931)."""
    highest: npt.NDArray[np.float64] = surprise.max(axis=1, initial=0.0)
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


def _nothing(width: int) -> npt.NDArray[np.float64]:
    return np.empty((0, width))


def _blocks_to_columns(loss: TabularLoss, columns: Sequence[str]) -> npt.NDArray[np.float64]:
    """Matrix of zeros and ones, (blocks, columns), that adds up the blocks of each column."""
    sums = np.zeros((len(loss.blocks), len(columns)))
    for place, block in enumerate(loss.blocks):
        sums[place, columns.index(block.column)] = 1.0
    return sums


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
