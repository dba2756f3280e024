"""The combination of the measures: the weighted sum, the novelty, and the rows that the tails are fitted on."""

import numpy as np
import pytest
import torch

from ae_pipeline.config.model import Contamination
from ae_pipeline.scoring.combination import SETTINGS, Combination, fit_combination
from ae_pipeline.scoring.ensemble import MEASURES
from tests.support.arrays import apply

SETTING = SETTINGS[Contamination.UNKNOWN]


@pytest.fixture
def surprisal() -> np.ndarray:
    """Surprisals of 2,000 training rows."""
    return np.random.default_rng(0).exponential(size=(2000, len(MEASURES)))


@pytest.mark.parametrize("contamination", Contamination)
def test_each_setting_weighs_each_measure(contamination: Contamination) -> None:
    weights = np.array(SETTINGS[contamination].weights)
    assert len(weights) == len(MEASURES)
    assert (weights >= 0).all()


def test_usual_rows_get_the_weighted_sum(surprisal: np.ndarray) -> None:
    combination = fit_combination(torch.from_numpy(surprisal), SETTING)
    scores, expected = (
        apply(combination, surprisal),
        apply(combination.core_tails, surprisal) @ np.array(SETTING.weights),
    )
    nearest = apply(combination.core_tails, surprisal)[:, :2].sum(axis=1)
    is_usual = nearest < np.quantile(nearest, 1 - 1.1 * np.exp(-SETTING.novelty_from))
    assert is_usual.mean() > 0.9
    np.testing.assert_allclose(scores[is_usual], expected[is_usual])
    assert (scores >= expected - 1e-12).all()
    assert (scores > expected + 1).sum() > 5


def test_rows_beyond_all_training_rows_get_the_novelty_too(surprisal: np.ndarray) -> None:
    combination = fit_combination(torch.from_numpy(surprisal), SETTING)
    new = np.zeros((3, len(MEASURES)))
    new[:, 0] = [0.0, 50.0, 60.0]
    scores = apply(combination, new)
    assert scores[0] == 0
    step = 10 / float(combination.core_tails.excess[0])
    slope = SETTING.weights[0] + SETTING.novelty_factor / float(combination.novelty_tails.excess[0])
    assert scores[2] - scores[1] == pytest.approx(step * slope, rel=1e-4)
    # Another measure is no novelty, whatever its value is.
    new[:, 0], new[:, 2] = 0.0, [0.0, 50.0, 60.0]
    np.testing.assert_allclose(apply(combination, new), apply(combination.core_tails, new)[:, 2] * SETTING.weights[2])


def test_anomalies_in_the_training_rows_do_not_fit_the_tails() -> None:
    rng = np.random.default_rng(0)
    surprisal = rng.exponential(size=(1000, len(MEASURES)))
    surprisal[900:, 2:] += 30
    combination = fit_combination(torch.from_numpy(surprisal), SETTING)
    assert apply(combination.core_tails, surprisal)[900:, 2:].min() > 20
    trusting = fit_combination(torch.from_numpy(surprisal), SETTINGS[Contamination.NONE])
    assert np.median(apply(trusting.core_tails, surprisal)[900:, 2:]) < 4


def test_round_trip_and_the_sum_of_bundles_of_format_8(surprisal: np.ndarray) -> None:
    fitted = fit_combination(torch.from_numpy(surprisal), SETTING)
    back = Combination.from_arrays(fitted.arrays())
    assert apply(back, surprisal).tobytes() == apply(fitted, surprisal).tobytes()
    old = Combination.of_format_8()
    np.testing.assert_allclose(apply(old, surprisal[:, :5]), surprisal[:, :5] @ [1, 1, 2, 0.5, 0.75])
