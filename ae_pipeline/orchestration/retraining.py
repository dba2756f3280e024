"""Whether a training is due: what the last one started from, held against what is there now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import dagster as dg

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.orchestration.stages import asset_key
from ae_pipeline.storage.hashing import hash_json

Content = Mapping[str, tuple[str, int]]
"""Content hash and rows of each day of features."""


@dataclass(frozen=True)
class Due:
    """Whether to train, and why in words for a person."""

    yes: bool
    message: str


@dataclass(frozen=True)
class LastTraining:
    """What a training started from: the days as they stood, and a hash of the settings that shape a model."""

    content: Content
    settings: str


def settings_hash(config: PipelineConfig) -> str:
    """Changes when a training would give another model of the same rows.

    `images` decides what the model looks at and what its defaults are, `label` which columns are withheld and which
    rows are left out. Identity, event time and the schema contract are not here: they show in the content of the
    features.
    """
    settings = config.model_dump(mode="json", include={"model", "training", "exclude", "derive", "images", "label"})
    return hash_json([settings, config.alerts.budget, config.alerts.evidence, config.gate.days])


def last_training(instance: dg.DagsterInstance, config: PipelineConfig) -> LastTraining | None:
    """Reads what the last training started from, or None when there was none."""
    event = instance.get_latest_materialization_event(asset_key(config, "autoencoder"))
    metadata = event.asset_materialization.metadata if event and event.asset_materialization else {}
    if "window_content" not in metadata or "settings" not in metadata:
        return None
    content: Content = cast("Any", metadata["window_content"].value)
    days = {day: (digest, rows) for day, (digest, rows) in content.items()}
    return LastTraining(days, str(metadata["settings"].value))


def last_day_learnt(config: PipelineConfig, content: Content) -> str:
    """Gives the newest day that a training sees of these; those after it are the gate's. Empty where there is none."""
    days = sorted(day for day, (_, rows) in content.items() if rows)
    learnt = days[: max(len(days) - config.gate.days, 0)]
    return learnt[-1] if learnt else ""


def is_training_due(config: PipelineConfig, now: Content, last: LastTraining | None) -> Due:
    """Compares what the last training started from with what is there now.

    Args:
        config: The settings in force.
        now: Content of the features.
        last: What the last training started from.
    """
    if not any(rows for _, rows in now.values()):
        return Due(False, "there are no features yet; materialize raw_data and features first")
    if last is None:
        return Due(True, "nothing was trained yet")
    if last.settings != settings_hash(config):
        return Due(
            True, "the settings of model, training, alert budget or columns have changed since the last training"
        )
    changed = [day for day, (digest, _) in now.items() if day not in last.content or last.content[day][0] != digest]
    rows = sum(now[day][1] for day in changed)
    if not changed:
        everything = (
            pluralize(len(now), "day") if config.is_daily else f"{sum(rows for _, rows in now.values()):,} rows"
        )
        return Due(False, f"nothing new: all {everything} are as the last training found them")
    where = f"on {pluralize(len(changed), 'new or changed day')}" if config.is_daily else "with new or changed ones"
    message = f"{rows:,} rows {where} since the last training"
    if rows < config.retrain.min_new_rows:
        return Due(False, f"{message}, fewer than min_new_rows={config.retrain.min_new_rows:,}")
    return Due(True, message)
