"""All versions of a model with their figures, and what one of them flags that another does not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import PromotionError, UnknownVersionError
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import because
from ae_pipeline.features.build import features_content
from ae_pipeline.features.split import LABEL, sample_rows
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.lifecycle.promote import FIGURES_TAG, PASSED, RUN
from ae_pipeline.lifecycle.published_facts import PublishedFacts
from ae_pipeline.monitoring.feedback import marks_of
from ae_pipeline.monitoring.feedback_precision import precision_by_version
from ae_pipeline.registry.bundles import load_bundle
from ae_pipeline.registry.history import Change, history
from ae_pipeline.registry.names import CHAMPION, GATE_TAG, LAST_DAY_TAG, PUBLISHED_TAG
from ae_pipeline.registry.store import Tracker
from ae_pipeline.registry.versions import TrackedVersion
from ae_pipeline.reports.labels import Measures, measure
from ae_pipeline.reports.summary import read_summary
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import whole

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MAX_ROWS, _EXPLAINED = 50_000, 20
"""Rows that a comparison scores at most, and rows of each list that it explains."""

_DESCRIBED = 20
"""Newest versions that a message lists."""

NEWEST_DAYS = 7
"""Newest days that a comparison scores."""

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


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A row that one version flags and the other does not.

    Attributes:
        row_id: Identity of the row.
        day: Day of the row.
        score: Score under the version that flags it, nats.
        other_score: Score under the other version, nats.
        because: Why the version flags it.
    """

    row_id: str
    day: str
    score: float
    other_score: float
    because: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two versions flag on the newest days.

    Attributes:
        new: Version that is considered.
        old: Version to compare it with.
        days: Days whose rows were scored, the oldest first.
        rows: Rows that were scored.
        total: Rows of these days; a sample of them was scored if they are more than 50,000.
        flagged: Rows that each version flags: new, then old.
        both: Rows that both flag.
        thresholds: Threshold of each version, nats: new, then old.
        only_new: Rows that only the new version flags, the highest scores first, at most 20.
        only_old: Rows that only the old version flags, the same.
        correlation: Rank correlation of the scores; None if it is not defined.
        labeled: Measures of each version on labeled rows: new, then old; None without labels of both kinds.
    """

    new: int
    old: int
    days: tuple[str, ...]
    rows: int
    total: int
    flagged: tuple[int, int]
    both: int
    thresholds: tuple[float, float]
    only_new: tuple[ComparedRow, ...]
    only_old: tuple[ComparedRow, ...]
    correlation: float | None
    labeled: tuple[Measures, Measures] | None

    @property
    def gained(self) -> int:
        """Rows that only the new version flags."""
        return self.flagged[0] - self.both

    @property
    def lost(self) -> int:
        """Rows that only the old version flags."""
        return self.flagged[1] - self.both

    @property
    def rows_message(self) -> str:
        """How many rows were scored, and of how many."""
        return f"{self.rows:,} rows" if self.rows == self.total else f"{self.rows:,} of {self.total:,} rows"

    @property
    def message(self) -> str:
        """The comparison as a sentence."""
        sampled = f", sampled from the {self.total:,}" if self.rows < self.total else ""
        return (
            f"version {self.new} flags {self.flagged[0]:,} and version {self.old} flags {self.flagged[1]:,} of "
            f"{self.rows:,} rows{sampled} of the newest days: {self.both:,} by both, {self.gained:,} by version "
            f"{self.new} only, and {self.lost:,} by version {self.old} only"
        )


def compare_versions(dataset: Dataset, tracker: Tracker, new: int, old: int | None = None) -> Comparison:
    """Score the newest days with two versions, and return what each flags.

    Args:
        dataset: Dataset of the model.
        tracker: The model store.
        new: Version that is considered.
        old: Version to compare it with; by default the one that serves.

    Raises:
        PromotionError: A version does not exist, or there is nothing to score.
        BundleError: A bundle cannot be read, or cannot score the present features.
        StorageError: A bundle is gone.
    """
    versions = {each.version: each for each in tracker.versions(dataset.name)}
    if old is None:
        serving = tracker.version(dataset.name, CHAMPION)
        if serving is None:
            raise PromotionError(f"no version of {dataset.name!r} serves; name two versions to compare")
        old = serving.version
    if new == old:
        raise PromotionError(f"version {new} of {dataset.name!r} is compared with itself; name another version")
    chosen = [require_version(number, versions, dataset.name) for number in (new, old)]
    rows, days, total = _newest_rows(dataset)
    bundles = [load_bundle(tracker, each) for each in chosen]
    scored = [bundle.score(rows) for bundle in bundles]
    flags = [each.is_anomaly for each in scored]
    scores = [each.score for each in scored]
    names = column_names(dataset)
    only_new = _only(rows, days, bundles[0], flags[0] & ~flags[1], scores[0], scores[1], names)
    only_old = _only(rows, days, bundles[1], flags[1] & ~flags[0], scores[1], scores[0], names)
    return Comparison(
        new=chosen[0].version,
        old=chosen[1].version,
        days=tuple(days.unique().sort()),
        rows=rows.height,
        total=total,
        flagged=(int(flags[0].sum()), int(flags[1].sum())),
        both=int((flags[0] & flags[1]).sum()),
        thresholds=(bundles[0].calibration.threshold, bundles[1].calibration.threshold),
        only_new=only_new,
        only_old=only_old,
        correlation=_rank_correlation(scores[0], scores[1]),
        labeled=_labeled(rows, scores, flags),
    )


def require_version(number: int, versions: Mapping[int, TrackedVersion], dataset: str) -> TrackedVersion:
    """Return a version by its number.

    Raises:
        UnknownVersionError: There is no such version.
    """
    if number not in versions:
        choices = ", ".join(map(str, sorted(versions))) or "none: train one first"
        raise UnknownVersionError(f"{dataset!r} has no version {number}; choose among {choices}")
    return versions[number]


def _newest_rows(dataset: Dataset) -> tuple[pl.DataFrame, pl.Series, int]:
    """Return rows of the newest days, the day of each, and how many rows these days have.

    A feature may have any name, so the days are no column of the rows.
    """
    content = features_content(dataset)
    days = [day for day, (_, rows) in sorted(content.items()) if rows][-NEWEST_DAYS:]
    parts = [pl.read_parquet(whole(dataset.paths.features(day)), glob=False) for day in days]
    if not parts:
        raise PromotionError(f"{dataset.name!r} has no features to score; run `ae-pipeline run {dataset.name}` first")
    rows = pl.concat(parts, how="diagonal_relaxed")
    day_of_row = pl.concat(
        [part.select("row_id", pl.lit(day).alias("day")) for part, day in zip(parts, days, strict=True)]
    )
    # The sample depends on the identities only, so both frames stay aligned.
    chosen, chosen_days = (sample_rows(each, _MAX_ROWS, seed=0) for each in (rows, day_of_row))
    return chosen, chosen_days["day"], rows.height


def _only(
    rows: pl.DataFrame,
    days: pl.Series,
    bundle: ModelBundle,
    mask: Mask,
    scores: Array,
    others: Array,
    names: ColumnNames,
) -> tuple[ComparedRow, ...]:
    indices = np.flatnonzero(mask)
    indices = indices[np.argsort(-scores[indices], kind="stable")][:_EXPLAINED]
    if not len(indices):
        return ()
    chosen = rows[indices.tolist()]
    parts = bundle.explain(chosen.select(bundle.columns))
    return tuple(
        ComparedRow(
            row_id=row_id,
            day=day,
            score=float(scores[i]),
            other_score=float(others[i]),
            because=because(contributions, names),
        )
        for row_id, day, i, contributions in zip(chosen["row_id"], days[indices.tolist()], indices, parts, strict=True)
    )


def _rank_correlation(one: Array, other: Array) -> float | None:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    ranks = pl.DataFrame({"a": one, "b": other}).select(pl.corr("a", "b", method="spearman"))
    return float(ranks.item())


def _labeled(rows: pl.DataFrame, scores: list[Array], flags: list[Mask]) -> tuple[Measures, Measures] | None:
    if LABEL not in rows.columns:
        return None
    known = rows[LABEL].is_not_null().to_numpy()
    anomalies = rows[LABEL].fill_null(value=False).cast(pl.Boolean).to_numpy()[known]
    if not anomalies.any() or anomalies.all():
        return None
    first, second = (measure(score[known], anomalies, flag[known]) for score, flag in zip(scores, flags, strict=True))
    return first, second
