"""Metrics that the MLflow run of a training shows: figures that differ from one training to the next."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl

from ae_pipeline.common.escape import escape_markdown
from ae_pipeline.config.columns import ColumnType
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.features.split import LABEL
from ae_pipeline.gate.evaluation import reconstruction_errors
from ae_pipeline.gate.results import GateResult
from ae_pipeline.reports.labels import measure

_MAX_NAME = 250
"""Length of the name of a metric that MLflow accepts, characters."""

_CONSTANT_RULES = {"finite_weights"}
"""Rules whose figure is the same for each version that passes."""


def evaluation_metrics(
    bundle: ModelBundle, validation: pl.DataFrame, unseen: pl.DataFrame, results: Sequence[GateResult]
) -> dict[str, float]:
    """Return the metrics of a trained model.

    Args:
        bundle: The trained model.
        validation: Rows of the validation part.
        unseen: Rows of the gate's days, with the label if there is one.
        results: Results of the gate.
    """
    return {**gate_metrics(results), **validation_metrics(bundle, validation), **unseen_metrics(bundle, unseen)}


def tagged_figures(results: Sequence[GateResult]) -> dict[str, float]:
    """Return what a version is tagged with of the gate: figure, threshold, and whether the rule passed, by rule.

    Args:
        results: Results of the gate.
    """
    figures: dict[str, float] = {}
    for result in results:
        values = {"figure": result.figure, "threshold": result.threshold, "passed": float(result.passed)}
        figures |= {f"{result.rule}.{name}": value for name, value in values.items() if math.isfinite(value)}
    return figures


def gate_metrics(results: Sequence[GateResult]) -> dict[str, float]:
    """Return the measured figures of the gate, by rule; rules that compared nothing have none.

    Args:
        results: Results of the gate.
    """
    return {
        f"gate/{each.rule}": each.figure
        for each in results
        if math.isfinite(each.figure) and each.rule not in _CONSTANT_RULES
    }


def validation_metrics(bundle: ModelBundle, validation: pl.DataFrame) -> dict[str, float]:
    """Return the mean reconstruction error of each column on the validation rows, in the unit of the column.

    Args:
        bundle: The trained model.
        validation: Rows of the validation part.
    """
    errors = reconstruction_errors(bundle.network, validation)
    names = metric_names("validation_error/", {name: f"{name}{_unit(name, bundle)}" for name in errors})
    return {names[name]: error for name, error in errors.items()}


def _unit(name: str, bundle: ModelBundle) -> str:
    if not isinstance(bundle.encoder, TableEncoder):
        return ""
    column = next(each for each in bundle.encoder.columns if each.name == name)
    if column.is_category:
        return " share wrong"
    if column.type == ColumnType.CLOCK_HHMM:
        return " minutes"
    shown = bundle.config.display.get(name)
    return f" {shown.unit}" if shown and shown.unit else ""


def metric_names(prefix: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Return names that MLflow accepts, and of which no two are the same, also in a database that ignores case.

    A name that is cut, has no letter or digit, or is that of another text too ends with a hash.

    Args:
        prefix: Start of each name.
        texts: Text by the key that a hash is made from.

    >>> metric_names("", {"a": "price (€)", "b": "größe"})
    {'a': 'price ___', 'b': 'größe'}
    """
    names = {key: prefix + re.sub(r"[^\w. :-]", "_", text) for key, text in texts.items()}
    counts = Counter(name.casefold() for name in names.values())

    def is_unfit(key: str, name: str) -> bool:
        return len(name) > _MAX_NAME or counts[name.casefold()] > 1 or not re.search(r"[^\W_]", texts[key])

    return {key: _with_hash(name, key) if is_unfit(key, name) else name for key, name in names.items()}


def _with_hash(name: str, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return f"{name[: _MAX_NAME - len(digest) - 1]}-{digest}"


def unseen_metrics(bundle: ModelBundle, unseen: pl.DataFrame) -> dict[str, float]:
    """Return what the scores are worth on rows that no part of the model was fitted on; empty without rows.

    The calibration error is the distance of the flagged percentage from the alert budget, in percentage points. Where a
    label marks anomalies, they do not count for it.

    Args:
        bundle: The trained model.
        unseen: Rows of the gate's days, with the label if there is one.
    """
    if unseen.is_empty():
        return {}
    scored = bundle.score(unseen)
    label = (
        unseen[LABEL].cast(pl.Boolean)
        if LABEL in unseen.columns
        else pl.Series([None] * unseen.height, dtype=pl.Boolean)
    )
    normal = ~label.fill_null(value=False).to_numpy()
    metrics: dict[str, float] = {}
    if normal.any():
        # As percentages, because MLflow's charts show two decimals, and shares are far smaller.
        share = 100 * float(scored.is_anomaly[normal].mean())
        error = abs(share - 100 * bundle.calibration.budget)
        metrics |= {"flagged_percent": share, "calibration_error_percent": error}
    known = label.is_not_null().to_numpy()
    measured = measure(scored.score[known], ~normal[known], scored.is_anomaly[known])
    if measured.anomalies:
        metrics["recall_at_budget"] = measured.anomalies_flagged / measured.anomalies
    for name, value in (("auroc", measured.auroc), ("average_precision", measured.average_precision)):
        if value is not None:
            metrics[name] = value
    return {f"unseen/{name}": value for name, value in metrics.items()}


def run_name(window_days: Sequence[str], version: int | None = None, gate: str = "", *, is_daily: bool) -> str:
    """Return the name of a training's run: its version, the result of the gate, and its window.

    Args:
        window_days: Days of the window.
        version: Version that it registered; None before.
        gate: Result of the gate, with its reason after a colon.
        is_daily: Whether the dataset has days.

    >>> run_name(["2013-01-01", "2013-12-24"], 2, "rejected: recall", is_daily=True)
    'version 2 (rejected), 2013-01-01 to 2013-12-24'
    """
    window = f"{window_days[0]} to {window_days[-1]}" if is_daily else "all rows"
    state = f" ({gate.partition(':')[0]})" if gate else ""
    return f"version {version}{state}, {window}" if version is not None else window


def experiment_note(config: PipelineConfig, verdict: str = "", report: str = "") -> str:
    """Return the description of a dataset's experiment, Markdown.

    Args:
        config: Configuration of the dataset.
        verdict: Verdict on the newest complete day, which comes first, because the list of runs shows the first line.
        report: Address of the report.
    """
    note = _EXPERIMENT_NOTE.format(dataset=config.dataset, description=config.description).strip()
    return f"{escape_markdown(verdict)} [Open the report]({report}).\n\n{note}" if verdict else note


_EXPERIMENT_NOTE = """\
{description}

Each run is one training of the autoencoder of `{dataset}`. Its name says which version it registered, whether the gate
let it pass, and on which days it was trained, validated and calibrated. The tag `newest verdict` says what the report
found with it on the newest complete day, and the tag `report` where the report is.

- `unseen/…`: what the scores are worth on days that no part of the model has seen. AUROC, average precision and recall
  at the alert budget exist where a label marks anomalies. The calibration error is the distance of the flagged rows
  from the budget, both as percentages of the rows that are not known anomalies.
- `validation_error/…`: mean reconstruction error of each column, in its unit.
- `gate/…`: what the gate measured. The thresholds are in the tags of the version, and in the model card.
- `latents.…`: how well the latents agree with those of the version that served.

The model card is the artifact `model_card.md`.
"""
