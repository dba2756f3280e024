"""Processes that share each batch of a training. Threads stand for them here; the tests of engines use Ray."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from ae_pipeline.common.errors import ConfigError, TrainingError
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.models.noise import PartGenerator, draw
from ae_pipeline.training.data_parallel import refuse_streaming, require_workers
from ae_pipeline.training.loop import TrainingResult, train
from ae_pipeline.training.peers import Peers
from ae_pipeline.training.rows import TrainingBatch
from tests.support.peers import SmallTraining, small_training, weights_of


class Together:
    """Sums and copies over threads, as Gloo does over processes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._barrier, self._tensors = threading.Barrier(count, timeout=30), [torch.empty(0)] * count

    def peer(self, rank: int) -> Peers:
        """Return the processes, seen from one of them."""

        def exchange(tensor: Tensor, result: Callable[[], Tensor]) -> None:
            self._tensors[rank] = tensor.clone()
            self._barrier.wait()
            tensor.copy_(result())
            self._barrier.wait()

        return Peers(
            rank,
            self._count,
            lambda tensor: exchange(tensor, lambda: torch.stack(self._tensors).sum(0)),
            lambda tensor: exchange(tensor, lambda: self._tensors[0]),
        )


def run(training: SmallTraining, peers: Peers | None = None) -> tuple[Tensor, TrainingResult]:
    """Train, alone or with others, and return all weights and the result."""
    (model, loss), rows = training.network(), training.rows()
    generator, corruption, regularizer = training.generator(), training.corruption(), training.regularizer()
    result = train(
        model, loss, *rows, training.settings, generator, corrupt=corruption, regularizer=regularizer, peers=peers
    )
    return weights_of(model, loss), result


def together(training: SmallTraining, count: int) -> list[tuple[Tensor, TrainingResult]]:
    """Train with several threads, and return the weights and the result of each."""
    group = Together(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: run(training, group.peer(rank)), range(count)))


TRAININGS: dict[str, dict[str, Any]] = {
    "dense": {},
    "conv": {"images": True},
    "variational, masking, clipped": {"model": {"variational": True}, "corruption": "masking", "clip_norm": 0.5},
    "conv, variational, gaussian": {"images": True, "model": {"variational": True}, "corruption": "gaussian"},
    "anchored, one cycle, nesterov": {"anchor": True, "optimizer": "nesterov", "schedule": "one_cycle"},
    "full batch": {"optimizer": "gd"},
}


@pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)
def test_several_processes_train_the_network_of_one(settings: dict[str, Any]) -> None:
    training = small_training(**settings)
    alone, expected = run(training)
    assert len(expected.epochs) == 3
    assert float((alone - weights_of(*training.network())).abs().max()) > 1e-2
    for weights, result in together(training, 3):
        assert torch.allclose(weights, alone, rtol=0, atol=1e-5)
        losses = [(epoch.train_loss, epoch.validation_loss, epoch.learning_rate) for epoch in result.epochs]
        assert losses == [
            pytest.approx((each.train_loss, each.validation_loss, each.learning_rate), rel=1e-4)
            for each in expected.epochs
        ]
        assert result.best_epoch == expected.best_epoch


def test_the_network_depends_on_no_division_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    training = small_training(images=True, model={"variational": True}, corruption="gaussian", epochs=1)

    def alone(rows_at_once: int) -> Tensor:
        monkeypatch.setattr("ae_pipeline.training.step._rows_at_once", lambda _: rows_at_once)
        return run(training)[0]

    expected = alone(1)
    assert float((expected - weights_of(*training.network())).abs().max()) > 1e-3
    assert torch.allclose(alone(3), expected, rtol=0, atol=1e-5)
    for weights, _ in together(training, 3):
        assert torch.allclose(weights, expected, rtol=0, atol=1e-5)


def test_the_noise_of_a_row_with_its_own_seed_depends_on_no_part() -> None:
    like, parts = torch.empty(5, 4), list[Tensor]()
    for sizes in ((5,), (2, 3)):
        generator = PartGenerator("cpu")
        generator.manual_seed(2)
        generator.begin_batch(5, by_row=True)
        drawn, start = list[tuple[Tensor, Tensor]](), 0
        for size in sizes:
            generator.begin_part(start)
            start += size
            drawn.append((draw(torch.randn, (size, 4), like, generator), draw(torch.rand, (size, 4), like, generator)))
        parts.append(torch.cat([torch.cat(each, 1) for each in drawn]))
    assert torch.equal(parts[0], parts[1])
    assert len(parts[0].unique()) == 40


def test_the_same_processes_train_the_same_bytes_and_agree() -> None:
    training = small_training(model={"variational": True})
    first, second = together(training, 2), together(training, 2)
    assert all(torch.equal(weights, first[0][0]) for weights, _ in [*first, *second])
    assert all(result == first[0][1] for _, result in [*first, *second])


def test_fewer_rows_than_processes_are_trained_on() -> None:
    training = small_training(batch_size=2, epochs=1)  # the last batch has one row
    alone, _ = run(training)
    for weights, _ in together(training, 3):
        assert torch.allclose(weights, alone, rtol=0, atol=2e-5)


def test_a_training_that_diverges_fails_in_all_processes() -> None:
    training, group = small_training(learning_rate=1e38), Together(2)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, training, group.peer(rank)) for rank in range(2)]
    for future in futures:
        with pytest.raises(TrainingError, match="the loss of epoch 1 is not finite"):
            future.result()


def test_each_process_has_its_rows() -> None:
    batch = TrainingBatch(torch.arange(7), None)
    parts = [Peers(rank, 3, print, print).part_of(batch) for rank in range(3)]
    assert [(part.rows.tolist(), count) for part, count in parts] == [([0, 1], 2), ([2, 3], 2), ([4, 5, 6], 3)]
    parts = [Peers(rank, 2, print, print).part_of(TrainingBatch(torch.arange(1), None)) for rank in range(2)]
    assert [(part.rows.tolist(), count) for part, count in parts] == [([0], 0), ([0], 1)]


def test_parts_of_the_noise_are_the_noise_of_one_process() -> None:
    like = torch.empty(5, 4)
    whole = draw(torch.randn, like.shape, like, torch.Generator().manual_seed(2))
    parts = []
    for start, stop in ((0, 2), (2, 5)):
        generator = PartGenerator("cpu")
        generator.manual_seed(2)
        generator.begin_batch(5, by_row=False)
        generator.begin_part(start)
        parts.append(draw(torch.randn, (stop - start, 4), like, generator))
    assert torch.equal(torch.cat(parts), whole)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group that has this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_process_group_of_one_trains_as_without() -> None:
    training = small_training(corruption="masking")
    alone, expected = run(training)
    weights, result = run(training, Peers.of_process_group())
    assert torch.equal(weights, alone)
    assert result.best_loss == expected.best_loss


def test_workers_need_ray_and_rows_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, config = torch.device("cpu"), TrainingConfig(workers=2)
    monkeypatch.setenv("AE_PIPELINE_ENGINE", "processes")
    with pytest.raises(ConfigError, match=r"training\.workers=2 needs Ray, but the engine is processes; set AE_PIPEL"):
        require_workers(config, cpu)
    with pytest.raises(ConfigError, match=r"training rows exceed training\.memory_budget.*or set workers: 1"):
        refuse_streaming(config)
    require_workers(TrainingConfig(), cpu)
    refuse_streaming(TrainingConfig())
