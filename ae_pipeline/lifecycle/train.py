"""Training of a challenger: fit, align, evaluate, register and describe a model, as one MLflow run."""

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import polars as pl

from ae_pipeline.common.errors import StorageError, TrainingError
from ae_pipeline.common.progress import ThrottledLogger
from ae_pipeline.common.text import abbreviate, plural, pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.features.build import content_days, feature_columns, features_content
from ae_pipeline.features.split import GATE, PARTS, Window, sample_rows
from ae_pipeline.gate.blindness import NO_ALERTS, recent_alerts
from ae_pipeline.gate.evaluation import gate_rows
from ae_pipeline.gate.results import GateResult
from ae_pipeline.gate.rules import compare, finite_weights, is_promoted, latents_not_collapsed, loss_fell
from ae_pipeline.ingestion.contract import SchemaContract, contract_in_force
from ae_pipeline.latent_space.alignment import Alignment
from ae_pipeline.lifecycle.feedback import reviewed_rows, without_false_alarms
from ae_pipeline.lifecycle.promote import FIGURES_TAG, PASSED
from ae_pipeline.lifecycle.serving_model import ServingModel, align_to_serving, serving_model
from ae_pipeline.lifecycle.training_metrics import evaluation_metrics, experiment_note, run_name, tagged_figures
from ae_pipeline.registry.names import GATE_TAG, LAST_DAY_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.training_run import TrainingRun
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.registry.window import WINDOW_FILE
from ae_pipeline.reports.charts import Chart
from ae_pipeline.reports.model_card import head_of, model_card, training_charts
from ae_pipeline.reports.page import by_reason
from ae_pipeline.reports.render import render_png
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.files import write_text
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.storage.session import save
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.loop import TrainingResult
from ae_pipeline.training.preflight import check_sizes, training_data
from ae_pipeline.training.reference import with_reference
from ae_pipeline.training.reviewed import Reviewed
from ae_pipeline.training.screened import screening_metrics, screening_tags
from ae_pipeline.training.size_rules import Sizes

logger = logging.getLogger(__name__)

_LATENTS_TAG = "latents"
"""Version tag that says whether the latents are compatible with those in use."""

_COMPARED_ROWS = 100_000
"""Validation rows, at most, on which latent spaces are compared."""

_PLOTTED_ROWS = 4_000
"""Rows, at most, that the plots of a training show."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A registered training.

    Attributes:
        bundle: The model, with its latent axes aligned to those in use if they are compatible.
        result: Result of the training loop.
        version: Version that it registered.
        results: Results of the gate.
        compatible: Whether the latents are compatible with those in use; part of the gate if `gate.compatible` is set.
        alignment: Alignment to the version that serves; None if no version serves or the two cannot be compared.
        uri: Address of the registered bundle.
        charts: Plots of the model.
        card: Model card, Markdown.
    """

    bundle: ModelBundle
    result: TrainingResult
    version: TrackedVersion
    results: tuple[GateResult, ...]
    compatible: GateResult
    alignment: Alignment | None
    uri: str
    charts: Sequence[Chart]
    card: str


def train_challenger(
    dataset: Dataset, tracker: Tracker, origin: Mapping[str, str], links: Mapping[str, str]
) -> Trained:
    """Train on the newest window of features and register the model as the challenger.

    Args:
        dataset: Dataset to train on.
        tracker: The model store.
        origin: Tags that identify the training.
        links: Addresses for the model card, by their text.

    Raises:
        TrainingError: There are no features, or the configured sizes do not fit the days and rows.
    """
    config, paths = dataset.config, dataset.paths
    if not paths.contract.exists():
        raise TrainingError(f"nothing to train on: raw_data and features of {dataset.name!r} were never materialized")
    content = features_content(dataset)
    contract = contract_in_force(paths.contract, config)
    if damaged := [day for day in content_days(paths) if config.has_day(day) and day not in content]:
        raise StorageError(
            f"features of {dataset.name!r} are damaged on {abbreviate(damaged)}; `ae-pipeline run {dataset.name}` "
            "builds them again and trains"
        )
    columns = feature_columns(config, contract)
    data = training_data(dataset, columns, {day: rows for day, (_, rows) in content.items() if rows})
    sizes = check_sizes(config, data, {day: digest for day, (digest, rows) in content.items() if rows})
    window = sizes.window
    serving = serving_model(config, tracker)
    logger.info(_window_message(window, {day: rows for day, (_, rows) in content.items()}, dataset))
    tracker.describe_experiment(dataset.name, experiment_note(config))
    name = run_name(window.days, is_daily=config.is_daily)
    with tracker.training(dataset.name, name, origin, location=_location_id(paths)) as run:
        _log_settings(run, config, sizes)
        candidate = _fit(dataset, window, contract, serving, run)
        evaluation = _evaluate(candidate, serving, dataset, window)
        _log_evaluation(run, candidate, evaluation, window, content)
        # Registered within the run: a version without a gate result comes from an interrupted training.
        version = run.register(candidate.bundle)
        run.rename(run_name(window.days, version.version, evaluation.gate, is_daily=config.is_daily))
        tracker.tag_version(dataset.name, version.version, _version_tags(candidate, evaluation))
        # From here on the model is safe, even if its description fails.
        charts, card = _describe(run, version, candidate, evaluation, dataset, links)
    logger.info(f"registered as version {version.version}, MLflow run {version.run_id}")
    return Trained(
        bundle=candidate.bundle,
        result=candidate.result,
        version=version,
        results=evaluation.results,
        compatible=candidate.compatible,
        alignment=candidate.alignment,
        uri=tracker.bundle_uri(version),
        charts=charts,
        card=card,
    )


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A fitted model before its evaluation, the marks that it was fitted with, and rows to compare latents on."""

    bundle: ModelBundle
    result: TrainingResult
    compatible: GateResult
    alignment: Alignment | None
    validation: pl.DataFrame
    marks: Reviewed


@dataclass(frozen=True)
class _Evaluation:
    """Results of the gate, what they come to, and the rows that no part of either model has seen."""

    results: tuple[GateResult, ...]
    gate: str
    unseen: pl.DataFrame


def _fit(
    dataset: Dataset, window: Window, contract: SchemaContract, serving: ServingModel, run: TrainingRun
) -> _Candidate:
    config = dataset.config
    columns = feature_columns(config, contract)
    champion = serving.champion.bundle if serving.champion else None
    reviewed = reviewed_rows(dataset.paths)
    with ThrottledLogger(logger) as throttled:

        def on_epoch(epoch: Epoch) -> None:
            run.log_epoch(epoch)
            throttled.info(
                f"epoch {epoch.number} of {config.training.epochs}: loss {epoch.train_loss:.4g}, "
                f"validation {epoch.validation_loss:.4g}"
            )

        bundle, result = fit_bundle(dataset, columns, window, on_epoch, champion, reviewed)
    if serving.version is not None:
        logger.info(_warm_start_message(serving.version, result))
    for reason, names in by_reason({entry.column: entry.reason for entry in bundle.encoder.left_out}).items():
        logger.info(f"left out: {', '.join(names)} ({reason})")
    if bundle.facts.screening:
        logger.info(f"screened by {bundle.facts.screening.judged_by}: {bundle.facts.screening.message}")
    if result.is_streamed:
        logger.info(_streaming_message(bundle))
    validation = window.rows("validation", dataset.paths, most=_COMPARED_ROWS)
    bundle, compatible, alignment = align_to_serving(config, serving, bundle, validation)
    bundle = replace(with_reference(bundle, columns, dataset.paths), contract=contract)
    logger.info(compatible.message)
    return _Candidate(
        bundle=bundle, result=result, compatible=compatible, alignment=alignment, validation=validation, marks=reviewed
    )


def _evaluate(candidate: _Candidate, serving: ServingModel, dataset: Dataset, window: Window) -> _Evaluation:
    bundle, gate = candidate.bundle, dataset.config.gate
    champion = serving.champion.bundle if serving.champion else None
    unseen = gate_rows(bundle.window, champion.window if champion else None, dataset.paths)
    unseen = candidate.marks.without_marked(unseen)
    alerts = recent_alerts(window, champion, dataset) if champion and not unseen.is_empty() else NO_ALERTS
    alerts = without_false_alarms(alerts, candidate.marks)
    results = (
        finite_weights(bundle),
        loss_fell(candidate.result),
        latents_not_collapsed(bundle.encode(candidate.validation), gate.min_active_latents),
        *compare(bundle, champion, unseen, serving.why_not or "no version serves so far", gate, alerts),
    )
    counted = (*results, candidate.compatible) if gate.compatible else results
    broken = "; ".join(f"{result.rule}: {result.message}" for result in counted if not result.passed)
    return _Evaluation(results, PASSED if is_promoted(counted) else f"rejected: {broken}", unseen)


def _log_settings(run: TrainingRun, config: PipelineConfig, sizes: Sizes) -> None:
    window = sizes.window
    settings = {
        **_flat("model", config.model.model_dump(mode="json")),
        **_flat("training", config.training.model_dump(mode="json")),
        "alerts.budget": config.alerts.budget,
        "gate.days": config.gate.days,
    }
    if config.model.latent_dim is None:  # chosen when the columns are encoded
        del settings["model.latent_dim"]
    run.log_params(
        settings | dict(sizes.chosen),
        tags={
            "window.fingerprint": window.fingerprint,
            "window.first_day": window.days[0],
            LAST_DAY_TAG: window.days[-1],
        },
    )


def _log_evaluation(
    run: TrainingRun,
    candidate: _Candidate,
    evaluation: _Evaluation,
    window: Window,
    content: Mapping[str, tuple[str, int]],
) -> None:
    alignment = candidate.alignment
    bundle = candidate.bundle
    # What is the same for each training, or says nothing as a bar among others, is no metric.
    fitted = {"best_epoch": candidate.result.best_epoch, "score_threshold": bundle.calibration.threshold}
    chosen = {"model.latent_dim": bundle.model.latent_dim} if bundle.config.model.latent_dim is None else {}
    tags = {name: str(value) for name, value in fitted.items()} | screening_tags(bundle.facts.screening)
    run.log_params(chosen, tags=tags)
    compatible = (candidate.compatible,) if alignment else ()
    run.log_metrics(
        {
            **evaluation_metrics(bundle, candidate.validation, evaluation.unseen, (*evaluation.results, *compatible)),
            "best_validation_loss": candidate.result.best_loss,
            **screening_metrics(bundle.facts.screening),
            **_flat("latents", alignment.compatibility.figures() if alignment else {}),
        }
    )
    parts = {part: list(getattr(window, part)) for part in (*PARTS, GATE)}
    run.log_json({"window": parts, "content": content}, WINDOW_FILE)


def _version_tags(candidate: _Candidate, evaluation: _Evaluation) -> dict[str, str]:
    figures = tagged_figures((*evaluation.results, candidate.compatible))
    # The gate's tag comes last: a version without it was not evaluated.
    return {
        _LATENTS_TAG: candidate.compatible.message,
        FIGURES_TAG: json.dumps(figures),
        LAST_DAY_TAG: candidate.bundle.window.days[-1],
        GATE_TAG: evaluation.gate,
    }


def _describe(
    run: TrainingRun,
    version: TrackedVersion,
    candidate: _Candidate,
    evaluation: _Evaluation,
    dataset: Dataset,
    links: Mapping[str, str],
) -> tuple[Sequence[Chart], str]:
    bundle, window = candidate.bundle, candidate.bundle.window
    source = dataset.paths.state_uri(dataset.paths.features(window.days[-1]).parent)
    run.log_data(dataset.name, window.fingerprint, source, bundle.facts.rows, bundle)
    results = (*evaluation.results, candidate.compatible)
    card = model_card(bundle, version.version, results, evaluation.gate, evaluation.unseen.height, links)
    run.describe(version, head_of(card), card)
    validation, unseen = (
        sample_rows(rows, _PLOTTED_ROWS, seed=0) for rows in (candidate.validation, evaluation.unseen)
    )
    charts = training_charts(bundle, validation, unseen)
    for chart in charts:
        run.log_picture(render_png(chart), f"{chart.name}.png")
    return charts, card


def _location_id(paths: DatasetPaths) -> str:
    """Return the id of the data folder, which moves with it. One run at a time holds the lock of a dataset there."""
    path = paths.history.with_suffix(".place")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if not re.fullmatch("[0-9a-f]{16}", text):  # the first training here, or a damaged file
        write_text(path, text := secrets.token_hex(8))
        save(paths)  # a training that is killed is found again by this id
    return text


def _streaming_message(bundle: ModelBundle) -> str:
    rows, seen, nouns = bundle.facts.rows, bundle.facts.rows_looked_at, plural(noun_of_rows(bundle.config))
    message = f"its {rows['train']:,} {nouns} exceed the memory budget, so the training streamed them from disk"
    if seen["train"] == rows["train"]:
        return message
    return f"{message}; statistics come from {seen['train']:,} of them and {seen['validation']:,} validation {nouns}"


def _warm_start_message(version: int, result: TrainingResult) -> str:
    start = f"warm start from version {version}" if result.is_warm else f"new weights, not those of version {version}"
    latents = "its latents were kept close" if result.is_anchored else "its latents were free to differ"
    return f"{start}; {latents}"


def _window_message(window: Window, rows_of_days: Mapping[str, int], dataset: Dataset) -> str:
    sizes: list[str] = []
    nouns = plural(noun_of_rows(dataset.config))
    for part in PARTS:
        days: tuple[str, ...] = getattr(window, part)
        if not dataset.config.is_daily or window.is_by_row:
            sizes.append(f"{window.count(part, dataset.paths):,}{'' if sizes else f' {nouns}'}")
        elif window.only_normal or window.where:  # the number of usable rows is known once they are read
            sizes.append(pluralize(len(days), "day"))
        else:
            sizes.append(f"{pluralize(len(days), 'day')} ({sum(rows_of_days[day] for day in days):,} {nouns})")
    message = "training on {}, validating on {}, calibrating on {}".format(*sizes)
    if dataset.config.is_daily and not window.is_by_row:
        return f"{message}; {pluralize(len(window.gate), 'day')} left for the gate"
    return f"{message}; {gate_rows(window, None, dataset.paths).height:,} left for the gate"


def _flat(prefix: str, values: Mapping[str, _T]) -> dict[str, _T]:
    return {f"{prefix}.{key}": value for key, value in values.items()}
