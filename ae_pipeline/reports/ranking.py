"""Ranks the strangest rows of each day and explains those that are flagged, a Parquet file a day."""

import datetime as dt
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import Contribution
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.scoring.calibration import benjamini_hochberg
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import detach, read_facts, write_parquet
from ae_pipeline.storage.paths import DatasetPaths

REPORT_VERSION = "5"
"""Raised when the same scores would give another report."""

_ALWAYS_SHOWN = 10
"""Rows of each day that are ranked at least, so that the ten strangest of all days are among them."""

_BYTES_AT_ONCE = 1 << 26
"""Of the features of ranked rows that wait to be explained together."""

_SCHEMA = {
    "row_id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "score": pl.Float64(),
    "p_value": pl.Float64(),
    "is_anomaly": pl.Boolean(),
    "is_discovery": pl.Boolean(),
    LABEL: pl.Boolean(),
    "model_version": pl.Int64(),
    "because": pl.String(),
    "contributions": pl.List(
        pl.Struct({"column": pl.String(), "surprise": pl.Float64(), "actual": pl.String(), "expected": pl.String()})
    ),
}

DESCRIBED = {
    "row_id": "Identity of the row, as in the latent table.",
    "event_time": "When it happened, UTC; null without event time.",
    "score": "Surprise, nats; the higher, the stranger.",
    "p_value": "Share of rows like those of the calibration that score as high.",
    "is_anomaly": "Whether it is flagged: its p-value lies within the alert budget.",
    "is_discovery": "Whether it is also one at the false discovery rate; null without one.",
    LABEL: "What the label says of it; null without one.",
    "model_version": "That scored it.",
    "because": "What made it strange, in words; empty where it is not flagged.",
    "contributions": "The same by column, the largest first: surprise in nats, actual and expected value.",
}
"""Columns of the ranked rows."""

UNFINISHED = "unfinished.json"
"""Beside a report while it is made: its days."""

_RANKED = ("row_id", "event_time", "score", "p_value", "is_anomaly", "model_version")
"""What a ranked row bears of the published one."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankedRow:
    """A row of the report; one that is not marked has contributions only where somebody asked for them."""

    row_id: str
    event_time: dt.datetime | None
    score: float
    p_value: float
    is_anomaly: bool
    is_discovery: bool | None
    is_known_anomaly: bool | None
    because: str
    contributions: tuple[Contribution, ...]

    @property
    def reason(self) -> str:
        """Why it stands out, and whether that is enough to be flagged."""
        return reason_of(self.because, is_marked=self.is_anomaly or bool(self.is_discovery))


def reason_of(because: str, *, is_marked: bool) -> str:
    """Says why a row stands out, and that it is not marked where it is not; then it may have no reason."""
    if is_marked:
        return because
    return f"not flagged; most unusual: {because}" if because else "not flagged"


def is_reported(day: str, published: PublishedDay | None, dataset: Dataset) -> bool:
    """Tells whether a day's ranked rows are those that the table has."""
    config, paths = dataset.config, dataset.paths
    return read_facts(_day_file(paths, day)).get("input_hash") == _input_hash(published, config)


def cut_short(paths: DatasetPaths) -> set[str]:
    """Lists the days of a report that was begun and not ended: their rows may be ranked, and the rest lacks them."""
    index = paths.reports / UNFINISHED
    return set(json.loads(index.read_text(encoding="utf-8"))) if index.exists() else set()


def reported_day(day: str, paths: DatasetPaths) -> ReportDay | None:
    """Reads what is known of a day that was ranked before."""
    facts = read_facts(_day_file(paths, day))
    if not facts:
        return None
    return ReportDay(
        day,
        rows=int(facts["scored"]),
        flagged=int(facts.get("flagged", 0)),
        known_anomalies=int(facts.get("known_anomalies", 0)),
        known_flagged=int(facts.get("known_flagged", 0)),
        discovery_count=int(facts.get("discoveries", 0)),
        content_hash=facts["content_hash"],
    )


def report_days(
    days: Sequence[str],
    files: Mapping[str, PublishedDay],
    dataset: Dataset,
    bundle: ModelBundle,
) -> list[ReportDay]:
    """Ranks the rows of each day that needs it, explains those that are marked, and writes a file for each.

    Args:
        days: To rank.
        files: The published days.
        dataset: Configuration and paths of the dataset.
        bundle: The model that the table was scored with.

    Raises:
        PublicationError: A day has features and is not in the published table.
    """
    paths, progress = dataset.paths, ProgressLogger(logger)
    drafts: list[_Draft] = []
    for done, day in enumerate(days):
        progress.update(done, len(days), "days ranked")
        if not is_reported(day, files.get(day), dataset):
            drafts.append(_rank(day, files.get(day), dataset))
        # Many together, since explaining one row costs nearly what explaining a thousand does.
        if sum(draft.features.estimated_size() for draft in drafts) > _BYTES_AT_ONCE:
            _explain(drafts, paths, bundle)
            drafts.clear()
    _explain(drafts, paths, bundle)
    return [found for day in days if (found := reported_day(day, paths))]


def all_ranked(paths: DatasetPaths, published: set[str]) -> pl.DataFrame:
    """Reads the ranked rows of all published days, the strangest first."""
    reported = [path for path in sorted((paths.reports / "days").glob("[!.]*.parquet")) if path.stem in published]
    rows = pl.concat([pl.DataFrame(schema=_SCHEMA), *(pl.read_parquet(path) for path in reported)])
    return rows.sort(["score", "row_id"], descending=[True, False])


def ranked_day(day: str, paths: DatasetPaths) -> pl.DataFrame:
    """Reads the ranked rows of a day, the strangest first."""
    return pl.read_parquet(_day_file(paths, day))


def as_rows(ranked: pl.DataFrame) -> Iterator[RankedRow]:
    """Gives ranked rows one by one."""
    for row in ranked.drop("model_version").iter_rows(named=True):
        yield RankedRow(**{**row, "contributions": tuple(map(Contribution.from_record, row["contributions"]))})


def features_of(row_ids: pl.Series, day: str, paths: DatasetPaths) -> pl.DataFrame:
    """Reads the features of some rows of a day, in their order; a row that has left the day is left out."""
    file = pl.scan_parquet(paths.features(day), glob=False)
    found = file.filter(pl.col("row_id").is_in(row_ids.implode())).collect()
    return row_ids.to_frame("row_id").join(found, on="row_id", maintain_order="left").select(found.columns)


def scored_and_known(day: PublishedDay, paths: DatasetPaths) -> pl.DataFrame:
    """Reads identity, score and flag of a published day, with `LABEL`: null where nothing is known."""
    return _with_label(published_day(day, paths, ["row_id", "score", "is_anomaly"]), day.day, paths)


def _with_label(scored: pl.DataFrame, day: str, paths: DatasetPaths) -> pl.DataFrame:
    file = pl.scan_parquet(paths.features(day), glob=False)
    if LABEL not in file.collect_schema():
        return scored.with_columns(pl.lit(None, pl.Boolean).alias(LABEL))
    return scored.join(file.select("row_id", LABEL).collect(), on="row_id", how="left", maintain_order="left")


def _input_hash(published: PublishedDay | None, config: PipelineConfig) -> str:
    identity = published.identity if published else None
    return hash_json([REPORT_VERSION, identity, config.alerts.report_rows, config.alerts.false_discovery_rate])


def _day_file(paths: DatasetPaths, day: str) -> Path:
    return paths.reports / "days" / f"{day}.parquet"


@dataclass(frozen=True)
class _Draft:
    """A day whose rows are ranked and not yet explained."""

    day: str
    facts: dict[str, str]
    top: pl.DataFrame
    features: pl.DataFrame


def _rank(day: str, published: PublishedDay | None, dataset: Dataset) -> _Draft:
    config, paths = dataset.config, dataset.paths
    if published is None:
        if int(read_facts(paths.features(day)).get("rows", 0)):
            raise PublicationError(
                f"{day} of {paths.dataset!r} is not in the published table; materialize latent_features first"
            )
        scored = pl.DataFrame(schema={name: _SCHEMA[name] for name in (*_RANKED, LABEL)})
    else:
        scored = _with_label(published_day(published, paths, _RANKED), day, paths)
    scored = _with_discoveries(scored, config.alerts.false_discovery_rate)
    known, flagged = scored[LABEL].fill_null(value=False), scored["is_anomaly"]
    marked = scored["is_discovery"].sum()
    count = min(max(int(flagged.sum()), int(marked), _ALWAYS_SHOWN), config.alerts.report_rows, scored.height)
    # Highest score first; of equal ones the identity decides, so that the order is always the same.
    top = scored.sort(["score", "row_id"], descending=[True, False]).head(count)
    features = features_of(top["row_id"], day, paths)
    top = top.join(features.select("row_id"), on="row_id", how="semi", maintain_order="left")
    counts = {"scored": scored.height, "flagged": flagged.sum(), "known_anomalies": known.sum()}
    counts |= {"known_flagged": (known & flagged).sum(), "discoveries": marked}
    facts = {name: str(int(value)) for name, value in counts.items()}
    return _Draft(day, {"input_hash": _input_hash(published, config), **facts}, detach(top), detach(features))


def _with_discoveries(scored: pl.DataFrame, rate: float | None) -> pl.DataFrame:
    marks = [None] * scored.height if rate is None else benjamini_hochberg(scored["p_value"].to_numpy(), rate)
    return scored.with_columns(pl.Series("is_discovery", marks, dtype=pl.Boolean))


def _explain(drafts: Sequence[_Draft], paths: DatasetPaths, bundle: ModelBundle) -> None:
    marked = [draft.top["is_anomaly"] | draft.top["is_discovery"].fill_null(value=False) for draft in drafts]
    # The model's columns alone: days whose features were made under other settings may have others beside them.
    features = [draft.features.select(bundle.columns).filter(own) for draft, own in zip(drafts, marked, strict=True)]
    explanations = iter(bundle.explain(pl.concat(features)) if drafts else [])
    for draft, own in zip(drafts, marked, strict=True):
        parts: list[list[Contribution]] = [next(explanations) if is_marked else [] for is_marked in own]
        ranked = draft.top.with_columns(
            because=pl.Series([because(row) for row in parts], dtype=pl.String),
            contributions=pl.Series([[part.record() for part in row] for row in parts], dtype=_SCHEMA["contributions"]),
        )
        write_parquet(_day_file(paths, draft.day), ranked.select(*_SCHEMA).to_arrow(), draft.facts)


def because(parts: Sequence[Contribution]) -> str:
    """Says in one line what made a row strange: its strongest parts, and those that are rare on their own beside."""
    telling = [part for part in parts if part.surprisal >= max(4.6, 0.3 * parts[0].surprisal)] or parts[:1]
    return "; ".join(f"{part.column} is {part.actual}, expected {part.expected}" for part in telling)
