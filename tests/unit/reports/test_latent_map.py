"""The map of the latent space, and the nearest normal rows."""

import numpy as np
import polars as pl
import pytest

from ae_pipeline.latents.read import published_days
from ae_pipeline.reports.latent_map import latents_in, nearest_neighbors, project, projection, reference_rows
from tests.support.reports import published
from tests.support.sensors import Fitted


class TestMap:
    @pytest.fixture
    def table(self, dataset: Fitted, fitted: Fitted) -> pl.DataFrame:
        published(dataset, dataset.days)
        return pl.read_delta(dataset.paths.latents).sort("row_id")

    def test_the_axes_have_the_largest_variance_of_the_training_rows(self, fitted: Fitted) -> None:
        rows = fitted.window.rows("train", fitted.paths)
        coordinates = project(fitted.bundle.encode(rows).astype(np.float64), fitted.bundle)
        np.testing.assert_allclose(coordinates.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(np.cov(coordinates.T, bias=True), np.eye(2), atol=1e-4)
        directions = projection(fitted.bundle)
        assert (directions[np.abs(directions).argmax(axis=0), [0, 1]] > 0).all()

    def test_neighbors_are_the_nearest_rows_without_the_row_itself(
        self, dataset: Fitted, fitted: Fitted, table: pl.DataFrame
    ) -> None:
        reference = reference_rows(published_days(dataset.paths), dataset.paths, fitted.bundle)
        assert not reference["is_anomaly"].any()
        rows = table.filter(pl.col("row_id").is_in(reference["row_id"].head(5).implode()))
        neighbors = nearest_neighbors(rows, reference, fitted.bundle)
        white = latents_in(reference) @ fitted.bundle.mahalanobis.whitening
        for one in rows.iter_rows(named=True):
            latents = latents_in(rows.filter(pl.col("row_id") == one["row_id"])) @ fitted.bundle.mahalanobis.whitening
            far = np.sqrt(np.square(white - latents).sum(1))
            expected = sorted(zip(far, reference["row_id"], strict=True))[1:4]
            assert [name for name, _ in neighbors[one["row_id"]]] == [name for _, name in expected]
            assert [distance for _, distance in neighbors[one["row_id"]]] == pytest.approx([far for far, _ in expected])
