"""Which sizes of a configuration do not fit the data that a training would use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ae_pipeline.common.errors import TrainingError
from ae_pipeline.common.text import plural, pluralize, with_article
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.features.sizes import (
    MIN_CALIBRATION_ROWS,
    MIN_FITTED_ROWS,
    MIN_ROWS,
    budget_rows,
    choose_batch_size,
    choose_budget,
    choose_days,
)
from ae_pipeline.features.split import Window, cut_window
from ae_pipeline.models.factory import default_latent_dim
from ae_pipeline.scoring.calibration import IMAGE_BUDGET

DAY_KEYS = ("training.validation_days", "training.calibration_days", "gate.days")
RELAXED: Mapping[str, Any] = {
    **dict.fromkeys(
        (*DAY_KEYS, "alerts.budget", IMAGE_BUDGET, "model.latent_dim", "model.hidden", "training.batch_size")
    ),
    "training.only_normal": False,
    "training.split_by": (),
}
"""Keys that a proposal may change, each with a value that fits any data or lets it be chosen."""


@dataclass(frozen=True)
class TrainingData:
    """What the sizes of a training depend on.

    Attributes:
        rows: Number of rows of each day that has rows, or of `ALL_ROWS`.
        count: Function that returns the number of rows of each part of a window.
        width: Function that returns the number of encoded values that the network reconstructs. It is called only if
            the configuration sets `latent_dim`.
        images: Number of images whose patches are the rows; None unless rows are patches, or if it is not known yet.
        calibration_images: Function that returns how many of them are calibration images of a window.
    """

    rows: Mapping[str, int]
    count: Callable[[Window], Mapping[str, int]]
    width: Callable[[PipelineConfig, Window], int]
    images: int | None = None
    calibration_images: Callable[[Window], int | None] = lambda _: None

    def describe(self, config: PipelineConfig) -> str:
        """Return the size of the data as text."""
        rows = pluralize(sum(self.rows.values()), noun_of_rows(config))
        if self.images is not None:
            rows += f" of {pluralize(self.images, 'image')}"
        return f"{pluralize(len(self.rows), 'day')} with {rows}" if config.is_daily else rows


@dataclass(frozen=True)
class Problem:
    """A setting that does not fit the data.

    Attributes:
        message: What is wrong.
        keys: Keys of the YAML that can repair it.
        is_fatal: Whether the training is impossible, or only likely to be poor.
    """

    message: str
    keys: tuple[str, ...]
    is_fatal: bool = True


@dataclass(frozen=True)
class Sizes:
    """The sizes of a training.

    Attributes:
        window: Days of each part.
        rows: Number of rows of each part.
        chosen: Values of the keys that the configuration leaves out, by dotted key.
    """

    window: Window
    rows: Mapping[str, int]
    chosen: Mapping[str, float]


def examine(
    config: PipelineConfig, data: TrainingData, content: Mapping[str, str]
) -> tuple[Sizes | None, list[Problem]]:
    """Return the sizes of a training, None if they do not fit the data, and all problems."""
    if not data.rows:
        raise TrainingError(f"features of {config.dataset!r} hold no rows; materialize raw_data and features first")
    problems, usable = _day_problems(config, data), config
    if data.images is not None and data.images < MIN_ROWS:
        return None, [Problem(f"{pluralize(data.images, 'image')} are too few", ())]
    if problems:  # the other settings are checked on the days that would be chosen
        usable = changed(config, {key: RELAXED[key] for key in DAY_KEYS})
    window: Window | None = None
    rows: Mapping[str, int] = {}
    try:
        window = cut_window(content, usable, usable.gate.days, data.rows)
        rows = data.count(window)
    except TrainingError as error:
        problems.append(Problem(str(error).partition(";")[0], ("training.split_by",)))
    if window is not None:
        problems += _row_problems(usable, window, rows)
        images = data.calibration_images(window)
        problems += _image_problems(usable, images) + _tight_budgets(usable, window, rows, images)
        if not problems or rows["train"] > 0:
            problems += _model_problems(usable, data, window)
        chosen = chosen_sizes(config, window, rows, images=images)
        if not any(problem.is_fatal for problem in problems):
            return Sizes(window, rows, chosen), problems
    return None, problems


def _day_problems(config: PipelineConfig, data: TrainingData) -> list[Problem]:
    if not config.is_daily:
        return []
    rows = [data.rows[day] for day in sorted(data.rows)]
    parts = choose_days(rows, config, config.gate.days)
    if parts.by_row or parts.train > 0:
        return []
    values = dict(zip(DAY_KEYS, (parts.validation, parts.calibration, parts.gate), strict=True))
    configured = tuple(key for key in DAY_KEYS if get_value(config, key) is not None)
    named = " plus ".join(f"{key}={value}" for key, value in values.items())
    window = min(len(rows), config.training.window_days + parts.gate)
    return [
        Problem(
            f"{named} leave no training day of {pluralize(window, 'day')} with {plural(noun_of_rows(config))}",
            configured,
        )
    ]


def _row_problems(config: PipelineConfig, window: Window, rows: Mapping[str, int]) -> list[Problem]:
    budget, problems, nouns = config.alerts.budget, [], plural(noun_of_rows(config))
    fitted, calibration = rows["train"] + rows["validation"], rows["calibration"]
    keys = (*(DAY_KEYS if config.is_daily else ()), "training.only_normal", "training.split_by")
    too_small = [
        (rows["train"], 1, "training"),
        (rows["validation"], 1, "validation"),
        (calibration, MIN_CALIBRATION_ROWS, "calibration"),
        (fitted, MIN_FITTED_ROWS, "training plus validation"),
    ]
    for count, least, name in too_small:
        if count < least:
            kind = f"{nouns} that are not known anomalies" if window.only_normal else nouns
            kind += " that fulfil training.where" if window.where else ""
            problems.append(Problem(f"{name} have {count:,} {kind} and need {least:,} or more", keys))
    if budget and calibration < budget_rows(budget):
        days = f" of {pluralize(len(window.calibration), 'day')}" if config.is_daily and not window.is_by_row else ""
        problems.append(
            Problem(
                f"alerts.budget={budget:g} needs {budget_rows(budget):,} calibration {nouns}, and there are "
                f"{calibration:,}{days}",
                ("alerts.budget",),
            )
        )
    batch_size = config.training.batch_size
    if batch_size and batch_size > max(rows["train"], 1):
        message = f"training.batch_size={batch_size:,} is more than the {rows['train']:,} training {nouns}"
        problems.append(Problem(message, ("training.batch_size",), is_fatal=False))
    return problems


def _image_problems(config: PipelineConfig, images: int | None) -> list[Problem]:
    budget = config.alerts.image_budget
    if images is None or budget is None or images >= budget_rows(budget):
        return []
    needed = f"{IMAGE_BUDGET}={budget:g} needs {budget_rows(budget):,} calibration images"
    return [Problem(f"{needed}, and there are {images:,}", (IMAGE_BUDGET,))]


def _tight_budgets(
    config: PipelineConfig, window: Window, rows: Mapping[str, int], images: int | None
) -> list[Problem]:
    """Return the budgets that need all of a few calibration rows or images, so that no outlier of them can go."""
    key, count, name = "alerts.budget", rows["calibration"], noun_of_rows(config)
    if images is not None:
        key, count, name = IMAGE_BUDGET, images, "image"
    budget = get_value(config, key)
    if not (window.is_by_row and config.training.max_screened_share and budget and count == budget_rows(budget)):
        return []
    message = (
        f"{key}={budget:g} needs all {pluralize(count, f'calibration {name}')}, so that the screening cannot leave out "
        f"a defect among them; from {1 / count:.2g} on, it could leave out one"
    )
    return [Problem(message, (key,), is_fatal=False)]


def _model_problems(config: PipelineConfig, data: TrainingData, window: Window) -> list[Problem]:
    latent_dim, hidden, problems = config.model.latent_dim, config.model.hidden, []
    if latent_dim is None:
        return []
    width = data.width(config, window)
    if 2 <= width <= latent_dim and config.training.corruption == "none":
        row = with_article(noun_of_rows(config))
        message = f"model.latent_dim={latent_dim} is not smaller than the {width} encoded values of {row}"
        problems.append(Problem(message, ("model.latent_dim",)))
    if hidden and min(hidden) < min(latent_dim, width):
        message = f"model.hidden={list(hidden)} has a layer that is narrower than latent_dim={latent_dim}"
        problems.append(Problem(message, ("model.hidden",), is_fatal=False))
    return problems


def chosen_sizes(
    config: PipelineConfig,
    window: Window,
    rows: Mapping[str, int],
    width: int | None = None,
    images: int | None = None,
) -> dict[str, float]:
    """Return the values of the keys that a configuration leaves out, by dotted key.

    Args:
        config: Configuration of the dataset.
        window: Days of each part.
        rows: Number of rows of each part.
        width: Number of encoded values that the network reconstructs, if it is known.
        images: Number of calibration images, if rows are patches.
    """
    sizes: dict[str, float] = {}
    if config.is_daily and not window.is_by_row:
        days = (window.validation, window.calibration, window.gate)
        sizes |= {key: len(part) for key, part in zip(DAY_KEYS, days, strict=True)}
    sizes["alerts.budget"] = choose_budget(rows["calibration"])
    if images is not None:
        sizes[IMAGE_BUDGET] = choose_budget(images)
    sizes["training.batch_size"] = choose_batch_size(rows["train"], width or 1)
    if width is not None:
        sizes["model.latent_dim"] = default_latent_dim(width)
    return {key: value for key, value in sizes.items() if get_value(config, key) is None}


def changed(config: PipelineConfig, values: Mapping[str, Any]) -> PipelineConfig:
    """Return a configuration with other values, by dotted key.

    Raises:
        ValidationError: The values contradict other settings.
    """
    sections = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return PipelineConfig.model_validate(sections)


def get_value(config: PipelineConfig, key: str) -> Any:
    """Return a value of a configuration by its dotted key."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
