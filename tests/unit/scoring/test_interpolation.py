"""Piecewise linear functions against numpy.interp."""

import numpy as np
import pytest
import torch

from ae_pipeline.scoring import blocks
from ae_pipeline.scoring.interpolation import Curve, tabulate
from tests.support.arrays import apply


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
