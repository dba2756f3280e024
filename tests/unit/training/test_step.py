"""The training step: graphs, memory that runs out, and devices. CUDA graphs are replaced by plain calls."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from ae_pipeline.common.device import device_errors, shrinking
from ae_pipeline.common.errors import DeviceError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training import step as step_module
from ae_pipeline.training.loop import TrainingResult, evaluate, train
from ae_pipeline.training.regularizer import LatentRegularizer
from ae_pipeline.training.rows import InMemory
from ae_pipeline.training.step import WARM_UP

COLUMNS = (
    FeatureColumn("a", ColumnType.NUMBER),
    FeatureColumn("b", ColumnType.NUMBER),
    FeatureColumn("c", ColumnType.CATEGORY),
)


def rows(n: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    return pl.DataFrame({"a": a, "b": 2 * a + 0.1 * rng.normal(size=n), "c": np.where(a > 0, "high", "low")})


def fresh(**model: Any) -> tuple[AutoEncoder, ReconstructionLoss, Tensor]:
    """Return an untrained network, its loss and 230 encoded rows."""
    sections = {"model": {"latent_dim": 2, "hidden": [8], **model}}
    config = PipelineConfig.model_validate({"dataset": "d", "identity": ["id"], **sections})
    encoder = fit_encoder(config, rows(230), COLUMNS)
    network = build_model(config, encoder.shape, torch.Generator().manual_seed(0))
    return network, build_loss(config, encoder), torch.from_numpy(encoder.encode(rows(230)))


def run(
    *, anchor: bool = False, model: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Tensor], TrainingResult]:
    """Return the weights and the result of a training on 200 rows in batches of 64, the last one of 8."""
    network, loss, x = fresh(**(model or {}))
    config = TrainingConfig(**{"epochs": 6, "batch_size": 64, "learning_rate": 0.01, "device": "cpu", **changes})
    regularizer = LatentRegularizer(torch.randn(200, 2, generator=torch.Generator().manual_seed(5)), 0.1)
    result = train(
        network,
        loss,
        x[:200],
        x[200:],
        config,
        torch.Generator().manual_seed(1),
        corrupt=build_corruption(config),
        regularizer=regularizer if anchor else None,
    )
    return [value.detach() for value in [*network.parameters(), *loss.parameters()]], result


class Recorder:
    """Capture a step by keeping it, and replay it by calling it."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, step: Callable[[], None], *_: object) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


TRAININGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "nesterov, clipped": {"optimizer": "nesterov", "clip_norm": 0.5, "schedule": "cosine"},
    "one cycle, masking": {"optimizer": "adam", "schedule": "one_cycle", "corruption": "masking"},
    "variational, β rises": {"model": {"variational": True}, "beta_warmup": 4},
    "anchored": {"anchor": True},
}


class TestGraphs:
    @pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)
    def test_replayed_steps_train_like_eager_ones(
        self, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected_weights, expected = run(**settings)
        recorder = Recorder()
        monkeypatch.setattr(step_module, "capture_for", lambda *_: recorder)
        weights, result = run(**settings)
        assert result == expected
        assert all(map(torch.equal, weights, expected_weights))
        epochs = len(result.epochs)
        # One graph for batches of 64, one for the last batch of 8 rows; each shape starts eagerly.
        assert (recorder.captured, recorder.replayed) == (2, (3 * epochs - WARM_UP) + (epochs - WARM_UP))

    def test_a_step_that_cannot_be_captured_runs_eagerly(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = run(corruption="gaussian")

        def refuse(step: Callable[[], None], generator: torch.Generator, _: object) -> Callable[[], None]:
            torch.rand(7, generator=generator)  # what was drawn during the capture does not count
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        monkeypatch.setattr(step_module, "capture_for", lambda *_: refuse)
        with caplog.at_level(logging.INFO):
            weights, result = run(corruption="gaussian")
        assert all(map(torch.equal, weights, expected[0]))
        assert result == expected[1]
        assert caplog.messages == [
            "the training runs step by step, because its step cannot be captured as a graph: operation not permitted "
            "when stream is capturing"
        ]

    @pytest.mark.parametrize(("name", "marked"), [("adamw", [True, True]), ("nesterov", [])])
    def test_an_optimizer_is_marked_as_capturable_only_during_the_capture(
        self, name: str, marked: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Graph:
            def register_generator_state(self, generator: torch.Generator) -> None:
                generators.append(generator)

            def replay(self) -> None:
                seen.append([])

        generators: list[torch.Generator] = []
        seen: list[list[bool]] = []
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
        network, loss, _ = fresh()
        config = TrainingConfig.model_validate({"optimizer": name})
        optimizer = step_module.build_optimizer(network, loss, config, torch.tensor(0.01))

        def flags() -> list[bool]:
            return [group["capturable"] for group in optimizer.param_groups if "capturable" in group]

        generator = torch.Generator()
        replay = step_module.cuda_graph(lambda: seen.append(flags()), generator, optimizer)
        assert (seen, generators, any(flags())) == ([marked], [generator], False)
        replay()
        assert seen == [marked, []]

    def test_only_cuda_devices_have_graphs_and_gradient_descent_has_none(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        cuda = torch.device("cuda")
        assert step_module.capture_for(torch.device("cpu"), TrainingConfig()) is None
        assert step_module.capture_for(cuda, TrainingConfig()) is step_module.cuda_graph
        with caplog.at_level(logging.INFO):
            assert step_module.capture_for(cuda, TrainingConfig(optimizer="gd")) is None
        assert caplog.messages == ["the training runs step by step, because optimizer gd takes one step in an epoch"]


class TestMemoryRunsOut:
    def limit(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        """Let a device have memory for some rows of a table only."""
        objective = ReconstructionLoss.objective

        def limited(self: ReconstructionLoss, result: AutoEncoderOutput, x: Tensor, beta: float | Tensor) -> Tensor:
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory: 2 GiB\nmore")
            return objective(self, result, x, beta)

        monkeypatch.setattr(ReconstructionLoss, "objective", limited)

    @pytest.mark.parametrize("optimizer", ["adamw", "gd", "nesterov"])
    def test_the_gradient_is_computed_in_parts(
        self, optimizer: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected_weights, expected = run(optimizer=optimizer, anchor=True)
        recorder = Recorder()
        if optimizer == "nesterov":
            monkeypatch.setattr(step_module, "capture_for", lambda *_: recorder)
        self.limit(monkeypatch, 20)
        weights, result = run(optimizer=optimizer, anchor=True)
        assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(weights, expected_weights, strict=True))
        for epoch, other in zip(result.epochs, expected.epochs, strict=True):
            assert epoch.train_loss == pytest.approx(other.train_loss, rel=1e-4)
            assert epoch.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)
        # Validation has 30 rows; training halves its batches of 64 twice, once and for all.
        logged = [text for text in caplog.messages if "the memory of the device has run out" in text]
        assert "the memory of the device has run out; the work goes on in batches of 16 rows" in logged
        assert sum("32 rows" in text for text in logged) == 1
        assert (recorder.captured > 0) == (optimizer == "nesterov")

    def test_one_row_without_memory_is_an_error_with_a_remedy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limit(monkeypatch, 0)
        with pytest.raises(
            DeviceError, match=r"too little free memory \(CUDA out of memory: 2 GiB\); .* set training.device: cpu"
        ):
            run()

    def test_the_validation_loss_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, loss, x = fresh()
        whole = evaluate(network, loss, x)
        self.limit(monkeypatch, 30)
        assert evaluate(network, loss, x) == pytest.approx(whole, rel=1e-6)

    def test_rows_that_do_not_fit_stay_in_the_memory_of_the_machine(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        x, latents, device = torch.arange(20.0).reshape(10, 2), torch.arange(10.0).reshape(10, 1), torch.device("cuda")

        def to(part: Tensor, where: torch.device, *, non_blocking: bool = False) -> Tensor:
            if where == device and len(part) == len(x):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return part

        monkeypatch.setattr(Tensor, "to", to)
        monkeypatch.setattr(Tensor, "pin_memory", lambda part: part)
        stored = InMemory.on(device, x, latents)
        batches = list(stored.shuffled(4, torch.Generator().manual_seed(0)))
        assert [len(batch.rows) for batch in batches] == [4, 4, 2]
        seen, of_seen = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("rows", "latents"))
        assert torch.equal(seen[:, :1], 2 * of_seen)
        assert torch.equal(seen.sort(0).values, x)
        assert "too small for 10 training rows; they stay in the memory of the machine" in caplog.text

    def test_results_of_parts_are_in_order(self) -> None:
        sizes: list[int] = []

        def work(part: Tensor) -> int:
            sizes.append(len(part))
            if len(part) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return int(part[0])

        assert shrinking(work, torch.arange(10)) == [0, 3, 5, 8]
        assert sizes == [10, 5, 3, 2, 5, 3, 2]


class TestLargeImages:
    def test_the_gradient_of_large_images_is_computed_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights: list[list[Tensor]] = []
        sizes: list[set[int]] = []
        forward = AutoEncoder.forward

        def counted(self: AutoEncoder, x: Tensor, generator: torch.Generator | None = None) -> AutoEncoderOutput:
            sizes[-1].add(len(x))
            return forward(self, x, generator)

        monkeypatch.setattr(AutoEncoder, "forward", counted)
        for at_once in (8, 3):
            sizes.append(set())
            monkeypatch.setattr(step_module, "rows_at_once", lambda _, most=at_once: most)
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(20, 1, 8, 8, generator=generator)
            shape = ImageShape(height=8, width=8, channels=1, dtype="uint8")
            config = PipelineConfig.model_validate(
                {"dataset": "d", "identity": ["file"], "images": {}, "model": {"architecture": "conv", "latent_dim": 2}}
            )
            frame = pl.DataFrame({"image": [bytes(range(64))]})
            encoder = fit_encoder(config, frame, [FeatureColumn("image", ColumnType.IMAGE, shape)])
            network, loss = build_model(config, encoder.shape, generator), build_loss(config, encoder)
            training = TrainingConfig(epochs=2, batch_size=8, optimizer="sgd", device="cpu")
            train(network, loss, x[:16], x[16:], training, generator)
            assert all(parameter.grad is None for parameter in network.parameters())
            weights.append([parameter.detach().clone() for parameter in network.parameters()])
        assert sizes == [{8, 4}, {3, 2, 4}]
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


class TestDeviceErrors:
    @pytest.mark.parametrize(
        "message", ["CUDA error: device-side assert triggered\nmore", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"]
    )
    def test_a_failed_device_is_an_error_with_a_remedy(self, message: str) -> None:
        first = message.partition("\n")[0]
        expected = rf"the CUDA device failed \({first}\); start this process again, .* set training.device: cpu"
        with pytest.raises(DeviceError, match=expected), device_errors():
            raise RuntimeError(message)

    def test_other_errors_stay_as_they_are(self) -> None:
        with pytest.raises(RuntimeError, match=r"^shapes differ$"), device_errors():
            raise RuntimeError("shapes differ")
