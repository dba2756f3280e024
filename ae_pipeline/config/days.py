"""The days that a dataset has now: from `start` to `end`, and never after today."""

import datetime as dt
from collections.abc import Sequence

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.pipeline import PipelineConfig


def last_day(config: PipelineConfig, today: dt.date) -> dt.date:
    """Return the last day whose rows are accepted: `end`, but never a day after today.

    Args:
        config: Configuration of the dataset.
        today: Current day in the time zone of the dataset.
    """
    return min(config.end or today, today)


def has_come(day: str, config: PipelineConfig) -> bool:
    """Return whether a day is over or has begun; always true for the rows of a dataset without event time."""
    return not config.is_daily or day <= config.today().isoformat()


def check_days(days: Sequence[str], config: PipelineConfig) -> None:
    """Check that a run works on days of the dataset.

    Args:
        days: ISO dates, sorted; empty for a run that names no day.
        config: Configuration of a dataset with event time.

    Raises:
        ConfigError: There is no day, or one of them is outside `start` to `end` or after today.
    """
    first, last = config.start, last_day(config, config.today())
    span = f"{first} to {last}"
    if not days:
        raise ConfigError(
            f"{config.dataset!r} has a partition for each day, but this run names no day; choose days from {span}, or "
            f"run `ae-pipeline run {config.dataset}`, which chooses them"
        )
    if config.has_day(days[0]) and days[-1] <= last.isoformat():
        return
    outside = days[-1] if config.has_day(days[0]) else days[0]
    problem = f"{outside} is not a day of {config.dataset!r}"
    reason = f"it is after today, {config.today()}" if config.has_day(outside) else f"it is outside {span}"
    remedy = f"choose days from {span}, or correct the clock, or start and end in the YAML"
    raise ConfigError(f"{problem}: {reason}; {remedy}")
