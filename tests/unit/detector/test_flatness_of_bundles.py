"""Bundles of images: flat scores are stored, and bundles of before format 11, which have none, score as before."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.detector import Detector
from ae_pipeline.detector.explanation import explain
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.detector.tensors import check_detector, read_detector, tensors_of
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.training.fit import fit_detector
from tests.support.sensors import Fitted

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


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ({"architecture": "conv", "channels": [16, 32], "down": "pool"}, 16 * 32 * 32),
        ({"architecture": "conv", "channels": [4, 8]}, 3 * 32 * 32),
        ({"architecture": "dense", "hidden": [10]}, 3 * 32 * 32),
    ],
)
def test_a_batch_of_images_is_bounded_by_the_widest_layer(model: dict[str, Any], outputs: int) -> None:
    config = PipelineConfig.model_validate(
        {"dataset": "d", "identity": ["file"], "images": {}, "model": {"latent_dim": 2, **model}}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (300, 32 * 32 * 3), np.uint8)
    images = pl.DataFrame({"image": [row.tobytes() for row in pixels]})
    shape = ImageShape(height=32, width=32, channels=3, dtype="uint8")
    encoder = fit_encoder(config, images, [FeatureColumn("image", ColumnType.IMAGE, shape)])
    untrained = build_model(config, encoder.shape, torch.Generator().manual_seed(0)).eval()
    network = FittedNetwork(encoder, untrained, build_loss(config, encoder))
    assert network.widest_layer == outputs
    assert next(rows.height for rows in network.batches(images)) == min(300, 2**21 // outputs)


def test_scoring_in_a_new_process_imports_no_compiler(fitted: Fitted, tmp_path: Path) -> None:
    """Torch imports its compiler for some operations, which takes a second and 70 MiB."""
    fitted.bundle.save(tmp_path)
    code = (
        "import sys, polars; from pathlib import Path; from ae_pipeline.detector.bundle import ModelBundle;"
        f"bundle = ModelBundle.load(Path({str(tmp_path)!r}));"
        f"print(len(bundle.score(polars.read_parquet({str(fitted.paths.features(fitted.days[0]))!r})).score));"
        "print('torch._dynamo' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rows, has_compiler = output.split()
    assert int(rows) == fitted.features(fitted.days[0]).height
    assert has_compiler == "False"
