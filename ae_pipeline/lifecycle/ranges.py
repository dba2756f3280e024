"""Ranges of days."""

import datetime as dt
from collections.abc import Iterable, Iterator

from ae_pipeline.storage.paths import ALL_ROWS


def contiguous(days: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield first and last day of each contiguous range.

    Args:
        days: ISO dates, sorted, or `ALL_ROWS` alone.

    >>> list(contiguous(["2024-02-28", "2024-02-29", "2024-03-05"]))
    [('2024-02-28', '2024-02-29'), ('2024-03-05', '2024-03-05')]
    """
    days = list(days)
    if days == [ALL_ROWS]:
        yield ALL_ROWS, ALL_ROWS
        return
    dates = [dt.date.fromisoformat(day) for day in days]
    start = 0
    for end, date in enumerate(dates):
        if end + 1 == len(dates) or dates[end + 1] - date > dt.timedelta(days=1):
            yield days[start], days[end]
            start = end + 1


def range_name(first: str, last: str) -> str:
    """Return the name of a range of days for a person.

    >>> range_name("2024-02-28", "2024-02-29")
    '2024-02-28 to 2024-02-29'
    """
    return "all rows" if first == ALL_ROWS else first if first == last else f"{first} to {last}"
