"""The event time as context of a model: the fit of its parts."""

import numpy as np
import numpy.typing as npt

from ae_pipeline.config.columns import MINUTES_PER_DAY, ColumnType
from ae_pipeline.encoding.table_encoder import ColumnEncoding

EVENT_TIME = "event_time"
"""Name of the event time among the features."""

_MIN_HOUR_SHARE = 1e-3
"""Share of the training rows from which an hour of the day counts as known."""

_MIN_DAYS_OF_WEEKDAY = 2
"""Training days that each of the seven weekdays needs. With fewer, a weekday would stand for a single day."""


def fit_context(minutes: npt.NDArray[np.float64]) -> tuple[ColumnEncoding | None, tuple[str, ...], str]:
    """Fit the encoding of the event time as context.

    The time of day is a part if the rows have at least two hours of the day. The weekday is a part if each of the seven
    weekdays occurs on at least two days, so that no new weekday appears after the training.

    Args:
        minutes: Event times of the training rows in minutes since 1970, NaN if missing, shape (n,).

    Returns:
        The encoding and its parts; or None, no parts, and the reason.
    """
    days, of_day = np.divmod(minutes[~np.isnan(minutes)], MINUTES_PER_DAY)
    counts = np.bincount((of_day // 60).astype(np.int64), minlength=24)
    known = np.flatnonzero(counts >= max(1.0, _MIN_HOUR_SHARE * len(of_day)))
    weekdays = np.bincount((np.unique(days) + 3).astype(np.int64) % 7, minlength=7)
    has_weekday = bool(weekdays.min() >= _MIN_DAYS_OF_WEEKDAY)
    parts = (*(("time_of_day",) if len(known) > 1 else ()), *(("weekday",) if has_weekday else ()))
    if not parts:
        return None, (), "all rows are of one hour of the day, and not every weekday occurs on two training days"
    distances = np.abs(np.arange(24)[:, np.newaxis] - known)
    nearest = known[np.minimum(distances, 24 - distances).argmin(axis=1)]
    hours = tuple(nearest.tolist()) if "time_of_day" in parts else ()
    return ColumnEncoding(name=EVENT_TIME, type=ColumnType.TIMESTAMP, hours=hours), parts, ""
