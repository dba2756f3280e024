"""The alert budget of a day."""

import pytest
import scipy.stats

from ae_pipeline.monitoring.budget import is_over_budget


class TestBudget:
    @pytest.mark.parametrize(
        ("rows", "flagged", "over"),
        [
            (1000, 3, False),
            (1000, 6, False),
            (1000, 7, True),
            (336_000, 1008, False),
            (336_000, 1009, True),
            (0, 0, False),
        ],
    )
    def test_more_than_three_times_the_budget_must_be_significant(self, rows: int, flagged: int, over: bool) -> None:
        assert is_over_budget(rows, flagged, 0.001) == over

    @pytest.mark.parametrize("rows", [1, 40, 1000, 20_000])
    @pytest.mark.parametrize("budget", [0.0001, 0.001, 0.01, 0.05])
    def test_the_false_alarm_rate_is_at_most_one_in_a_thousand(self, rows: int, budget: float) -> None:
        smallest = next(
            flagged for flagged in range(rows + 2) if is_over_budget(rows, flagged, budget) or flagged > rows
        )
        assert scipy.stats.binom.sf(smallest - 1, rows, budget) <= 1e-3
