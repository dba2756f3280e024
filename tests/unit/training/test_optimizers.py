"""Optimizers, schedules and noise, against principal components, manual steps, closed forms and statistics."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.linalg
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import LossTerm, TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_model
from ae_pipeline.models.losses import TermsLoss
from ae_pipeline.training import fit
from ae_pipeline.training.loop import TrainingResult, evaluate, train
from tests.support.sensors import FitFrame

pytestmark = pytest.mark.slow

WIDTH, LATENTS = 8, 3
OPTIMIZERS = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "one_cycle")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**changes: Any) -> TrainingConfig:
    plain = {"schedule": "constant", "weight_decay": 0.0, "patience": 10**6, "device": "cpu"}
    return TrainingConfig.model_validate({**plain, **changes})


def linear(seed: int = 0) -> AutoEncoder:
    """Return a linear autoencoder of eight inputs and three latents."""
    config = PipelineConfig.model_validate(
        {
            "dataset": "rows",
            "identity": ["id"],
            "model": {"hidden": (), "latent_dim": LATENTS, "loss": {"mse": 1.0}, "scaling": "standard"},
        }
    )
    return build_model(config, (WIDTH,), generator(seed))


def mean_squares() -> TermsLoss:
    blocks = [Block(column=f"x{i}", part="value", kind=BlockKind.NUMERIC, start=i, width=1) for i in range(WIDTH)]
    return TermsLoss(blocks, [block.column for block in blocks], {LossTerm.MSE: 1.0}, 1.0)


def gaussian_rows(n: int, seed: int = 0) -> np.ndarray:
    """Return normal rows with three wide and five narrow directions, and mean zero."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    deviations = np.sqrt([4, 3, 2, 0.1, 0.08, 0.06, 0.04, 0.02])
    values: np.ndarray = rng.normal(size=(n, WIDTH)) * deviations @ directions
    return np.asarray(values - values.mean(0), np.float32)


def off_centre(n: int) -> torch.Tensor:
    """Return the same rows with mean 0.5: Adam would scale up gradients that are zero except for rounding."""
    return torch.from_numpy(gaussian_rows(n) + 0.5)


@contextmanager
def steps() -> Iterator[list[float]]:
    """Record the learning rate of every step of any optimizer that has weights to train."""
    rates: list[float] = []

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if optimizer.param_groups[0]["params"][0].requires_grad:
            rates.append(float(optimizer.param_groups[0]["lr"]))

    hook = register_optimizer_step_pre_hook(record)
    try:
        yield rates
    finally:
        hook.remove()


ENOUGH = {"gd": (0.7, 400), "sgd": (0.4, 60), "momentum": (0.1, 40), "nesterov": (0.1, 40), "adam": (0.03, 60)}
ENOUGH |= {"adamw": ENOUGH["adam"]}
"""Learning rate and epochs of each optimizer.

Measured epochs until the loss is within 1 % of the optimum: 156 to 205 of gd, 26 to 38 of sgd, 13 to 19 of momentum and
nesterov, 20 to 43 of adam and adamw. The constant schedule is the fastest.
"""


class TestPrincipalComponents:
    """A linear autoencoder has one optimum up to a linear map of its latents: the top principal components."""

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_every_optimizer_finds_their_loss_and_space(self, name: str, schedule: str) -> None:
        rows = gaussian_rows(600)
        variances, directions = np.linalg.eigh(np.cov(rows.astype(float), rowvar=False, bias=True))
        optimum = variances[:-LATENTS].sum() / WIDTH
        (rate, epochs), size = ENOUGH[name], 600 if name == "gd" else 64
        config = settings(optimizer=name, schedule=schedule, learning_rate=rate, epochs=epochs, batch_size=size)
        model, x = linear(), torch.from_numpy(rows)
        result = train(model, mean_squares(), x, x, config, generator(0))
        assert result.first_loss > 10 * optimum
        assert optimum * (1 - 1e-5) <= result.best_loss < optimum * 1.01
        layer = [layer for layer in model.decoder.modules() if isinstance(layer, torch.nn.Linear)][-1]
        decoder = layer.weight.detach().double().numpy()
        angles = np.degrees(scipy.linalg.subspace_angles(decoder, directions[:, -LATENTS:]))
        assert angles.max() < 1


@dataclass(kw_only=True)
class Walk:
    """A training with the weights after each epoch, and the gradients to compute them by hand.

    Attributes:
        config: Configuration of the training.
        rows: Training and validation rows.
        model: Network that is trained.
        loss: Loss of the network.
        start: Weights before the training, one vector.
        reached: Weights after each epoch, one vector each.
        result: Result of the training.
    """

    config: TrainingConfig
    rows: torch.Tensor
    model: AutoEncoder = field(default_factory=linear)
    loss: TermsLoss = field(default_factory=mean_squares)
    start: np.ndarray = field(init=False)
    reached: list[np.ndarray] = field(init=False, default_factory=list)
    result: TrainingResult = field(init=False)

    def __post_init__(self) -> None:
        self.start = flat(self.model.parameters())
        self.result = train(
            self.model,
            self.loss,
            self.rows,
            self.rows,
            self.config,
            generator(0),
            lambda _: self.reached.append(flat(self.model.parameters())),
        )

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean loss over all rows at given weights, in float64."""
        model = linear().double()
        torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), model.parameters())
        output = model(self.rows.double()).output
        (output - self.rows.double()).square().mean().backward()
        return flat(parameter.grad for parameter in model.parameters())


def flat(tensors: Any) -> np.ndarray:
    """Return all values of some tensors as one vector."""
    vector: np.ndarray = torch.cat([tensor.detach().flatten() for tensor in tensors]).double().numpy()
    return vector


def _sgd(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    return w - lr * (g + decay * w)


def _momentum(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    state["v"] = 0.8 * state.get("v", 0.0) + g + decay * w
    return np.asarray(w - lr * state["v"])


def _nesterov(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    state["v"] = 0.8 * state.get("v", 0.0) + g + decay * w
    return np.asarray(w - lr * (g + decay * w + 0.8 * state["v"]))


def _adam(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    """Algorithm 1 of Kingma & Ba (2015), with its constants."""
    g = g + decay * w
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    return np.asarray(w - lr * state["m"] / (1 - 0.9**t) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-8))


def _adamw(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    """Algorithm 2 of Loshchilov & Hutter (2019)."""
    return _adam(w, g, state, lr, 0.0) - lr * decay * w


BY_HAND = dict(zip(OPTIMIZERS, (_sgd, _sgd, _momentum, _nesterov, _adam, _adamw), strict=True))


class TestSteps:
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_each_step_is_the_manual_step(self, name: str, decay: float) -> None:
        rows = off_centre(100)
        config = settings(
            optimizer=name, epochs=4, batch_size=100, learning_rate=0.05, momentum=0.8, weight_decay=decay
        )
        walk = Walk(config=config, rows=rows)
        weights, state = walk.start, dict[str, Any]()
        assert len(walk.reached) == 4
        for reached in walk.reached:
            weights = BY_HAND[name](weights, walk.gradient(weights), state, 0.05, decay)
            np.testing.assert_allclose(reached, weights, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("size", [1, 7, 64, 100, 5000])
    def test_gradient_descent_takes_one_step_per_epoch(self, size: int) -> None:
        rows = off_centre(100)
        with steps() as rates:
            walk = Walk(config=settings(optimizer="gd", epochs=3, batch_size=size, learning_rate=0.3), rows=rows)
        assert len(rates) == len(walk.reached) == 3
        weights = walk.start
        for reached in walk.reached:
            weights = weights - 0.3 * walk.gradient(weights)
            np.testing.assert_allclose(reached, weights, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", OPTIMIZERS[1:])
    def test_the_others_take_one_step_per_batch(self, name: str) -> None:
        rows = off_centre(100)
        with steps() as rates:
            Walk(config=settings(optimizer=name, epochs=3, batch_size=33, learning_rate=0.01), rows=rows)
        assert len(rates) == 3 * 4

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_the_training_loss_is_the_mean_over_the_epoch(self, name: str) -> None:
        rows = off_centre(100)
        # Steps this small leave the weights the same for all batches of the epoch.
        walk = Walk(config=settings(optimizer=name, epochs=1, batch_size=33, learning_rate=1e-9), rows=rows)
        expected = evaluate(linear(), mean_squares(), rows)
        assert walk.result.epochs[0].train_loss == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_without_momentum_it_is_plain_descent(self, name: str) -> None:
        rows = off_centre(50)
        common: dict[str, Any] = {"epochs": 3, "batch_size": 50, "learning_rate": 0.1, "momentum": 0.0}
        walk = Walk(config=settings(optimizer=name, **common), rows=rows)
        plain = Walk(config=settings(optimizer="sgd", **common), rows=rows)
        alike = np.allclose(walk.reached[-1], plain.reached[-1], rtol=0, atol=1e-6)
        assert alike == (name not in {"adam", "adamw"})


class TestSchedules:
    @pytest.mark.parametrize("name", ["gd", "sgd", "adamw"])
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("epochs", [1, 2, 30])
    def test_every_step_has_the_rate_of_the_closed_form(self, schedule: str, name: str, epochs: int) -> None:
        rows = torch.from_numpy(gaussian_rows(100))
        count = epochs * (1 if name == "gd" else 4)
        config = settings(optimizer=name, schedule=schedule, epochs=epochs, batch_size=25, learning_rate=0.02)
        with steps() as rates:
            result = Walk(config=config, rows=rows).result
        expected = [0.02 * RATE[schedule](step, count) for step in range(count + 1)]
        assert rates == pytest.approx(expected[:-1], rel=1e-9, abs=1e-15)
        each = count // epochs  # an epoch reports the rate after its last step
        assert [epoch.learning_rate for epoch in result.epochs] == pytest.approx(expected[each::each], abs=1e-12)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_the_learning_rate_is_reached_and_never_exceeded(self, schedule: str) -> None:
        with steps() as rates:
            Walk(
                config=settings(schedule=schedule, epochs=10, batch_size=10, learning_rate=0.02),
                rows=torch.from_numpy(gaussian_rows(100)),
            )
        assert 0.019 < max(rates) <= 0.02 * (1 + 1e-12)

    @pytest.mark.parametrize("name", ["momentum", "adam"])
    def test_one_cycle_does_not_change_the_momentum(self, name: str) -> None:
        momenta: list[Any] = []

        def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
            if optimizer.param_groups[0]["params"][0].requires_grad:
                momenta.append(optimizer.param_groups[0].get("momentum", optimizer.defaults.get("betas")))

        hook = register_optimizer_step_pre_hook(record)
        config = settings(optimizer=name, schedule="one_cycle", momentum=0.7, epochs=5, batch_size=25)
        Walk(config=config, rows=torch.from_numpy(gaussian_rows(100)))
        hook.remove()
        assert set(momenta) == {0.7 if name == "momentum" else (0.9, 0.999)}


def _cosine(step: int, count: int) -> float:
    """Equation 5 of Loshchilov & Hutter (2017), after a rise over the first twentieth."""
    return min((step + 1) / max(1, count // 20), (1 + math.cos(math.pi * step / count)) / 2)


def _one_cycle(step: int, count: int) -> float:
    """A cosine from 1/25 up over 30 % of the steps, then a cosine down to 1/250,000."""
    top, end = 0.3 * (count + 1) - 1, float(count)
    low, high, part = (1 / 25, 1.0, step / top) if step <= top else (1.0, 1 / 250_000, (step - top) / (end - top))
    return high + (low - high) * (1 + math.cos(math.pi * part)) / 2


RATE: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, count: 1.0,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}


class TestClipping:
    @pytest.mark.parametrize("name", ["gd", "sgd"])
    @pytest.mark.parametrize("share", [0.1, 0.9, 1.1, 50])
    def test_a_long_gradient_is_clipped_and_keeps_its_direction(self, name: str, share: float) -> None:
        rows = torch.from_numpy(gaussian_rows(100))
        free = Walk(config=settings(optimizer=name, epochs=1, batch_size=100, learning_rate=0.1), rows=rows)
        gradient = free.gradient(free.start)
        clip = share * np.linalg.norm(gradient)
        config = settings(optimizer=name, epochs=1, batch_size=100, learning_rate=0.1, clip_norm=clip)
        walk = Walk(config=config, rows=rows)
        moved = walk.reached[0] - walk.start
        assert np.linalg.norm(moved) == pytest.approx(0.1 * min(1, share) * np.linalg.norm(gradient), rel=1e-4)
        assert moved @ gradient == pytest.approx(-np.linalg.norm(moved) * np.linalg.norm(gradient), rel=1e-6)

    def test_gradient_descent_clips_the_gradient_over_all_rows(self) -> None:
        rows = torch.from_numpy(gaussian_rows(100))
        whole, parts = (
            Walk(
                config=settings(optimizer="gd", epochs=2, batch_size=size, learning_rate=0.1, clip_norm=0.2), rows=rows
            )
            for size in (100, 7)
        )
        np.testing.assert_allclose(parts.reached[-1], whole.reached[-1], rtol=0, atol=1e-6)

    def test_no_step_is_longer_than_rate_times_clip_norm(self) -> None:
        rows = 100 * torch.from_numpy(gaussian_rows(100))
        config = settings(optimizer="sgd", epochs=5, batch_size=10, learning_rate=0.01, clip_norm=0.5)
        walk = Walk(config=config, rows=rows)
        moves = np.diff([walk.start, *walk.reached], axis=0)
        assert np.linalg.norm(moves, axis=1).max() <= 10 * 0.01 * 0.5 * (1 + 1e-4)
        assert math.isfinite(walk.result.best_loss)


class _FlatLoss(TermsLoss):
    """A loss whose gradient is zero everywhere."""

    def objective(self, output: AutoEncoderOutput, x: torch.Tensor, beta: float | torch.Tensor) -> torch.Tensor:
        return super().objective(output, x, beta) * 0


class TestWeightDecay:
    def decayed(self, name: str, steps_taken: int) -> tuple[np.ndarray, np.ndarray]:
        loss = mean_squares()
        loss.__class__ = _FlatLoss
        config = settings(optimizer=name, epochs=steps_taken, batch_size=100, learning_rate=0.1, weight_decay=0.3)
        walk = Walk(config=config, rows=torch.from_numpy(gaussian_rows(100)), loss=loss)
        return walk.start, walk.reached[-1]

    def test_adamw_shrinks_the_weights_independently_of_the_gradient(self) -> None:
        previous, after = self.decayed("adamw", 5)
        np.testing.assert_allclose(after, previous * (1 - 0.1 * 0.3) ** 5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["gd", "sgd"])
    def test_plain_descent_shrinks_the_weights_alike(self, name: str) -> None:
        previous, after = self.decayed(name, 5)
        np.testing.assert_allclose(after, previous * (1 - 0.1 * 0.3) ** 5, rtol=1e-5)

    def test_adam_scales_it_as_part_of_the_gradient(self) -> None:
        previous, after = self.decayed("adam", 1)
        np.testing.assert_allclose(after, previous - 0.1 * np.sign(previous), rtol=0, atol=1e-5)


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("name", "rate"),
        [("gd", 0.5), ("sgd", 0.1), ("momentum", 0.05), ("nesterov", 0.05), ("adam", 0.02), ("adamw", 0.02)],
    )
    def test_the_weights_of_the_best_epoch_are_restored(self, name: str, rate: float) -> None:
        rng = np.random.default_rng(3)
        few, others = (torch.from_numpy(rng.normal(size=(n, WIDTH)).astype(np.float32)) for n in (6, 200))
        model, loss, seen = linear(1), mean_squares(), list[np.ndarray]()
        config = settings(optimizer=name, learning_rate=rate, epochs=400, batch_size=3, patience=4)
        result = train(model, loss, few, others, config, generator(0), lambda _: seen.append(flat(model.parameters())))
        losses = [epoch.validation_loss for epoch in result.epochs]
        assert 0 < result.best_epoch == int(np.argmin(losses)) + 1
        assert len(losses) == result.best_epoch + 4 < 400
        np.testing.assert_array_equal(flat(model.parameters()), seen[result.best_epoch - 1])
        assert not np.array_equal(seen[-1], seen[result.best_epoch - 1])
        assert evaluate(model, loss, others) == result.best_loss


class TestCorruption:
    GROUPS = torch.tensor([0, 1, 1, 1, 2, 2, 0, 3])
    N = 50_000

    def noisy(self, x: torch.Tensor, kind: str, level: float, seed: int = 0, **where: Any) -> torch.Tensor:
        corrupt = build_corruption(settings(corruption=kind, corruption_level=level), **where)
        assert corrupt is not None
        previous = x.clone()
        changed = corrupt(x, generator(seed))
        assert torch.equal(x, previous)
        assert (changed.shape, changed.dtype) == (x.shape, x.dtype)
        return changed

    @pytest.fixture(scope="class")
    def table(self) -> torch.Tensor:
        """Rows without zeros, so that a zero is a masked value."""
        return torch.rand(self.N, 8, generator=generator(1)) + 0.25

    @pytest.fixture(scope="class")
    def images(self) -> torch.Tensor:
        """Images without zeros."""
        return torch.rand(500, 3, 20, 16, generator=generator(1)) + 0.25

    def test_there_is_none_by_default(self) -> None:
        assert build_corruption(settings()) is None

    @pytest.mark.parametrize("level", [0.05, 0.7, 3.0])
    def test_gaussian_noise_has_the_level_as_deviation(self, table: torch.Tensor, level: float) -> None:
        noise = (self.noisy(table, "gaussian", level) - table).double()
        n = noise.numel()
        # Mean and deviation of n values have errors of σ / √n and σ / √(2 n); one in a million exceeds five of these.
        assert abs(noise.mean()) < 5 * level / n**0.5
        assert abs(noise.std() / level - 1) < 5 / (2 * n) ** 0.5
        assert abs(np.corrcoef(noise.flatten(), table.flatten())[0, 1]) < 5 / n**0.5
        between = torch.corrcoef(noise.T) - torch.eye(8)
        assert between.abs().max() < 5 / self.N**0.5

    @pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
    def test_masking_zeroes_a_share_of_the_columns(self, table: torch.Tensor, level: float) -> None:
        changed = self.noisy(table, "masking", level, groups=self.GROUPS)
        is_masked = changed == 0
        assert torch.equal(changed[~is_masked], table[~is_masked])
        for group in range(4):
            inputs = is_masked[:, group == self.GROUPS]
            assert torch.equal(inputs.all(1), inputs.any(1))
            assert abs(inputs[:, 0].float().mean() - level) < 5 * (level * (1 - level) / self.N) ** 0.5
        columns = is_masked[:, [0, 1, 4, 7]].float()  # one of each group
        assert (torch.corrcoef(columns.T) - torch.eye(4)).abs().max() < 5 / self.N**0.5

    @pytest.mark.parametrize("kind", ["masking", "salt_and_pepper"])
    def test_a_pixel_is_corrupted_in_all_its_channels(self, images: torch.Tensor, kind: str) -> None:
        is_changed = self.noisy(images, kind, 0.3) != images
        assert torch.equal(is_changed.all(1), is_changed.any(1))
        n = is_changed[:, 0].numel()
        assert abs(is_changed[:, 0].float().mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5

    @pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0)])
    def test_salt_and_pepper_sets_each_end_equally_often(self, images: torch.Tensor, ends: tuple[float, float]) -> None:
        x = images / 2  # between the ends
        changed = self.noisy(x, "salt_and_pepper", 0.4, ends=ends)[:, 0]
        low, high = (changed == end for end in ends)
        assert torch.equal(changed[~low & ~high], x[:, 0][~low & ~high])
        for end in (low, high):
            assert abs(end.float().mean() - 0.2) < 5 * (0.2 * 0.8 / end.numel()) ** 0.5

    def test_salt_and_pepper_changes_all_inputs_of_a_column(self, table: torch.Tensor) -> None:
        changed = self.noisy(table / 2, "salt_and_pepper", 0.4, groups=self.GROUPS, ends=(-1.0, 1.0))
        for group in range(4):
            for end in (-1.0, 1.0):
                inputs = (changed == end)[:, group == self.GROUPS]
                assert torch.equal(inputs.all(1), inputs.any(1))
                assert abs(inputs[:, 0].float().mean() - 0.2) < 5 * (0.2 * 0.8 / self.N) ** 0.5

    @pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
    def test_only_the_generator_matters(self, images: torch.Tensor, kind: str) -> None:
        changed = []
        for global_seed, seed in ((0, 5), (1, 5), (0, 6)):
            torch.manual_seed(global_seed)
            changed.append(self.noisy(images, kind, 0.3, seed))
        assert torch.equal(changed[0], changed[1])
        assert not torch.equal(changed[0], changed[2])

    @pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
    @pytest.mark.parametrize("name", ["gd", "adamw"])
    def test_inputs_are_noisy_and_targets_are_clean(
        self, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows, validation = (torch.from_numpy(gaussian_rows(n, seed)) for n, seed in ((60, 0), (20, 1)))
        model, loss = linear(), mean_squares()
        inputs: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        targets: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        original = loss.objective

        def spy(output: AutoEncoderOutput, x: torch.Tensor, beta: float) -> torch.Tensor:
            targets[model.training].append(x.clone())
            return original(output, x, beta)

        monkeypatch.setattr(loss, "objective", spy)
        model.register_forward_pre_hook(lambda module, given: inputs[module.training].append(given[0].clone()))
        config = settings(optimizer=name, corruption=kind, corruption_level=0.3, epochs=3, batch_size=20)
        corrupt = build_corruption(config, torch.arange(WIDTH))
        train(model, loss, rows, validation, config, generator(0), corrupt=corrupt)
        assert len(inputs[True]) == len(targets[True]) == 9
        by_epoch = [torch.cat(targets[True][start : start + 3]) for start in (0, 3, 6)]
        for epoch in by_epoch:
            assert torch.equal(epoch[epoch[:, 0].argsort()], rows[rows[:, 0].argsort()])
        for noisy, clean in zip(inputs[True], targets[True], strict=True):
            assert 0.1 < (noisy != clean).float().mean() <= 1
        first, second = (torch.cat(inputs[True][start : start + 3]) for start in (0, 3))
        first_noise, second_noise = (
            (noisy - clean)[clean[:, 0].argsort()] for noisy, clean in ((first, by_epoch[0]), (second, by_epoch[1]))
        )
        assert not torch.equal(first_noise, second_noise)  # each epoch has other noise
        assert len(inputs[False]) == len(targets[False]) == 4
        assert all(torch.equal(rows, validation) for rows in (*inputs[False], *targets[False]))

    def test_a_fit_corrupts_a_category_as_a_whole(self, fit_frame: FitFrame, monkeypatch: pytest.MonkeyPatch) -> None:
        """The values are the ends of the scale of the encoder."""
        caught: dict[str, Any] = {}

        def spy(*given: Any, **named: Any) -> TrainingResult:
            arguments = inspect.signature(train).bind(*given, **named).arguments
            rows = next(arguments["train_rows"].shuffled(800, generator(0))).rows
            caught.update(rows=rows, corrupt=arguments["corrupt"])
            return train(*given, **named)

        monkeypatch.setattr(fit, "train", spy)
        rng = np.random.default_rng(0)
        frame = pl.DataFrame({"x": rng.normal(size=800), "c": rng.choice(["a", "b", "c"], 800)})
        columns = (FeatureColumn("x", ColumnType.NUMBER), FeatureColumn("c", ColumnType.CATEGORY))
        model = {"latent_dim": 2, "hidden": (), "loss": {"mse": 1.0}, "scaling": "symmetric", "output": "linear"}
        training = {"corruption": "salt_and_pepper", "corruption_level": 0.5, "epochs": 1, "device": "cpu"}
        bundle, _ = fit_frame(frame, columns, model=model, training=training)
        assert isinstance(bundle.encoder, TableEncoder)
        (category,) = (block for block in bundle.encoder.blocks if block.column == "c")
        rows, part = caught["rows"], slice(category.start, category.stop)
        changed = caught["corrupt"](rows, generator(0))[:, part]
        kinds = torch.stack([(changed == -1).all(1), (changed == 1).all(1), (changed == rows[:, part]).all(1)])
        assert (kinds.sum(0) == 1).all()
        assert kinds.float().mean(1).tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.1)
