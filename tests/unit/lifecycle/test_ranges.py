"""Ranges of days, cut at months."""

import datetime as dt
import random

import pytest

from ae_pipeline.lifecycle.ranges import cut_at_months


def _days(first: str, last: str) -> list[str]:
    start, stop = dt.date.fromisoformat(first), dt.date.fromisoformat(last)
    return [(start + dt.timedelta(days=index)).isoformat() for index in range((stop - start).days + 1)]


@pytest.mark.parametrize(
    ("longest", "parts"),
    [
        (366, ["01-01 12-31"]),
        (365, ["01-01 11-30", "12-01 12-31"]),
        (92, ["01-01 03-31", "04-01 06-30", "07-01 09-30", "10-01 12-31"]),
        (
            31,
            [
                *("01-01 01-31", "02-01 02-29", "03-01 03-31", "04-01 04-30", "05-01 05-31", "06-01 06-30"),
                *("07-01 07-31", "08-01 08-31", "09-01 09-30", "10-01 10-31", "11-01 11-30", "12-01 12-31"),
            ],
        ),
    ],
)
def test_a_leap_year_is_cut_at_months(longest: int, parts: list[str]) -> None:
    cut = list(cut_at_months(_days("2024-01-01", "2024-12-31"), longest))
    assert [f"{first[5:]} {last[5:]}" for first, last in cut] == parts


def test_a_month_that_is_too_long_is_cut_into_parts() -> None:
    parts = list(cut_at_months(_days("2024-01-01", "2024-03-02"), 15))
    days = [(int(first[-2:]), int(last[-2:])) for first, last in parts]
    assert days == [(1, 15), (16, 30), (31, 31), (1, 15), (16, 29), (1, 2)]


def test_days_that_fit_are_not_cut_where_a_month_ends() -> None:
    assert list(cut_at_months(["2024-01-31", "2024-02-01"], 2)) == [("2024-01-31", "2024-02-01")]


def test_parts_have_each_day_once_and_none_is_too_long() -> None:
    rng = random.Random(0)
    for _ in range(50):
        days = [day for day in _days("2023-11-20", "2024-04-10") if rng.random() < 0.4]
        longest = rng.randint(1, 70)
        parts = list(cut_at_months(days, longest))
        inside = [[day for day in days if first <= day <= last] for first, last in parts]
        assert [day for part in inside for day in part] == days
        assert [(part[0], part[-1]) for part in inside] == parts
        assert max(len(_days(*part)) for part in parts) <= longest


def test_no_day_gives_no_part() -> None:
    assert list(cut_at_months([], 31)) == []
