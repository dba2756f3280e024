"""The benchmark of robustness: what each case changes, and when."""

import numpy as np
import polars as pl
import pytest

pytest.importorskip("pyod")

from benchmarks.robustness import CASES, FAULTY_ROWS, chosen_cases

ROWS = pl.DataFrame(
    {
        "distance": pl.Series([100, 200] * 50, dtype=pl.Int64),
        "carrier": ["UA", "AA"] * 50,
        "air_time": pl.Series([30, None] * 50, dtype=pl.Int64),
    }
)


def changed(case: str, day: int) -> tuple[pl.DataFrame, pl.Series]:
    """Return the rows of a day after the change of a case, and which of them are faulty."""
    return CASES[case][0](ROWS, day, np.random.default_rng(0))


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("1%")])
def test_days_before_the_change_stay_as_they_are(case: str) -> None:
    rows, is_faulty = changed(case, -1)
    assert rows.equals(ROWS)
    assert is_faulty.sum() == 0


def test_faulty_rows_have_an_air_time_in_seconds() -> None:
    rows, is_faulty = changed("25 faulty rows on a day", 0)
    assert is_faulty.sum() == FAULTY_ROWS
    assert set(rows["air_time"].filter(is_faulty)) == {1_800}
    assert rows.filter(~is_faulty).equals(ROWS.filter(~is_faulty))
    assert changed("25 faulty rows on a day", 1)[0].equals(ROWS)
    counts = [changed("25 faulty rows over a week", day)[1].sum() for day in range(-1, 9)]
    assert counts == [0, 3, 4, 3, 4, 3, 4, 4, 0, 0]
    assert changed("1% of the window faulty", -50)[1].sum() == 1


def test_a_changed_world_has_no_faulty_rows() -> None:
    assert changed("step change of units", 3)[0]["distance"].to_list() == [161, 322] * 50
    assert changed("slow ramp", 40)[0]["air_time"].to_list() == [36, None] * 50
    new = changed("new category that stays", 3)[0]["carrier"]
    assert 1 <= (new == "ZZ").sum() <= 12
    assert all(changed(case, 3)[1].sum() == 0 for case, (_, has_changed) in CASES.items() if has_changed)


def test_a_sensor_is_stuck_for_a_week() -> None:
    rows = ROWS.with_columns(pl.Series("air_time", range(100)))
    stuck = CASES["sensor stuck for a week"][0]
    counts = [stuck(rows, day, np.random.default_rng(0))[0]["air_time"].n_unique() for day in range(-1, 9)]
    assert counts == [100, 1, 1, 1, 1, 1, 1, 1, 100, 100]


def test_cases_are_chosen_by_parts_of_their_names() -> None:
    assert chosen_cases(None) == list(CASES)
    assert chosen_cases("ramp") == ["slow ramp"]
    chosen = ["step change of units", "new category that stays", "sensor stuck for a week"]
    assert chosen_cases("stuck,step change, new category") == chosen
