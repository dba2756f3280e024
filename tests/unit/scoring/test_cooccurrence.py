"""Combinations of categories: counts by hand, the choice of columns, and a bundle that explains with them."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.explanation import because
from ae_pipeline.detector.imputation import impute
from ae_pipeline.encoding.blocks import BlockKind
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.scoring import cooccurrence
from ae_pipeline.scoring.cooccurrence import Cooccurrence, fit_cooccurrence
from tests.support.arrays import apply
from tests.support.sensors import FitFrame


def encode(*columns: npt.NDArray[np.int64], width: int = 4) -> tuple[npt.NDArray[np.float32], list[tuple[int, int]]]:
    """Return one-hot codes after one number column, and their blocks."""
    codes = [np.eye(width, dtype=np.float32)[column] for column in columns]
    number = np.zeros((len(columns[0]), 1), np.float32)
    return np.hstack([number, *codes]), [(1 + width * index, width) for index in range(len(columns))]


def dependent(seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return two columns: the second is the first one, but for every tenth row."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 3, 3000)
    return first, np.where(np.arange(3000) % 10 == 0, rng.integers(0, 2, 3000), first)


def fitted_on(*columns: npt.NDArray[np.int64]) -> Cooccurrence:
    matrix, blocks = encode(*columns)
    fitted = fit_cooccurrence([matrix[:1000], matrix[1000:]], blocks)
    assert fitted is not None
    return fitted


def test_the_measure_is_the_smoothed_ratio_of_expected_and_seen_rows() -> None:
    first, second = dependent()
    fitted = fitted_on(first, second)
    rows, _ = encode(np.array([0, 0, 1, 3, 2]), np.array([2, 1, 1, 2, 3]))
    expected = []
    for a, b in ((0, 2), (0, 1), (1, 1)):
        by_chance = (first == a).sum() * (second == b).sum() / 3000
        nats = np.log((by_chance + 2) / (((first == a) & (second == b)).sum() + 2))
        expected.append(nats if nats >= np.log(2) else 0.0)
    assert expected[0] > 5 > expected[1] > expected[2] == 0
    # A category that no training row has is not a rare combination.
    assert apply(fitted, rows) == pytest.approx([*expected, 0, 0], rel=1e-12)
    combination = fitted.rarest(rows)[0]
    assert combination[:3] == ((0, 1), (0, 2), 0)
    assert combination.expected == pytest.approx((first == 0).sum() * (second == 2).sum() / 3000)
    assert fitted.rows == 3000


def test_three_columns_are_combined_if_only_together_they_tell() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 4000))
    fitted = fitted_on(a, b, a ^ b)
    assert fitted.chosen.tolist() == [[0, 1, 2]]
    rows, _ = encode(np.array([0, 0]), np.array([1, 1]), np.array([1, 0]))
    assert apply(fitted, rows)[0] == 0
    assert apply(fitted, rows)[1] == pytest.approx(np.log(500 / 2), abs=0.1)


def test_rows_that_are_added_make_a_combination_known() -> None:
    fitted = fitted_on(*dependent())
    new, _ = encode(np.full(200, 0), np.full(200, 2))
    assert apply(fitted, new[:1])[0] > 5
    added = fitted.adding([new[:50], new[50:]])
    assert apply(added, new[:1])[0] < 1
    assert added.rows == 3200
    once = fitted.adding([new[:1]])
    leaving_one_out = dataclasses.replace(once, excluded=1)
    assert apply(once, new[:1]) < apply(leaving_one_out, new[:1])
    assert apply(leaving_one_out, new[:1]) == pytest.approx(apply(fitted, new[:1]), abs=0.01)


def test_batches_and_the_sample_of_the_choice_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "_CHOICE_ROWS", 700)
    first, second = dependent()
    matrix, blocks = encode(first, second, (first + second) % 4)
    whole = fit_cooccurrence([matrix], blocks)
    batches = np.split(matrix, [0, 1, 500, 501, 2222])
    in_batches = fit_cooccurrence(iter(batches), blocks)
    assert whole is not None
    assert in_batches is not None
    assert len(whole.chosen) >= 2
    for name, values in whole.arrays().items():
        np.testing.assert_array_equal(in_batches.arrays()[name], values)
    cells = Counter(zip(first.tolist(), second.tolist(), strict=True))
    assert whole.counts[:16].tolist() == [cells[cell] for cell in itertools.product(range(4), range(4))]
    assert whole.adding(iter(batches)).counts.tolist() == (2 * whole.counts).tolist()


def test_without_rows_there_is_nothing_to_count() -> None:
    matrix, blocks = encode(*dependent())
    fitted = fitted_on(*dependent())
    for batches in ([], [matrix[:0]]):
        assert fit_cooccurrence(batches, blocks) is None
        assert fitted.adding(batches).counts.tolist() == fitted.counts.tolist()


@pytest.mark.parametrize("columns", [1, 2])
def test_independent_columns_and_single_ones_are_no_evidence(columns: int) -> None:
    matrix, blocks = encode(*np.random.default_rng(2).integers(0, 4, (columns, 2000)))
    assert fit_cooccurrence([matrix], blocks) is None


def test_the_number_of_combinations_and_their_size_are_bounded() -> None:
    column = np.random.default_rng(3).integers(0, 4, 500)
    fitted = fitted_on(*[column] * 20)
    assert fitted.blocks.shape == (16, 2)
    assert fitted.chosen.shape == (16, 3)
    many = np.arange(600)
    matrix, blocks = encode(many, many, width=600)
    assert fit_cooccurrence([matrix], blocks) is None  # 360,000 combinations


def test_counts_that_do_not_fit_the_combinations_are_an_error() -> None:
    arrays = fitted_on(*dependent()).arrays()
    assert Cooccurrence.from_arrays(arrays).arrays() == arrays
    with pytest.raises(ValueError, match=r"cooccurrence.counts has 15 values, but its combinations are 16"):
        Cooccurrence.from_arrays({**arrays, "counts": arrays["counts"][:-1]})


def test_counts_of_earlier_bundles_have_no_cut() -> None:
    """Their tails and their calibration were fitted with the whole measure. The cut would change the scores."""
    generator = np.random.default_rng(5)
    first = generator.integers(0, 3, 4000)
    second = np.where(generator.random(4000) < 0.3, first, generator.integers(0, 3, 4000))
    matrix, _ = encode(first, second)
    fitted = fitted_on(first, second)
    rows = torch.from_numpy(matrix)
    assert 0 < fitted._ratios(rows).amax() < np.log(2)
    assert not fitted(rows).any()
    earlier = Cooccurrence.from_arrays({name: each for name, each in fitted.arrays().items() if name != "usual"})
    assert torch.equal(earlier(rows), fitted._ratios(rows).amax(1).clamp(min=0.0))
    assert "usual" not in earlier.arrays()
    assert Cooccurrence.from_arrays(fitted.arrays()).usual == np.log(2)


def assert_the_best_category_is_imputed(detector: Detector, odd: pl.DataFrame) -> None:
    """In a row with a rare combination, the imputed category leaves the least surprisal of all."""
    encoder = detector.encoder
    assert isinstance(encoder, TableEncoder)
    x = detector.network.encode_batch(odd)
    is_counted = np.arange(detector.part_count) != detector.part_index(Evidence.ROW)

    def left(rows: torch.Tensor) -> float:
        return float(detector.surprisal(detector.network.forward(rows), rows)[0, is_counted].sum())

    for block in (block for block in encoder.blocks if block.kind == BlockKind.CATEGORICAL):
        mask = np.zeros(x.shape, dtype=np.bool_)
        mask[:, block.start : block.stop] = True
        _, imputed = impute(detector, x, mask, np.array([True]))
        tried = []
        for code in range(block.width):
            rows = x.clone()
            rows[:, block.start : block.stop] = 0.0
            rows[:, block.start + code] = 1.0
            tried.append(left(rows))
        assert left(imputed) == pytest.approx(min(tried), rel=1e-12)
        assert torch.equal(imputed[:, ~mask[0]], x[:, ~mask[0]])


@pytest.mark.slow
def test_a_bundle_finds_and_explains_a_rare_combination(fit_frame: FitFrame, tmp_path: Path) -> None:
    first, second = dependent()
    frame = pl.DataFrame(
        {
            "carrier": pl.Series(first).cast(pl.String),
            "airport": pl.Series(second + 10).cast(pl.String),
            "load": np.random.default_rng(4).normal(size=3000),
        }
    )
    kinds = {"carrier": ColumnType.CATEGORY, "airport": ColumnType.CATEGORY, "load": ColumnType.NUMBER}
    columns = [FeatureColumn(name, kind) for name, kind in kinds.items()]
    alerts = {"budget": 0.02, "evidence": ("columns", "row", "categories")}
    bundle, _ = fit_frame(frame, columns, alerts=alerts, training={"epochs": 1, "batch_size": 256, "device": "cpu"})
    detector = bundle.detector
    assert detector.cooccurrence is not None
    assert detector.cooccurrence.rows == sum(bundle.facts.rows[part] for part in ("train", "validation", "calibration"))
    alone = dataclasses.replace(detector, cooccurrence=dataclasses.replace(detector.cooccurrence, excluded=1))
    # Calibration rows are scored as if each of them alone was not counted.
    distances = np.abs(bundle.calibration.scores[:, np.newaxis] - alone.latents_and_scores(frame)[1])
    assert distances.min(axis=1).max() < 1e-9
    assert detector.part_index(Evidence.CATEGORIES) == detector.part_count - 1 == 5
    odd = pl.DataFrame({"carrier": ["0", "1", "0"], "airport": ["12", "11", "10"], "load": [0.1, 0.1, 0.1]})
    scored = bundle.score(odd)
    assert scored.is_anomaly.tolist() == [True, False, False]
    assert f"never together in {detector.cooccurrence.rows:,} counted rows" in because(bundle.explain(odd)[0])
    (combined,) = [part for part in bundle.explain(odd)[0] if part.column == Evidence.CATEGORIES]
    assert dict(combined.categories) == {"carrier": "0", "airport": "12"}
    named = bundle.explain(odd)[0][0]
    assert named.expected.startswith({"carrier": "2", "airport": "10"}[named.column])
    assert_the_best_category_is_imputed(detector, odd.head(1))
    bundle.save(tmp_path)
    again = ModelBundle.load(tmp_path)
    assert again.fingerprint == bundle.fingerprint
    assert again.score(odd).score.tobytes() == scored.score.tobytes()
