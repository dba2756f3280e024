"""The heat above which a pixel counts as anomalous, measured on calibration images."""

import math

from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.heat_maps import each_image, heat_map
from ae_pipeline.scoring.pixels import PixelMeter
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.training.screened import Screened

_MAX_ELEMENTS = 5e7
"""Values of all patches whose heat maps are made: at least one image, and about ten seconds of work."""


def fit_pixel_threshold(detector: Detector, screened: Screened, dataset: Dataset, budget: float) -> float | None:
    """Return the heat that a share of the pixels of normal images exceeds; None for tables.

    Args:
        detector: Fitted detector.
        screened: Window without what was left out. The first complete calibration images are used.
        dataset: Configuration and paths of the dataset.
        budget: Share of the pixels of normal images that may exceed the threshold.
    """
    if dataset.config.images is None:
        return None
    meter, elements = PixelMeter(), 0
    incomplete = set(screened.incomplete_images("calibration", dataset.config))
    all_rows = screened.window.batches("calibration", dataset.paths)
    batches = (screened.keep("calibration", rows) for rows in all_rows)
    for image, rows in each_image(batches, dataset.config):
        if image in incomplete:
            continue
        heat = heat_map(detector.network, rows, dataset.config)
        meter.add(heat, heat < 0)
        elements += rows.height * math.prod(detector.encoder.shape)
        if elements > _MAX_ELEMENTS:
            break
    return meter.quantile(1 - budget)
