"""Fixtures of the tests of the latent table."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.latents import layout
from ae_pipeline.latents.publish import Publication, publish
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from tests.support.latents import FitFrame, publish_days
from tests.support.sensors import Fitted


@pytest.fixture
def own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each day its own file, like days with many rows."""
    monkeypatch.setattr(layout, "MIN_ROWS_FOR_OWN_FILE", 1)


@pytest.fixture
def days(fitted: Fitted) -> tuple[str, ...]:
    return fitted.days[-4:]


@pytest.fixture
def first(dataset: Fitted, days: tuple[str, ...]) -> Publication:
    """Publication of four days under version 1."""
    return publish_days(dataset, days)


@pytest.fixture
def undated(fit_frame: FitFrame, tmp_path: Path) -> DatasetPaths:
    """Paths of a dataset without event time, with 400 published rows."""
    frame = pl.DataFrame({"x": np.random.default_rng(0).normal(size=400)})
    bundle, _ = fit_frame(frame, [FeatureColumn("x", ColumnType.NUMBER)], model={"latent_dim": 1, "hidden": (4,)})
    paths = DatasetPaths(tmp_path, "frame")
    rows = frame.select(
        row_id=pl.format("r{}", pl.int_range(pl.len())), event_time=pl.lit(None, pl.Datetime("us", "UTC")), x="x"
    )
    write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
    result = publish([ALL_ROWS], Dataset(bundle.config, paths), bundle, 1, {})
    assert [(entry.day, entry.rows) for entry in result.days] == [(ALL_ROWS, 400)]
    return paths
