"""How unusual a row is beside those of training, by several measures that fail on different anomalies."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.scoring.denoising_ensemble import DenoisingEnsemble, fit_denoising_ensemble
from ae_pipeline.scoring.ecod import ecod_score, skewed_up
from ae_pipeline.scoring.mixture import Mixture, fit_mixture
from ae_pipeline.scoring.neighbors import mean_knn_distance, nearest
from ae_pipeline.scoring.scalings import Scalings, fit_scalings
from ae_pipeline.scoring.tails import TailCalibrator, fit_tails

Array = npt.NDArray[np.float64]

FITTED_ROWS, _FITTED_CELLS = 20_000, 2**23
"""Training rows that are looked at at most, drawn at random, and these times columns: so much tells all measures apart,
in bounded time and memory."""

LEAST_ROWS = 16
_MOST_REFERENCES, _LEAST_REFERENCES, _REFERENCE_CELLS = 4096, 512, 2**17
"""References times columns: the wider the rows, the fewer of them, down to the least."""

_MOST_DIRECTIONS = 512
"""Columns whose covariances are looked at."""

_CROWD, _FROM = 100, 1024
_CORE = 0.8
"""Share of the training rows that are taken as ordinary: enough to leave most of what contaminates them outside, and
to lose little where nothing does."""

MEASURES = ("nearest, as encoded", "nearest, normal scores", "mixture", "denoising ensemble", "ecod")
_WORDS = (
    "distance from the nearest training row",
    "distance from the nearest training row by ranks",
    "rarity among training rows",
    "residual of small autoencoders",
    "distance of its values from the middle, one by one",
)
WEIGHTS = np.array([1.0, 1.0, 2.0, 0.5, 0.75])
"""Of the measures. The two distances say nearly the same, and see only what lies apart from every training row; the
density of the mixture stands against both. The last two are weak alone and see what the others do not."""

_ENDLESS = np.array([name in {"mixture", "ecod"} for name in MEASURES])
"""Measures that do not begin at zero."""

_ARRAYS = ("varying", "first", "seen", "upwards", "references", "ends")


@dataclass(frozen=True)
class Ensemble:
    """Measures of how unusual a row is, each as its tail probability, added up.

    They are the distance to the nearest training row on two scales, the density under a mixture of normal
    distributions, the residuals of small autoencoders, and the tails of the columns one by one. Mixture and
    autoencoders learn from the core of the training rows, those in the midst of many others, so that they do not take a
    crowd of anomalies for normal.

    Attributes:
        varying: Columns of the matrix that vary among the training rows, all that the measures look at.
        first: One training row, whose other columns are those of all, (width,).
        seen: How many training rows there are, ().
        upwards: Of the columns that vary, whether their longer tail is the upper one, (len(varying),).
        scalings: The scales.
        directions: Random ones that mixture and autoencoders look along where very many columns vary, (len(varying),
            directions); None where they look at the columns themselves.
        references: Training rows, (m, len(varying)), as they are encoded.
        mixture: Of the core, in units of spread.
        denoising_ensemble: Autoencoders that only score.
        ends: For each measure the value where its scale begins, and how far from there its median is, (2, measures).
        tails: Measures on these scales to surprise.
    """

    varying: npt.NDArray[np.int64]
    first: npt.NDArray[np.float32]
    seen: npt.NDArray[np.int64]
    upwards: npt.NDArray[np.bool_]
    scalings: Scalings
    references: npt.NDArray[np.float32]
    mixture: Mixture
    denoising_ensemble: DenoisingEnsemble
    ends: Array
    tails: TailCalibrator
    directions: npt.NDArray[np.float32] | None = None

    def __call__(self, matrix: npt.NDArray[np.floating]) -> Array:
        """Gives the weighted sum of the measures' surprise for encoded rows, (n, width), nats, (n,).

        Were the measures independent and their weights 1, this would be Fisher's way to combine their tail
        probabilities (1932). Each column that never varied in n training rows and does now adds ln(n + 2), by Laplace's
        rule of succession.
        """
        departed = (matrix[:, self._steady] != self.first[self._steady]).sum(axis=1)
        total: Array = self.tails(self.measures(matrix)) @ WEIGHTS + departed * np.log(self.seen + 2)
        return total

    def measures(self, matrix: npt.NDArray[np.floating]) -> Array:
        """Gives each measure of n rows on its own scale, 1 at the median of the training rows, (n, measures)."""
        measures: Array = (self._raw(matrix) - self.ends[0]) / self.ends[1]
        return measures

    def governing(self, matrix: npt.NDArray[np.floating]) -> list[tuple[str, str]]:
        """Says of each row what the strangest of the measures is, and how high it usually is, for people to read."""
        measures = self.measures(matrix)
        weighed, usual = self.tails(measures) * WEIGHTS, self.tails.quantiles[:, -1]
        return [
            (f"{row[index]:.1f} times the usual {_WORDS[index]}", f"{usual[index]:.1f} times at most in 99 %")
            for row, index in zip(measures, weighed.argmax(axis=1), strict=True)
        ]

    def _raw(self, matrix: npt.NDArray[np.floating]) -> Array:
        rows = matrix[:, self.varying].astype(np.float64)
        standard = _along(self.directions, self.scalings.standard(rows))
        scores = self.scalings.normal(rows)
        encoded, normal = self._references
        return np.column_stack(
            [
                nearest(rows, encoded),
                nearest(scores, normal),
                self.mixture(standard),
                self.denoising_ensemble(standard),
                ecod_score(scores, self.upwards),
            ]
        )

    @cached_property
    def _steady(self) -> npt.NDArray[np.int64]:
        return np.setdiff1d(np.arange(len(self.first)), self.varying)

    @cached_property
    def _references(self) -> tuple[Array, Array]:
        encoded = self.references.astype(np.float64)
        return encoded, self.scalings.normal(encoded)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Gives what to keep, by name."""
        own = {name: getattr(self, name) for name in _ARRAYS}
        own |= {} if self.directions is None else {"directions": self.directions}
        parts = {part: getattr(self, part).arrays() for part in ("scalings", "mixture", "denoising_ensemble", "tails")}
        return own | {f"{part}.{name}": value for part, found in parts.items() for name, value in found.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Ensemble":
        """Makes an ensemble of what `arrays` gave.

        Raises:
            KeyError: One is missing.
        """

        def under(part: str) -> dict[str, npt.NDArray[Any]]:
            return {name.removeprefix(part): value for name, value in arrays.items() if name.startswith(part)}

        return cls(
            scalings=Scalings(**under("scalings.")),
            mixture=Mixture(**under("mixture.")),
            denoising_ensemble=DenoisingEnsemble.from_arrays(under("denoising_ensemble.")),
            tails=TailCalibrator(**under("tails.")),
            directions=arrays.get("directions"),
            **{name: arrays[name] for name in _ARRAYS},
        )


def fit_ensemble(matrix: npt.NDArray[np.float32], asinh_mask: npt.NDArray[np.bool_], seed: int) -> Ensemble:
    """Fits an ensemble on encoded training rows.

    Args:
        matrix: The rows, (n, width).
        asinh_mask: Which columns are asinh of a number, (width,).
        seed: Of the draws.

    Raises:
        TrainingError: There are too few rows.
    """
    if len(matrix) < LEAST_ROWS:
        raise TrainingError(
            f"evidence ensemble needs {LEAST_ROWS} training rows or more, and there are {len(matrix)}; land more, or "
            "name other evidence under alerts"
        )
    generator = torch.Generator().manual_seed(seed)
    varying = np.flatnonzero((matrix != matrix[0]).any(axis=0))
    most = min(FITTED_ROWS, _FITTED_CELLS // max(len(varying), 1))
    chosen = torch.randperm(len(matrix), generator=generator)[:most].numpy()
    encoded = matrix[np.ix_(chosen, varying)]
    rows = encoded.astype(np.float64)
    scalings = fit_scalings(rows, asinh_mask[varying])
    standard = scalings.standard(rows)
    crowds = [mean_knn_distance(view, view[:_FROM], _CROWD) for view in (rows, scalings.normal(rows), standard)]
    alone = np.column_stack(crowds)
    alone /= _medians(alone)
    strange = fit_tails(alone)(alone).sum(axis=1)
    directions = _draw_directions(len(varying), seed)
    core = _along(directions, standard[strange <= np.quantile(strange, _CORE)])
    count = min(_MOST_REFERENCES, max(_LEAST_REFERENCES, _REFERENCE_CELLS // len(varying)))
    mixture, denoising_ensemble = fit_mixture(core, seed), fit_denoising_ensemble(core, generator)
    ends = np.stack([np.zeros(len(WEIGHTS)), np.ones(len(WEIGHTS))])
    first, seen, references = matrix[0].copy(), np.array(len(matrix)), encoded[:count].copy()
    none, upwards = TailCalibrator.none(), skewed_up(standard)
    unfitted = Ensemble(
        varying, first, seen, upwards, scalings, references, mixture, denoising_ensemble, ends, none, directions
    )
    raw = unfitted._raw(matrix[chosen])
    # Distances and residuals begin at zero; the others do not, and their scale begins at the least among training rows.
    ends = np.stack([np.where(_ENDLESS, raw.min(axis=0), 0.0), ends[1]])
    ends[1] = _medians(raw - ends[0])
    return replace(unfitted, ends=ends, tails=fit_tails((raw - ends[0]) / ends[1]))


def _draw_directions(width: int, seed: int) -> npt.NDArray[np.float32] | None:
    """Draws the directions that wide rows are looked at along, None where rows are not that wide.

    Distances stay about what they are (Johnson & Lindenstrauss 1984). Covariances of so many columns would take memory
    by their square, and time by their cube.
    """
    if width <= _MOST_DIRECTIONS:
        return None
    drawn = np.random.default_rng(seed).standard_normal((width, _MOST_DIRECTIONS), dtype=np.float32)
    scaled: npt.NDArray[np.float32] = drawn / np.float32(np.sqrt(width))
    return scaled


def _along(directions: npt.NDArray[np.float32] | None, rows: Array) -> Array:
    return rows if directions is None else rows @ directions.astype(np.float64)


def _medians(measures: Array) -> Array:
    medians = np.median(measures, axis=0)
    return np.where(medians > 0, medians, 1.0)
