"""Ranges of days."""

import datetime as dt
from collections.abc import Iterable, Iterator

from ae_pipeline.ingestion.ledger import Ledger
from ae_pipeline.latents.read import published_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import ALL_ROWS

_LONGEST_GAP = dt.timedelta(days=31)
"""Longest step from a day to the next one of the same range. Dagster stores an event for each day between them."""


def contiguous(days: Iterable[str], others: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield first and last day of each contiguous range.

    Args:
        days: ISO dates, sorted, or `ALL_ROWS` alone.
        others: Other days that have content. If given, a range also spans up to a month of days without content, such
            as weekends, so that it does not end there.

    >>> list(contiguous(["2024-02-28", "2024-02-29", "2024-03-04"]))
    [('2024-02-28', '2024-02-29'), ('2024-03-04', '2024-03-04')]
    >>> list(contiguous(["2024-02-28", "2024-02-29", "2024-03-04", "2024-03-06"], others=["2024-03-05"]))
    [('2024-02-28', '2024-03-04'), ('2024-03-06', '2024-03-06')]
    """
    days = list(days)
    if days == [ALL_ROWS]:
        yield ALL_ROWS, ALL_ROWS
        return
    dates = [dt.date.fromisoformat(day) for day in days]
    ranks = {day: rank for rank, day in enumerate(sorted({*days, *(others or ())}))}

    def follows(index: int) -> bool:
        gap = dates[index] - dates[index - 1]
        if others is None:
            return gap <= dt.timedelta(days=1)
        return ranks[days[index]] - ranks[days[index - 1]] == 1 and gap <= _LONGEST_GAP

    start = 0
    for end in range(len(days)):
        if end + 1 == len(days) or not follows(end + 1):
            yield days[start], days[end]
            start = end + 1


def cut_at_months(days: Iterable[str], longest: int) -> Iterator[tuple[str, str]]:
    """Yield first and last day of each part of a range. A range that is too long is cut at months where possible.

    Args:
        days: Days of one range, sorted.
        longest: Maximum number of days from the first to the last day of a part.

    >>> days = ["2024-01-20", "2024-01-31", "2024-02-02", "2024-02-29", "2024-03-05"]
    >>> list(cut_at_months(days, 31))
    [('2024-01-20', '2024-01-31'), ('2024-02-02', '2024-02-29'), ('2024-03-05', '2024-03-05')]
    >>> list(cut_at_months(days, 45))
    [('2024-01-20', '2024-02-29'), ('2024-03-05', '2024-03-05')]
    >>> list(cut_at_months(days, 46))
    [('2024-01-20', '2024-03-05')]
    >>> list(cut_at_months(days[2:4], 20))
    [('2024-02-02', '2024-02-02'), ('2024-02-29', '2024-02-29')]
    """
    rest = list(days)
    while rest:
        start = dt.date.fromisoformat(rest[0])
        after = start + dt.timedelta(days=longest)
        if rest[-1] >= after.isoformat() and (month := after.replace(day=1)) > start:
            after = month
        part = [day for day in rest if day < after.isoformat()]
        yield part[0], part[-1]
        rest = rest[len(part) :]


def days_with_content(dataset: Dataset) -> set[str]:
    """Return the days that landed files have rows for, or that any table has."""
    paths = dataset.paths
    landed = Ledger.load(paths.ledger).days if paths.ledger.exists() else ()
    built = (file.stem for path in (paths.raw, paths.features) for file in path("_").parent.glob("*.parquet"))
    return {*landed, *built, *published_days(paths)}


def range_name(first: str, last: str) -> str:
    """Return the name of a range of days for a person.

    >>> range_name("2024-02-28", "2024-02-29")
    '2024-02-28 to 2024-02-29'
    """
    return "all rows" if first == ALL_ROWS else first if first == last else f"{first} to {last}"
