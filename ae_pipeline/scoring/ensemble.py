"""An ensemble of outlier measures that detect different kinds of anomalies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.config.model import Contamination
from ae_pipeline.scoring.blocks import double, per_device
from ae_pipeline.scoring.combination import SETTINGS, Combination, fit_combination
from ae_pipeline.scoring.denoising_ensemble import DenoisingEnsemble, fit_denoising_ensemble
from ae_pipeline.scoring.ecod import ecod_score, skewed_up
from ae_pipeline.scoring.forest import IsolationForest, fit_forest
from ae_pipeline.scoring.mean_distances import mean_knn_distance
from ae_pipeline.scoring.mixture import Mixture, fit_mixture
from ae_pipeline.scoring.neighbors import NearestNeighbors, nearest_neighbors
from ae_pipeline.scoring.scalings import Scalings, fit_scalings, normal_scores
from ae_pipeline.scoring.tails import TailCalibrator, fit_tails

Array = npt.NDArray[np.float64]

FITTED_ROWS, _FITTED_CELLS = 20_000, 2**23
"""Maximum of randomly sampled training rows, and of rows times columns. They bound time and memory of a fit."""

MIN_ROWS = 16
_MAX_REFERENCES, _MIN_REFERENCES, _REFERENCE_CELLS = 4096, 512, 2**17
"""Maximum and minimum of references, and of references times columns: wider rows have fewer references."""

_MAX_DIRECTIONS = 512
"""Maximum of columns in a covariance matrix. Wider rows are projected."""

_CORE_NEIGHBORS, _CORE_REFERENCES = 100, 1024

MEASURES = (
    "nearest, as encoded",
    "nearest, normal scores",
    "mixture",
    "denoising ensemble",
    "ecod",
    "nearest in the core",
    "isolation forest",
)
"""The measures in order. Bundles of before format 9 have the first five."""

_DESCRIPTIONS = (
    "distance from the nearest training row",
    "distance from the nearest training row by ranks",
    "rarity among training rows",
    "residual of the denoising autoencoders",
    "sum of the distances of its values from the median",
    "distance from the nearest typical training row by ranks",
    "ease of isolation by random splits",
)
_HAS_NO_ZERO = np.isin(MEASURES, ("mixture", "ecod", "isolation forest"))
"""Measures whose minimum is not zero."""

_ARRAYS = ("varying", "first", "seen", "upwards", "references", "ends")
_PARTS = ("scalings", "mixture", "denoising_ensemble", "tails")
_PARTS_OF_FORMAT_9 = ("combination", "forest")


@dataclass(frozen=True, kw_only=True)
class EnsembleTensors:
    """What an ensemble computes with, on one device; see the attributes of `Ensemble`."""

    varying: Tensor
    constant: Tensor
    first: Tensor
    upwards: Tensor
    ends: Tensor
    as_encoded: NearestNeighbors
    by_ranks: NearestNeighbors
    directions: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The combined surprisal of several outlier measures.

    The measures are the nearest-neighbor distance on two scales, the density under Gaussian mixtures, the residuals of
    small denoising autoencoders, ECOD, the nearest-neighbor distance within the core, and the isolation forest.
    Mixtures and autoencoders learn from the core too: the training rows that are near many others. So a cluster of
    anomalies in the training rows does not become normal.

    Attributes:
        varying: Indices of the matrix columns that vary in the training rows. The measures use only these.
        first: One training row, shape (width,). It has the values of the constant columns.
        seen: Number of training rows, shape ().
        upwards: Whether the longer tail of a varying column is the upper one, shape (len(varying),).
        scalings: z-scores and normal scores.
        references: Encoded training rows, shape (m, len(varying)). Those of the core come first.
        core_count: Number of references in the core, shape (). 0 in bundles of before format 9.
        mixture: Gaussian mixtures of the core, on z-scores.
        denoising_ensemble: Denoising autoencoders.
        ends: Minimum of each measure, and its median minus this minimum, shape (2, measures).
        tails: Tails that turn scaled measures into surprisal.
        combination: Combination of the surprisals.
        nat: Combined surprisal that is worth one nat, shape (): the 99 % quantile of the training rows over ln 100.
        forest: Isolation forest on encoded rows. None in bundles of before format 9.
        directions: Random projection of very wide rows for mixtures and autoencoders, shape (len(varying), directions).
            None if the rows are not that wide.
    """

    varying: npt.NDArray[np.int64]
    first: npt.NDArray[np.float32]
    seen: npt.NDArray[np.int64]
    upwards: npt.NDArray[np.bool_]
    scalings: Scalings
    references: npt.NDArray[np.float32]
    core_count: npt.NDArray[np.int64]
    mixture: Mixture
    denoising_ensemble: DenoisingEnsemble
    ends: Array
    tails: TailCalibrator
    combination: Combination
    nat: Array
    forest: IsolationForest | None
    directions: npt.NDArray[np.float32] | None = None

    def __call__(self, matrix: Tensor) -> Tensor:
        """Return the combined surprisal of encoded rows, shape (n, width), shape (n,).

        Each column that was constant in n training rows and differs now adds ln(n + 2) nats, by Laplace's rule of
        succession. So does a category that no training row has. Columns after the fitted ones, such as the context of a
        table, do not count.
        """
        surprisal = self.tails(self.measures(matrix))
        tensors = self.tensors(matrix.device)
        # The training rows are float32. A float64 of them is the same number.
        changed = (matrix.index_select(1, tensors.constant).double() != tensors.first).sum(1).double()
        return self.combination(surprisal) + changed * float(np.log(self.seen + 2) * self.nat)

    def measures(self, matrix: Tensor) -> Tensor:
        """Return the scaled measures of n rows, shape (n, measures). The median of the training rows is 1."""
        ends = self.tensors(matrix.device).ends
        return (self._raw(matrix) - ends[0]) / ends[1]

    def governing(self, matrix: Tensor, usual_total: float) -> list[tuple[str, str]]:
        """Return a text about why each row is anomalous as a whole, and a text about the usual range.

        The text names the measure with the highest weighted surprisal of those beyond their 99 % quantile. If no
        measure is, it names the sum of all measures.

        Args:
            matrix: Encoded rows, shape (n, width).
            usual_total: 99 % quantile of the score of this ensemble, nats.
        """
        scaled = self.measures(matrix)
        measures, surprisal = scaled.cpu().numpy(), self.tails(scaled).cpu().numpy()
        usual, weights = self.tails.quantiles[:, -1], self.combination.weights[0]
        weighted = np.where((measures > usual) & (weights > 0), surprisal * weights, -np.inf)
        texts = []
        for row, nats, total in zip(measures, weighted, self(matrix).cpu().numpy(), strict=True):
            index = int(nats.argmax())
            if np.isfinite(nats[index]):
                text = f"{row[index]:,.1f} times the usual {_DESCRIPTIONS[index]}"
                texts.append((text, f"{usual[index]:,.1f} times at most in 99 %"))
            else:
                text = f"{total:,.1f} nats over all measures of the row as a whole"
                texts.append((text, f"{usual_total:,.1f} nats at most in 99 %"))
        return texts

    def _raw(self, matrix: Tensor) -> Tensor:
        tensors = self.tensors(matrix.device)
        rows = matrix.index_select(1, tensors.varying).double()
        standard = self.scalings.standard(rows)
        standard = standard if tensors.directions is None else standard @ tensors.directions
        ranks = self.scalings.ranks(rows)
        by_ranks = tensors.by_ranks(normal_scores(ranks))
        measures = [
            tensors.as_encoded(rows)[:, 0],
            by_ranks[:, -1],
            self.mixture(standard),
            self.denoising_ensemble(standard),
            ecod_score(ranks, tensors.upwards),
        ]
        if self.forest is not None:
            measures += [by_ranks[:, 0], self.forest(rows)]
        return torch.stack(measures, 1)

    @per_device
    def tensors(self, device: torch.device) -> "EnsembleTensors":
        """Return what the measures are computed with, on a device."""
        encoded = double(self.references, device)
        counts = [len(encoded)] if self.forest is None else [int(self.core_count), len(encoded)]
        constant = np.setdiff1d(np.arange(len(self.first)), self.varying)
        return EnsembleTensors(
            varying=torch.from_numpy(self.varying).to(device),
            constant=torch.from_numpy(constant).to(device),
            first=double(self.first[constant], device),
            upwards=torch.from_numpy(self.upwards).to(device),
            ends=double(self.ends, device),
            as_encoded=nearest_neighbors(encoded, [len(encoded)]),
            by_ranks=nearest_neighbors(self.scalings.normal(encoded), counts),
            directions=None if self.directions is None else double(self.directions, device),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by name."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {} if self.directions is None else {"directions": self.directions}
        arrays |= {} if self.forest is None else {"core_count": self.core_count, "nat": self.nat}
        for part in (*_PARTS, *(() if self.forest is None else _PARTS_OF_FORMAT_9)):
            arrays |= {f"{part}.{name}": value for name, value in getattr(self, part).arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Ensemble":
        """Return the ensemble that `arrays` describes.

        Raises:
            KeyError: An array is missing.
        """

        def arrays_below(part: str) -> dict[str, npt.NDArray[Any]]:
            return {name.removeprefix(part): value for name, value in arrays.items() if name.startswith(part)}

        forest = arrays_below("forest.")
        return cls(
            scalings=Scalings(**arrays_below("scalings.")),
            mixture=Mixture(**arrays_below("mixture.")),
            denoising_ensemble=DenoisingEnsemble.from_arrays(arrays_below("denoising_ensemble.")),
            tails=TailCalibrator(**arrays_below("tails.")),
            combination=Combination.from_arrays(arrays_below("combination.")) if forest else Combination.of_format_8(),
            forest=IsolationForest(**forest) if forest else None,
            core_count=arrays["core_count"] if forest else np.array(0),
            nat=arrays["nat"] if forest else np.array(1.0),
            directions=arrays.get("directions"),
            **{name: arrays[name] for name in _ARRAYS},
        )


def fit_ensemble(
    matrix: npt.NDArray[np.float32],
    asinh_mask: npt.NDArray[np.bool_],
    seed: int,
    contamination: Contamination = Contamination.UNKNOWN,
) -> Ensemble:
    """Fit an ensemble on encoded training rows.

    Args:
        matrix: Encoded rows, shape (n, width).
        asinh_mask: Columns that are asinh values, shape (width,).
        seed: Seed of the random generators.
        contamination: Whether the rows contain anomalies.

    Raises:
        TrainingError: There are fewer than 16 rows, or all are equal.
    """
    if len(matrix) < MIN_ROWS:
        raise TrainingError(
            f"evidence ensemble needs {MIN_ROWS} training rows or more, but there are {len(matrix)}; land more, or "
            "choose other evidence in alerts.evidence"
        )
    setting = SETTINGS[contamination]
    generator = torch.Generator().manual_seed(seed)
    varying = np.flatnonzero((matrix != matrix[0]).any(axis=0))
    if not len(varying):
        raise TrainingError(
            f"evidence ensemble needs a value that varies, but all {len(matrix):,} training rows are equal; land other "
            "rows, or choose other evidence in alerts.evidence"
        )
    limit = min(FITTED_ROWS, _FITTED_CELLS // len(varying))
    sample = torch.randperm(len(matrix), generator=generator)[:limit].numpy()
    encoded = matrix[np.ix_(sample, varying)]
    rows = encoded.astype(np.float64)
    scalings = fit_scalings(rows, asinh_mask[varying])
    scaled_rows = torch.from_numpy(rows)
    standard, normal = scalings.standard(scaled_rows).numpy(), scalings.normal(scaled_rows).numpy()
    directions = _random_projection(len(varying), seed)
    is_core = _core(setting.core_share, rows, normal, standard)
    core = standard[is_core] if directions is None else standard[is_core] @ directions.astype(np.float64)
    count = min(_MAX_REFERENCES, max(_MIN_REFERENCES, _REFERENCE_CELLS // len(varying)))
    of_core = is_core[:count]
    mixture, denoising_ensemble = fit_mixture(core, seed), fit_denoising_ensemble(core, generator)
    measures = len(MEASURES)
    unfitted = Ensemble(
        varying=varying,
        first=matrix[0].copy(),
        seen=np.array(len(matrix)),
        upwards=skewed_up(standard),
        scalings=scalings,
        references=encoded[:count][np.argsort(~of_core, kind="stable")],
        core_count=np.array(of_core.sum()),
        mixture=mixture,
        denoising_ensemble=denoising_ensemble,
        ends=np.stack([np.zeros(measures), np.ones(measures)]),
        tails=TailCalibrator.none(),
        combination=Combination.of_format_8(),
        nat=np.array(1.0),
        forest=fit_forest(rows, seed),
        directions=directions,
    )
    raw = unfitted._raw(torch.from_numpy(matrix[sample])).numpy()
    minimum = np.where(_HAS_NO_ZERO, raw.min(axis=0), 0.0)
    ends = np.stack([minimum, _medians(raw - minimum)])
    scaled = (raw - ends[0]) / ends[1]
    tails = fit_tails(scaled)
    surprisal = tails(torch.from_numpy(scaled))
    combination = fit_combination(surprisal, setting)
    # Counted in the scale of the sum, so that a value that no row had is as rare as it says.
    nat = np.quantile(combination(surprisal).numpy(), 0.99) / math.log(100)
    return replace(unfitted, ends=ends, tails=tails, combination=combination, nat=np.array(max(nat, 1.0)))


def _core(share: float, *scales: Array) -> npt.NDArray[np.bool_]:
    """Return which rows are in the core: the share with the lowest kNN distances. Each scale has shape (n, width)."""
    distances = [mean_knn_distance(values, values[:_CORE_REFERENCES], _CORE_NEIGHBORS) for values in scales]
    scaled = np.column_stack(distances)
    scaled /= _medians(scaled)
    surprisal = fit_tails(scaled)(torch.from_numpy(scaled)).numpy().sum(axis=1)
    is_core: npt.NDArray[np.bool_] = surprisal <= np.quantile(surprisal, share)
    return is_core


def _random_projection(width: int, seed: int) -> npt.NDArray[np.float32] | None:
    """Return a random projection of wide rows, shape (width, directions), or None if the rows are not that wide.

    It approximately preserves distances (Johnson & Lindenstrauss 1984). Covariances of all columns would need memory
    proportional to the square of the width, and time proportional to its cube.
    """
    if width <= _MAX_DIRECTIONS:
        return None
    normal = np.random.default_rng(seed).standard_normal((width, _MAX_DIRECTIONS), dtype=np.float32)
    scaled: npt.NDArray[np.float32] = normal / np.float32(np.sqrt(width))
    return scaled


def _medians(measures: Array) -> Array:
    medians = np.median(measures, axis=0)
    return np.where(medians > 0, medians, 1.0)
