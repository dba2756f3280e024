"""Measures of heat maps against masks, held against their definitions."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import label
from sklearn.metrics import f1_score, roc_auc_score

from ae_pipeline.scoring.pixels import PixelMeter

Pairs = list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]


def maps(seed: int) -> Pairs:
    """Return three heat maps and masks: with two regions, with one that touches the edge, and without one."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 12, 15), np.bool_)
    masks[0, 1:4, 2:5] = masks[0, 8:11, 9:14] = masks[1, :2, :] = True
    heat = np.exp(rng.normal(masks * 1.0, 0.8).round(1))  # steps far wider than a bin, with many ties
    return list(zip(heat, masks, strict=True))


def brute_force_aupro(pairs: Pairs, limit: float = 0.3) -> float:
    """Return the area under the mean overlap of regions by false positive rate, threshold by threshold."""
    normal = np.concatenate([heat[~mask] for heat, mask in pairs])
    regions = [
        heat[numbers == number]
        for heat, mask in pairs
        for numbers, count in [label(mask, structure=np.ones((3, 3)))]
        for number in range(1, count + 1)
    ]
    points = [(0.0, 0.0)]
    for threshold in sorted({value for heat, _ in pairs for value in heat.ravel()}, reverse=True):
        overlap = float(np.mean([(region >= threshold).mean() for region in regions]))
        points.append((float((normal >= threshold).mean()), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("seed", range(5))
def test_the_measures_match_their_definitions(seed: int) -> None:
    pairs = maps(seed)
    meter = PixelMeter()
    for heat, mask in pairs:
        meter.add(heat, mask)
    measures = meter.measure()
    assert measures is not None
    heat, truth = (np.concatenate([pair[index].ravel() for pair in pairs]) for index in (0, 1))
    assert (measures.images, measures.defects) == (3, 3)
    assert measures.auroc == pytest.approx(roc_auc_score(truth, heat), abs=1e-12)
    assert measures.aupro == pytest.approx(brute_force_aupro(pairs), abs=1e-12)
    assert measures.f1 == pytest.approx(max(f1_score(truth, heat >= value) for value in np.unique(heat)), abs=1e-12)


def test_a_perfect_map_has_measures_of_1() -> None:
    meter = PixelMeter()
    mask = np.zeros((9, 9), np.bool_)
    mask[2:4, 5:9] = True
    meter.add(np.where(mask, 5.0, 1.0), mask)
    measures = meter.measure()
    assert measures is not None
    assert (measures.auroc, measures.aupro, measures.f1) == (1.0, 1.0, 1.0)


def test_without_an_anomalous_pixel_nothing_is_measured() -> None:
    meter = PixelMeter()
    meter.add(np.ones((4, 4)), np.zeros((4, 4), np.bool_))
    assert meter.measure() is None


def test_the_quantile_is_that_of_the_normal_pixels() -> None:
    meter, rng = PixelMeter(), np.random.default_rng(0)
    heat = rng.exponential(size=(300, 400))
    mask = np.zeros(heat.shape, np.bool_)
    mask[:10] = True
    meter.add(np.where(mask, 1e6, heat), mask)
    for share in (0.5, 0.99, 0.999):
        assert meter.quantile(share) == pytest.approx(np.quantile(heat[~mask], share), rel=0.003)
