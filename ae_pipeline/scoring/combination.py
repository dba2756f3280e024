"""Combine the surprisals of several measures into one score, as the contamination of the training rows asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.config.model import Contamination
from ae_pipeline.scoring.blocks import double, per_device
from ae_pipeline.scoring.tails import TailCalibrator, fit_tails

Array = npt.NDArray[np.float64]

_TO_ALL_ROWS = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Weights of the measures in the novelty: the distances to the nearest training row on both scales."""

_TO_THE_CORE = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Weights of the measures in the novelty: the distance to the nearest row of the core. Anomalies are not in it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How an ensemble treats its training rows.

    Attributes:
        core_share: Share of the training rows in the core.
        tail_share: Share of the training rows that the second trimming keeps.
        weights: Weights of the measures in the whole.
        novelty_weights: Weights of the measures in the novelty.
        novelty_from: Surprisal in nats from which the novelty counts.
        novelty_factor: Factor of the novelty.
    """

    core_share: float
    tail_share: float
    weights: tuple[float, ...]
    novelty_weights: tuple[float, ...] = _TO_ALL_ROWS
    novelty_from: float
    novelty_factor: float


SETTINGS: Mapping[Contamination, Setting] = {
    Contamination.UNKNOWN: Setting(
        core_share=0.8,
        tail_share=0.8,
        weights=(1.0, 1.5, 2.0, 0.25, 0.75, 1.0, 0.5),
        novelty_from=3.5,
        novelty_factor=10.0,
    ),
    Contamination.NONE: Setting(
        core_share=1.0,
        tail_share=1.0,
        weights=(1.0, 1.5, 2.0, 0.25, 0.75, 0.0, 0.0),
        novelty_from=2.3,
        novelty_factor=5.0,
    ),
    Contamination.SOME: Setting(
        core_share=0.8,
        tail_share=0.6,
        weights=(1.0, 1.5, 2.0, 0.25, 0.75, 1.5, 1.5),
        novelty_weights=_TO_THE_CORE,
        novelty_from=3.5,
        novelty_factor=10.0,
    ),
}
"""Settings by what the user knows about the training rows, chosen with `benchmarks.protocol`."""


@dataclass(frozen=True)
class Combination:
    """A weighted sum of the surprisals, relative to rows that look normal, and an addition for novel rows.

    The sum ranks well whether the training rows hold anomalies or not. The novelty is the surprisal of the distances to
    the nearest of all training rows. It ranks best if the training rows are clean, and badly if not, because anomalies
    are near one another. So it counts only beyond what nearly all training rows show: such a row is new in any case. If
    the training rows are known to hold anomalies, the novelty is that of the distance to the core.

    Attributes:
        weights: Weights of the measures in the sum, and in the novelty, shape (2, measures). Bundles of before format 9
            have the sum only, shape (1, 5).
        novelty: Surprisal in nats from which the novelty counts, and its factor, shape (2,).
        core_tails: Tails of the surprisals of those training rows that look normal.
        novelty_tails: Tails of the weighted surprisals in the novelty, one column.
    """

    weights: Array
    novelty: Array
    core_tails: TailCalibrator
    novelty_tails: TailCalibrator

    def __call__(self, surprisal: Tensor) -> Tensor:
        """Return the score in nats, shape (n,), for the surprisals of the measures, shape (n, measures)."""
        weights = self._weights(surprisal.device)
        if len(weights) == 1:
            return surprisal @ weights[0]
        totals = self.core_tails(surprisal) @ weights.T
        start, factor = map(float, self.novelty)
        novelty = self.novelty_tails(totals[:, 1:])[:, 0]
        return totals[:, 0] + factor * (novelty - start).clamp(min=0.0)

    @per_device
    def _weights(self, device: torch.device) -> Tensor:
        return double(self.weights, device)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by name."""
        tails = {"core_tails": self.core_tails, "novelty_tails": self.novelty_tails}
        saved = {f"{part}.{name}": value for part, fitted in tails.items() for name, value in fitted.arrays().items()}
        return {"weights": self.weights, "novelty": self.novelty, **saved}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Combination":
        """Return the combination that `arrays` describes.

        Raises:
            KeyError: An array is missing.
        """

        def tails(part: str) -> TailCalibrator:
            below = {name.removeprefix(part): value for name, value in arrays.items() if name.startswith(part)}
            return TailCalibrator(**below)

        return cls(arrays["weights"], arrays["novelty"], tails("core_tails."), tails("novelty_tails."))

    @classmethod
    def of_format_8(cls) -> "Combination":
        """Return the weighted sum of the five measures in bundles of before format 9."""
        none = TailCalibrator.none()
        return cls(np.array([[1.0, 1.0, 2.0, 0.5, 0.75]]), np.zeros(2), none, none)


def fit_combination(surprisal: Tensor, setting: Setting) -> Combination:
    """Fit a combination on the surprisals of the training rows, shape (n, measures).

    The rows are trimmed a second time, now by all measures but the distances to all training rows. Anomalies among the
    training rows therefore do not make their own values look usual.
    """
    weights = np.stack([np.array(setting.weights), np.array(setting.novelty_weights)])
    values = surprisal.numpy()
    whole = values @ np.where(np.array(_TO_ALL_ROWS) > 0, 0.0, weights[0])
    core_tails = fit_tails(values[whole <= np.quantile(whole, setting.tail_share)])
    novelty = np.array([setting.novelty_from, setting.novelty_factor])
    return Combination(weights, novelty, core_tails, fit_tails(core_tails(surprisal).numpy() @ weights[1:].T))
