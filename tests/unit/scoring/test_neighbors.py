"""Nearest-neighbor distances against scikit-learn and leave-one-out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ae_pipeline.common.device import full_float32
from ae_pipeline.scoring import blocks, mean_distances, neighbors
from ae_pipeline.scoring.mean_distances import mean_knn_distance
from ae_pipeline.scoring.neighbors import nearest_neighbors
from tests.support.arrays import Array, apply, nearest


class TestNeighbors:
    @pytest.mark.parametrize("width", [1, 2, 30])
    def test_distances_equal_those_of_scikit_learn(self, width: int) -> None:
        rng = np.random.default_rng(width)
        references, rows = rng.normal(size=(300, width)), rng.normal(size=(200, width)) * 2
        distances = NearestNeighbors(n_neighbors=25, algorithm="brute").fit(references).kneighbors(rows)[0]
        np.testing.assert_allclose(nearest(rows, references), distances[:, 0], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(mean_knn_distance(rows, references, 25), distances.mean(1), rtol=1e-6, atol=1e-9)

    def test_too_few_references_use_all_but_one(self) -> None:
        rng = np.random.default_rng(0)
        references, rows = rng.normal(size=(10, 3)), rng.normal(size=(50, 3))
        distances = np.sort(np.linalg.norm(rows[:, None] - references, axis=2), 1)
        np.testing.assert_allclose(mean_knn_distance(rows, references, 100), distances[:, :9].mean(1), rtol=1e-9)

    def test_training_row_is_compared_with_all_others(self) -> None:
        rows = np.random.default_rng(0).normal(size=(80, 4))
        others = [np.delete(rows, index, axis=0) for index in range(80)]
        expected = [nearest(rows[[index]], rest)[0] for index, rest in enumerate(others)]
        np.testing.assert_allclose(nearest(rows, rows), expected, rtol=1e-9)
        expected = [mean_knn_distance(rows[[index]], rest, 20)[0] for index, rest in enumerate(others)]
        np.testing.assert_allclose(mean_knn_distance(rows, rows, 20), expected, rtol=1e-9)

    def test_duplicate_has_distance_exactly_zero(self) -> None:
        # Grid points far from the origin, most of them duplicates.
        rng = np.random.default_rng(0)
        references = rng.integers(0, 3, (2000, 6)) / 3 + np.array([0.1, 10, 100, 1000, -7, 0])
        distances = nearest(references, references)
        _, inverse, counts = np.unique(references, axis=0, return_counts=True, return_inverse=True)
        assert (distances == 0).tolist() == (counts[inverse] > 1).tolist()
        distance = nearest_neighbors(torch.from_numpy(references), [len(references)])
        single = torch.cat([distance(row[None]) for row in torch.from_numpy(references)]).squeeze(1)
        np.testing.assert_allclose(distances, single, rtol=1e-6)

    def test_only_one_of_equal_references_is_left_out(self) -> None:
        references = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [6.0, 8.0]])
        rows = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [3.0, 4.1]])
        np.testing.assert_allclose(nearest(rows, references), [5, 0, 5, 0.1], atol=1e-7)
        # (3, 4) has a duplicate at distance 0 and two references at distance 5.
        np.testing.assert_allclose(mean_knn_distance(rows[:3], references, 2), [5, 2.5, 5], atol=1e-6)
        np.testing.assert_allclose(mean_knn_distance(rows[:3], references, 3), [20 / 3, 10 / 3, 20 / 3], atol=1e-6)

    def test_new_row_near_a_reference_has_its_distance(self) -> None:
        references = np.array([[1.0, 1.0], [5.0, 5.0]])
        assert nearest(np.array([[1.001, 1.0]]), references) == pytest.approx([0.001], rel=1e-6)

    @pytest.mark.parametrize("block_distances", [1, 7 * 300, 2**22])
    def test_distances_do_not_depend_on_blocks_or_order(
        self, monkeypatch: pytest.MonkeyPatch, block_distances: int
    ) -> None:
        rng = np.random.default_rng(0)
        references = rng.normal(size=(300, 6)) * 100
        rows = np.r_[rng.normal(size=(1000, 6)) * 100, references]
        expected = nearest(rows, references), mean_knn_distance(rows, references, 40)
        monkeypatch.setattr(mean_distances, "_BLOCK_DISTANCES", block_distances)
        monkeypatch.setattr(blocks, "_CPU_CELLS", block_distances)
        order, shuffled = rng.permutation(len(rows)), rng.permutation(300)
        functions: tuple[Callable[[Array, Array], Array], ...] = (
            nearest,
            lambda rows, references: mean_knn_distance(rows, references, 40),
        )
        for distance, values in zip(functions, expected, strict=True):
            np.testing.assert_allclose(distance(rows, references), values, rtol=1e-5)
            np.testing.assert_allclose(distance(rows[order], references[shuffled]), values[order], rtol=1e-5)
            np.testing.assert_allclose(distance(rows[[1, 1299]], references), values[[1, 1299]], rtol=1e-5)

    def test_no_rows_give_no_distances(self) -> None:
        assert nearest(np.empty((0, 2)), np.zeros((3, 2))).shape == (0,)
        assert mean_knn_distance(np.empty((0, 2)), np.zeros((3, 2)), 2).shape == (0,)


def tail_heavy(rng: np.random.Generator, n: int) -> Array:
    return rng.standard_t(1, size=(n, 5)) * 100


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=(n, 12)),
    "heavy tails": tail_heavy,
    "one value is a million": lambda rng, n: np.where(rng.random((n, 4)) < 0.01, 1e6, rng.normal(size=(n, 4))),
    "ties": lambda rng, n: rng.integers(0, 4, (n, 6)) / 3,
    "far from the origin": lambda rng, n: 1000 + rng.normal(0, 1e-3, (n, 3)),
    "flags": lambda rng, n: np.eye(7)[rng.integers(0, 7, n)],
    "copies": lambda rng, n: rng.normal(size=(n // 3, 4))[rng.integers(0, n // 3, n)],
    "one column": lambda rng, n: rng.normal(size=(n, 1)),
    "one row is far from all others": lambda rng, n: np.r_[np.full((1, 4), 1e4), rng.normal(size=(n - 1, 4))],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rounded_bounds_leave_distances_exact(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str, device: str
) -> None:
    monkeypatch.setattr(neighbors, "_multiplies_bfloat16", lambda _: dtype == torch.bfloat16)
    monkeypatch.setattr(neighbors, "_MAX_PAIRS", 1000)
    rng = np.random.default_rng(3)
    references, new = KINDS[kind](rng, 331), KINDS[kind](rng, 400)
    rows = np.concatenate([new, references[::3], 1e3 * new[:9], references[:9] * (1 + 1e-7)])
    counts = [131, 331]
    neighbors_of = nearest_neighbors(torch.from_numpy(references).to(device), counts)
    assert neighbors_of.factors.dtype == dtype
    distances = apply(neighbors_of, rows, device)
    # Two of all equal references are enough. More would all be measured in float64.
    numbers = np.unique(references, axis=0, return_counts=True)[1]
    assert int(neighbors_of.norms.isfinite().sum()) == np.minimum(numbers, 2).sum()
    for index, count in enumerate(counts):
        squares = np.square(rows[:, None] - references[:count]).sum(2)
        norms = np.square(rows).sum(1)[:, None] + np.square(references[:count]).sum(1)
        squares[squares <= 1e-12 * norms] = 0.0
        closest = squares.argmin(1)
        is_equal = squares[np.arange(len(rows)), closest] == 0
        squares[is_equal, closest[is_equal]] = np.inf
        np.testing.assert_allclose(distances[:, index], np.sqrt(squares.min(1)), rtol=1e-12, err_msg=str(count))
    again = apply(neighbors_of, rows, device)
    assert again.tobytes() == distances.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_few_references_on_opposite_sides_have_distances(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(neighbors, "_multiplies_bfloat16", lambda _: dtype == torch.bfloat16)
    references = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert nearest(references, references).tolist() == [5.0, 5.0]
    # A group has only the reference that is left out.
    counts = nearest_neighbors(torch.tensor([[0.0], [1.0], [9.0]], dtype=torch.float64), [2, 3])
    assert counts(torch.tensor([[9.0]], dtype=torch.float64)).tolist() == [[8.0, 8.0]]
    alone = nearest_neighbors(torch.tensor([[9.0], [0.0], [1.0]], dtype=torch.float64), [1, 3])
    assert alone(torch.tensor([[9.0]], dtype=torch.float64))[0, 1] == 8.0


@pytest.mark.parametrize(("width", "dtype"), [(1, torch.float32), (12, torch.bfloat16)])
def test_bfloat16_is_used_where_it_tells_references_apart(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(neighbors, "_multiplies_bfloat16", lambda _: True)
    references = torch.from_numpy(np.random.default_rng(0).normal(size=(500, width)))
    assert nearest_neighbors(references, [500]).factors.dtype == dtype


def test_rows_that_are_far_from_all_references_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_multiplies_bfloat16", lambda _: True)
    monkeypatch.setattr(blocks, "_CPU_CELLS", 2**14)
    measured: list[int] = []
    squares = neighbors.NearestNeighbors._squares

    def counted(self: neighbors.NearestNeighbors, rows: Tensor, index: Tensor) -> Tensor:
        measured.append(rows.numel())
        return squares(self, rows, index)

    monkeypatch.setattr(neighbors.NearestNeighbors, "_squares", counted)
    rng = np.random.default_rng(0)
    references, rows = rng.normal(size=(500, 12)), rng.normal(size=(200, 12))
    references[:, 0], rows[:, 0] = 0.0, 1e6
    expected = np.sqrt(np.square(rows[:, None] - references).sum(2).min(1))
    np.testing.assert_allclose(nearest(rows, references), expected, rtol=1e-12)
    assert sum(measured) > 12 * 200 * 400  # many pairs, which bfloat16 does not tell apart
    assert max(measured) <= 2**14


def test_bounds_use_no_tf32_where_a_program_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = torch.backends
    cuda, mkldnn = settings.cuda.matmul, settings.mkldnn.matmul
    seen = []

    def now() -> tuple[str, str, bool]:
        return cuda.fp32_precision, mkldnn.fp32_precision, cuda.allow_bf16_reduced_precision_reduction

    def spy(*args: Tensor, **options: Tensor) -> Tensor:
        seen.append(now())
        return product(*args, **options)

    product = torch.mm
    monkeypatch.setattr(neighbors, "_multiplies_bfloat16", lambda _: False)
    monkeypatch.setattr(torch, "mm", spy)
    references = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        torch.set_float32_matmul_precision("medium")
        with full_float32:  # of another thread
            nearest_neighbors(references, [20])(references)
        after = now()
    finally:
        torch.set_float32_matmul_precision("highest")
    # Each row equals a reference, so a second product leaves it out.
    assert (seen, after) == ([("ieee", "ieee", False)] * 2, ("tf32", "bf16", True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_bounds_are_never_below_the_closeness(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str) -> None:
    monkeypatch.setattr(neighbors, "_multiplies_bfloat16", lambda _: dtype == torch.bfloat16)
    monkeypatch.setattr(neighbors, "_MAX_PAIRS", 1000)
    rng = np.random.default_rng(5)
    # Whole numbers, whose rounding errors are zero: only the errors of the sums are left.
    references = torch.from_numpy(rng.integers(-100, 100, (700, 24)).astype(float)).to(device)
    rows = torch.from_numpy(rng.integers(-100, 100, (900, 24)).astype(float)).to(device)
    fitted = nearest_neighbors(references, [700])
    augmented, offsets = fitted._augmented(rows)
    with full_float32:
        bounds = (augmented @ fitted.factors).double()
    kept = fitted.norms.isfinite()
    squares = torch.cdist(rows, fitted.references[kept], compute_mode="donot_use_mm_for_euclid_dist").square()
    closeness = offsets.unsqueeze(1) - squares
    # A bound is rounded to its type, which keeps its order.
    assert bool((bounds[:, kept] >= closeness.to(dtype).double() - 1e-6 * closeness.abs()).all())


def test_rows_far_from_all_first_references_do_not_measure_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    core, others = rng.normal(size=(1500, 16)), rng.normal(size=(548, 16)) + 40
    references, rows = np.concatenate([core, others]), rng.normal(size=(300, 16)) + 40
    measured = []
    squares = neighbors.NearestNeighbors._squares

    def counted(self: Any, of: Tensor, index: Tensor) -> Tensor:
        measured.append(len(of))
        return squares(self, of, index)

    nearest_of = nearest_neighbors(torch.from_numpy(references), [len(core), len(references)])
    monkeypatch.setattr(neighbors.NearestNeighbors, "_squares", counted)
    distances = nearest_of(torch.from_numpy(rows))
    expected = [np.sqrt(np.square(rows[:, None] - part).sum(2).min(1)) for part in (core, references)]
    np.testing.assert_allclose(distances, np.stack(expected, 1), rtol=1e-12)
    # All others are nearer than the nearest of the first ones, but not all of the first ones are measured.
    assert sum(measured) < 0.9 * len(references) * len(rows)
