"""Single outliers in a calibration that is not divided by time: found by their magnitude, and none in clean sets."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ae_pipeline.detector.facts import ScreeningFacts
from ae_pipeline.features.sizes import choose_budget
from ae_pipeline.scoring.calibration import calibrate
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.calibration_scores import score_calibration
from ae_pipeline.training.outlying import count_outlying, screen_outlying
from ae_pipeline.training.screened import Screened
from tests.support.sensors import Fitted, sensor_config

USUAL = np.array([3.4, 3.6, 4.0, 4.1, 4.3, 4.6, 4.8, 4.8])
SERVING = ScreeningFacts(
    judged_by="the model that serves", rows={"validation": 2}, message="2 rows left out of validation"
)

Array = npt.NDArray[np.float64]
Rewrite = Callable[[Fitted, str, pl.DataFrame], None]
TAILS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(5, 1, n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "lognormal": lambda rng, n: rng.lognormal(sigma=2, size=n),
    "student": lambda rng, n: np.abs(rng.standard_t(3, n)),
}


def without_budget(dataset: Fitted, cap: float = 0.25) -> Dataset:
    """Return the dataset with another `training.max_screened_share`, and a budget that is chosen from the rows."""
    return Dataset(sensor_config(training={"max_screened_share": cap}, alerts={}), dataset.paths)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("n", [5, 9, 19, 49, 199])
def test_the_budget_holds_on_clean_sets(tail: str, n: int) -> None:
    """Of 400 sets each. The interval is that of the share flagged, at 99 %."""
    rng, draw, sets = np.random.default_rng(n), TAILS[tail], 400
    lost, shares = 0, []
    for _ in range(sets):
        scores, validation = np.sort(draw(rng, n)), draw(rng, round(n * 2 / 3))
        gone = count_outlying(scores, validation)
        lost += gone
        calibration = calibrate(scores[: n - gone], choose_budget(n - gone), None)
        shares.append(calibration.flags(calibration.p_values(draw(rng, 200))).mean())
    assert lost < 0.01 * n * sets
    assert np.mean(shares) <= choose_budget(n) + 2.58 * np.std(shares) / np.sqrt(sets)


class TestCount:
    @pytest.mark.parametrize(("outliers", "found"), [((5.5,), 0), ((25.0,), 1), ((60.0, 62.0), 2)])
    def test_defects_are_found_by_their_magnitude(self, outliers: tuple[float, ...], found: int) -> None:
        assert count_outlying(np.array([*outliers, *USUAL]), USUAL) == found

    def test_an_outlier_of_validation_does_not_hide_one(self) -> None:
        assert count_outlying(np.append(USUAL, 60.0), np.append(USUAL, 61.0)) == 1
        assert count_outlying(USUAL, np.append(USUAL, 61.0)) == 0

    def test_a_kind_of_its_own_is_no_outlier(self) -> None:
        """Three of nine, or a tenth of 100."""
        assert count_outlying(np.array([60.0, 61.0, 62.0, *USUAL[:6]]), USUAL[:6]) == 0
        usual = np.linspace(3, 5, 90)
        assert count_outlying(np.append(usual, np.linspace(60, 62, 10)), usual[:50]) == 0
        assert count_outlying(np.append(usual, np.linspace(60, 62, 5)), usual) == 5

    def test_the_scale_does_not_matter(self) -> None:
        assert count_outlying(1e-3 * np.append(USUAL, 25.0), 1e-3 * USUAL) == 1

    def test_equal_scores_and_few_rows_lose_none(self) -> None:
        assert count_outlying(np.append(np.ones(20), 9.0), np.ones(20)) == 0
        assert count_outlying(np.zeros(20), np.zeros(20)) == 0
        assert count_outlying(np.array([1.0, 2.0, 900.0]), np.array([1.0, 1.5, 2.0])) == 0
        assert count_outlying(np.empty(0), np.empty(0)) == 0


class TestScreen:
    def test_the_cap_keeps_all(self, fitted: Fitted) -> None:
        scores = np.array([60.0, 62.0, *USUAL])
        gone, facts = screen_outlying(scores, USUAL, None, without_budget(fitted, cap=0.15), None)
        assert (gone, facts.rows, facts.changed) == (0, {}, ("calibration",))
        assert "calibration would lose more than 15% of its rows" in facts.message

    def test_the_facts_of_the_model_that_serves_stay(self, fitted: Fitted) -> None:
        usual = np.linspace(3, 5, 120)  # the budget of 0.01 needs 99 rows
        gone, facts = screen_outlying(np.append(usual, 60.0), usual, None, fitted, SERVING)
        assert (gone, facts.rows) == (1, {"validation": 2, "calibration": 1})
        assert facts.message == "2 rows left out of validation; by its own scores, 1 row left out of calibration"
        assert screen_outlying(usual, usual, None, fitted, SERVING) == (0, SERVING)


def test_a_faulty_row_without_days_does_not_raise_the_threshold(dataset: Fitted, rewrite_day: Rewrite) -> None:
    """A hash divides the rows, of whichever kind of window. The scores tell the row with a model that serves, too."""
    days = dataset.window.days[:2]
    window = dataclasses.replace(
        dataset.window, train=days, validation=days, calibration=days, gate=days, split_by=("row_id",)
    )
    row_id = window.rows("calibration", dataset.paths)["row_id"][0]
    for day in days:
        power = pl.when(pl.col("row_id") == row_id).then(pl.col("power") * 90).otherwise("power").alias("power")
        rewrite_day(dataset, day, dataset.features(day).with_columns(power))
    count = window.count("calibration", dataset.paths)
    for facts in (None, SERVING):
        scored = score_calibration(
            dataset.bundle.detector, Screened(window, {}, facts), without_budget(dataset), 0.1, count
        )
        assert scored.screened.row_ids["calibration"].to_list() == [row_id]
        assert len(scored.scores) == scored.screened.counts(dataset)["calibration"] == count - 1
        assert scored.screened.facts is not None
        assert "1 row left out of calibration" in scored.screened.facts.message
    off = without_budget(dataset, cap=0.0)
    whole = score_calibration(dataset.bundle.detector, Screened(window, {}, None), off, 0.1, count)
    assert (len(whole.scores), whole.screened.facts) == (count, None)
