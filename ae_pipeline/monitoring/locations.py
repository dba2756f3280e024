"""Locate rows within their day: in which hours, and in which categories, rows with a property are concentrated."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ae_pipeline.config.display import PLAIN, ColumnNames

HourCounts = tuple[tuple[int, int], ...]
"""For each of the 24 hours, in the time zone of the event time: matching rows and all rows. Empty if unknown."""

_NEARLY_ALL = 0.9
"""Share of matching rows from which an hour, or a day, counts as completely affected."""

_MIN_SHARE_IN_FULL_HOURS = 2 / 3
"""Share of the matching rows that a run of completely affected hours must contain to be named."""

_MIN_SHARE_IN_SPAN = 0.9
"""Share of the matching rows that a span of hours must contain to be named."""

_MAX_RELATIVE_SIZE_OF_SPAN = 0.8
"""Largest share of the day's rows within that span, relative to `_MIN_SHARE_IN_SPAN`. A longer span is not named."""

_MIN_RELATIVE_RATE = 0.4
"""A neighboring hour extends a span if its rate of matching rows is at least this multiple of the rate of the span."""

_MIN_SHARE_OF_HOURS = 0.75
"""Share of the hours with rows that must have matching rows, so that they count as spread over the day."""

_MIN_CRAMERS_V = 0.15
"""Association from which the values of a category are named."""

_MIN_STANDARD_DEVIATIONS = 4
"""Standard deviations by which chi-squared must exceed its mean to count as an association."""

_MAX_VALUES = 100
"""A category with more values is not looked at."""

_MIN_ROWS = 10
"""Matching rows from which locations, and single values, are reported."""

_MIN_ROWS_FOR_EVEN = 50
"""Matching rows from which an even distribution is reported."""

_MAX_NAMED_CATEGORIES, _MAX_NAMED_VALUES = 3, 3


def describe_location(
    features: pl.DataFrame, mask: pl.Series, categories: Sequence[str], names: ColumnNames = PLAIN
) -> tuple[str, ...]:
    """Return in which hours and categories the matching rows of a day are concentrated.

    Args:
        features: Features of the day, n rows; with `event_time` if rows have one, in the time zone of the dataset.
        mask: Matching rows, n booleans.
        categories: Categorical columns of the features.
        names: How the phrases name columns.

    Returns:
        One phrase for the hours and one for each named category; empty if fewer than ten rows match.
    """
    if mask.sum() < _MIN_ROWS:
        return ()
    hours = describe_hours(count_by_hour(features, mask), timezone_of(features), names.row)
    return (*([hours] if hours else []), *describe_categories(features.select(categories), mask, names))


def count_by_hour(features: pl.DataFrame, mask: pl.Series) -> HourCounts:
    """Return matching rows and all rows of each hour; empty without event time or without a matching row."""
    if "event_time" not in features.columns or not mask.any():
        return ()
    by_hour = pl.DataFrame({"hour": features["event_time"].dt.hour(), "match": mask}).drop_nulls()
    counts = by_hour.group_by("hour").agg(pl.col("match").sum(), pl.len())
    by_number = {hour: (matches, rows) for hour, matches, rows in counts.iter_rows()}
    return tuple(by_number.get(hour, (0, 0)) for hour in range(24)) if by_number else ()


def timezone_of(features: pl.DataFrame) -> str:
    """Return the time zone of the event time, in which hours are counted."""
    dtype = features.schema.get("event_time")
    return (dtype.time_zone if isinstance(dtype, pl.Datetime) else None) or "UTC"


def describe_hours(hours: HourCounts, timezone: str = "UTC", noun: str = "row") -> str:
    """Return the hours that are completely affected, or that contain most matching rows, as a phrase.

    The phrase is empty if all rows of the day match, or if no span of hours stands out.

    Args:
        hours: Matching rows and all rows of each hour.
        timezone: Time zone of the hours.
        noun: What a row is called.
    """
    matches, rows = sum(match for match, _ in hours), sum(count for _, count in hours)
    if not matches or matches >= _NEARLY_ALL * rows:
        return ""
    run = _longest_full_run(hours)
    if len(run) > 1 and sum(hours[hour][0] for hour in run) >= _MIN_SHARE_IN_FULL_HOURS * matches:
        return f"including nearly every {noun} from {run[0]:02d}:00 to {run[-1]:02d}:59 {timezone}"
    first, last = _extended_span(hours, *_shortest_span(hours, _MIN_SHARE_IN_SPAN * matches))
    inside = sum(count for _, count in hours[first : last + 1]) / rows
    if inside <= _MAX_RELATIVE_SIZE_OF_SPAN * _MIN_SHARE_IN_SPAN:
        return f"most of them from {first:02d}:00 to {last:02d}:59 {timezone}"
    with_matches = sum(match > 0 for match, _ in hours) / sum(count > 0 for _, count in hours)
    return "in most hours that have rows" if with_matches >= _MIN_SHARE_OF_HOURS else ""


def _longest_full_run(hours: HourCounts) -> list[int]:
    """Return the consecutive completely affected hours with the most matching rows; hours without rows do not count."""
    runs: list[list[int]] = [[]]
    for hour, (matches, rows) in enumerate(hours):
        if rows and matches >= _NEARLY_ALL * rows:
            runs[-1].append(hour)
        elif rows:
            runs.append([])
    return max(runs, key=lambda run: sum(hours[hour][0] for hour in run))


def _shortest_span(hours: HourCounts, min_matches: float) -> tuple[int, int]:
    """Return the first and last hour of the shortest span with at least so many matching rows."""
    spans = [(last - first, first, last) for first in range(24) for last in range(first, 24)]
    enough = (span for span in spans if sum(match for match, _ in hours[span[1] : span[2] + 1]) >= min_matches)
    _, first, last = min(enough)
    return first, last


def _extended_span(hours: HourCounts, first: int, last: int) -> tuple[int, int]:
    """Extend a span by neighboring hours with a similar rate: a span of 90% of the rows may end within a fault."""
    inside = hours[first : last + 1]
    min_rate = _MIN_RELATIVE_RATE * (sum(match for match, _ in inside) / sum(rows for _, rows in inside))
    while first > 0 and hours[first - 1][1] and hours[first - 1][0] >= min_rate * hours[first - 1][1]:
        first -= 1
    while last < len(hours) - 1 and hours[last + 1][1] and hours[last + 1][0] >= min_rate * hours[last + 1][1]:
        last += 1
    return first, last


def describe_categories(categories: pl.DataFrame, mask: pl.Series, names: ColumnNames = PLAIN) -> tuple[str, ...]:
    """Return the values with the highest rates of matching rows, a phrase for each associated category.

    Args:
        categories: Categorical columns, n rows.
        mask: Matching rows, n booleans.
        names: How the phrases name columns.

    Returns:
        At most three phrases, the strongest association first. Without any association, one phrase that names the
        categories over which many matching rows are evenly distributed.
    """
    phrases, even, count = [], [], int(mask.sum())
    for values in categories.cast(pl.String).iter_columns():
        known = pl.DataFrame({"value": values, "match": mask}).drop_nulls()
        counts = known.group_by("value").agg(pl.col("match").sum(), pl.len())
        if not 1 < counts.height <= _MAX_VALUES:
            continue
        association = _cramers_v(counts["match"].to_numpy(), counts["len"].to_numpy())
        rate = pl.col("match") / pl.col("len")
        above_mean = counts.filter((pl.col("match") >= _MIN_ROWS) & (rate > mask.mean()))
        highest = above_mean.sort(rate, "value", descending=[True, False]).head(_MAX_NAMED_VALUES)
        if association >= _MIN_CRAMERS_V and highest.height:
            shares = ", ".join(
                f"{names.value(values.name, value)} {n / rows:.0%} ({n:,} of {rows:,})"
                for value, n, rows in highest.iter_rows()
            )
            phrases.append((association, f"by {names.title(values.name)}: {shares}"))
        elif association < _MIN_CRAMERS_V and known["match"].sum() >= max(_MIN_ROWS_FOR_EVEN, _NEARLY_ALL * count):
            even.append(names.title(values.name))
    if even and not phrases:
        return (f"about evenly over the values of {enumerate_names(even[:_MAX_NAMED_CATEGORIES])}",)
    return tuple(phrase for _, phrase in sorted(phrases, reverse=True)[:_MAX_NAMED_CATEGORIES])


def _cramers_v(matches: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> float:
    """Return Cramér's V of a match and the value of a category, 0 to 1, with the bias correction of Bergsma (2013).

    It is 0 if chi-squared is within the sampling noise.

    Args:
        matches: Matching rows by value, (values,).
        rows: All rows by value, (values,).
    """
    share, freedom, count = matches.sum() / rows.sum(), len(rows) - 1, int(rows.sum())
    if share in {0.0, 1.0}:
        return 0.0
    expected = share * rows
    chi_squared = float((np.square(matches - expected) * (1 / expected + 1 / (rows - expected))).sum())
    if chi_squared < freedom + _MIN_STANDARD_DEVIATIONS * np.sqrt(2 * freedom):
        return 0.0
    return float(np.sqrt(max(chi_squared / count - freedom / (count - 1), 0.0)))


def enumerate_names(names: Sequence[str]) -> str:
    """Return names as an enumeration: `a`, `a and b`, `a, b and c`.

    >>> enumerate_names(["load", "power", "mode"])
    'load, power and mode'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
