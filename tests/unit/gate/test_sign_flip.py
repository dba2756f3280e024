"""The exact test of paired differences in groups agrees with the sign test and with all signs."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from ae_pipeline.gate.sign_flip import sign_flip_p_value


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (12, 0), (20, 6), (30, 18), (3, 7), (150, 110)])
def test_differences_of_their_own_are_the_sign_test(lost: int, gained: int) -> None:
    differences = np.concatenate([np.ones(lost, int), -np.ones(gained, int), np.zeros(5, int)])
    expected = binomtest(lost, lost + gained, alternative="greater").pvalue
    assert sign_flip_p_value(differences) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_groups_change_their_sign_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, differences = rng.integers(0, 7, 60), rng.integers(-1, 2, 60)
    sums = np.array([differences[groups == group].sum() for group in range(7)])
    flipped = [np.dot(signs, sums) for signs in product((-1, 1), repeat=7)]
    expected = np.mean(np.array(flipped) >= sums.sum())
    assert sign_flip_p_value(differences, groups.astype(str)) == pytest.approx(expected)


@pytest.mark.parametrize("differences", [[], [0, 0, 0]])
def test_no_difference_is_chance(differences: list[int]) -> None:
    assert sign_flip_p_value(np.array(differences, int), np.array(["a"] * len(differences))) == 1
