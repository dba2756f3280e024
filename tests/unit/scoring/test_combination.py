"""The combination of the measures: the weighted sum, the novelty, and the rows that the tails are fitted on."""

import numpy as np
import pytest
import torch

from ae_pipeline.config.model import Contamination
from ae_pipeline.scoring.combination import SETTINGS, Combination, Setting, fit_combination
from ae_pipeline.scoring.ensemble import MEASURES
from tests.support.arrays import apply

SETTING = SETTINGS[Contamination.UNKNOWN]


@pytest.fixture
def surprisal() -> np.ndarray:
    """Surprisals of 2,000 training rows."""
    return np.random.default_rng(0).exponential(size=(2000, len(MEASURES)))


@pytest.mark.parametrize("contamination", Contamination)
def test_each_setting_weighs_each_measure(contamination: Contamination) -> None:
    weights = np.array([SETTINGS[contamination].weights, SETTINGS[contamination].novelty_weights])
    assert weights.shape == (2, len(MEASURES))
    assert (weights >= 0).all()
    assert (weights.sum(axis=1) > 0).all()


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


def test_rows_far_from_the_core_are_new_if_training_rows_hold_anomalies(surprisal: np.ndarray) -> None:
    setting = SETTINGS[Contamination.SOME]
    combination = fit_combination(torch.from_numpy(surprisal), setting)
    core, to_all = MEASURES.index("nearest in the core"), MEASURES.index("nearest, as encoded")
    new = np.zeros((2, len(MEASURES)))
    new[:, core] = [50.0, 60.0]
    step = 10 / float(combination.core_tails.excess[core])
    slope = setting.weights[core] + setting.novelty_factor / float(combination.novelty_tails.excess[0])
    assert np.diff(apply(combination, new))[0] == pytest.approx(step * slope, rel=1e-4)
    # Training rows can be anomalies, so the distance to the nearest of them is no novelty.
    new = np.zeros((2, len(MEASURES)))
    new[:, to_all] = [50.0, 60.0]
    np.testing.assert_allclose(
        apply(combination, new), apply(combination.core_tails, new)[:, to_all] * setting.weights[to_all]
    )


def test_the_second_trimming_keeps_the_share_of_the_setting(surprisal: np.ndarray) -> None:
    for contamination, share in (("unknown", 0.8), ("none", 1.0), ("some", 0.6)):
        setting = SETTINGS[Contamination(contamination)]
        combination = fit_combination(torch.from_numpy(surprisal), setting)
        whole = surprisal[:, 2:] @ np.array(setting.weights[2:])
        kept = surprisal[np.argsort(whole)[: round(share * len(whole))]]
        np.testing.assert_allclose(combination.core_tails.quantiles[:, 0], kept.min(axis=0))
        np.testing.assert_allclose(combination.core_tails.quantiles[:, -1], np.quantile(kept, 0.99, axis=0))


def test_a_saved_combination_scores_as_before_whatever_the_settings_are(surprisal: np.ndarray) -> None:
    weights = (1.0, 1.5, 2.0, 0.25, 0.75, 2.0, 0.5)
    former = Setting(core_share=0.8, tail_share=0.8, weights=weights, novelty_from=4.6, novelty_factor=3.0)
    saved = fit_combination(torch.from_numpy(surprisal), former)
    back = Combination.from_arrays(saved.arrays())
    # By hand, with what the file holds: the sum, and three times the distances to all rows beyond 4.6 nats.
    totals = apply(saved.core_tails, surprisal)
    novelty = apply(saved.novelty_tails, totals[:, :2].sum(axis=1, keepdims=True))[:, 0]
    expected = totals @ np.array(weights) + 3.0 * np.maximum(novelty - 4.6, 0.0)
    np.testing.assert_allclose(apply(back, surprisal), expected)
    assert not np.allclose(expected, totals @ np.array(SETTINGS[Contamination.SOME].weights))


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
