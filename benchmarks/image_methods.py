"""Methods for images: ours, principal components, detectors of PyOD, and models of anomalib.

All methods but those of anomalib get the same patches. A baseline scores an image by its highest patch, and a pixel by
the stitched error or score of the patches around it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from sklearn.decomposition import PCA

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.heat_maps import each_image, heat_map
from benchmarks import defects
from benchmarks.anomalib_methods import NAMES as ANOMALIB
from benchmarks.anomalib_methods import anomalib_methods
from benchmarks.frames import IMAGE, fit_frame
from benchmarks.materials import Pixels, Scored, Sheet, Values

PATCH, STRIDE, COMPONENTS = 32, 16, 256
MODEL: Mapping[str, Any] = {**defects.MODEL, "latent_dim": 256}
TRAINING: Mapping[str, Any] = {"epochs": 15, "batch_size": 64, "learning_rate": 4e-3}


AUGMENTED = "ae_pipeline, augmentation: turns"

METHODS = ("ae_pipeline", AUGMENTED, "PCA", "PyOD KNN", "PyOD IForest", *ANOMALIB)
"""Names of all methods."""


def methods(seed: int) -> dict[str, Callable[[Sheet], Scored]]:
    """Return all methods by their names, those of anomalib among them."""
    return {
        "ae_pipeline": partial(score_ours, seed=seed),
        AUGMENTED: partial(score_ours, seed=seed, augmentation="turns"),
        "PCA": partial(score_pca, seed=seed),
        "PyOD KNN": partial(score_pyod, KNN()),
        "PyOD IForest": partial(score_pyod, IForest(random_state=seed)),
        **anomalib_methods(seed),
    }


def cut(images: Sequence[Pixels]) -> tuple[pl.DataFrame, Pixels]:
    """Return the patches of images as features, and as an array, (n, patch, patch)."""
    starts = _starts(len(images[0]))
    places = [(index, top, left) for index in range(len(images)) for top in starts for left in starts]
    patches = np.stack([images[index][top : top + PATCH, left : left + PATCH] for index, top, left in places])
    files = [f"{index:04d}" for index, _, _ in places]
    row_ids = [f"{index:04d}|{top}|{left}" for index, top, left in places]
    return pl.DataFrame({"row_id": row_ids, "file": files, IMAGE: [patch.tobytes() for patch in patches]}), patches


def score_ours(sheet: Sheet, seed: int, augmentation: str = "none") -> Scored:
    """Score the test images with the pipeline's model, verdicts and heat maps."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "images",
            "identity": ("file", "top", "left"),
            "images": {"column": IMAGE, "patch": PATCH, "stride": STRIDE},
            "model": MODEL,
            "training": {**TRAINING, "seed": seed, "device": "cpu", "augmentation": augmentation},
            "alerts": {"evidence": ["columns", "row"]},
        }
    )
    shape = ImageShape(height=PATCH, width=PATCH, channels=1, dtype="uint8")
    bundle = fit_frame(config, cut(sheet.training)[0], [FeatureColumn(IMAGE, ColumnType.IMAGE, shape)])
    rows, _ = cut(sheet.test)
    judge = bundle.judge_images
    assert judge is not None
    verdicts = judge(rows.select("row_id").with_columns(score=pl.Series(bundle.score(rows).score)))
    maps = [heat_map(bundle.network, part, config) for _, part in each_image([rows], config)]
    return verdicts["score"].to_numpy(), maps


def score_pca(sheet: Sheet, seed: int) -> Scored:
    """Score the test images by the squared reconstruction errors of principal components."""
    flat = flatten(cut(sheet.training)[1])
    fitted = PCA(COMPONENTS, random_state=seed).fit(flat)
    rows = flatten(cut(sheet.test)[1])
    errors = np.square(rows - fitted.inverse_transform(fitted.transform(rows)))
    return _by_image(errors.mean(1), len(sheet.test)), _stitch(errors.reshape(-1, PATCH, PATCH), sheet)


def score_pyod(detector: Any, sheet: Sheet) -> Scored:
    """Score the test images by a detector of PyOD with its defaults, on patches."""
    detector.fit(flatten(cut(sheet.training)[1]))
    scores = np.asarray(detector.decision_function(flatten(cut(sheet.test)[1])), dtype=np.float64)
    scores -= scores.min() - 1e-3  # heat is positive
    patches = np.broadcast_to(scores[:, np.newaxis, np.newaxis], (len(scores), PATCH, PATCH))
    return _by_image(scores, len(sheet.test)), _stitch(patches, sheet)


def flatten(patches: Pixels) -> Values:
    """Return patches as rows on the scale 0 to 1."""
    rows: Values = patches.reshape(len(patches), -1) / 255
    return rows


def _by_image(scores: Values, images: int) -> Values:
    highest: Values = scores.reshape(images, -1).max(axis=1)
    return highest


def _starts(size: int) -> range:
    return range(0, size - PATCH + 1, STRIDE)


def _stitch(patches: Values, sheet: Sheet) -> list[Values]:
    size = len(sheet.test[0])
    starts = _starts(size)
    maps = []
    for of_image in patches.reshape(len(sheet.test), len(starts) ** 2, PATCH, PATCH):
        total, count = np.zeros((size, size)), np.zeros((size, size))
        for index, patch in enumerate(of_image):
            top, left = (STRIDE * step for step in divmod(index, len(starts)))
            total[top : top + PATCH, left : left + PATCH] += patch
            count[top : top + PATCH, left : left + PATCH] += 1
        maps.append(total / count)
    return maps
