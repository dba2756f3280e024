"""The model that serves, as a training compares with it and starts from it."""

import dataclasses
from dataclasses import dataclass

import polars as pl

from ae_pipeline.common.errors import BundleError, StorageError, TrainingError
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.gate.results import GateResult
from ae_pipeline.latent_space.alignment import Alignment, Served, align
from ae_pipeline.registry.bundles import load_bundle
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion


@dataclass(frozen=True)
class ServingModel:
    """The version that serves.

    Attributes:
        champion: Its model, to compare with and start from; None if it cannot be loaded.
        axes: Model that first had the latent axes in use.
        version: Its number; None if no version serves.
        why_not: Why it cannot be loaded.
    """

    champion: Served | None
    axes: Served | None
    version: int | None
    why_not: str = ""


def serving_model(config: PipelineConfig, tracker: Tracker) -> ServingModel:
    """Load the model that serves, and the model whose latent axes are in use."""
    champion = tracker.version(config.dataset, CHAMPION)
    if champion is None:
        return ServingModel(None, None, None)
    try:
        served = _load(tracker, champion)
    except (BundleError, StorageError, TrainingError) as error:
        return ServingModel(None, None, champion.version, str(error))
    alignment = served.bundle.facts.alignment
    first = alignment and alignment.axes_of
    try:
        axes = _load(tracker, tracker.version_number(config.dataset, first)) if first else served
    except (BundleError, StorageError, TrainingError):  # deleted; the champion has the same axes
        axes = served
    return ServingModel(served, axes, champion.version)


def _load(tracker: Tracker, version: TrackedVersion) -> Served:
    return Served(version.version, load_bundle(tracker, version))


def align_to_serving(
    config: PipelineConfig, serving: ServingModel, bundle: ModelBundle, rows: pl.DataFrame
) -> tuple[ModelBundle, GateResult, Alignment | None]:
    """Align the latent axes of a new model to those in use, and return whether the two spaces are compatible."""
    rule, threshold = "latents_compatible", config.latents.min_explained_variance
    if serving.version is None:
        message = "no version serves so far; these latents are the first"
        return bundle, GateResult(rule=rule, passed=True, figure=1.0, threshold=threshold, message=message), None
    if serving.champion is None or serving.axes is None:
        return bundle, _incomparable(rule, threshold, serving, serving.why_not), None
    try:
        bundle, alignment = align(bundle, serving.champion, serving.axes, rows, config.latents)
    except (BundleError, TrainingError) as error:
        return bundle, _incomparable(rule, threshold, serving, str(error)), None
    facts = bundle.facts.model_copy(update={"alignment": alignment.facts()})
    result = GateResult(
        rule=rule,
        passed=alignment.is_compatible,
        figure=alignment.explained_variance,
        threshold=threshold,
        message=alignment.message,
    )
    return dataclasses.replace(bundle, facts=facts), result, alignment


def _incomparable(rule: str, threshold: float, serving: ServingModel, reason: str) -> GateResult:
    message = f"the latents cannot be compared with those of version {serving.version}: {reason}"
    return GateResult(rule=rule, passed=False, figure=0.0, threshold=threshold, message=message)
