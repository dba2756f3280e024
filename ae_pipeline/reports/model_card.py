"""Charts of a training, and its model card (Mitchell et al. 2019) as Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2
import polars as pl

from ae_pipeline.common.escape import escape_markdown, without_html
from ae_pipeline.common.text import plural, with_article
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import GATE, PARTS
from ae_pipeline.reports.charts import Chart, calibration_chart, latent_chart, loss_chart, score_chart
from ae_pipeline.reports.page import by_reason
from ae_pipeline.storage.paths import ALL_ROWS

if TYPE_CHECKING:
    from ae_pipeline.gate.results import GateResult


_MAX_NAMED = 60
"""Maximum number of columns of one type that a card names."""


def training_charts(bundle: ModelBundle, validation: pl.DataFrame, unseen: pl.DataFrame) -> list[Chart]:
    """Return charts of loss, scores and latent space, and of the calibration if there are unseen rows.

    Args:
        bundle: Model.
        validation: Features of validation rows, n > 0.
        unseen: Features of rows that no part of the model was fitted on, such as those of the gate; may be empty.
    """
    known = _scored(bundle, validation)
    nouns = plural(noun_of_rows(bundle.config))
    rows, name = (_scored(bundle, unseen), "the gate") if unseen.height else (known, "the validation")
    scores, calibration = rows["score"].to_numpy(), bundle.calibration
    charts = [
        loss_chart(bundle.facts.epochs, bundle.facts.best_epoch, bundle.loss.unit),
        score_chart(scores, calibration.scores, calibration.threshold, name, nouns),
        latent_chart(rows, known.filter(~pl.col("is_anomaly")), bundle, name, "the validation"),
    ]
    if unseen.height:
        message = f"{len(scores):,} {nouns} of {name}, on which no part of the model was fitted."
        charts.append(calibration_chart(rows["p_value"].to_numpy(), message, nouns))
    return charts


def _scored(bundle: ModelBundle, features: pl.DataFrame) -> pl.DataFrame:
    """Return scored rows, in the columns of the latent table that charts need."""
    scored = bundle.score(features)
    latents = {f"z_{index:03d}": values for index, values in enumerate(scored.latents.T)}
    scores = {"score": scored.score, "p_value": scored.p_value, "is_anomaly": scored.is_anomaly}
    return features.select("row_id").with_columns(**scores, **latents)


def model_card(
    bundle: ModelBundle,
    version: int,
    results: Sequence["GateResult"],
    gate: str,
    gate_rows: int,
    links: Mapping[str, str],
) -> str:
    """Return the model card: architecture, data, training, metrics, calibration and limits.

    Args:
        bundle: Model.
        version: Registered version of the model.
        results: Results of the gate and of the latent checks.
        gate: Decision of the gate, as text.
        gate_rows: Number of rows that the gate evaluated.
        links: URLs by link text.
    """
    config, window, facts = bundle.config, bundle.window, bundle.facts
    counts = {**facts.rows, GATE: gate_rows}
    parts = {
        part: {"days": [day for day in getattr(window, part) if day != ALL_ROWS], "rows": counts[part]}
        for part in (*PARTS, GATE)
    }
    return _template().render(
        config=config,
        facts=facts,
        window=window,
        parts=parts,
        version=version,
        results=[dataclasses.asdict(result) for result in results],
        gate=gate,
        links=links,
        weights=sum(value.numel() for value in bundle.model.parameters()),
        latent_dim=bundle.model.latent_dim,
        shape=" × ".join(map(str, bundle.encoder.shape)),
        unit=bundle.loss.unit,
        columns=_by_type(bundle),
        left_out={reason: _named(names) for reason, names in _left_out(bundle).items()},
        calibration=bundle.calibration,
        fingerprint=bundle.fingerprint,
        noun=noun_of_rows(config),
    )


def head_of(card: str) -> str:
    """Return a card up to its first section, because notes in MLflow are limited to 5,000 characters."""
    return card.partition("\n## ")[0].strip()


def _by_type(bundle: ModelBundle) -> dict[str, str]:
    columns = sorted(bundle.encoder.columns, key=lambda column: str(column.type))
    context = [escape_markdown(column.name) for column in bundle.encoder.inputs[len(columns) :]]
    by_type = {
        str(kind): _named([escape_markdown(column.name) for column in some])
        for kind, some in groupby(columns, key=lambda column: column.type)
    }
    return by_type | ({"context": _named(context)} if context else {})


def _left_out(bundle: ModelBundle) -> dict[str, list[str]]:
    return by_reason({escape_markdown(entry.column): entry.reason for entry in bundle.encoder.left_out})


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"),
        autoescape=False,  # noqa: S701 (the output is Markdown, and values are escaped as Markdown)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "shown": escape_markdown,
        "without_html": without_html,
        "count": "{:,}".format,
        "short": "{:.4g}".format,
        "percent": "{:.3%}".format,
        "plural": plural,
        "article": with_article,
    }
    environment.filters |= filters
    return environment.get_template("model_card.md.j2")
