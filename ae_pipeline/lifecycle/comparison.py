"""What one version of a model flags on the newest days that another does not."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.common.errors import PromotionError
from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.display import ColumnNames
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.explanation import because
from ae_pipeline.detector.image_verdicts import IMAGE_ID, has_patches, image_of_row
from ae_pipeline.features.build import features_content
from ae_pipeline.features.split import LABEL
from ae_pipeline.ingestion.names import column_names
from ae_pipeline.lifecycle.versions import require_version
from ae_pipeline.monitoring.feedback import marks_of
from ae_pipeline.registry.bundles import load_bundle
from ae_pipeline.registry.names import CHAMPION
from ae_pipeline.registry.store import Tracker
from ae_pipeline.reports.image_counts import judged_with_label
from ae_pipeline.reports.labels import Measures, marked_label, measure_rows
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import whole
from ae_pipeline.storage.paths import ALL_ROWS

Array = npt.NDArray[np.float64]

_MAX_ROWS, _EXPLAINED = 50_000, 20
"""Rows that a comparison scores at most, and rows of each list that it explains."""

NEWEST_DAYS = 7
"""Newest days that a comparison scores."""


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A row or an image that one version flags and the other does not.

    Attributes:
        row_id: Identity of the row, or of the image.
        day: Day of the row.
        score: Score under the version that flags it, nats.
        other_score: Score under the other version, nats.
        because: Why the version flags it; of an image, why its most anomalous patch stands out.
    """

    row_id: str
    day: str
    score: float
    other_score: float
    because: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two versions flag on the newest days.

    Where rows are patches of images, images are compared. With a version that has no calibration of images, rows are.

    Attributes:
        new: Version that is considered.
        old: Version to compare it with.
        days: Days whose rows were scored, the oldest first.
        unit: What is compared: `image`, or what a row is called.
        rows: Rows or images that were scored.
        total: Rows or images of these days; a sample was scored if the rows are more than 50,000.
        flagged: Rows or images that each version flags: new, then old.
        both: Rows or images that both flag.
        thresholds: Threshold of each version, nats: new, then old.
        only_new: What only the new version flags, the highest scores first, at most 20.
        only_old: What only the old version flags, the same.
        correlation: Rank correlation of the scores; None if it is not defined.
        labeled: Measures of each version on labeled rows or images: new, then old; None without labels of both kinds.
        patches_flagged: Patches that each version flags; None unless images are compared.
        patches: Number of their patches; 0 unless images are compared.
    """

    new: int
    old: int
    days: tuple[str, ...]
    unit: str
    rows: int
    total: int
    flagged: tuple[int, int]
    both: int
    thresholds: tuple[float, float]
    only_new: tuple[ComparedRow, ...]
    only_old: tuple[ComparedRow, ...]
    correlation: float | None
    labeled: tuple[Measures, Measures] | None
    patches_flagged: tuple[int, int] | None = None
    patches: int = 0

    @property
    def units(self) -> str:
        """What is compared, in the plural."""
        return plural(self.unit)

    @property
    def gained(self) -> int:
        """Rows or images that only the new version flags."""
        return self.flagged[0] - self.both

    @property
    def lost(self) -> int:
        """Rows or images that only the old version flags."""
        return self.flagged[1] - self.both

    @property
    def rows_message(self) -> str:
        """How many rows or images were scored, and of how many."""
        scored = f"{self.rows:,} of {self.total:,}" if self.rows < self.total else f"{self.rows:,}"
        return f"{scored} {self.units}"

    @property
    def message(self) -> str:
        """The comparison as a sentence."""
        sampled = f", sampled from the {self.total:,}" if self.rows < self.total else ""
        newest = "" if self.days == (ALL_ROWS,) else " of the newest days"
        return (
            f"version {self.new} flags {self.flagged[0]:,} and version {self.old} flags {self.flagged[1]:,} of "
            f"{pluralize(self.rows, self.unit)}{sampled}{newest}: {self.both:,} by both, {self.gained:,} by "
            f"version {self.new} only, and {self.lost:,} by version {self.old} only"
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
    rows, days, identities = _newest_rows(dataset)
    bundles = [load_bundle(tracker, each) for each in chosen]
    scored = [_score(rows, bundle, dataset) for bundle in bundles]
    # The identities are those of the features, which a version that was trained before a change need not have.
    identity = dataset.config.identity
    judges = [replace(judge, identity=identity) for bundle in bundles if (judge := bundle.judge_images)]
    by_image = has_patches(dataset.config) and len(judges) == len(bundles)
    if by_image:
        judged = [judged_with_label(*each).rename({IMAGE_ID: "row_id"}) for each in zip(scored, judges, strict=True)]
        images = judged[0].select("row_id")
        compared = [images.join(each, on="row_id", how="left", maintain_order="left") for each in judged]
        thresholds = [judge.calibration.threshold for judge in judges]
    else:
        compared = [each.with_columns(strangest="row_id") for each in scored]
        thresholds = [bundle.calibration.threshold for bundle in bundles]
    flags = [each["is_anomaly"] for each in compared]
    names = column_names(dataset)
    only_new, only_old = (
        _only(compared[one], compared[other]["score"], flags[one] & ~flags[other], rows, days, bundles[one], names)
        for one, other in ((0, 1), (1, 0))
    )
    return Comparison(
        new=chosen[0].version,
        old=chosen[1].version,
        days=tuple(days.unique().sort()),
        unit="image" if by_image else names.row,
        rows=compared[0].height,
        total=identities.n_unique() if by_image else len(identities),
        flagged=(int(flags[0].sum()), int(flags[1].sum())),
        both=int((flags[0] & flags[1]).sum()),
        thresholds=(thresholds[0], thresholds[1]),
        only_new=only_new,
        only_old=only_old,
        correlation=_rank_correlation(*(each["score"].to_numpy() for each in compared)),
        labeled=_labeled(compared),
        patches_flagged=(int(scored[0]["is_anomaly"].sum()), int(scored[1]["is_anomaly"].sum())) if by_image else None,
        patches=rows.height if by_image else 0,
    )


def _newest_rows(dataset: Dataset) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """Return rows of the newest days, the day of each, and the identity of each row of these days, or of its image.

    Of many rows, a sample is returned. It parts no image. A feature may have any name, so the days are no column of
    the rows.
    """
    content = features_content(dataset)
    days = [day for day, (_, rows) in sorted(content.items()) if rows][-NEWEST_DAYS:]
    if not days:
        raise PromotionError(f"{dataset.name!r} has no features to score; run `ae-pipeline run {dataset.name}` first")
    files = [pl.scan_parquet(whole(dataset.paths.features(day)), glob=False) for day in days]
    of_image = image_of_row(dataset.config)
    identities = pl.concat([file.select(of_image) for file in files]).collect()
    if identities.height > _MAX_ROWS:
        sizes = identities.group_by(IMAGE_ID).len().sort(pl.col(IMAGE_ID).hash(seed=0))
        chosen = sizes.filter(pl.col("len").cum_sum() - pl.col("len") < _MAX_ROWS)[IMAGE_ID]
        files = [file.filter(of_image.is_in(chosen.implode())) for file in files]
    parts = pl.collect_all(files)
    day_of_row = [day for day, part in zip(days, parts, strict=True) for _ in range(part.height)]
    return pl.concat(parts, how="diagonal_relaxed"), pl.Series(day_of_row, dtype=pl.String), identities[IMAGE_ID]


def _score(rows: pl.DataFrame, bundle: ModelBundle, dataset: Dataset) -> pl.DataFrame:
    """Return `row_id`, `score`, `is_anomaly` and label of rows; a mark of a person replaces the label."""
    scored, label = bundle.score(rows), pl.lit(None, pl.Boolean).alias(LABEL)
    if LABEL in rows.columns:
        label = marked_label(marks_of(dataset.paths))
    return rows.select("row_id", label.cast(pl.Boolean)).with_columns(
        pl.Series("score", scored.score), pl.Series("is_anomaly", scored.is_anomaly)
    )


def _only(
    scored: pl.DataFrame,
    others: pl.Series,
    mask: pl.Series,
    rows: pl.DataFrame,
    days: pl.Series,
    bundle: ModelBundle,
    names: ColumnNames,
) -> tuple[ComparedRow, ...]:
    """Return what only one version flags, with the highest scores.

    Args:
        scored: Rows or images with their scores under that version.
        others: Scores under the other version.
        mask: Whether only that version flags it.
        rows: Rows that were scored.
        days: Day of each of them.
        bundle: The version.
        names: How the explanation names columns.
    """
    flagged = scored.with_columns(others.alias("other")).filter(mask)
    flagged = flagged.sort("score", descending=True, maintain_order=True).head(_EXPLAINED)
    if flagged.is_empty():
        return ()
    index_of = {row_id: index for index, row_id in enumerate(rows["row_id"])}
    indices = [index_of[row_id] for row_id in flagged["strangest"]]
    parts = bundle.explain(rows[indices].select(bundle.columns))
    entries = zip(flagged.iter_rows(named=True), days[indices], parts, strict=True)
    return tuple(
        ComparedRow(
            row_id=row["row_id"],
            day=day,
            score=row["score"],
            other_score=row["other"],
            because=because(contributions, names),
        )
        for row, day, contributions in entries
    )


def _rank_correlation(one: Array, other: Array) -> float | None:
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    ranks = pl.DataFrame({"a": one, "b": other}).select(pl.corr("a", "b", method="spearman"))
    return float(ranks.item())


def _labeled(compared: list[pl.DataFrame]) -> tuple[Measures, Measures] | None:
    first, second = (measure_rows(each.drop_nulls(LABEL)) for each in compared)
    return (first, second) if first.anomalies and first.normal else None
