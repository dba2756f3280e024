"""Optimisers, schedules and noise: against principal components, steps by hand, closed forms and statistics."""

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
from ae_pipeline.encoding.table_encoder import Block, BlockKind
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_model
from ae_pipeline.models.losses import TermsLoss
from ae_pipeline.training import fit as fitting
from ae_pipeline.training.loop import TrainingResult, evaluate, train

WIDTH, LATENTS = 8, 3
OPTIMISERS = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "one_cycle")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**changes: Any) -> TrainingConfig:
    plain = {"schedule": "constant", "weight_decay": 0.0, "patience": 10**6, "device": "cpu"}
    return TrainingConfig.model_validate({**plain, **changes})


def linear(seed: int = 0) -> AutoEncoder:
    """Eight inputs to three latents and back, without an activation."""
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
    """Rows of a normal distribution with three wide directions and five narrow ones; their mean is zero."""
    rng = np.random.default_rng(seed)
    transformed = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    deviations = np.sqrt([4, 3, 2, 0.1, 0.08, 0.06, 0.04, 0.02])
    values = rng.normal(size=(n, WIDTH)) * deviations @ transformed
    return (values - values.mean(0)).astype(np.float32)


def off_centre(n: int) -> torch.Tensor:
    """The same around 0.5, so that no gradient is zero but for rounding, which Adam would scale up."""
    return torch.from_numpy(gaussian_rows(n) + 0.5)


@contextmanager
def steps() -> Iterator[list[float]]:
    """Notes the learning rate of every step that any optimiser takes."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"])))
    try:
        yield rates
    finally:
        hook.remove()


ENOUGH = {"gd": (0.7, 400), "sgd": (0.4, 60), "momentum": (0.1, 40), "nesterov": (0.1, 40), "adam": (0.03, 60)}
ENOUGH |= {"adamw": ENOUGH["adam"]}
"""Learning rate and epochs of each. Measured: within 1 % of the optimum after 156 to 205 epochs of gd, 26 to 38 of sgd,
13 to 19 of momentum and nesterov, 20 to 43 of adam and adamw, the constant schedule being the fastest."""


class TestPrincipalComponents:
    """A linear autoencoder has one optimum up to a turn of its latents: the top principal components."""

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("name", OPTIMISERS)
    def test_every_optimiser_finds_their_loss_and_their_space(self, name, schedule):
        rows = gaussian_rows(600)
        variances, directions = np.linalg.eigh(np.cov(rows.astype(float), rowvar=False, bias=True))
        optimum = variances[:-LATENTS].sum() / WIDTH
        (rate, epochs), size = ENOUGH[name], 600 if name == "gd" else 64
        config = settings(optimizer=name, schedule=schedule, learning_rate=rate, epochs=epochs, batch_size=size)
        model, x = linear(), torch.from_numpy(rows)
        result = train(model, mean_squares(), x, x, config, generator(0))
        assert result.first_loss > 10 * optimum
        assert optimum * (1 - 1e-5) <= result.best_loss < optimum * 1.01
        decoder = model.decoder[-1].weight.detach().double().numpy()
        angles = np.degrees(scipy.linalg.subspace_angles(decoder, directions[:, -LATENTS:]))
        assert angles.max() < 1


@dataclass
class Walk:
    """The weights of a network after each epoch of a training, and what it would take to walk there by hand.

    Attributes:
        config: Of the training.
        rows: That it learns from.
        reached: Weights after each epoch, one vector each.
        result: Of the training.
        model: That was trained.
    """

    config: TrainingConfig
    rows: torch.Tensor
    reached: list[np.ndarray] = field(default_factory=list)
    result: TrainingResult | None = None
    model: AutoEncoder = field(default_factory=linear)
    loss: TermsLoss = field(default_factory=mean_squares)

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
        """Gradient of the mean loss over all rows at given weights, in double precision."""
        model = linear().double()
        torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), model.parameters())
        output = model(self.rows.double()).output
        (output - self.rows.double()).square().mean().backward()
        return flat(parameter.grad for parameter in model.parameters())


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).double().numpy()


def _sgd(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    return w - lr * (g + decay * w)


def _momentum(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    state["v"] = 0.8 * state.get("v", 0.0) + g + decay * w
    return w - lr * state["v"]


def _nesterov(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    state["v"] = 0.8 * state.get("v", 0.0) + g + decay * w
    return w - lr * (g + decay * w + 0.8 * state["v"])


def _adam(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    """Kingma & Ba 2015, algorithm 1, with its own constants."""
    g = g + decay * w
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    return w - lr * state["m"] / (1 - 0.9**t) / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-8)


def _adamw(w: np.ndarray, g: np.ndarray, state: dict[str, Any], lr: float, decay: float) -> np.ndarray:
    """Loshchilov & Hutter 2019, algorithm 2."""
    return _adam(w, g, state, lr, 0.0) - lr * decay * w


BY_HAND = dict(zip(OPTIMISERS, (_sgd, _sgd, _momentum, _nesterov, _adam, _adamw), strict=True))


class TestSteps:
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    @pytest.mark.parametrize("name", OPTIMISERS)
    def test_each_step_is_the_one_by_hand(self, name, decay):
        rows = off_centre(100)
        config = settings(
            optimizer=name, epochs=4, batch_size=100, learning_rate=0.05, momentum=0.8, weight_decay=decay
        )
        walk = Walk(config, rows)
        weights, state = walk.start, {}
        for reached in walk.reached:
            weights = BY_HAND[name](weights, walk.gradient(weights), state, 0.05, decay)
            np.testing.assert_allclose(reached, weights, rtol=0, atol=2e-6)

    @pytest.mark.parametrize("size", [1, 7, 64, 100, 5000])
    def test_gradient_descent_takes_one_step_an_epoch_over_all_rows_whatever_the_batches(self, size):
        rows = off_centre(100)
        with steps() as rates:
            walk = Walk(settings(optimizer="gd", epochs=3, batch_size=size, learning_rate=0.3), rows)
        assert len(rates) == 3
        weights = walk.start
        for reached in walk.reached:
            weights = weights - 0.3 * walk.gradient(weights)
            np.testing.assert_allclose(reached, weights, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", OPTIMISERS[1:])
    def test_all_others_take_one_step_a_batch(self, name):
        rows = off_centre(100)
        with steps() as rates:
            Walk(settings(optimizer=name, epochs=3, batch_size=33, learning_rate=0.01), rows)
        assert len(rates) == 3 * 4

    @pytest.mark.parametrize("name", OPTIMISERS)
    def test_the_training_loss_is_the_mean_over_the_rows_of_the_epoch(self, name):
        rows = off_centre(100)
        # Steps so small that all batches of the epoch meet the same weights.
        walk = Walk(settings(optimizer=name, epochs=1, batch_size=33, learning_rate=1e-9), rows)
        expected = evaluate(linear(), mean_squares(), rows)
        assert walk.result.epochs[0].train_loss == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("name", OPTIMISERS)
    def test_momentum_of_nothing_is_plain_descent(self, name):
        rows = off_centre(50)
        common = {"epochs": 3, "batch_size": 50, "learning_rate": 0.1, "momentum": 0.0}
        walk = Walk(settings(optimizer=name, **common), rows)
        plain = Walk(settings(optimizer="sgd", **common), rows)
        alike = np.allclose(walk.reached[-1], plain.reached[-1], rtol=0, atol=1e-6)
        assert alike == (name not in {"adam", "adamw"})


class TestSchedules:
    @pytest.mark.parametrize("name", ["gd", "sgd", "adamw"])
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("epochs", [1, 2, 30])
    def test_every_step_has_the_rate_of_the_closed_form(self, schedule, name, epochs):
        rows = torch.from_numpy(gaussian_rows(100))
        count = epochs * (1 if name == "gd" else 4)
        config = settings(optimizer=name, schedule=schedule, epochs=epochs, batch_size=25, learning_rate=0.02)
        with steps() as rates:
            result = Walk(config, rows).result
        expected = [0.02 * RATE[schedule](step, count) for step in range(count + 1)]
        assert rates == pytest.approx(expected[:-1], rel=1e-9, abs=1e-15)
        each = count // epochs  # an epoch's figure is the rate that its last step leads to
        assert [epoch.learning_rate for epoch in result.epochs] == pytest.approx(expected[each::each], abs=1e-12)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_no_step_is_larger_than_the_learning_rate_and_one_comes_near(self, schedule):
        with steps() as rates:
            Walk(
                settings(schedule=schedule, epochs=10, batch_size=10, learning_rate=0.02),
                torch.from_numpy(gaussian_rows(100)),
            )
        assert 0.019 < max(rates) <= 0.02 * (1 + 1e-12)

    @pytest.mark.parametrize("name", ["momentum", "adam"])
    def test_one_cycle_leaves_momentum_as_it_is_configured(self, name):
        seen = []
        hook = register_optimizer_step_pre_hook(
            lambda optimizer, *_: seen.append(
                optimizer.param_groups[0].get("momentum", optimizer.defaults.get("betas"))
            )
        )
        config = settings(optimizer=name, schedule="one_cycle", momentum=0.7, epochs=5, batch_size=25)
        Walk(config, torch.from_numpy(gaussian_rows(100)))
        hook.remove()
        assert set(seen) == {0.7 if name == "momentum" else (0.9, 0.999)}


def _cosine(step: int, count: int) -> float:
    """Loshchilov & Hutter 2017, eq. 5, after a rise over the first twentieth."""
    return min((step + 1) / max(1, count // 20), (1 + math.cos(math.pi * step / count)) / 2)


def _one_cycle(step: int, count: int) -> float:
    """From a 25th up over 30 % of the steps and down to a 250,000th, both along a cosine."""
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
    def test_a_gradient_is_cut_to_the_longest_allowed_and_keeps_its_direction(self, name, share):
        rows = torch.from_numpy(gaussian_rows(100))
        free = Walk(settings(optimizer=name, epochs=1, batch_size=100, learning_rate=0.1), rows)
        gradient = free.gradient(free.start)
        clip = share * np.linalg.norm(gradient)
        walk = Walk(settings(optimizer=name, epochs=1, batch_size=100, learning_rate=0.1, clip_norm=clip), rows)
        moved = walk.reached[0] - walk.start
        assert np.linalg.norm(moved) == pytest.approx(0.1 * min(1, share) * np.linalg.norm(gradient), rel=1e-4)
        assert moved @ gradient == pytest.approx(-np.linalg.norm(moved) * np.linalg.norm(gradient), rel=1e-6)

    def test_of_gradient_descent_the_gradient_over_all_rows_is_cut_not_those_of_its_parts(self):
        rows = torch.from_numpy(gaussian_rows(100))
        whole, parts = (
            Walk(settings(optimizer="gd", epochs=2, batch_size=size, learning_rate=0.1, clip_norm=0.2), rows)
            for size in (100, 7)
        )
        np.testing.assert_allclose(parts.reached[-1], whole.reached[-1], rtol=0, atol=1e-6)

    def test_no_batch_moves_the_weights_farther_than_rate_times_clip(self):
        rows = 100 * torch.from_numpy(gaussian_rows(100))
        walk = Walk(settings(optimizer="sgd", epochs=5, batch_size=10, learning_rate=0.01, clip_norm=0.5), rows)
        steps_apart = np.diff([walk.start, *walk.reached], axis=0)
        assert np.linalg.norm(steps_apart, axis=1).max() <= 10 * 0.01 * 0.5 * (1 + 1e-4)
        assert math.isfinite(walk.result.best_loss)


class _Indifferent(TermsLoss):
    """A loss whose gradient is zero everywhere."""

    def objective(self, passed: AutoEncoderOutput, x: torch.Tensor, beta: float) -> torch.Tensor:
        return super().objective(passed, x, beta) * 0


class TestWeightDecay:
    def decayed(self, name: str, steps_taken: int) -> tuple[np.ndarray, np.ndarray]:
        loss = mean_squares()
        loss.__class__ = _Indifferent
        config = settings(optimizer=name, epochs=steps_taken, batch_size=100, learning_rate=0.1, weight_decay=0.3)
        walk = Walk(config, torch.from_numpy(gaussian_rows(100)), loss=loss)
        return walk.start, walk.reached[-1]

    def test_of_adamw_it_shrinks_the_weights_apart_from_the_gradient(self):
        previous, after = self.decayed("adamw", 5)
        np.testing.assert_allclose(after, previous * (1 - 0.1 * 0.3) ** 5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["gd", "sgd"])
    def test_of_plain_descent_it_comes_to_the_same(self, name):
        previous, after = self.decayed(name, 5)
        np.testing.assert_allclose(after, previous * (1 - 0.1 * 0.3) ** 5, rtol=1e-5)

    def test_of_adam_it_is_a_part_of_the_gradient_and_scaled_like_it(self):
        previous, after = self.decayed("adam", 1)
        np.testing.assert_allclose(after, previous - 0.1 * np.sign(previous), rtol=0, atol=1e-5)


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("name", "rate"),
        [("gd", 0.5), ("sgd", 0.1), ("momentum", 0.05), ("nesterov", 0.05), ("adam", 0.02), ("adamw", 0.02)],
    )
    def test_the_weights_of_the_best_epoch_come_back(self, name, rate):
        rng = np.random.default_rng(3)
        few, others = (torch.from_numpy(rng.normal(size=(n, WIDTH)).astype(np.float32)) for n in (6, 200))
        model, loss, seen = linear(1), mean_squares(), []
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
        previous = x.clone()
        changed = corrupt(x, generator(seed))
        assert torch.equal(x, previous)
        assert (changed.shape, changed.dtype) == (x.shape, x.dtype)
        return changed

    @pytest.fixture(scope="class")
    def table(self) -> torch.Tensor:
        """Rows without a zero, so that one tells what was struck."""
        return torch.rand(self.N, 8, generator=generator(1)) + 0.25

    @pytest.fixture(scope="class")
    def images(self) -> torch.Tensor:
        return torch.rand(500, 3, 20, 16, generator=generator(1)) + 0.25

    def test_none_is_none(self):
        assert build_corruption(settings()) is None

    @pytest.mark.parametrize("level", [0.05, 0.7, 3.0])
    def test_gaussian_noise_has_the_levels_deviation_and_tells_nothing_of_the_input(self, table, level):
        noise = (self.noisy(table, "gaussian", level) - table).double()
        n = noise.numel()
        # Mean and deviation of n draws deviate by σ / √n and σ / √(2 n); beyond five of these lies one in a million.
        assert abs(noise.mean()) < 5 * level / n**0.5
        assert abs(noise.std() / level - 1) < 5 / (2 * n) ** 0.5
        assert abs(np.corrcoef(noise.flatten(), table.flatten())[0, 1]) < 5 / n**0.5
        between = torch.corrcoef(noise.T) - torch.eye(8)
        assert between.abs().max() < 5 / self.N**0.5

    @pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
    def test_masking_zeroes_the_levels_share_of_columns_with_all_of_their_code(self, table, level):
        changed = self.noisy(table, "masking", level, groups=self.GROUPS)
        gone = changed == 0
        assert torch.equal(changed[~gone], table[~gone])
        for group in range(4):
            code = gone[:, group == self.GROUPS]
            assert torch.equal(code.all(1), code.any(1))
            assert abs(code[:, 0].float().mean() - level) < 5 * (level * (1 - level) / self.N) ** 0.5
        columns = gone[:, [0, 1, 4, 7]].float()  # one of each group
        assert (torch.corrcoef(columns.T) - torch.eye(4)).abs().max() < 5 / self.N**0.5

    @pytest.mark.parametrize("kind", ["masking", "salt_and_pepper"])
    def test_a_pixel_is_struck_in_all_its_channels(self, images, kind):
        struck = self.noisy(images, kind, 0.3) != images
        assert torch.equal(struck.all(1), struck.any(1))
        n = struck[:, 0].numel()
        assert abs(struck[:, 0].float().mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5

    @pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0)])
    def test_salt_and_pepper_sets_half_of_what_it_strikes_to_each_end(self, images, ends):
        x = images / 2  # between the ends
        changed = self.noisy(x, "salt_and_pepper", 0.4, ends=ends)[:, 0]
        low, high = (changed == end for end in ends)
        assert torch.equal(changed[~low & ~high], x[:, 0][~low & ~high])
        for end in (low, high):
            assert abs(end.float().mean() - 0.2) < 5 * (0.2 * 0.8 / end.numel()) ** 0.5

    def test_salt_and_pepper_of_tables_strikes_all_of_a_columns_code_alike(self, table):
        changed = self.noisy(table / 2, "salt_and_pepper", 0.4, groups=self.GROUPS, ends=(-1.0, 1.0))
        for group in range(4):
            for end in (-1.0, 1.0):
                code = (changed == end)[:, group == self.GROUPS]
                assert torch.equal(code.all(1), code.any(1))
                assert abs(code[:, 0].float().mean() - 0.2) < 5 * (0.2 * 0.8 / self.N) ** 0.5

    @pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
    def test_the_generator_alone_decides(self, images, kind):
        changed = []
        for everywhere, seed in ((0, 5), (1, 5), (0, 6)):
            torch.manual_seed(everywhere)
            changed.append(self.noisy(images, kind, 0.3, seed))
        assert torch.equal(changed[0], changed[1])
        assert not torch.equal(changed[0], changed[2])

    @pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
    @pytest.mark.parametrize("name", ["gd", "adamw"])
    def test_inputs_are_noisy_and_targets_and_validation_rows_are_clean(self, name, kind):
        rows, validation = (torch.from_numpy(gaussian_rows(n, seed)) for n, seed in ((60, 0), (20, 1)))
        model, loss = linear(), mean_squares()
        inputs: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        targets: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        original = loss.objective

        def spy(passed: AutoEncoderOutput, x: torch.Tensor, beta: float) -> torch.Tensor:
            targets[model.training].append(x.clone())
            return original(passed, x, beta)

        loss.objective = spy
        model.register_forward_pre_hook(lambda module, given: inputs[module.training].append(given[0].clone()))
        config = settings(optimizer=name, corruption=kind, corruption_level=0.3, epochs=3, batch_size=20)
        corrupt = build_corruption(config, torch.arange(WIDTH))
        train(model, loss, rows, validation, config, generator(0), corrupt=corrupt)
        assert len(inputs[True]) == len(targets[True]) == 9
        by_epoch = [torch.cat(targets[True][start : start + 3]) for start in (0, 3, 6)]
        for epoch in by_epoch:
            assert torch.equal(epoch[epoch[:, 0].argsort()], rows[rows[:, 0].argsort()])
        for given, wanted in zip(inputs[True], targets[True], strict=True):
            assert 0.1 < (given != wanted).float().mean() <= 1
        first, second = (torch.cat(inputs[True][start : start + 3]) for start in (0, 3))
        noise = [
            (given - wanted)[wanted[:, 0].argsort()] for given, wanted in ((first, by_epoch[0]), (second, by_epoch[1]))
        ]
        assert not torch.equal(*noise)  # drawn anew for each epoch
        assert len(inputs[False]) == len(targets[False]) == 4
        assert all(torch.equal(given, validation) for given in (*inputs[False], *targets[False]))

    def test_a_fit_strikes_a_category_as_a_whole_and_with_the_ends_of_its_scale(self, fit_frame, monkeypatch):
        caught: dict[str, Any] = {}

        def spy(*given: Any, **named: Any) -> TrainingResult:
            caught.update(rows=next(given[2].shuffled(800, generator(0))).rows, corrupt=named.get("corrupt", given[-1]))
            return train(*given, **named)

        monkeypatch.setattr(fitting, "train", spy)
        rng = np.random.default_rng(0)
        frame = pl.DataFrame({"x": rng.normal(size=800), "c": rng.choice(["a", "b", "c"], 800)})
        columns = (FeatureColumn("x", ColumnType.NUMBER), FeatureColumn("c", ColumnType.CATEGORY))
        model = {"latent_dim": 2, "hidden": (), "loss": {"mse": 1.0}, "scaling": "symmetric", "output": "linear"}
        training = {"corruption": "salt_and_pepper", "corruption_level": 0.5, "epochs": 1, "device": "cpu"}
        bundle, _ = fit_frame(frame, columns, model=model, training=training)
        (code,) = (block for block in bundle.encoder.blocks if block.column == "c")
        rows, part = caught["rows"], slice(code.start, code.stop)
        changed = caught["corrupt"](rows, generator(0))[:, part]
        kinds = torch.stack([(changed == -1).all(1), (changed == 1).all(1), (changed == rows[:, part]).all(1)])
        assert (kinds.sum(0) == 1).all()
        assert kinds.float().mean(1).tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.1)
