"""What a training tells of its model: plots, and a model card (Mitchell et al. 2019) in Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2
import polars as pl

from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import GATE, PARTS
from ae_pipeline.reports.charts import Chart, calibration_chart, latent_chart, loss_chart, score_chart
from ae_pipeline.reports.markdown import escaped
from ae_pipeline.reports.page import by_reason
from ae_pipeline.storage.paths import ALL_ROWS

if TYPE_CHECKING:
    from ae_pipeline.gate.rules import GateResult


_NAMED = 60
"""Columns of a kind that a card names, at most."""


def training_charts(bundle: ModelBundle, validation: pl.DataFrame, unseen: pl.DataFrame) -> list[Chart]:
    """Draws what a training shows: loss, scores, latent space, and calibration where rows were left for it.

    Args:
        bundle: The model.
        validation: Features of validation rows, n > 0.
        unseen: Of rows that no part of it has seen, such as those of the gate; may be none.
    """
    known = _scored(bundle, validation)
    rows, name = (_scored(bundle, unseen), "the gate") if unseen.height else (known, "the validation")
    scores, calibration = rows["score"].to_numpy(), bundle.calibration
    charts = [
        loss_chart(bundle.facts.epochs, bundle.facts.best_epoch, bundle.loss.unit),
        score_chart(scores, calibration.scores, calibration.threshold, name),
        latent_chart(rows, known.filter(~pl.col("is_anomaly")), bundle, name, "the validation"),
    ]
    if unseen.height:
        message = f"{len(scores):,} rows of {name}, which no part of the model has seen."
        charts.append(calibration_chart(rows["p_value"].to_numpy(), message))
    return charts


def _scored(bundle: ModelBundle, features: pl.DataFrame) -> pl.DataFrame:
    """Scores rows, in the columns of the latent table that charts need."""
    found = bundle.score(features)
    latents = {f"z_{index:03d}": values for index, values in enumerate(found.latents.T)}
    facts = {"score": found.score, "p_value": found.p_value, "is_anomaly": found.is_anomaly}
    return features.select("row_id").with_columns(**facts, **latents)


def model_card(
    bundle: ModelBundle,
    version: int,
    results: Sequence["GateResult"],
    gate: str,
    gate_rows: int,
    links: Mapping[str, str],
) -> str:
    """Tells what a model is, what it has learnt from, how good it is, and what it is not for.

    Args:
        bundle: The model.
        version: As which it is registered.
        results: Of the gate, and of the latents.
        gate: What they came to.
        gate_rows: Rows that they rest on.
        links: Where to look further: addresses by what is there.
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
    )


def head_of(card: str) -> str:
    """Takes what stands above a card's first section: MLflow's notes hold no more than 5,000 characters."""
    return card.partition("\n## ")[0].strip()


def _by_type(bundle: ModelBundle) -> dict[str, str]:
    columns = sorted(bundle.encoder.columns, key=lambda column: str(column.type))
    return {
        str(kind): _named([escaped(column.name) for column in some])
        for kind, some in groupby(columns, key=lambda column: column.type)
    }


def _left_out(bundle: ModelBundle) -> dict[str, list[str]]:
    return by_reason({escaped(entry.column): entry.reason for entry in bundle.encoder.left_out})


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ae_pipeline", "reports"),
        autoescape=False,  # noqa: S701 (Markdown, whose values are escaped as such)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told: dict[str, Any] = {
        "shown": escaped,
        "count": "{:,}".format,
        "short": "{:.4g}".format,
        "percent": "{:.3%}".format,
    }
    environment.filters |= told
    return environment.get_template("model_card.md.j2")
