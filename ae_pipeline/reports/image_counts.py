"""Counts of labeled images whose patches are rows: a label says of an image that it has a defect, not of each patch."""

from collections.abc import Mapping
from dataclasses import asdict, fields

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.image_verdicts import IMAGE_ID, ImageJudge, has_patches, image_id
from ae_pipeline.features.split import LABEL
from ae_pipeline.monitoring.budget import ImageCounts

_VERSION = "1"
"""Increased whenever the same scores of patches would give other counts of images."""

_PREFIX = "images_"
"""Prefix of the counts in the footer of a ranked day, where the counts of rows have the same names."""


def image_versions(config: PipelineConfig) -> list[str]:
    """Return the version of the counts, for the hash of ranked rows; none unless rows are patches."""
    return [_VERSION] if has_patches(config) else []


def image_facts(scored: pl.DataFrame, judge: ImageJudge | None) -> dict[str, int]:
    """Return the counts of the images of a day, as facts of its ranked rows.

    Args:
        scored: Patches with `row_id`, `score` and label.
        judge: Verdicts on images; None unless rows are patches.
    """
    if judge is None:
        return {}
    images = judged_with_label(scored, judge)
    known, known_flagged = images.filter(LABEL), images.filter(pl.col(LABEL) & pl.col("is_anomaly"))
    flagged = images.filter("is_anomaly").height
    counts = ImageCounts(flagged=flagged, known_anomalies=known.height, known_flagged=known_flagged.height)
    return {f"{_PREFIX}{name}": count for name, count in asdict(counts).items()}


def image_label() -> pl.Expr:
    """Return the label of an image over its patches: an anomaly if one of them is; null if no patch has a label."""
    return pl.col(LABEL).max()


def judged_with_label(scored: pl.DataFrame, judge: ImageJudge) -> pl.DataFrame:
    """Return the verdicts on images with their label, in the order of their identities.

    Args:
        scored: All patches of some images, with `row_id`, `score` and label.
        judge: Verdicts on images.
    """
    labels = scored.group_by(image_id(judge.identity)).agg(image_label())
    return judge(scored).join(labels, on=IMAGE_ID, how="left", maintain_order="left")


def image_counts_of(facts: Mapping[str, str]) -> ImageCounts | None:
    """Return the counts of images among the facts of a ranked day; None if rows are no patches."""
    names = [each.name for each in fields(ImageCounts)]
    if any(f"{_PREFIX}{name}" not in facts for name in names):
        return None
    return ImageCounts(**{name: int(facts[f"{_PREFIX}{name}"]) for name in names})
