"""The isolation forest: the scores of scikit-learn without its objects, independent of order and batches."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest as Reference

from ae_pipeline.scoring import blocks
from ae_pipeline.scoring.forest import IsolationForest, fit_forest
from tests.support.arrays import apply

rng = np.random.default_rng(0)
NORMAL = rng.normal(size=(400, 5))


@pytest.mark.parametrize(
    "rows",
    [NORMAL, NORMAL[:16], NORMAL[:3], rng.integers(0, 2, (300, 4)).astype(float), np.zeros((20, 2))],
    ids=["numbers", "16 rows", "3 rows", "two values", "all equal"],
)
def test_scores_are_those_of_scikit_learn(rows: np.ndarray) -> None:
    reference = Reference(n_estimators=100, max_samples=min(256, len(rows)), random_state=7).fit(rows)
    new = np.concatenate([rows, 3 * rows, rows + 1e6])
    np.testing.assert_allclose(apply(fit_forest(rows, 7), new), -reference.score_samples(new), rtol=1e-12)


def test_scores_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = fit_forest(NORMAL, 0)
    whole = apply(forest, NORMAL)
    monkeypatch.setattr(blocks, "_CPU_CELLS", 2800)
    np.testing.assert_allclose(apply(forest, NORMAL), whole, rtol=1e-14)
    np.testing.assert_allclose(apply(forest, NORMAL[[3]]), whole[[3]], rtol=1e-14)
    assert apply(forest, NORMAL[:0]).shape == (0,)


def test_size_does_not_grow_with_the_training_rows() -> None:
    forest = fit_forest(np.repeat(NORMAL, 3, axis=0), 0)
    assert forest.columns.shape == forest.thresholds.shape == (100, 255)
    assert forest.lengths.shape == (100, 256)
    again = IsolationForest(**forest.arrays())
    assert apply(again, NORMAL).tobytes() == apply(forest, NORMAL).tobytes()


@pytest.mark.parametrize("depth", [1, 2], ids=["root", "below the root"])
def test_thresholds_between_two_float32_keep_their_sides(depth: int) -> None:
    low, high = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    between = float(low) + 0.9 * (float(high) - float(low))  # the nearest float32 is the higher one
    thresholds = np.full((1, 2**depth - 1), np.inf)
    thresholds[0, 2 ** (depth - 1) - 1] = between  # paths go left before
    lengths = np.zeros((1, 2**depth))
    lengths[0, 1] = 1.0
    forest = IsolationForest(np.zeros_like(thresholds, np.int32), thresholds, lengths)
    values = np.array([[low], [high], [between]], np.float64)  # the last one becomes the higher float32
    assert apply(forest, values).tolist() == [1.0, 0.5, 0.5]
