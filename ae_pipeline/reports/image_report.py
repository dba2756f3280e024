"""Verdicts on whole images, and their heat maps measured against masks."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ae_pipeline.common.errors import StorageError
from ae_pipeline.common.text import abbreviate, pluralize
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.heat_maps import each_image, heat_map
from ae_pipeline.detector.image_verdicts import IMAGE_ID, has_patches, identity_values, image_id, image_of_row
from ae_pipeline.features.split import LABEL
from ae_pipeline.ingestion.landing_folder import landing_folder, list_landing
from ae_pipeline.ingestion.masks import mask_path, read_mask, require_size
from ae_pipeline.ingestion.patches import PATCH_COLUMNS
from ae_pipeline.ingestion.readers.pictures import FILE_COLUMN
from ae_pipeline.latents.images import publish_images
from ae_pipeline.latents.read import PublishedDay
from ae_pipeline.monitoring.feedback import marks_of
from ae_pipeline.reports.heat_pictures import HeatPictures, heat_pictures
from ae_pipeline.reports.image_counts import image_label
from ae_pipeline.reports.labels import (
    LabeledRow,
    Measures,
    false_alarm_ids,
    highest,
    marked_label,
    measure_rows,
    seen_rows,
)
from ae_pipeline.scoring.pixels import PixelMeasures, PixelMeter
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import whole
from ae_pipeline.storage.paths import ALL_ROWS

logger = logging.getLogger(__name__)

_SHOWN = 50
"""Images that the page lists."""

_MAX_ELEMENTS = 2e8
"""Values of all patches whose heat maps are measured against masks; about a minute of work."""


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An image with its verdict; `label` is `anomaly`, `normal` or empty, and `strangest` the patch that stands out."""

    image_id: str
    score: float
    p_value: float
    is_anomaly: bool
    label: str
    strangest: str


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """Verdicts on images whose patches are rows, and measures of heat maps.

    Attributes:
        images: Number of images; 0 if each row is an image.
        flagged: Flagged images.
        budget: Share of normal images that may be flagged.
        threshold: Images with a higher score are flagged, nats.
        calibration_images: Number of calibration images.
        top: Number of patches whose mean score is the score of an image.
        top_images: Images with the highest scores.
        all_images: Measures over all images with a known label; None without a label.
        held_out: Measures over those that the network was not fitted on; None if these are unknown.
        misses: Known anomalies that are not flagged, at most 20, the highest score first.
        false_alarms: Flagged images that are known to be normal, at most 20, the highest score first.
        pixels: Heat maps of held-out images measured against masks; None without masks.
        maps: Heat maps of the most anomalous images; None if each row is an image.
    """

    images: int
    flagged: int
    budget: float
    threshold: float
    calibration_images: int
    top: int
    top_images: tuple[ListedImage, ...]
    all_images: Measures | None
    held_out: Measures | None
    pixels: PixelMeasures | None
    misses: tuple[LabeledRow, ...] = ()
    false_alarms: tuple[LabeledRow, ...] = ()
    maps: HeatPictures | None = None

    def for_summary(self) -> dict[str, Any]:
        """Return the report as `summary.json` stores it, without pictures."""
        return asdict(replace(self, maps=None))


def report_images(
    files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle, model_version: int
) -> ImageReport | None:
    """Return the verdicts on images; None for tables, and for whole images without masks.

    Args:
        files: Published days.
        dataset: Configuration and paths of the dataset.
        bundle: Model that scored the published table.
        model_version: Version of the model.
    """
    if dataset.config.images is None:
        return None
    judged = publish_images(dataset.paths, bundle, model_version)
    known = _known_images(files, dataset, bundle)
    pixels = _measure_pixels(known, files, dataset, bundle)
    if judged is None:
        return _without_verdicts(bundle, pixels) if pixels else None
    calibration = bundle.image_calibration
    assert calibration is not None
    images = judged.join(known, on=IMAGE_ID, how="left")
    labeled = images.drop_nulls(LABEL)
    has_label = dataset.config.label is not None
    is_known = labeled["held_out"].null_count() == 0
    return ImageReport(
        images=images.height,
        flagged=int(images["is_anomaly"].sum()),
        budget=calibration.budget,
        threshold=calibration.threshold,
        calibration_images=len(calibration.scores),
        top=bundle.config.alerts.image_patches,
        top_images=tuple(_top_images(images)),
        all_images=measure_rows(labeled) if has_label else None,
        held_out=measure_rows(labeled.filter("held_out")) if has_label and is_known else None,
        pixels=pixels,
        misses=_top_labeled(images.filter(pl.col(LABEL) & ~pl.col("is_anomaly")), dataset),
        false_alarms=_top_labeled(images.filter(~pl.col(LABEL) & pl.col("is_anomaly")), dataset),
        maps=heat_pictures(files, dataset, bundle, model_version),
    )


def _without_verdicts(bundle: ModelBundle, pixels: PixelMeasures) -> ImageReport:
    return ImageReport(
        images=0,
        flagged=0,
        budget=bundle.calibration.budget,
        threshold=bundle.calibration.threshold,
        calibration_images=0,
        top=1,
        top_images=(),
        all_images=None,
        held_out=None,
        pixels=pixels,
    )


def _top_images(images: pl.DataFrame) -> Iterator[ListedImage]:
    top = images.sort(["score", IMAGE_ID], descending=[True, False]).head(_SHOWN)
    for row in top.iter_rows(named=True):
        label = {True: "anomaly", False: "normal", None: ""}[row[LABEL]]
        names = (IMAGE_ID, "score", "p_value", "is_anomaly", "strangest")
        yield ListedImage(**{name: row[name] for name in names}, label=label)


def _top_labeled(images: pl.DataFrame, dataset: Dataset) -> tuple[LabeledRow, ...]:
    """Return the images with the highest scores, at most 20."""
    local = pl.col("event_time").dt.convert_time_zone(dataset.config.timezone).dt.date().cast(pl.String)
    day = local if dataset.config.is_daily else pl.lit(ALL_ROWS)
    return highest(images.select(pl.col(IMAGE_ID).alias("row_id"), day.alias("day"), "score"))


def _known_images(files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle) -> pl.DataFrame:
    """Return each image with its label, `has_defect` and `held_out`, each null if unknown.

    A mark of a person replaces the label, but not `has_defect`, the label that landed. `held_out` says that the network
    was not fitted on the image.
    """
    window, config, paths = bundle.window, dataset.config, dataset.paths
    is_by_row = window.is_by_row
    seen = seen_rows(bundle, paths) if is_by_row else None
    fitted = {*window.train, *window.validation} - {ALL_ROWS}
    of_image, learned, marks = image_of_row(config), false_alarm_ids(paths), marks_of(paths)
    parts = [
        pl.DataFrame(
            schema={
                IMAGE_ID: pl.String,
                LABEL: pl.Boolean,
                "has_defect": pl.Boolean,
                "held_out": pl.Boolean,
                "patches": pl.UInt32,
                "day": pl.String,
            }
        )
    ]
    for day in sorted(files):
        features = pl.scan_parquet(whole(paths.features(day)), glob=False)
        landed_label, label = (pl.lit(None, pl.Boolean).alias(name) for name in ("has_defect", LABEL))
        if LABEL in features.collect_schema():  # a mark of one patch makes its image a known anomaly
            landed_label, label = pl.col(LABEL).alias("has_defect"), marked_label(marks)
        held_out = pl.lit(None if is_by_row else day not in fitted, pl.Boolean)
        if seen is not None:
            held_out = ~pl.col("row_id").is_in(seen.implode())
        held_out &= ~pl.col("row_id").is_in(learned.implode())
        rows = features.select(of_image, label, landed_label, held_out.alias("held_out"))
        known = (image_label(), pl.col("has_defect").max(), pl.col("held_out").all(ignore_nulls=False))
        images = rows.group_by(IMAGE_ID).agg(*known, patches=pl.len())
        parts.append(images.with_columns(day=pl.lit(day)).collect())
    return pl.concat(parts)


def _measure_pixels(
    known: pl.DataFrame, files: Mapping[str, PublishedDay], dataset: Dataset, bundle: ModelBundle
) -> PixelMeasures | None:
    """Measure the heat maps of held-out images that have a mask, and of those that are known to be normal."""
    config, paths = dataset.config, dataset.paths
    if config.images is None or config.images.masks is None:
        return None
    chosen = _with_masks(known, dataset, math.prod(bundle.encoder.shape))
    meter, problems = PixelMeter(), list[str]()
    for day in sorted(files):
        of_day = chosen.filter(pl.col("day") == day)
        if of_day.is_empty():
            continue
        masks = dict(of_day.select(IMAGE_ID, "mask").iter_rows())
        of_image = image_id(config.identity) if has_patches(config) else pl.col("row_id")
        features = pl.scan_parquet(whole(paths.features(day)), glob=False).filter(
            of_image.is_in(of_day[IMAGE_ID].implode())
        )
        batches = features.collect().iter_slices(1 << 16)
        for name, rows in each_image(batches, config):
            heat = heat_map(bundle.network, rows, config)
            if (mask := masks[name]) is None:
                meter.add(heat, heat < 0)
                continue
            try:
                anomalous = read_mask(Path(mask), config.images, config.source.limits.pixels)
                require_size(anomalous.shape, heat.shape, Path(mask), config.images)
            except StorageError as error:
                problems.append(str(error))
                continue
            high, wide = (min(sides) for sides in zip(heat.shape, anomalous.shape, strict=True))
            meter.add(heat[:high, :wide], anomalous[:high, :wide])
    if problems:
        logger.warning(
            f"{pluralize(len(problems), 'mask')} cannot be used, and the measures of pixels leave out their images; "
            f"the first one: {problems[0]}"
        )
    return meter.measure()


def _with_masks(known: pl.DataFrame, dataset: Dataset, elements: int) -> pl.DataFrame:
    """Return held-out images with a mask, and those known to be normal; of many a sample by a hash of their identity.

    Args:
        known: Result of `_known_images`.
        dataset: Configuration and paths of the dataset.
        elements: Number of values of a patch.
    """
    config, folder = dataset.config, landing_folder(dataset)
    assert config.images is not None
    landed, problem = dict[str, Path](), ""
    try:
        landed = list_landing(dataset).masks
    except StorageError as error:  # such as a folder that is gone
        problem = str(error)
    index = [name for name in config.identity if name not in PATCH_COLUMNS].index(FILE_COLUMN)
    paths = (mask_path(identity_values(identity)[index], config.images) for identity in known[IMAGE_ID])
    masks = [_find_mask(path, landed, folder) for path in paths]
    usable = known.with_columns(mask=pl.Series(masks, dtype=pl.String)).filter(
        pl.col("held_out").fill_null(value=False),
        pl.col("mask").is_not_null() | ~pl.col(LABEL).fill_null(value=True),
    )
    if problem:
        logger.warning(f"the measures of pixels may lack images with a mask: {problem}")
    elif unknown := _without_mask(known, masks):
        logger.warning(
            f"the measures of pixels leave out {pluralize(len(unknown), 'anomalous image')} without a mask "
            f"({abbreviate(unknown)}); land their masks, or correct images.masks"
        )
    cost = (pl.col("patches") * elements).cum_sum().over(pl.col("mask").is_null())
    return usable.sort(pl.col(IMAGE_ID).hash(seed=0), IMAGE_ID).filter(cost <= _MAX_ELEMENTS / 2)


def _find_mask(path: str | None, landed: Mapping[str, Path], folder: Path) -> str | None:
    """Return the file of a mask; None if there is none.

    Args:
        path: Path of the mask below the landing folder; None if the image can have none.
        landed: Masks that the landing folder lists, which leaves out hidden and linked folders.
        folder: Landing folder.
    """
    if path is None or path in landed:
        return str(landed[path]) if path else None
    # Path.is_file raises for a folder without access.
    return str(folder / path) if os.path.isfile(folder / path) else None  # noqa: PTH113


def _without_mask(known: pl.DataFrame, masks: Sequence[str | None]) -> list[str]:
    """Return the held-out images that landed as known anomalies, without their mask. Marks of people have no masks."""
    is_anomalous = (known[LABEL] & known["has_defect"] & known["held_out"]).fill_null(value=False)
    return sorted(known.filter(is_anomalous & pl.Series(masks, dtype=pl.String).is_null())[IMAGE_ID])
