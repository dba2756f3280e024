"""What the model assets do between core, tracking and gate."""

import dataclasses
import json
import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from ae_pipeline.common.errors import BundleError, StorageError, TrainingError
from ae_pipeline.common.progress import ThrottledLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.build import feature_columns, features_content
from ae_pipeline.features.split import GATE, PARTS, Window, cut_window, sample_rows
from ae_pipeline.gate.evaluation import gate_rows
from ae_pipeline.gate.rules import GateResult, compare, finite_weights, is_promoted, latents_not_collapsed, loss_fell
from ae_pipeline.ingestion.contract import contract_in_force
from ae_pipeline.latent_space.alignment import Alignment, Served, align
from ae_pipeline.latents.read import current_files, model_version_of
from ae_pipeline.lifecycle.promote import FIGURES_TAG
from ae_pipeline.registry.names import CHAMPION, GATE_TAG
from ae_pipeline.registry.store import TrackedVersion, Tracker
from ae_pipeline.reports.charts import Chart
from ae_pipeline.reports.model_card import head_of, model_card, training_charts
from ae_pipeline.reports.page import by_reason
from ae_pipeline.reports.render import render_png
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.loop import Epoch, TrainingResult
from ae_pipeline.training.reference import with_reference

logger = logging.getLogger(__name__)

_LATENTS = "latents"
"""Tag of a version: what became of its latents."""

_COMPARED_ROWS, _DRAWN_ROWS = 100_000, 4_000
"""Validation rows over which latents are compared, and rows that plots are drawn of, at most."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trained:
    """A training and what became of it.

    Attributes:
        bundle: The model, its axes turned to those in use where they are compatible.
        result: Of its training.
        version: As which it is registered.
        results: Of the gate.
        compatible: Whether its latents go on where those in use end; not of the gate.
        alignment: To the version that serves; None where there is none, or it cannot be compared with.
        content: Days and their features' hash and rows, as they stood.
        folder: Of the registered bundle.
        charts: Of the model.
        card: What it is, Markdown.
    """

    bundle: ModelBundle
    result: TrainingResult
    version: TrackedVersion
    results: tuple[GateResult, ...]
    compatible: GateResult
    alignment: Alignment | None
    content: dict[str, tuple[str, int]]
    folder: Path
    charts: Sequence[Chart]
    card: str


def train_challenger(
    dataset: Dataset,
    tracker: Tracker,
    origin: Mapping[str, str],
    links: Mapping[str, str],
) -> Trained:
    """Trains on the newest window of features, records it as one MLflow run and registers it as the challenger.

    Args:
        dataset: Configuration and paths of the dataset.
        tracker: The model store.
        origin: Tags that tell this training from all others.
        links: Addresses that belong on the model card, by what is there.
    """
    config, paths = dataset.config, dataset.paths
    if not paths.contract.exists():
        raise TrainingError(f"nothing to train on: raw_data and features of {config.dataset!r} were never materialized")
    content = features_content(dataset)
    window = cut_window({day: digest for day, (digest, rows) in content.items() if rows}, config, config.gate.days)
    columns = feature_columns(config, contract_in_force(paths.contract, config))
    previous = _before(config, tracker)
    champion = previous.champion.bundle if previous.champion else None
    logger.info(_parts_in_words(window, {day: rows for day, (_, rows) in content.items()}, dataset))
    name = f"{config.dataset} {window.days[-1]}"
    with tracker.training(config.dataset, name, origin, location=_location_of(paths)) as run:
        run.log_params(
            {
                **_flat("model", config.model.model_dump()),
                **_flat("training", config.training.model_dump()),
                "alerts.budget": config.alerts.budget,
            },
            tags={
                "window.fingerprint": window.fingerprint,
                "window.first_day": window.days[0],
                "window.last_day": window.days[-1],
            },
        )

        with ThrottledLogger(logger) as throttled:

            def report(epoch: Epoch) -> None:
                run.log_epoch(epoch)
                throttled.info(
                    f"epoch {epoch.number} of {config.training.epochs}: loss {epoch.train_loss:.4g}, "
                    f"validation {epoch.validation_loss:.4g}"
                )

            bundle, result = fit_bundle(dataset, columns, window, report, champion)
        if previous.version is not None:
            logger.info(_going_on(previous.version, result))
        for reason, names in by_reason({entry.column: entry.reason for entry in bundle.encoder.left_out}).items():
            logger.info(f"left out: {', '.join(names)} ({reason})")
        if result.is_streamed:
            logger.info(_streamed_in_words(bundle))
        reference = window.rows("validation", paths, most=_COMPARED_ROWS)
        bundle, compatible, alignment = _align_to_champion(config, previous, bundle, reference)
        bundle = with_reference(bundle, columns, paths)
        logger.info(compatible.message)
        unseen = gate_rows(bundle.window, champion.window if champion else None, paths)
        why_not = previous.why_not or "0 versions serve so far"
        results = (
            finite_weights(bundle),
            loss_fell(result),
            latents_not_collapsed(bundle.encode(reference), config.gate.min_active_latents),
            *compare(bundle, champion, unseen, why_not, config.gate),
        )
        compared = (*results, compatible) if config.gate.compatible else results
        run.log_metrics(
            {
                **_figures((*results, compatible)),
                "best_epoch": result.best_epoch,
                "best_validation_loss": result.best_loss,
                "score_threshold": bundle.calibration.threshold,
                **_flat("latents", alignment.compatibility.figures() if alignment else {}),
            }
        )
        run.log_json(
            {
                "window": {part: list(getattr(window, part)) for part in (*PARTS, GATE)},
                "content": content,
            },
            "window.json",
        )
        version = run.register(bundle)
        # Within the run: a version without a verdict is what one that was cut short has left.
        broken = "; ".join(f"{result.rule}: {result.message}" for result in compared if not result.passed)
        figures = {name.removeprefix("gate."): value for name, value in _figures((*results, compatible)).items()}
        gate = "passed" if is_promoted(compared) else f"rejected: {broken}"
        tags = {_LATENTS: compatible.message, FIGURES_TAG: json.dumps(figures), GATE_TAG: gate}
        tracker.tag_version(config.dataset, version.version, tags)
        # From here on nothing of the model is lost, whatever becomes of its description.
        location = paths.features(window.days[-1]).parent.as_uri()
        run.log_data(config.dataset, window.fingerprint, location, bundle.facts["rows"], bundle)
        card = model_card(bundle, version.version, (*results, compatible), gate, unseen.height, links)
        run.describe(version, head_of(card), card)
        charts = training_charts(
            bundle, sample_rows(reference, _DRAWN_ROWS, seed=0), sample_rows(unseen, _DRAWN_ROWS, seed=0)
        )
        for chart in charts:
            run.log_picture(render_png(chart), f"{chart.name}.png")
    logger.info(f"registered as version {version.version}, MLflow run {version.run_id}")
    folder = tracker.bundle_folder(version)
    return Trained(bundle, result, version, results, compatible, alignment, content, folder, charts, card)


def _location_of(paths: DatasetPaths) -> str:
    """Names the data folder, of whose dataset one run at a time holds the lock; the name goes where the folder goes."""
    location = paths.history.with_suffix(".place")
    if not location.exists():
        write_text(location, secrets.token_hex(8))
    return location.read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Before:
    """The version that serves: one to go on from, or in words why there is none."""

    champion: Served | None
    axes: Served | None
    version: int | None
    why_not: str = ""


def _before(config: PipelineConfig, tracker: Tracker) -> _Before:
    champion = tracker.version(config.dataset, CHAMPION)
    if champion is None:
        return _Before(None, None, None)
    try:
        previous = _served(tracker, champion)
    except (BundleError, StorageError, TrainingError) as error:
        return _Before(None, None, champion.version, str(error))
    first = previous.bundle.facts.get("alignment", {}).get("axes_of")
    try:
        axes = _served(tracker, tracker.version_number(config.dataset, first)) if first else previous
    except (BundleError, StorageError, TrainingError):  # deleted, say: the one before is told in the same axes
        axes = previous
    return _Before(previous, axes, champion.version)


def _align_to_champion(
    config: PipelineConfig, previous: _Before, bundle: ModelBundle, rows: pl.DataFrame
) -> tuple[ModelBundle, GateResult, Alignment | None]:
    """Turns the latent axes of a new model to those in use, where they are compatible over rows of the window."""
    rule, least = "latents_compatible", config.latents.min_explained_variance
    if previous.version is None:
        return bundle, GateResult(rule, True, 1.0, least, "0 versions serve so far; these latents are the first"), None
    if previous.champion is None or previous.axes is None:
        return bundle, GateResult(rule, False, 0.0, least, _cannot_compare(previous, previous.why_not)), None
    try:
        bundle, alignment = align(bundle, previous.champion, previous.axes, rows, config.latents)
    except (BundleError, TrainingError) as error:
        return bundle, GateResult(rule, False, 0.0, least, _cannot_compare(previous, error)), None
    bundle = dataclasses.replace(bundle, facts={**bundle.facts, "alignment": alignment.facts()})
    return (
        bundle,
        GateResult(rule, alignment.is_compatible, alignment.explained_variance, least, alignment.message),
        alignment,
    )


def _figures(results: Sequence[GateResult]) -> dict[str, float]:
    """Gives what MLflow keeps of the gate: figure, threshold and whether it passed, by rule."""
    found: dict[str, float] = {}
    for result in results:
        told = {"figure": result.figure, "threshold": result.threshold, "passed": float(result.passed)}
        found |= {f"gate.{result.rule}.{name}": value for name, value in told.items() if math.isfinite(value)}
    return found


def _streamed_in_words(bundle: ModelBundle) -> str:
    rows, seen = bundle.facts["rows"], bundle.facts["rows_looked_at"]
    message = f"its {rows['train']:,} rows go beyond the memory budget, so it learnt from them in blocks from disk"
    if seen["train"] == rows["train"]:
        return message
    return f"{message}; statistics are those of {seen['train']:,} of them and {seen['validation']:,} of validation"


def _going_on(version: int, result: TrainingResult) -> str:
    weights = "from the weights" if result.is_warm else "from drawn weights, not those"
    latents = "its latents were kept near" if result.is_anchored else "its latents were free to differ"
    return f"it went on {weights} of version {version}; {latents}"


def _cannot_compare(previous: _Before, why: object) -> str:
    return f"latents of version {previous.version} cannot be compared with: {why}"


def _served(tracker: Tracker, version: TrackedVersion) -> Served:
    return Served(version.version, ModelBundle.load(tracker.bundle_folder(version)))


def load_champion(config: PipelineConfig, tracker: Tracker) -> tuple[TrackedVersion, ModelBundle]:
    """Loads the model that serves.

    Raises:
        TrainingError: There is none.
    """
    champion = tracker.version(config.dataset, CHAMPION)
    if champion is None:
        raise TrainingError(f"{config.dataset!r} has no champion; materialize autoencoder and champion first")
    return champion, ModelBundle.load(tracker.bundle_folder(champion))


def load_version_of_table(dataset: Dataset, tracker: Tracker) -> tuple[TrackedVersion, ModelBundle]:
    """Loads the model that the published table was scored with.

    Raises:
        StorageError: Nothing was published yet.
    """
    config, paths = dataset.config, dataset.paths
    if not current_files(paths):
        raise StorageError(f"nothing was published for {config.dataset!r}; materialize latent_features first")
    version = tracker.version_number(config.dataset, model_version_of(paths))
    return version, ModelBundle.load(tracker.bundle_folder(version))


def _parts_in_words(window: Window, rows_of_days: Mapping[str, int], dataset: Dataset) -> str:
    config, paths = dataset.config, dataset.paths
    sizes: list[str] = []
    for part in PARTS:
        days: tuple[str, ...] = getattr(window, part)
        if not config.is_daily:
            sizes.append(f"{window.count(part, paths):,}{'' if sizes else ' rows'}")
        elif window.only_normal:  # how many of their rows are left out is known when they are read
            sizes.append(pluralize(len(days), "day"))
        else:
            sizes.append(f"{pluralize(len(days), 'day')} ({sum(rows_of_days[day] for day in days):,} rows)")
    message = "training on {}, validating on {}, calibrating on {}".format(*sizes)
    gate = pluralize(len(window.gate), "day") if config.is_daily else f"{gate_rows(window, None, paths).height:,}"
    return f"{message}; {gate} left to the gate"


def _flat(prefix: str, values: Mapping[str, _T]) -> dict[str, _T]:
    return {f"{prefix}.{key}": value for key, value in values.items()}
