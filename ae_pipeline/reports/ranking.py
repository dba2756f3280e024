"""Rank the most anomalous rows of each day and explain the flagged ones; one Parquet file for each day."""

import datetime as dt
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ae_pipeline.common.errors import PublicationError
from ae_pipeline.common.progress import ProgressLogger
from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import PLAIN, ColumnNames, noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import CONTRIBUTIONS, Contribution, because
from ae_pipeline.detector.heat_maps import Box
from ae_pipeline.features.build import with_exact_values
from ae_pipeline.features.split import LABEL
from ae_pipeline.latents.read import PublishedDay, published_day
from ae_pipeline.monitoring.budget import ReportDay
from ae_pipeline.reports.boxes import BOXES, hot_boxes
from ae_pipeline.reports.files import record_report_file
from ae_pipeline.reports.image_counts import image_counts_of, image_facts, image_versions
from ae_pipeline.reports.reasons import reason_of
from ae_pipeline.scoring.calibration import benjamini_hochberg
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.hashing import hash_json
from ae_pipeline.storage.parquet import detach, read_facts, whole, write_parquet
from ae_pipeline.storage.paths import DatasetPaths

REPORT_VERSION = "8"
"""Increased whenever the same scores would give another report."""

_MIN_RANKED = 10
"""Rows that are ranked of each day, so that they contain the ten most anomalous rows of all days."""

_MAX_RANKED = 20_000
"""Rows that are ranked of each day, so that a day on which nearly all rows are flagged fits into memory."""

_BATCH_BYTES = 1 << 26
"""Size of the ranked rows and features that are explained together, bytes."""

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
    "contributions": CONTRIBUTIONS,
    "boxes": BOXES,
}

DESCRIBED = {
    "row_id": "Identity of the row, as in the latent table.",
    "event_time": "Event time, UTC; null without event time.",
    "score": "Surprisal, nats; a higher score is more anomalous.",
    "p_value": "Share of calibration rows with a score at least as high.",
    "is_anomaly": "Whether the row is flagged: its p-value is within the alert budget.",
    "is_discovery": "Whether the row is a discovery at the false discovery rate; null without a rate.",
    LABEL: "Whether the label marks the row as an anomaly; null if unknown.",
    "model_version": "Version of the model that scored the row.",
    "because": "Explanation of the score as text; empty if the row is not flagged, or beyond `alerts.report_rows`.",
    "contributions": "Contributions by column, the largest first: surprisal in nats, actual and expected value, "
    "and the columns and values of a rare combination.",
    "boxes": "Hottest regions of a flagged image or patch: its pixels from `top` and `left` to below "
    "`bottom` and `right`, and the highest residual as a multiple of the usual one; empty for tables.",
}
"""Descriptions of the columns of the ranked rows."""

UNFINISHED = "unfinished.json"
"""File that exists while a report is built; it lists the days of the report."""

_PUBLISHED_COLUMNS = ("row_id", "event_time", "score", "p_value", "is_anomaly", "model_version")
"""Columns that ranked rows take from the published table."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankedRow:
    """A ranked row.

    Attributes:
        row_id: Identity of the row.
        event_time: Event time, in the time zone of the dataset; None without event time.
        score: Surprisal, nats.
        p_value: Share of calibration rows with a score at least as high.
        is_anomaly: Whether the row is flagged.
        is_discovery: Whether the row is a discovery at the false discovery rate; None without a rate.
        is_known_anomaly: Whether the label marks the row as an anomaly; None if unknown.
        because: Explanation as text; may be empty.
        contributions: Contributions to the score; empty if the row is not explained.
        boxes: Hottest regions of an image or a patch, in pixels of the image.
    """

    row_id: str
    event_time: dt.datetime | None
    score: float
    p_value: float
    is_anomaly: bool
    is_discovery: bool | None
    is_known_anomaly: bool | None
    because: str
    contributions: tuple[Contribution, ...]
    boxes: tuple[Box, ...] = ()

    @property
    def reason(self) -> str:
        """Explanation, with the remark that the row is not flagged if it is not."""
        return self.reason_as(PLAIN)

    def reason_as(self, names: ColumnNames) -> str:
        """Return why the row stands out.

        Args:
            names: How the text names columns.
        """
        text = because(self.contributions, names) if self.contributions and self.because else self.because
        return reason_of(text, is_marked=self.is_anomaly or bool(self.is_discovery))


def is_reported(day: str, published: PublishedDay | None, dataset: Dataset) -> bool:
    """Return whether the ranked rows of a day match the published table.

    Args:
        day: ISO date, or `ALL_ROWS`.
        published: File of the day in the published table; None if it has none.
        dataset: Configuration and paths of the dataset.
    """
    return read_facts(_day_file(dataset.paths, day)).get("input_hash") == ranking_hash(published, dataset.config)


def cut_short(paths: DatasetPaths) -> set[str]:
    """Return the days of a report that was interrupted. The report must be built again."""
    unfinished = paths.reports / UNFINISHED
    if not unfinished.exists():
        return set()
    try:
        return set(json.loads(unfinished.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # damaged: every reported day may be one of them
        return {path.stem for path in (paths.reports / "days").glob("[!.]*.parquet")}


def remove_foreign_days(dataset: Dataset) -> None:
    """Delete the ranked rows and pages of days that the dataset does not have as configured now."""
    for path in (dataset.paths.reports / "days").glob("[!.]*"):
        if path.suffix in {".parquet", ".html"} and not dataset.config.has_day(path.stem):
            path.unlink(missing_ok=True)
            record_report_file(path, dataset.paths)


def reported_day(day: str, paths: DatasetPaths) -> ReportDay | None:
    """Return the counts of a ranked day; None if the day is not ranked."""
    facts = read_facts(_day_file(paths, day))
    if not facts:
        return None
    return ReportDay(
        day=day,
        rows=int(facts["scored"]),
        flagged=int(facts.get("flagged", 0)),
        known_anomalies=int(facts.get("known_anomalies", 0)),
        known_flagged=int(facts.get("known_flagged", 0)),
        discovery_count=int(facts.get("discoveries", 0)),
        content_hash=facts["content_hash"],
        images=image_counts_of(facts),
    )


def reported_days(days: Iterable[str], paths: DatasetPaths) -> dict[str, ReportDay]:
    """Return the counts of the ranked days among `days`, by day, the oldest first."""
    return {day: entry for day in sorted(days) if (entry := reported_day(day, paths))}


def report_days(
    days: Sequence[str], files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle
) -> list[ReportDay]:
    """Rank the rows of each changed day, explain the marked ones, and write a file for each day.

    Args:
        days: Days to rank.
        files: Published days.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.

    Returns:
        Counts of all `days`.

    Raises:
        PublicationError: A day has features but is not in the published table.
    """
    paths, progress = dataset.paths, ProgressLogger(logger)
    drafts: list[_Draft] = []
    for done, day in enumerate(days):
        progress.update(done, len(days), "days ranked")
        if not is_reported(day, files.get(day), dataset):
            drafts.append(_rank(day, files.get(day), dataset, bundle))
        # Explaining one row costs nearly as much as explaining a thousand, so days are explained together.
        if sum(draft.size for draft in drafts) > _BATCH_BYTES:
            _explain(drafts, paths, bundle)
            drafts.clear()
    _explain(drafts, paths, bundle)
    return [entry for day in days if (entry := reported_day(day, paths))]


def all_ranked(paths: DatasetPaths, published: set[str]) -> pl.DataFrame:
    """Read the ranked rows of all published days, the highest score first."""
    reported = [path for path in sorted((paths.reports / "days").glob("[!.]*.parquet")) if path.stem in published]
    if not reported:
        return pl.DataFrame(schema=_SCHEMA)
    # While the days of an earlier release are ranked again, some files lack fields of the contributions.
    cast = pl.ScanCastOptions(missing_struct_fields="insert")
    rows = pl.scan_parquet(reported, glob=False, schema=_SCHEMA, cast_options=cast).collect()
    return rows.sort(["score", "row_id"], descending=[True, False])


def ranked_day(day: str, paths: DatasetPaths) -> pl.DataFrame:
    """Read the ranked rows of a day, the highest score first."""
    return pl.read_parquet(_day_file(paths, day), glob=False)


def as_rows(ranked: pl.DataFrame, timezone: str = "UTC") -> Iterator[RankedRow]:
    """Yield the rows of a ranked table.

    Args:
        ranked: Ranked rows.
        timezone: Time zone of the event times of the result.
    """
    local = ranked.with_columns(pl.col("event_time").dt.convert_time_zone(timezone))
    for row in local.drop("model_version").iter_rows(named=True):
        parts = tuple(map(Contribution.from_record, row["contributions"]))
        yield RankedRow(**{**row, "contributions": parts, "boxes": tuple(Box(**box) for box in row["boxes"])})


def features_of(row_ids: pl.Series, day: str, paths: DatasetPaths) -> pl.DataFrame:
    """Read the features of rows of a day, in the order of `row_ids`; rows that the day no longer has are omitted.

    Integers and decimals have their exact raw values, which people are shown. A model reads both as float64.
    """
    file = pl.scan_parquet(whole(paths.features(day)), glob=False)
    features = _with_exact_values(file.filter(pl.col("row_id").is_in(row_ids.implode())).collect(), paths.raw(day))
    return row_ids.to_frame("row_id").join(features, on="row_id", maintain_order="left").select(features.columns)


def _with_exact_values(features: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Replace float64 features by the integers or decimals that they are made from."""
    if not path.exists():
        return features
    raw = pl.scan_parquet(whole(path), glob=False)
    numbers = (name for name, dtype in raw.collect_schema().items() if dtype.is_numeric() and name in features)
    chosen = raw.select("row_id", *numbers).filter(pl.col("row_id").is_in(features["row_id"].implode()))
    aligned = features.select("row_id").join(chosen.collect(), on="row_id", how="left", maintain_order="left")
    return with_exact_values(features, aligned)


def scored_and_known(day: PublishedDay, paths: DatasetPaths) -> pl.DataFrame:
    """Read identity, score, flag and label of the rows of a published day."""
    return with_label(published_day(day, paths, ["row_id", "score", "is_anomaly"]), day.day, paths)


def with_label(scored: pl.DataFrame, day: str, paths: DatasetPaths) -> pl.DataFrame:
    """Return scored rows of a day with their label in `LABEL`; null if unknown."""
    file = pl.scan_parquet(whole(paths.features(day)), glob=False)
    if LABEL not in file.collect_schema():
        return scored.with_columns(pl.lit(None, pl.Boolean).alias(LABEL))
    return scored.join(file.select("row_id", LABEL).collect(), on="row_id", how="left", maintain_order="left")


def ranking_hash(published: PublishedDay | None, config: PipelineConfig) -> str:
    """Return a hash of what the ranked rows of a day are made from: its published rows, and settings of the report."""
    identity, alerts = published.identity if published else None, config.alerts
    settings = [alerts.report_rows, alerts.false_discovery_rate, *image_versions(config)]
    return hash_json([REPORT_VERSION, identity, *settings])


def _day_file(paths: DatasetPaths, day: str) -> Path:
    return paths.reports / "days" / f"{day}.parquet"


@dataclass(frozen=True)
class _Draft:
    """A ranked day whose rows are not explained yet. `features` are those of the first rows of `top`."""

    day: str
    facts: dict[str, str]
    top: pl.DataFrame
    features: pl.DataFrame

    @property
    def size(self) -> int:
        """Size of both, bytes."""
        return int(self.top.estimated_size() + self.features.estimated_size())


def _rank(day: str, published: PublishedDay | None, dataset: Dataset, bundle: ModelBundle) -> _Draft:
    config, paths = dataset.config, dataset.paths
    if published is None:
        if int(read_facts(paths.features(day)).get("rows", 0)):
            raise PublicationError(
                f"{day} of {paths.dataset!r} is not in the published table; materialize latent_features first"
            )
        scored = pl.DataFrame(schema={name: _SCHEMA[name] for name in (*_PUBLISHED_COLUMNS, LABEL)})
    else:
        scored = with_label(published_day(published, paths, _PUBLISHED_COLUMNS), day, paths)
    scored = _with_discoveries(scored, config.alerts.false_discovery_rate)
    known, flagged, marked = scored[LABEL].fill_null(value=False), scored["is_anomaly"], scored["is_discovery"].sum()
    wanted = max(int(flagged.sum()), int(marked), _MIN_RANKED)
    if wanted > _MAX_RANKED:
        most = f"the report and alerts.parquet have the highest {_MAX_RANKED:,}"
        logger.warning(f"{day}: {pluralize(wanted, noun_of_rows(config))} are flagged; {most}")
    # The identity breaks ties, so that the order is deterministic.
    top = scored.sort(["score", "row_id"], descending=[True, False]).head(min(wanted, _MAX_RANKED))
    row_ids = pl.scan_parquet(whole(paths.features(day)), glob=False).select("row_id")
    top = top.lazy().join(row_ids, on="row_id", how="semi", maintain_order="left").collect()
    features = features_of(top["row_id"].head(config.alerts.report_rows), day, paths)
    counts = {"scored": scored.height, "flagged": flagged.sum(), "known_anomalies": known.sum()}
    counts |= {"known_flagged": (known & flagged).sum(), "discoveries": marked}
    facts = {name: str(int(value)) for name, value in (counts | image_facts(scored, bundle.judge_images)).items()}
    return _Draft(day, {"input_hash": ranking_hash(published, config), **facts}, detach(top), detach(features))


def _with_discoveries(scored: pl.DataFrame, rate: float | None) -> pl.DataFrame:
    marks = [None] * scored.height if rate is None else benjamini_hochberg(scored["p_value"].to_numpy(), rate)
    return scored.with_columns(pl.Series("is_discovery", marks, dtype=pl.Boolean))


def _explain(drafts: Sequence[_Draft], paths: DatasetPaths, bundle: ModelBundle) -> None:
    tops = [draft.top.head(draft.features.height) for draft in drafts]
    marked = [top["is_anomaly"] | top["is_discovery"].fill_null(value=False) for top in tops]
    # Days with features of other settings may have further columns.
    features = [draft.features.select(bundle.columns).filter(mask) for draft, mask in zip(drafts, marked, strict=True)]
    explanations = iter(bundle.explain(pl.concat(features, how="vertical_relaxed")) if drafts else [])
    for draft, mask in zip(drafts, marked, strict=True):
        parts: list[list[Contribution]] = [next(explanations) if is_marked else [] for is_marked in mask]
        regions = iter(hot_boxes(bundle, draft.features.filter(mask)))
        boxes = [[box._asdict() for box in next(regions)] if is_marked else [] for is_marked in mask]
        beyond = draft.top.height - len(parts)
        parts, boxes = parts + [[]] * beyond, boxes + [[]] * beyond
        ranked = draft.top.with_columns(
            boxes=pl.Series(boxes, dtype=_SCHEMA["boxes"]),
            because=pl.Series([because(row) for row in parts], dtype=pl.String),
            contributions=pl.Series([[part.record() for part in row] for row in parts], dtype=_SCHEMA["contributions"]),
        )
        write_parquet(_day_file(paths, draft.day), ranked.select(*_SCHEMA).to_arrow(), draft.facts)
