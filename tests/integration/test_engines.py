"""The engines give the same files: staged copies, raw rows, features and latents, byte by byte."""

import datetime as dt
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ae_pipeline.common.errors import ConfigError, EngineError
from ae_pipeline.engine import ray_pool
from ae_pipeline.engine.mapping import engine_map
from ae_pipeline.latents.publish import publish
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from tests.support.sensors import Fitted


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A cluster of this machine with two cores, that ends with the module."""
    ray = pytest.importorskip("ray", reason="Ray is not installed; install ae-pipeline[ray]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


def _all_stages(fitted: Fitted, root: Path, bundle: Path | None) -> dict[str, bytes]:
    """Ingest the landed files of the fitted dataset, publish all days, and return the content of each Parquet file.

    Args:
        fitted: The fitted dataset.
        root: Data folder.
        bundle: Folder of its bundle, for workers; None if this process scores.
    """
    paths = DatasetPaths(root, fitted.name)
    for folder in (fitted.paths.landing, fitted.paths.contract.parent):
        shutil.copytree(folder, root / folder.relative_to(fitted.paths.root))
    dataset = Dataset(fitted.config, paths)
    build_raw_days(dataset, fitted.days, "run", read_landed=True)
    build_feature_days(dataset, fitted.days)
    published = publish(fitted.days, dataset, fitted.bundle, 1, {}, bundle_folder=bundle)
    assert [day.built for day in published.days] == [True] * len(fitted.days)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*.parquet"))
        if "_delta_log" not in path.parts
    }


@pytest.fixture(scope="module")
def expected(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of each file that one process writes."""
    files = _all_stages(fitted, tmp_path_factory.mktemp("threads"), None)
    assert {name.partition("/")[0] for name in files} == {"staging", "raw", "features", "latents"}
    return files


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_all_files_are_those_of_one_process(
    engine: str,
    fitted: Fitted,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if engine == "ray":
        request.getfixturevalue("ray_cluster")
    fitted.bundle.save(tmp_path / "bundle")
    monkeypatch.setenv("AE_PIPELINE_ENGINE", engine)
    assert _all_stages(fitted, tmp_path / engine, tmp_path / "bundle") == expected


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_of_ray_raises_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "ray")
    with pytest.raises(ValueError, match=r"^day is out of range for month$"):
        list(engine_map(dt.date.fromisoformat, ["2024-02-29", "2023-02-29"]))
    with pytest.raises(EngineError, match=r"a task of Ray lost its worker in each attempt \(WorkerCrashedError\)"):
        list(engine_map(os._exit, [9]))
    monkeypatch.setattr(ray_pool, "__version__", "0.0.1")
    with pytest.raises(EngineError, match=r"has ae_pipeline .*, but the run has 0\.0\.1; install the same version"):
        list(engine_map(abs, [-1]))


def test_ray_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "ray")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; install ae-pipeline\[ray\]"):
        list(engine_map(abs, [1]))
