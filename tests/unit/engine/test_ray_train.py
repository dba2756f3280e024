"""Workers of Ray Train: what they need, and what their errors mean. The tests of engines run them."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.engine import ray_train
from ae_pipeline.engine.ray_train import require_capacity

pytest.importorskip("ray", reason="Ray is not installed; install ae-pipeline[ray]")


def _cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(ray_train, "connect", lambda: SimpleNamespace(nodes=lambda: [*alive, dead]))


def test_each_worker_needs_its_cores_and_gpu_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    _cluster(monkeypatch, *[{"CPU": 1.0}] * 4)
    require_capacity(4, 1, use_gpu=False)
    with pytest.raises(ConfigError, match=r"workers=2 needs 2 cores on one node for each worker, but .* room for 0;"):
        require_capacity(2, 2, use_gpu=False)
    _cluster(monkeypatch, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 2.0}, {"CPU": 8.0})
    require_capacity(2, 2, use_gpu=True)
    with pytest.raises(ConfigError, match=r"workers=3 needs 2 cores and a GPU on one node .* room for 2; lower"):
        require_capacity(3, 2, use_gpu=True)


def test_lost_workers_are_told_from_errors_of_the_work() -> None:
    from ray.exceptions import ObjectLostError

    lost = [
        distributed.DistBackendError("NCCL error"),
        RuntimeError("[third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"),
        ObjectLostError("0f", None, ""),
    ]
    own = [torch.OutOfMemoryError("out"), MemoryError(), RuntimeError("can't allocate memory"), ConnectionError("feed")]
    assert [ray_train._has_lost_others(error) for error in (*lost, *own)] == [True] * 3 + [False] * 4


def test_the_reason_of_a_lost_training_is_that_of_a_worker() -> None:
    from ray.train import ControllerError, WorkerGroupError

    lost = WorkerGroupError("[Rank 1 Error Snippet]:", {1: RuntimeError("the node died\nat 10:00")})
    assert ray_train._reason(_TaskError(lost)) == "the node died"
    assert ray_train._reason(_TaskError(ControllerError(ValueError("no storage")))) == "no storage"
    assert ray_train._reason(ValueError("gone")) == "gone"


class _TaskError(Exception):
    """An error with a cause, as an error of a task has it."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("the text of Ray")
        self.cause = cause


class _Mailbox:
    """A mailbox that is empty until it is closed."""

    def __init__(self) -> None:
        self.gets = 0

    def get(self, **_: Any) -> object:
        from ray.util.queue import Empty

        self.gets += 1
        if self.gets == 3:
            return ray_train._Start(None)
        if self.gets == 4:
            return ray_train._Result(5)
        raise Empty


def test_a_training_that_waits_for_the_cluster_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox = _Mailbox()
    monkeypatch.setattr("ray.wait", lambda tasks, timeout: (tasks if mailbox.gets > 3 else [], []))
    monkeypatch.setattr("ray.get", lambda _: None)
    monkeypatch.setattr(ray_train, "_QUIET_SECONDS", -1.0)
    with caplog.at_level(logging.INFO):
        assert ray_train._follow(mailbox, "task", [], print, "2 × 1 core") == 5
    assert caplog.messages == ["the training waits for 2 × 1 core of the Ray cluster, which other work may hold"]
