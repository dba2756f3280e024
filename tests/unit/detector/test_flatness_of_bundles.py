"""Bundles of images: flat scores are stored, and bundles of before format 11, which have none, score as before."""

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.explanation import explain
from ae_pipeline.detector.tensors import check_detector, read_detector, tensors_of
from ae_pipeline.training.fit import fit_detector

SHAPE = ImageShape(height=8, width=8, channels=1, dtype="uint8")


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    images[-1, 2:7, 2:7] = 128
    return pl.DataFrame({"image": pl.Series([image.tobytes() for image in images], dtype=pl.Binary)})


@pytest.fixture(scope="module")
def detector(rows: pl.DataFrame) -> Detector:
    config = PipelineConfig.model_validate(
        {
            "dataset": "d",
            "identity": ("id",),
            "images": {},
            "model": {"hidden": (8,)},
            "training": {"epochs": 1, "device": "cpu"},
        }
    )
    normal = rows.head(59)
    return fit_detector(config, [FeatureColumn("image", ColumnType.IMAGE, SHAPE)], normal, normal)[0]


def read(detector: Detector, tensors: dict[str, torch.Tensor]) -> Detector:
    manifest = {"config": detector.config.model_dump(mode="json"), "encoder": detector.encoder.model_dump(mode="json")}
    result = read_detector(manifest, tensors, "cpu")
    check_detector(result, surplus=tensors.keys() - tensors_of(result).keys())
    return result


def test_a_flat_block_has_the_highest_score_and_is_the_reason(detector: Detector, rows: pl.DataFrame) -> None:
    stored = read(detector, tensors_of(detector))
    scores = stored.latents_and_scores(rows)[1]
    np.testing.assert_array_equal(scores, detector.latents_and_scores(rows)[1])
    assert scores.argmax() == 59
    first = explain(stored, rows.tail(1))[0][0]
    assert first.column == "flat"
    assert "at row 4, column 4" in first.actual


def test_a_bundle_without_flat_scores_scores_by_residuals(detector: Detector, rows: pl.DataFrame) -> None:
    tensors = tensors_of(detector)
    del tensors["loss.flat_tails"]
    for name in ("tails.quantiles", "tails.excess"):
        tensors[name] = tensors[name][[0, 2, 3]].contiguous()
    earlier = read(detector, tensors)
    surprisal = detector.surprisal_of(detector.latents_and_losses(rows)[1])
    expected = np.maximum(surprisal[:, [0, 2, 3]].max(1), 0)
    np.testing.assert_allclose(earlier.latents_and_scores(rows)[1], expected, rtol=1e-12)
    assert {part.column for part in explain(earlier, rows.head(1), 9)[0]} == {"spot", "image"}


def test_work_on_many_batches_logs_how_far_it_is(
    detector: Detector, rows: pl.DataFrame, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = 25 * detector.network.widest_layer
    for name, value in {"_PROGRESS_SECONDS": 0.0, "_MAX_CPU_OUTPUTS": outputs}.items():
        monkeypatch.setattr(f"ae_pipeline.detector.network.{name}", value)
    with caplog.at_level("INFO", "ae_pipeline.detector.network"):
        assert [*detector.network.map_batches(len, rows)] == [25, 25, 10]
    assert caplog.messages == [f"{done} of 3 batches of rows evaluated" for done in (1, 2)]
