"""The engines give the same files: staged copies, raw rows, features and latents, byte by byte."""

import datetime as dt
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from ae_pipeline.common.cores import cores
from ae_pipeline.common.errors import ConfigError, EngineError
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.engine import ray_pool
from ae_pipeline.engine.mapping import engine_map
from ae_pipeline.engine.ray_train import work_together
from ae_pipeline.latents.publish import publish
from ae_pipeline.lifecycle.ingest import build_feature_days, build_raw_days
from ae_pipeline.models.corruption import Corruption
from ae_pipeline.storage.dataset import Dataset
from ae_pipeline.storage.paths import DatasetPaths
from ae_pipeline.training.data_parallel import require_workers, train_on_workers
from ae_pipeline.training.loop import train
from tests.support.peers import small_training, weights_of
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
    assert set(engine_map(_cores_and_threads, range(4))) == {(1, 1)}
    with pytest.raises(ValueError, match=r"^day is out of range for month$"):
        list(engine_map(dt.date.fromisoformat, ["2024-02-29", "2023-02-29"]))
    with pytest.raises(EngineError, match=r"a task of Ray lost its worker in each attempt \(WorkerCrashedError\)"):
        list(engine_map(os._exit, [9]))
    monkeypatch.setattr(ray_pool, "__version__", "0.0.1")
    with pytest.raises(EngineError, match=r"has ae_pipeline .*, but the run has 0\.0\.1; install the same version"):
        list(engine_map(abs, [-1]))


def _cores_and_threads(_: int) -> tuple[int, int]:
    return cores(), pl.thread_pool_size()


def _dying(marker: Path, corrupt: Corruption) -> Corruption:
    """Return a corruption whose process is killed in the second epoch, unless there is a file already."""
    batches = 0

    def corrupted(rows: Tensor, generator: torch.Generator | None) -> Tensor:
        nonlocal batches
        batches += 1
        if batches == 10 and not marker.exists():
            marker.touch()
            os._exit(9)
        return corrupt(rows, generator)

    return corrupted


@pytest.mark.usefixtures("ray_cluster")
def test_workers_train_the_network_of_one_although_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "ray")
    training = small_training(
        images=True, model={"variational": True}, corruption="gaussian", optimizer="momentum", workers=2
    )
    rows, validation = training.rows()
    corrupt, settings = training.corruption(), training.settings
    assert corrupt is not None
    alone, loss = training.network()
    expected = train(alone, loss, rows, validation, settings, training.generator(), corrupt=corrupt)
    reported: list[Epoch] = []
    model, scales = training.network()
    corrupt = _dying(tmp_path / "died", corrupt)
    result = train_on_workers(
        model, scales, rows.numpy(), validation, settings, training.generator(), reported.append, corrupt, None
    )
    assert (tmp_path / "died").exists()
    assert "a worker of the training was lost; the training starts again" in caplog.text
    assert tuple(reported) == result.epochs
    assert [each.number for each in reported] == [1, 2, 3]
    assert result.best_loss == pytest.approx(expected.best_loss, rel=1e-5)
    assert torch.allclose(weights_of(model, scales), weights_of(alone, loss), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("ray_cluster")
def test_workers_end_with_an_interrupted_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def interrupt(_: Epoch) -> None:
        assert ray.available_resources().get("CPU", 0) == 0
        raise KeyboardInterrupt

    monkeypatch.setenv("AE_PIPELINE_ENGINE", "ray")
    training = small_training(epochs=100_000, patience=100_000, workers=2)
    rows, validation = training.rows()
    with pytest.raises(KeyboardInterrupt):
        train_on_workers(
            *training.network(),
            rows.numpy(),
            validation,
            training.settings,
            training.generator(),
            interrupt,
            None,
            None,
        )
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.usefixtures("ray_cluster")
def test_an_error_of_a_worker_is_raised_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    def fail(item: dict[str, int], device: torch.device, report: Callable[[object], None]) -> int:
        return item["rows"]

    with pytest.raises(EngineError, match=r"a worker of the training failed: KeyError: 'rows'; the log has its trace"):
        work_together(fail, dict[str, int](), workers=1, threads=1, use_gpu=False, report=print)
    assert "starts again" not in caplog.text
    assert 'return item["rows"]' in caplog.text


@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_cluster_has_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "ray")
    cpu = torch.device("cpu")
    require_workers(TrainingConfig(workers=2), cpu)
    with pytest.raises(ConfigError, match=r"workers=2 with training\.threads=2 needs 4 cores, but .* has 2; lower"):
        require_workers(TrainingConfig(workers=2, threads=2), cpu)
    with pytest.raises(ConfigError, match=r"workers=2 needs as many GPUs, but the Ray cluster has 0; lower it"):
        require_workers(TrainingConfig(workers=2), torch.device("cuda"))


def test_ray_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "ray")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; install ae-pipeline\[ray\]"):
        list(engine_map(abs, [1]))
