"""Facts about a training that a bundle keeps: versions, row counts, losses and the alignment of its latent space."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import ConfigDict, Field

from ae_pipeline.common.version import __version__
from ae_pipeline.config.section import Section


@dataclass(frozen=True)
class Epoch:
    """Losses of one epoch.

    Attributes:
        number: Number of the epoch, counted from 1.
        train_loss: Mean objective of a training row during the epoch, on corrupted inputs if corruption is configured.
        validation_loss: Mean objective of a validation row after the epoch, on clean inputs and with the full β.
        learning_rate: Learning rate at the end of the epoch.
    """

    number: int
    train_loss: float
    validation_loss: float
    learning_rate: float


class AlignmentFacts(Section):
    """Latent space of a model compared with that of the previous version.

    Attributes:
        previous: Version of the previous model.
        axes_of: Version whose axes the model uses; None if the model starts its own axes.
        axes: Name of these axes; None if the model starts its own axes.
        is_aligned: Whether the latents were transformed to these axes.
        is_compatible: Whether consumers of these axes can use the new latents.
        explained_variance: Share of the variance of the reference latents that the best affine map explains.
        as_is: Explained variance without a map; None for spaces of different widths.
        orthogonal: Explained variance of the best orthogonal map; None for spaces of different widths.
        affine: Explained variance of the best affine map.
        condition: Condition number of that map.
        neighbors: Mean share of the nearest neighbors that a row has in both spaces.
        score_shift: Kolmogorov-Smirnov distance between the scores of both models.
    """

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants", populate_by_name=True)

    previous: int = Field(validation_alias="before", serialization_alias="before")
    axes_of: int | None
    axes: str | None
    is_aligned: bool
    is_compatible: bool
    explained_variance: float = Field(validation_alias="explained", serialization_alias="explained")
    as_is: float | None = None
    orthogonal: float | None = None
    affine: float
    condition: float
    neighbors: float = Field(validation_alias="neighbours", serialization_alias="neighbours")
    score_shift: float

    def to_json(self) -> dict[str, Any]:
        """Return the facts under the keys that files use."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class ScreeningFacts(Section):
    """What a training left out of validation and calibration, because it would blind the model.

    Attributes:
        judged_by: What told the days apart: the model that serves, or the scores of the new model itself.
        days: Days that were left out, by part.
        rows: Number of rows that were left out, those of the days included, by part.
        changed: Parts that have changed, because too much would go or their scores have shifted as a whole. They stayed
            as they are.
        changed_since: First day of the last such change of the calibration; None if there was none.
        message: The result as a sentence.
    """

    judged_by: Literal["the model that serves", "its own scores"]
    days: Mapping[str, tuple[str, ...]] = {}
    rows: Mapping[str, int] = {}
    changed: tuple[str, ...] = ()
    changed_since: str | None = None
    message: str


class TrainingFacts(Section):
    """Facts about the training of a bundle.

    Keys that a file lacks get their defaults. `to_json` writes only the keys that were set, so that a bundle keeps its
    fingerprint when it is loaded and saved.

    Attributes:
        versions: Version of each library, by name.
        rows: Number of rows of each part of the window.
        chosen: Values of the sizes that the configuration leaves out, by dotted key.
        rows_looked_at: Number of rows of each part that were held in memory.
        epochs: Losses of each epoch, in order.
        best_epoch: Number of the epoch whose weights were restored; 0 for the initial weights.
        untrained_loss: Validation loss before the first step, with random weights.
        validation_loss: Lowest validation loss.
        is_warm: Whether the training started with the weights of the previous model.
        is_anchored: Whether a regularizer kept the latents near those of the previous model.
        is_streamed: Whether the training rows were read from disk because they exceeded the memory budget.
        alignment: Comparison with the latent space of the previous version; None for a first model.
        screening: What was left out of validation and calibration; None in bundles of earlier versions.
    """

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    versions: Mapping[str, str]
    rows: Mapping[str, int]
    chosen: Mapping[str, int | float] = {}
    rows_looked_at: Mapping[str, int] = {}
    epochs: tuple[Epoch, ...] = ()
    best_epoch: int
    untrained_loss: float = 0.0
    validation_loss: float
    is_warm: bool = False
    is_anchored: bool = False
    is_streamed: bool = False
    alignment: AlignmentFacts | None = None
    screening: ScreeningFacts | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the facts under the keys that files use."""
        facts = self.model_dump(mode="json", exclude_unset=True, exclude={"alignment"})
        return facts if self.alignment is None else {**facts, "alignment": self.alignment.to_json()}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that fit a bundle, by name."""
    return {
        "ae_pipeline": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
    }
