"""Which rows the statistics of a loss are fitted on."""

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import Scaling
from ae_pipeline.encoding.image_encoder import fit_image_encoder
from ae_pipeline.training import loss_statistics
from ae_pipeline.training.loss_statistics import statistics_rows


def images(count: int, seed: int) -> pl.DataFrame:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    return pl.DataFrame({"image": pl.Series([image.tobytes() for image in pixels], dtype=pl.Binary)})


@pytest.mark.parametrize(
    ("training", "validation", "added"),
    [(30, 10, 30), (3000, 100, 1500), (3000, 499, 1500), (3000, 500, 0), (5000, 40, 1667)],
)
def test_few_validation_images_are_joined_by_training_images(training: int, validation: int, added: int) -> None:
    rows = images(training, 0)
    column = FeatureColumn("image", ColumnType.IMAGE, ImageShape(height=4, width=4, channels=1, dtype="uint8"))
    encoder = fit_image_encoder(rows, [column], "image", Scaling.UNIT)
    encoded = torch.from_numpy(encoder.encode(images(validation, 1)))
    chosen = statistics_rows(encoder, rows, encoded)
    assert len(chosen) == added + validation
    torch.testing.assert_close(chosen[added:], encoded)
    if added:
        torch.testing.assert_close(chosen[0], torch.from_numpy(encoder.encode(rows[:1]))[0])


def test_large_images_are_bounded_by_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = images(100, 0)
    column = FeatureColumn("image", ColumnType.IMAGE, ImageShape(height=4, width=4, channels=1, dtype="uint8"))
    encoder = fit_image_encoder(rows, [column], "image", Scaling.UNIT)
    encoded = torch.from_numpy(encoder.encode(images(10, 1)))
    for limit, added in ((30 * 16, 20), (10 * 16, 0), (16, 0)):
        monkeypatch.setattr(loss_statistics, "_MAX_ELEMENTS", limit)
        assert len(statistics_rows(encoder, rows, encoded)) == added + 10


def test_many_large_validation_images_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = images(100, 0)
    column = FeatureColumn("image", ColumnType.IMAGE, ImageShape(height=4, width=4, channels=1, dtype="uint8"))
    encoder = fit_image_encoder(rows, [column], "image", Scaling.UNIT)
    encoded = torch.from_numpy(encoder.encode(images(10, 1)))
    for limit, indices in ((10, range(10)), (9, range(0, 10, 2)), (3, range(0, 10, 4)), (0, [0])):
        monkeypatch.setattr(loss_statistics, "_MAX_VALIDATION_ELEMENTS", limit * 16)
        monkeypatch.setattr(loss_statistics, "_MAX_ELEMENTS", 16)
        torch.testing.assert_close(statistics_rows(encoder, rows, encoded), encoded[list(indices)])
