"""Check before a training whether the configured sizes fit the data, and propose sizes that do."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import polars as pl

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.common.text import plural, pluralize
from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.image_verdicts import count_images, has_patches, image_id
from ae_pipeline.encoding.encoder import context_width, fit_encoder
from ae_pipeline.features.sizes import BUDGET, MIN_ROWS, STANDARD_DAYS, budget_rows
from ae_pipeline.features.split import PARTS, Window, split_columns, split_sizes
from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.models.factory import default_latent_dim
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS
from ae_pipeline.training.size_rules import (
    RELAXED,
    Problem,
    Sizes,
    TrainingData,
    changed,
    examine,
    get_value,
)

logger = logging.getLogger(__name__)

_WIDTH_ROWS = 20_000
"""Training rows from which the encoded width is estimated, if all rows are not needed for it."""


def training_data(dataset: Dataset, columns: Sequence[FeatureColumn], rows: Mapping[str, int]) -> TrainingData:
    """Return what the sizes of a training on the features of a dataset depend on.

    Args:
        dataset: Dataset to train on.
        columns: Feature columns that the model may use.
        rows: Number of rows of each day that has features.
    """
    paths = dataset.paths

    @cache
    def count(window: Window) -> Mapping[str, int]:
        return {part: window.count(part, paths) for part in PARTS}

    def width(config: PipelineConfig, window: Window) -> int:
        def of_rows(most: int | None) -> int:
            encoder = fit_encoder(config, window.rows("train", paths, most=most), columns)
            size = 1
            for length in encoder.shape:
                size *= length
            return size - context_width(encoder)

        estimate = of_rows(_WIDTH_ROWS)
        # A sample can lack categories. All rows decide where the estimate is too low.
        is_sampled = count(window)["train"] > _WIDTH_ROWS and estimate <= (config.model.latent_dim or 0)
        return of_rows(None) if is_sampled else estimate

    @cache
    def calibration_images(window: Window) -> int | None:
        return count_images("calibration", window, dataset)

    images = None
    if has_patches(dataset.config):
        row_ids = pl.scan_parquet([paths.features(day) for day in rows], glob=False).select("row_id")
        images = row_ids.select(image_id(dataset.config.identity).n_unique()).collect(engine="streaming").item()
    return TrainingData(rows, count, width, images, calibration_images)


def landed_data(rows: Mapping[str, int], images: int | None = None) -> TrainingData:
    """Return what is known before the features exist.

    Args:
        rows: Upper limit of the rows of each day, duplicates included.
        images: Number of images whose patches are the rows; None unless all are patches of image files.
    """

    def count(window: Window) -> Mapping[str, int]:
        if not window.is_by_row:
            return {part: sum(rows[day] for day in getattr(window, part)) for part in PARTS}
        total = sum(rows[day] for day in window.train)
        return dict(zip(PARTS, split_sizes(total)[:3], strict=True))

    return TrainingData(rows, count, lambda *_: 2**31, images)


def check_sizes(config: PipelineConfig, data: TrainingData, content: Mapping[str, str]) -> Sizes:
    """Return the sizes of a training.

    Args:
        config: Configuration of the dataset.
        data: Data to train on.
        content: Content hash of each day with rows.

    Raises:
        TrainingError: The sizes do not fit the data. The message lists all that is wrong and proposes a setting.
    """
    sizes, problems = examine(config, data, content)
    if sizes is None:
        raise TrainingError(_message(config, data, problems, propose(config, data, content, problems)))
    for problem in problems:
        logger.warning(f"{problem.message}; the training continues")
    if sizes.chosen:
        values = ", ".join(f"{key}={value:g}" for key, value in sizes.chosen.items())
        logger.info(f"sizes chosen for {data.describe(config)}: {values}{_why(config, data, sizes)}")
    return sizes


def check_landed(config: PipelineConfig, ledger: Ledger) -> None:
    """Raise an error if the rows of landed files cannot give a model, before anything is built from them.

    Args:
        config: Configuration of the dataset.
        ledger: Files that were read.

    Raises:
        TrainingError: The sizes do not fit the data; see `check_sizes`.
    """
    rows: Counter[str] = Counter()
    for entry in ledger.files.values():
        rows.update({day: count for day, count in entry.days.items() if count and config.has_day(day)})
    if not rows:
        return
    from ae_pipeline.ingestion.readers.pictures import is_image  # a machine for training needs no image library

    names = [name for name, entry in ledger.files.items() if entry.rows]
    data = landed_data(rows, len(names) if has_patches(config) and all(map(is_image, names)) else None)
    content = dict.fromkeys(rows, "")
    sizes, problems = examine(config, data, content)
    if sizes is None:
        raise TrainingError(_message(config, data, problems, propose(config, data, content, problems)))


def propose(
    config: PipelineConfig, data: TrainingData, content: Mapping[str, str], problems: Sequence[Problem]
) -> dict[str, Any] | None:
    """Return values of the YAML that repair all problems, by dotted key; None if no values do.

    The values are checked like a configuration before they are returned.
    """
    wrong = {key for problem in problems for key in problem.keys}
    sizes_only = set(RELAXED) - {"training.only_normal", "training.split_by"}
    # Change as little as possible: the wrong sizes, then all sizes, then also which rows are used.
    for keys in (wrong & sizes_only, sizes_only, wrong | sizes_only, set(RELAXED)):
        relaxed = changed(config, {key: RELAXED[key] for key in keys})
        sizes, _ = examine(relaxed, data, content)
        if sizes is None:
            continue
        values = {key: sizes.chosen.get(key, RELAXED[key]) for key in RELAXED if key in keys}
        if "model.latent_dim" in wrong:
            values["model.latent_dim"] = default_latent_dim(data.width(relaxed, sizes.window))
        values = {key: value for key, value in values.items() if value != get_value(config, key)}
        if examine(changed(config, values), data, content)[0] is not None:
            return values
    return None


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return values as YAML.

    >>> print(as_yaml({"training.validation_days": 3, "training.split_by": ()}))
    training:
      validation_days: 3
      split_by: []
    """
    import yaml

    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(sections, sort_keys=False).rstrip()


def _message(
    config: PipelineConfig, data: TrainingData, problems: Sequence[Problem], proposal: Mapping[str, Any] | None
) -> str:
    size, nouns = data.describe(config), plural(noun_of_rows(config))
    if data.images is not None and data.images < MIN_ROWS:
        return (
            f"{config.dataset!r} has {pluralize(data.images, 'image')}, but a training needs at least {MIN_ROWS} "
            "images; land more images"
        )
    if sum(data.rows.values()) < MIN_ROWS:
        return f"{config.dataset!r} has {size}, but a training needs at least {MIN_ROWS} {nouns}; land more {nouns}"
    problem_list = "; ".join(problem.message for problem in problems)
    if proposal is None:
        return f"the settings of {config.dataset!r} do not fit its {size}: {problem_list}; land more {nouns}"
    remedy = f"set in its defs.yaml:\n{as_yaml(proposal)}"
    return f"the settings of {config.dataset!r} do not fit its {size}: {problem_list}; {remedy}"


def _why(config: PipelineConfig, data: TrainingData, sizes: Sizes) -> str:
    noun = noun_of_rows(config)
    nouns = plural(noun)
    reasons = [f"{sizes.rows['train']:,} training and {sizes.rows['calibration']:,} calibration {nouns}"]
    if (images := data.calibration_images(sizes.window)) is not None:
        lowest = f"an image budget below {1 / (images + 1):.2g}"
        reasons.append(f"{pluralize(images, 'calibration image')}, which cannot measure {lowest}")
    elif noun == "image" and sizes.rows["calibration"] < budget_rows(BUDGET):
        reasons.append(f"they cannot measure a budget below {1 / (sizes.rows['calibration'] + 1):.2g}")
    if config.is_daily and sizes.window.is_by_row:
        reasons.append(f"too few days to divide, so a hash divides the {nouns} of all days")
    elif config.is_daily and len(data.rows) < STANDARD_DAYS:
        reasons.append(f"{STANDARD_DAYS} days or more get 21 validation, 42 calibration and 7 gate days")
    elif not config.is_daily and sizes.window.split_by and not split_columns(config):
        reasons.append(f"{data.rows[ALL_ROWS]:,} {nouns} are ranked by a hash and divided")
    return f" ({'; '.join(reasons)})"
