"""Piecewise linear functions against numpy.interp."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ae_pipeline.scoring import blocks
from ae_pipeline.scoring.interpolation import Curve, tabulate
from tests.support.arrays import apply

Array = npt.NDArray[np.float64]


def test_continuous_functions_are_those_of_numpy(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    breakpoints = [np.sort(rng.normal(size=count)) for count in (1, 2, 7, 8, 65)]
    levels = [rng.normal(size=len(each)) for each in breakpoints]
    curves = [
        Curve(breakpoints=k, below=level, at=level, above=level) for k, level in zip(breakpoints, levels, strict=True)
    ]
    values = np.concatenate(
        [rng.normal(0, 2, (200, 5)), np.tile(breakpoints[4][:, None], 5), [[-1e300] * 5, [1e300] * 5]]
    )
    expected = np.column_stack([np.interp(values[:, i], breakpoints[i], levels[i]) for i in range(5)])
    found = apply(tabulate(curves, torch.device(device)), values, device)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(blocks, "_CPU_CELLS", 60)
    np.testing.assert_allclose(apply(tabulate(curves, torch.device(device)), values, device), found, rtol=1e-14)


def test_jumps_have_a_value_of_their_own() -> None:
    curve = Curve(
        breakpoints=np.array([0.0, 2.0]),
        below=np.array([0.0, 0.5]),
        at=np.array([0.1, 0.7]),
        above=np.array([0.25, 1.0]),
    )
    values = np.array([[-1.0], [0.0], [1.0], [2.0], [3.0], [np.nan]])
    found = apply(tabulate([curve], torch.device("cpu")), values)[:, 0]
    np.testing.assert_allclose(found, [0.0, 0.1, 0.375, 0.7, 1.0, np.nan], rtol=1e-15)


@pytest.mark.parametrize(
    "breakpoints",
    [
        np.append(np.arange(100) * 1e-9, 1e9),
        np.concatenate([[-1e300], np.linspace(0, 1, 500), np.geomspace(2, 1e300, 40)]),
        np.array([-1.7e308, 0.0, 1.7e308]),
        np.array([5e-324, 1e-323]),
        np.nextafter(1.0, 2.0) - np.arange(3)[::-1] * 2**-52,
        np.sort(np.random.default_rng(3).standard_cauchy(1001)),
    ],
    ids=["cluster and outlier", "both ends", "range beyond float64", "smallest numbers", "neighbors", "heavy tails"],
)
def test_any_spacing_of_breakpoints_gives_the_entry_of_a_sorted_search(device: str, breakpoints: Array) -> None:
    levels = np.arange(len(breakpoints), dtype=np.float64)
    steps = Curve(breakpoints=breakpoints, below=levels, at=levels + 0.5, above=levels + 1)
    flat = Curve(breakpoints=np.array([0.0]), below=np.zeros(1), at=np.zeros(1), above=np.zeros(1))
    rng, (first, last) = np.random.default_rng(0), breakpoints[[0, -1]]
    near = [np.nextafter(breakpoints, -np.inf), breakpoints, np.nextafter(breakpoints, np.inf)]
    values = np.concatenate([*near, rng.uniform(first / 2, last / 2, 500), rng.normal(size=500)])
    expected = np.searchsorted(breakpoints, values, side="right") - 0.5 * np.isin(values, breakpoints)
    rows = np.column_stack([np.zeros(len(values)), values])
    found = apply(tabulate([flat, steps], torch.device(device)), rows, device)
    np.testing.assert_array_equal(found[:, 1], expected)
