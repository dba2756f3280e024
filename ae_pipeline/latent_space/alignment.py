"""Alignment of the latent axes of a retrained model to the axes in use, so that downstream models keep working."""

import copy
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.latent_space.compatibility import (
    AffineMap,
    Array,
    Compatibility,
    compare_spaces,
    cross_validated_variance,
    fit_alignment,
    relative_condition,
)
from ae_pipeline.latent_space.names import axes_name

if TYPE_CHECKING:
    from ae_pipeline.models.latent_transform import LatentTransform


@dataclasses.dataclass(frozen=True)
class Served:
    """A registered model version that is or was the champion.

    Attributes:
        version: Number of the version.
        bundle: Bundle of the version.
    """

    version: int
    bundle: ModelBundle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """Result of the alignment of a new model to the axes in use.

    Attributes:
        previous: Version of the champion.
        axes_of: Version that had the axes in use first: the target of the alignment.
        axes: Name of these axes, which is the name of that version's latent space.
        compatibility: Comparison of the champion's space and the new space over the same rows, before the alignment.
        explained_variance: Share of the variance of the latents of `axes_of` that the best affine map explains.
        is_aligned: Whether the new model was transformed. This does not depend on `is_compatible`.
        is_compatible: Whether models that were fitted on these axes may continue with the new latents.
        message: Result as a sentence.
    """

    previous: int
    axes_of: int
    axes: str
    compatibility: Compatibility
    explained_variance: float
    is_aligned: bool
    is_compatible: bool
    message: str

    def facts(self) -> dict[str, float | int | bool | str | None]:
        """Return what a bundle stores about the alignment, as a flat dictionary."""
        # A space that is not compatible is the first one with its axes.
        axes_of = self.axes_of if self.is_compatible else None
        axes = self.axes if self.is_compatible else None
        return {
            "before": self.previous,
            "axes_of": axes_of,
            "axes": axes,
            "is_aligned": self.is_aligned,
            "is_compatible": self.is_compatible,
            "explained": self.explained_variance,
            **self.compatibility.figures(),
        }


def align(
    bundle: ModelBundle, previous: Served, axes: Served, rows: pl.DataFrame, config: LatentsConfig
) -> tuple[ModelBundle, Alignment]:
    """Align a new model to the axes in use, with the best orthogonal map between the whitened latents of both.

    The target is the first version with the axes in use, not the champion: alignment errors would otherwise accumulate
    over retrainings. Reconstructions stay the same bytes. Scores change only by rounding.

    Args:
        bundle: New model.
        previous: Champion, which the new model is compared with.
        axes: First version with the axes in use. It may be the champion.
        rows: Features that all three models can encode, from the training window.
        config: Thresholds for the alignment and for compatible spaces.

    Returns:
        The new model and the result. The model is unchanged if the widths differ or the map is too ill-conditioned.

    Raises:
        BundleError: The rows lack a column that one of the models needs.
        TrainingError: There are too few rows.
    """
    (old, old_scores), (new, new_scores) = (_latents_and_scores(model, rows) for model in (previous.bundle, bundle))
    compatibility = compare_spaces(old, new, old_scores, new_scores)
    is_champion = axes.version == previous.version
    target = old if is_champion else axes.bundle.encode(rows).astype(np.float64)
    share = compatibility.affine if is_champion else cross_validated_variance(target, new)

    def result(message: str, *, is_aligned: bool, is_compatible: bool) -> Alignment:
        return Alignment(
            previous=previous.version,
            axes_of=axes.version,
            axes=axes_name(axes.bundle, axes.version),
            compatibility=compatibility,
            explained_variance=share,
            is_aligned=is_aligned,
            is_compatible=is_compatible,
            message=message,
        )

    if target.shape[1] != new.shape[1]:
        message = f"{new.shape[1]} latents cannot be aligned to the {target.shape[1]} of version {axes.version}"
        return bundle, result(message, is_aligned=False, is_compatible=False)
    affine = fit_alignment(new, target)
    message = f"the best affine map explains {share:.1%} of the variance of version {axes.version}'s latents"
    if (condition := relative_condition(affine, new, target)) > config.max_condition_number:
        message = (
            f"{message}; the alignment is not applied, because its condition number {condition:.3g} is above "
            f"{config.max_condition_number:.3g}"
        )
        return bundle, result(message, is_aligned=False, is_compatible=False)
    is_compatible = share >= config.min_explained_variance
    if not is_compatible:
        message = f"{message}; a compatible space needs {config.min_explained_variance:.0%}"
    return transform_latents(bundle, affine), result(message, is_aligned=True, is_compatible=is_compatible)


def transform_latents(bundle: ModelBundle, affine: AffineMap) -> ModelBundle:
    """Return the same model with its latents mapped to other axes. Reconstructions and distances stay the same."""
    import torch

    model = copy.deepcopy(bundle.model)
    axes = model.latent_transform
    previous = _stored_map(axes)
    axes.compose(*(torch.from_numpy(part).to(axes.matrix.device) for part in (affine.matrix, affine.offset)))
    after = _stored_map(axes)
    # The network stores the map rounded to float32. Distances must be transformed by the stored map, not the exact one.
    matrix = np.linalg.solve(previous.matrix, after.matrix).astype(np.float64)
    mahalanobis = bundle.mahalanobis.transformed(matrix, after.offset - previous.offset @ matrix)
    return dataclasses.replace(bundle, model=model, mahalanobis=mahalanobis)


def _stored_map(transform: "LatentTransform") -> AffineMap:
    return AffineMap(*(part.detach().cpu().double().numpy() for part in (transform.matrix, transform.offset)))


def _latents_and_scores(bundle: ModelBundle, rows: pl.DataFrame) -> tuple[Array, Array]:
    latents, scores = bundle.latents_and_scores(rows)
    return latents.astype(np.float64), scores
