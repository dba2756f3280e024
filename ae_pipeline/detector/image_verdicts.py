"""Verdicts on images whose patches are the rows: one score per image, with a calibration of its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.split import Window
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.scoring.calibration import Calibration
from ae_pipeline.storage.dataset import Dataset

IMAGE_ID = "image_id"
"""Column with the identity of an image: the identity of its patches without their position."""


def has_patches(config: PipelineConfig) -> bool:
    """Return whether rows are patches of images."""
    return bool(config.images and config.images.patch)


def image_id(identity: Sequence[str]) -> pl.Expr:
    """Return an expression for the identity of the image of each patch, from the `row_id` of the patch.

    Args:
        identity: Identity of the dataset, with `PATCH_COLUMNS`.

    Examples:
        >>> pl.DataFrame({"row_id": ["a|b.png|0|32"]}).select(image_id(["file", "top", "left"])).item()
        'a|b.png'
    """
    parts = [r"-?\d+" if name in PATCH_COLUMNS else "(.*)" for name in identity]
    groups = "|".join(f"${{{number}}}" for number in range(1, parts.count("(.*)") + 1))
    return pl.col("row_id").str.replace("(?s)^" + r"\|".join(parts) + "$", groups).alias(IMAGE_ID)


def identity_values(identity: str) -> list[str]:
    r"""Return the values that an identity joins, without the `\` before `\` and `|`.

    >>> identity_values(r"a\|b|c\\d")
    ['a|b', 'c\\d']
    """
    return [re.sub(r"\\(.)", r"\1", value) for value in re.findall(r"(?s)(?:^|\|)((?:\\.|[^|\\])*)", identity)]


def image_of_row(config: PipelineConfig) -> pl.Expr:
    """Return an expression for the identity of the image of each row, which is a patch or an image itself."""
    return image_id(config.identity) if has_patches(config) else pl.col("row_id").alias(IMAGE_ID)


def patch_position(identity: Sequence[str]) -> list[pl.Expr]:
    """Return expressions for `top` and `left` of each patch, from its `row_id`.

    Args:
        identity: Identity of the dataset, with `PATCH_COLUMNS`.

    Examples:
        >>> pl.DataFrame({"row_id": ["7|a.png|32"]}).select(patch_position(["top", "file", "left"])).row(0)
        (7, 32)
    """
    parts = [rf"(?<{name}>-?\d+)" if name in PATCH_COLUMNS else ".*" for name in identity]
    groups = pl.col("row_id").str.extract_groups("(?s)^" + r"\|".join(parts) + "$")
    return [groups.struct.field(name).cast(pl.Int64).alias(name) for name in PATCH_COLUMNS]


def count_images(part: str, window: Window, dataset: Dataset, without: pl.Series | None = None) -> int | None:
    """Return the number of images whose patches are the rows of a part of a window; None unless rows are patches.

    Args:
        part: Part of the window.
        window: Days of each part.
        dataset: Configuration and paths of the dataset.
        without: Identities of images that do not count.
    """
    if not has_patches(dataset.config):
        return None
    of_image = image_id(dataset.config.identity)
    parts = [rows.select(of_image).unique() for rows in window.batches(part, dataset.paths, ["row_id"])]
    images = pl.concat(parts).unique().to_series() if parts else pl.Series(IMAGE_ID, [], pl.String)
    return len(images if without is None else images.filter(~images.is_in(without.implode())))


def score_images(patches: pl.DataFrame, identity: Sequence[str], top: int) -> pl.DataFrame:
    """Return the score of each image: the mean of its highest patch scores, or of all if there are fewer.

    Args:
        patches: Patches with `row_id` and `score`.
        identity: Identity of the dataset, with `PATCH_COLUMNS`.
        top: Number of patches; 1 for the maximum.

    Returns:
        One row per image, in the order of the identity: `image_id`, `score`, `patches` and `strangest`, the `row_id` of
        the patch with the highest score.

    Examples:
        >>> patches = pl.DataFrame({"row_id": ["a|0|0", "a|0|8", "b|0|0"], "score": [1.0, 3.0, 2.0]})
        >>> score_images(patches, ["file", "top", "left"], top=2).rows()
        [('a', 2.0, 2, 'a|0|8'), ('b', 2.0, 1, 'b|0|0')]
    """
    ordered = patches.select("row_id", "score", image_id(identity)).sort(["score", "row_id"], descending=[True, False])
    images = ordered.group_by(IMAGE_ID, maintain_order=True).agg(
        score=pl.col("score").head(top).mean(), patches=pl.len(), strangest=pl.col("row_id").first()
    )
    return images.sort(IMAGE_ID)


@dataclass(frozen=True)
class ImageJudge:
    """Turns the scores of patches into verdicts on images.

    Attributes:
        calibration: Scores of the calibration images, and the budget for images.
        top: Number of patches whose mean score is the score of an image.
        identity: Identity of the dataset.
    """

    calibration: Calibration
    top: int
    identity: tuple[str, ...]

    def __call__(self, patches: pl.DataFrame) -> pl.DataFrame:
        """Return `score_images` with the columns `p_value` and `is_anomaly`.

        Args:
            patches: All patches of some images, with `row_id` and `score`.
        """
        images = score_images(patches, self.identity, self.top)
        p_values = self.calibration.p_values(images["score"].to_numpy())
        return images.with_columns(
            pl.Series("p_value", p_values, dtype=pl.Float64),
            pl.Series("is_anomaly", self.calibration.flags(p_values), dtype=pl.Boolean),
        )
