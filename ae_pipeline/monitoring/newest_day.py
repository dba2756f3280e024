"""Find out whether the newest day is still filling: its rows have not all arrived."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from ae_pipeline.common.text import pluralize
from ae_pipeline.config.display import noun_of_rows
from ae_pipeline.monitoring.day_assessment import MIN_COMPLETENESS, usual_rows
from ae_pipeline.storage.dataset import Dataset

_MIN_REMAINING = dt.timedelta(hours=1)
"""Time between the last event and the end of the day from which the day can still fill."""


@dataclass(frozen=True, kw_only=True)
class FillingDay:
    """The newest day, while it is still filling.

    Attributes:
        day: ISO date.
        rows: Rows so far.
        usual_rows: Median number of rows on the same weekday of the previous weeks; None if unknown.
        last_event: Newest event time, in the time zone of the dataset.
        message: Description as a clause.
    """

    day: str
    rows: int
    usual_rows: int | None
    last_event: dt.datetime
    message: str


def filling_day(rows: Mapping[str, int], dataset: Dataset, now: dt.datetime | None = None) -> FillingDay | None:
    """Return the newest day with rows if it is still filling.

    It is filling if one of these is true:

    - The day is not over in the time zone of the dataset, and its last event is more than an hour before its end. This
      does not apply if all rows of the day have the same event time, such as rows that have a date only.
    - It has less than 80 % of the rows that are usual on its weekday, which is known from two earlier weeks on.

    Args:
        rows: Number of rows of each day.
        dataset: Configuration and paths of the dataset.
        now: Current time; the clock by default.
    """
    newest = max((day for day, count in rows.items() if count), default=None)
    if newest is None or not dataset.config.is_daily or not dataset.paths.features(newest).exists():
        return None
    zone, date = dataset.config.zone, dt.date.fromisoformat(newest)
    times = pl.read_parquet(dataset.paths.features(newest), columns=["event_time"], glob=False)["event_time"]
    first, last = times.min(), times.max()
    if not isinstance(first, dt.datetime) or not isinstance(last, dt.datetime):
        return None
    usual = usual_rows(newest, {day: count for day, count in rows.items() if day < newest})
    end = dt.datetime.combine(date + dt.timedelta(days=1), dt.time(), zone).astimezone(dt.UTC)
    is_open = (now or dt.datetime.now(dt.UTC)) < end and end - last > _MIN_REMAINING and first < last
    is_short = usual is not None and rows[newest] < MIN_COMPLETENESS * usual
    if not is_open and not is_short:
        return None
    local = last.astimezone(zone)
    compared = f", where the same weekday usually has {usual:,}" if usual else ""
    came = pluralize(rows[newest], noun_of_rows(dataset.config))
    return FillingDay(
        day=newest,
        rows=rows[newest],
        usual_rows=usual,
        last_event=local,
        message=f"{newest} is still filling: {came} came so far{compared}, the last one of "
        f"{local:%H:%M} {dataset.config.timezone}",
    )


def filling_json(day: FillingDay) -> dict[str, Any]:
    """Return a filling day as `summary.json` stores it: the message is under the key `words`."""
    return {
        "day": day.day,
        "rows": day.rows,
        "usual_rows": day.usual_rows,
        "last_event": day.last_event.isoformat(),
        "words": day.message,
    }
