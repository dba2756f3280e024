"""All versions of a model with their figures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ae_pipeline.common.errors import UnknownVersionError
from ae_pipeline.common.text import pluralize
from ae_pipeline.lifecycle.promote import FIGURES_TAG, PASSED, RUN
from ae_pipeline.lifecycle.published_facts import PublishedFacts
from ae_pipeline.monitoring.feedback import marks_of
from ae_pipeline.monitoring.feedback_precision import precision_by_version
from ae_pipeline.registry.history import Change, history
from ae_pipeline.registry.names import CHAMPION, GATE_TAG, LAST_DAY_TAG, PUBLISHED_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset

_DESCRIBED = 20
"""Newest versions that a message lists."""

SHOWN_METRICS = ("auroc", "average_precision", "recall_at_budget", "calibration_error_percent", "flagged_percent")
"""Metrics of a training that were measured on rows that no part of the model has seen."""


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """A registered version.

    Attributes:
        version: Its number.
        run_id: MLflow run that trained it.
        serves: Whether it serves.
        first_day: First day of its window; empty for a version of an earlier package.
        last_day: Last day of its window.
        gate: Result of the gate.
        figures: Measured figures of the gate, by rule.
        limits: Thresholds of these figures, by rule.
        failed: Rules that did not pass.
        metrics: Metrics on rows that it has not seen, by the names of `SHOWN_METRICS`.
        precision: Share of real anomalies among its rows that people marked as real or false alarms; None without any.
        marked: Number of these rows.
        has_served: Whether it serves, or has served before.
        published: Flags and drift of the rows that it scored, as of its last report; None if they were not recorded.
    """

    version: int
    run_id: str
    serves: bool
    first_day: str
    last_day: str
    gate: str
    figures: Mapping[str, float]
    limits: Mapping[str, float]
    failed: frozenset[str]
    metrics: Mapping[str, float]
    precision: float | None
    marked: int
    has_served: bool
    published: PublishedFacts | None

    @property
    def passed(self) -> bool:
        """Whether the gate let it pass."""
        return self.gate == PASSED


def list_versions(dataset: Dataset, tracker: Tracker) -> list[VersionFacts]:
    """Return all registered versions of a dataset, the newest first.

    Args:
        dataset: Dataset of the model.
        tracker: The model store.
    """
    champion = tracker.version(dataset.name, CHAMPION)
    feedback = {each.version: each for each in precision_by_version(marks_of(dataset.paths))}
    facts, of_runs = [], tracker.facts_of_runs(dataset.name)
    served = {entry.runs.get(RUN) for entry in history(dataset.paths) if entry.change != Change.REJECTED}
    served |= {champion.run_id} if champion else set()
    summary = read_summary(dataset.paths) or {}
    for version in tracker.versions(dataset.name):
        tags, metrics = of_runs.get(version.run_id, ({}, {}))
        of_people = feedback.get(version.version)
        by_rule: dict[str, dict[str, float]] = {"figure": {}, "threshold": {}, "passed": {}}
        for name, value in json.loads(version.tags.get(FIGURES_TAG, "{}")).items():
            rule, _, kind = name.rpartition(".")
            by_rule.setdefault(kind, {})[rule] = value  # an earlier release may have tagged others
        facts.append(
            VersionFacts(
                version=version.version,
                run_id=version.run_id,
                serves=champion is not None and champion.version == version.version,
                first_day=tags.get("window.first_day", ""),
                last_day=tags.get(LAST_DAY_TAG, ""),
                gate=version.tags.get(GATE_TAG, "not evaluated"),
                figures=by_rule["figure"],
                limits=by_rule["threshold"],
                failed=frozenset(rule for rule, passed in by_rule["passed"].items() if not passed),
                metrics={name: metrics[f"unseen/{name}"] for name in SHOWN_METRICS if f"unseen/{name}" in metrics},
                precision=of_people.precision if of_people else None,
                marked=of_people.real + of_people.false_alarms if of_people else 0,
                has_served=version.run_id in served,
                published=PublishedFacts.of_summary(summary)
                if summary.get("mlflow_run") == version.run_id
                else PublishedFacts.of_tag(tags.get(PUBLISHED_TAG)),
            )
        )
    return sorted(facts, key=lambda each: -each.version)


def describe_versions(dataset: Dataset, tracker: Tracker) -> str:
    """Return the newest registered versions as a sentence, with what the gate said of each.

    Args:
        dataset: Dataset of the model.
        tracker: The model store.
    """
    versions = sorted(tracker.versions(dataset.name), key=lambda each: -each.version)
    champion = tracker.version(dataset.name, CHAMPION)
    serving = champion.version if champion else None
    named = [
        f"{each.version} ({'serves, ' if each.version == serving else ''}{each.tags.get(GATE_TAG, 'not evaluated')})"
        for each in versions[:_DESCRIBED]
    ]
    older = len(versions) - len(named)
    more = f", and {pluralize(older, 'older version')}" if older else ""
    return f"Versions of {dataset.name!r}: {', '.join(named) or 'none so far'}{more}"


def require_version(number: int, versions: Mapping[int, TrackedVersion], dataset: str) -> TrackedVersion:
    """Return a version by its number.

    Raises:
        UnknownVersionError: There is no such version.
    """
    if number not in versions:
        choices = ", ".join(map(str, sorted(versions))) or "none: train one first"
        raise UnknownVersionError(f"{dataset!r} has no version {number}; choose among {choices}")
    return versions[number]
