"""Turns the latent axes of a retrained model to those of the one before, so that what was built on them goes on."""

import copy
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ae_pipeline.config.service import LatentsConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import AlignmentFacts
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
    """A registered model.

    Attributes:
        version: Its number.
        bundle: The model.
    """

    version: int
    bundle: ModelBundle


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How the latent space of a new model stands to that of the one before.

    Attributes:
        previous: Version of the one before.
        axes_of: Version whose axes the new model was to be turned to: the first of those before that are compatible.
        axes: Name of these axes: the space of that version.
        compatibility: With the one before, over the same rows and before any alignment.
        explained_variance: Share of the variance of the latents of `axes_of` that the best affine map explains.
        is_aligned: Whether the axes were turned: as near as they come, compatible or not.
        is_compatible: Whether what was built on these axes may go on with the new latents.
        message: The verdict as a sentence.
    """

    previous: int
    axes_of: int
    axes: str
    compatibility: Compatibility
    explained_variance: float
    is_aligned: bool
    is_compatible: bool
    message: str

    def facts(self) -> AlignmentFacts:
        """Return the facts that a bundle keeps."""
        return AlignmentFacts.model_validate(
            {
                "before": self.previous,
                # An incompatible space starts its own axes.
                "axes_of": self.axes_of if self.is_compatible else None,
                "axes": self.axes if self.is_compatible else None,
                "is_aligned": self.is_aligned,
                "is_compatible": self.is_compatible,
                "explained": self.explained_variance,
                **self.compatibility.figures(),
            }
        )


def align(
    bundle: ModelBundle, previous: Served, axes: Served, rows: pl.DataFrame, config: LatentsConfig
) -> tuple[ModelBundle, Alignment]:
    """Aligns a new model to axes in use, by the best turn between the whitened spaces over rows that all can encode.

    These are the axes of the first model that the one before is compatible with, and not of the one before: what maps
    miss would add up from one retraining to the next. Reconstructions stay what they are to the bit, and scores but for
    rounding.

    Args:
        bundle: The new model.
        previous: The one that serves, to compare with.
        axes: The first with the axes in use; may be the same.
        rows: Features of the reference window.
        config: From which figures on spaces count as compatible.

    Returns:
        The new model, its axes turned as near to those in use as they come, and the verdict.

    Raises:
        BundleError: The rows lack a column that one of the models needs.
        TrainingError: There are too few rows.
    """
    (old, old_scores), (new, new_scores) = (_latents_and_scores(model, rows) for model in (previous.bundle, bundle))
    found = compare_spaces(old, new, old_scores, new_scores)
    name = axes_name(axes.bundle, axes.version)
    wanted = old if axes.version == previous.version else axes.bundle.encode(rows).astype(np.float64)
    share = found.affine if axes.version == previous.version else cross_validated_variance(wanted, new)
    if wanted.shape[1] != new.shape[1]:
        message = f"{new.shape[1]} latents cannot be aligned to the {wanted.shape[1]} of version {axes.version}"
        return bundle, Alignment(previous.version, axes.version, name, found, share, False, False, message)
    affine = fit_alignment(new, wanted)
    message = f"the best affine map explains {share:.1%} of the variance of version {axes.version}'s latents"
    if (condition := relative_condition(affine, new, wanted)) > config.max_condition_number:
        message = (
            f"{message}; alignment is conditioned {condition:.3g}, and applied up to {config.max_condition_number:.3g}"
        )
        return bundle, Alignment(previous.version, axes.version, name, found, share, False, False, message)
    is_compatible = share >= config.min_explained_variance
    if not is_compatible:
        message = f"{message}; compatible from {config.min_explained_variance:.0%} on"
    return transform_latents(bundle, affine), Alignment(
        previous.version, axes.version, name, found, share, True, is_compatible, message
    )


def transform_latents(bundle: ModelBundle, affine: AffineMap) -> ModelBundle:
    """Gives the same model with its latents told in other axes."""
    import torch

    model = copy.deepcopy(bundle.model)
    axes = model.latent_transform
    previous = _as_kept(axes)
    axes.compose(*(torch.from_numpy(part).to(axes.matrix.device) for part in (affine.matrix, affine.offset)))
    after = _as_kept(axes)
    # Of the map as the network keeps it, rounded: distances must stay what they are in these very axes.
    matrix = np.linalg.solve(previous.matrix, after.matrix).astype(np.float64)
    mahalanobis = bundle.detector.mahalanobis.transformed(matrix, after.offset - previous.offset @ matrix)
    return bundle.with_network(dataclasses.replace(bundle.network, model=model), mahalanobis)


def _as_kept(axes: "LatentTransform") -> AffineMap:
    return AffineMap(*(part.detach().cpu().double().numpy() for part in (axes.matrix, axes.offset)))


def _latents_and_scores(bundle: ModelBundle, rows: pl.DataFrame) -> tuple[Array, Array]:
    latents, scores = bundle.latents_and_scores(rows)
    return latents.astype(np.float64), scores
