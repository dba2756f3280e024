"""Fixtures for all tests: a tiny dataset that is ingested and fitted once per session."""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # idle threads that spin would slow down the others
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.features.split import cut_window
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.parquet import read_facts, write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.fit import fit_bundle
from ae_pipeline.training.loop import TrainingResult
from tests.support.sensors import DATASET, NO_ENSEMBLE, ROWS_A_DAY, FitFrame, Fitted, sensor_config, sensor_rows

SLOW = {"browser", "benchmarks", "integration"}
"""Folders whose tests start processes or whole runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of some folders as slow."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The tiny dataset after ingestion, features and training. Tests must not write below its root."""
    # Imported here, so that tests of the numeric core run on machines without the libraries of the ingestion.
    from ae_pipeline.features.build import build_features_day, feature_columns
    from ae_pipeline.ingestion.contract import load_contract
    from ae_pipeline.ingestion.landing import ingest
    from ae_pipeline.ingestion.raw import build_raw_day

    config = sensor_config()
    paths = DatasetPaths(tmp_path_factory.mktemp("data"), DATASET)
    paths.landing.mkdir(parents=True)
    rows = sensor_rows()
    for index, part in enumerate(rows.iter_slices(10 * ROWS_A_DAY)):
        part.write_csv(paths.landing / f"part_{index}.csv")
    dataset = Dataset(config, paths)
    ingested = ingest(dataset, dt.date(2025, 1, 1))
    content = {}
    for day in ingested.ledger.days:
        build_raw_day(day, ingested, paths)
        content[day] = build_features_day(day, dataset, ingested.contract).content_hash
    columns = feature_columns(config, load_contract(paths.contract))
    window = cut_window(content, config)
    bundle, result = fit_bundle(dataset, columns, window)
    return Fitted(
        config=config,
        paths=paths,
        columns=columns,
        days=tuple(sorted(content)),
        window=window,
        bundle=bundle,
        result=result,
    )


@pytest.fixture(scope="session")
def other_bundle(fitted: Fitted) -> ModelBundle:
    """A second model of the same shape on the same days, trained with another seed."""
    config = sensor_config(
        training={**fitted.config.training.model_dump(), "seed": 1, "epochs": 2},
        alerts={"budget": 0.01, "evidence": NO_ENSEMBLE},
    )
    return fit_bundle(Dataset(config, fitted.paths), fitted.columns, fitted.window)[0]


@pytest.fixture(scope="session")
def wider_bundle(fitted: Fitted) -> ModelBundle:
    """A model on the same days with more latents."""
    config = sensor_config(
        model={**fitted.config.model.model_dump(), "latent_dim": 5},
        training={**fitted.config.training.model_dump(), "epochs": 2},
        alerts={"budget": 0.01, "evidence": NO_ENSEMBLE},
    )
    return fit_bundle(Dataset(config, fitted.paths), fitted.columns, fitted.window)[0]


@pytest.fixture
def dataset(fitted: Fitted, tmp_path: Path) -> Fitted:
    """A copy of the fitted dataset whose features the test may change."""
    return fitted.at(tmp_path / "data")


@pytest.fixture(scope="session")
def make_config() -> Callable[..., PipelineConfig]:
    """`sensor_config` as a fixture."""
    return sensor_config


@pytest.fixture(scope="session")
def fit_frame(tmp_path_factory: pytest.TempPathFactory) -> FitFrame:
    """Function that fits a bundle on a frame in memory, as a dataset without event time.

    A hash splits the rows 14 : 2 : 3 : 1 into training, validation, calibration and gate. The model has an ensemble
    only if the section `alerts` asks for it.
    """

    def fit(
        frame: pl.DataFrame, columns: Sequence[FeatureColumn], previous: ModelBundle | None = None, **sections: Any
    ) -> tuple[ModelBundle, TrainingResult]:
        paths = DatasetPaths(tmp_path_factory.mktemp("frame"), "frame")
        rows = frame.select(
            pl.format("r{}", pl.int_range(pl.len())).alias("row_id"),
            pl.lit(None, pl.Datetime("us", "UTC")).alias("event_time"),
            *(column.name for column in columns),
        )
        write_parquet(paths.features(ALL_ROWS), rows.to_arrow())
        settings: dict[str, Any] = {
            "dataset": "frame",
            "identity": ("id",),
            "training": {"epochs": 2, "batch_size": 64, "device": "cpu"},
            "alerts": {"budget": 0.02, "evidence": NO_ENSEMBLE},
        }
        config = PipelineConfig.model_validate({**settings, **sections})
        content = {ALL_ROWS: read_facts(paths.features(ALL_ROWS))["content_hash"]}
        return fit_bundle(Dataset(config, paths), columns, cut_window(content, config), previous=previous)

    return fit


_NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=_NO_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """Device to train and score on. Tests that use it run on each device of the machine."""
    name: str = request.param
    return name


@pytest.fixture
def rewrite_day() -> Callable[[Fitted, str, pl.DataFrame], None]:
    """Function that replaces the features of a day."""

    def rewrite(dataset: Fitted, day: str, rows: pl.DataFrame) -> None:
        write_parquet(dataset.paths.features(day), rows.to_arrow(), {"input_hash": "changed by a test"})

    return rewrite
