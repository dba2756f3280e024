"""A small training that one process, or several together, can do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.corruption import Corruption, build_corruption
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.regularizer import LatentRegularizer
from tests.support.images import image_frame, waves

ROWS = 201
"""Training rows. Batches of 32 leave 9 for the last one."""


@dataclass(frozen=True, kw_only=True)
class SmallTraining:
    """The arguments of a training, which are new each time that they are read."""

    config: PipelineConfig
    frame: pl.DataFrame
    columns: tuple[FeatureColumn, ...]
    is_anchored: bool

    @property
    def settings(self) -> TrainingConfig:
        """Settings of the training."""
        return self.config.training

    def network(self) -> tuple[AutoEncoder, ReconstructionLoss]:
        """Return a network with random weights, and its loss."""
        encoder = fit_encoder(self.config, self.frame, self.columns)
        return build_model(self.config, encoder.shape, self.generator()), build_loss(self.config, encoder)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return encoded training and validation rows."""
        encoded = torch.from_numpy(fit_encoder(self.config, self.frame, self.columns).encode(self.frame))
        return encoded[:ROWS], encoded[ROWS:]

    def generator(self) -> torch.Generator:
        """Return the generator of the training."""
        return torch.Generator().manual_seed(1)

    def corruption(self) -> Corruption | None:
        """Return the noise on the inputs."""
        encoder = fit_encoder(self.config, self.frame, self.columns)
        groups = torch.from_numpy(encoder.groups) if isinstance(encoder, TableEncoder) else None
        return build_corruption(self.settings, groups, encoder.ends)

    def regularizer(self) -> LatentRegularizer | None:
        """Return the penalty on latents that differ from made-up ones."""
        previous = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(5))
        return LatentRegularizer(previous, 0.1) if self.is_anchored else None


def small_training(*, images: bool = False, anchor: bool = False, **settings: Any) -> SmallTraining:
    """Return a training of a dense network on a table, or of a convolutional one on images.

    Args:
        images: Whether the rows are images.
        anchor: Whether a regularizer keeps the latents near made-up ones.
        **settings: Keys of `training`, and the section `model`.
    """
    model = {"latent_dim": 2, **({"architecture": "conv", "channels": (4, 8)} if images else {"hidden": (8,)})}
    config = PipelineConfig.model_validate(
        {
            "dataset": "d",
            "identity": ("id",),
            "model": {**model, **settings.pop("model", {})},
            "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "device": "cpu", **settings},
            **({"images": {}} if images else {}),
        }
    )
    if images:
        shape = ImageShape(height=12, width=12, channels=1, dtype="uint8")
        columns: tuple[FeatureColumn, ...] = (FeatureColumn("image", ColumnType.IMAGE, shape),)
        frame = image_frame(waves(ROWS + 29, 0, shape) // 2)  # darker than the untrained output
    else:
        types = {"a": ColumnType.NUMBER, "b": ColumnType.NUMBER, "c": ColumnType.CATEGORY}
        columns = tuple(FeatureColumn(*item) for item in types.items())
        rng = np.random.default_rng(0)
        a = rng.normal(size=ROWS + 29)
        b = 2 * a + 0.1 * rng.normal(size=ROWS + 29)
        frame = pl.DataFrame({"a": a, "b": b, "c": np.where(a > 0, "high", "low")})
    return SmallTraining(config=config, frame=frame, columns=columns, is_anchored=anchor)


def weights_of(model: AutoEncoder, loss: ReconstructionLoss) -> Tensor:
    """Return all weights in one row."""
    return torch.cat([each.detach().reshape(-1) for each in [*model.parameters(), *loss.parameters()]])
