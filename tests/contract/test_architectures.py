"""The contract of every architecture, in every form, for every kind of input and on every device.

A new entry of `factory.ARCHITECTURES` is tested without a change to this file. Settings of small networks and variants
with their own fit are optional.
"""

import copy
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import LossTerm, TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.config.service import Evidence
from ae_pipeline.detector.bundle import ModelBundle, ScoredRows
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.latent_space.alignment import transform_latents
from ae_pipeline.latent_space.compatibility import AffineMap
from ae_pipeline.models import base
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import ARCHITECTURES, build_loss, build_model
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.losses import ReconstructionLoss, TermsLoss
from ae_pipeline.training.loop import TrainingResult, train
from ae_pipeline.training.regularizer import LatentRegularizer
from tests.support.images import image_frame, waves

pytestmark = pytest.mark.slow

ALL_EVIDENCE = {"alerts": {"budget": 0.02, "evidence": tuple(Evidence)}}
"""All kinds of evidence. The ensemble takes longer than these small networks, so only one form of each has it."""

NOT_COLUMNS = {"latent", "ensemble", "row"}
"""Contributions of an explanation that are not columns."""

FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": ALL_EVIDENCE,
    "variational": {"model": {"variational": True}, "training": {"epochs": 25}},  # sampling slows training down
    "denoising": {"training": {"corruption": "gaussian"}},
}

SMALL: dict[str, dict[str, Any]] = {"dense": {"hidden": (24,)}, "conv": {"channels": (8, 16)}}
"""Settings of small networks by architecture. Others use their defaults."""

_NUMBERS = tuple(f"x{index}" for index in range(5))
TABLE = (
    *(FeatureColumn(name, ColumnType.NUMBER) for name in _NUMBERS),
    FeatureColumn("at", ColumnType.CLOCK_HHMM),
    FeatureColumn("kind", ColumnType.CATEGORY),
    FeatureColumn("is_on", ColumnType.BOOLEAN),
)


def table_rows(n: int, seed: int = 0) -> pl.DataFrame:
    """Return normal rows: five numbers depend on two hidden ones, and `is_on` depends on the kind."""
    rng = np.random.default_rng(seed)
    mixing = np.array([[1.0, 0.8, -0.6, 0.3, 0.0], [0.0, 0.5, 0.7, -0.9, 1.0]])
    values = rng.normal(size=(n, 2)) @ mixing + rng.normal(size=(n, 5)) * 0.05
    kind = rng.choice(["a", "b", "c"], n)
    return pl.DataFrame(
        {
            **{name: values[:, index].astype(np.float32).astype(float) for index, name in enumerate(_NUMBERS)},
            "at": np.clip(rng.normal(720, 60, n), 0, 1439).round(),
            "kind": kind,
            "is_on": kind != "a",
        }
    )


FitFrame = Callable[..., tuple[ModelBundle, TrainingResult]]
ImageFits = dict[str, tuple[ModelBundle, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]]


@dataclass(frozen=True)
class Case:
    """One network with all its settings."""

    name: str
    sections: dict[str, dict[str, Any]]
    images: ImageShape | None = None

    @property
    def columns(self) -> tuple[FeatureColumn, ...]:
        return TABLE if self.images is None else (FeatureColumn("image", ColumnType.IMAGE, self.images),)

    @property
    def config(self) -> PipelineConfig:
        return PipelineConfig.model_validate({"dataset": "frame", "identity": ("id",), **self.sections})

    def on(self, device: str) -> dict[str, dict[str, Any]]:
        """Return the settings with another device."""
        return {**self.sections, "training": {**self.sections["training"], "device": device}}

    def sample(self, n: int, seed: int = 0) -> pl.DataFrame:
        return table_rows(n, seed) if self.images is None else image_frame(waves(n, seed, self.images))


def make_case(name: str, *parts: dict[str, dict[str, Any]], images: ImageShape | None = None) -> Case:
    """Merge settings. Later ones override earlier ones."""
    training = {"epochs": 15, "batch_size": 64, "learning_rate": 0.02, "device": "cpu"}
    sections: dict[str, dict[str, Any]] = {"training": training, "model": {"latent_dim": 4}}
    if images:
        # Squared errors equal a likelihood if β is twice the variance of the noise. β = 1 would outweigh all pixels.
        sections["training"] = {**training, "epochs": 12, "batch_size": 32, "learning_rate": 0.015, "beta": 2e-4}
        sections |= {"model": {"latent_dim": 6}, "images": {}}
    for part in parts:
        sections |= {key: {**sections.get(key, {}), **value} for key, value in part.items()}
    return Case(name, sections, images)


def image_shape(height: int = 12, width: int = 12, channels: int = 1, dtype: Any = "uint8") -> ImageShape:
    return ImageShape(height=height, width=width, channels=channels, dtype=dtype)


def _every_form() -> list[Case]:
    cases = []
    for (name, entry), (form, settings) in itertools.product(ARCHITECTURES.items(), FORMS.items()):
        small = {"model": {"architecture": name, **SMALL.get(name, {})}}
        if entry.takes_tables:
            cases.append(make_case(f"{name}, {form}, table", small, settings))
        cases.append(make_case(f"{name}, {form}, image", small, settings, images=image_shape()))
    return cases


def _table(name: str, **model: Any) -> Case:
    training = model.pop("training", {})
    return make_case(f"dense, {name}", {"model": {"hidden": (24,), **model}, "training": training})


def _conv(name: str, shape: ImageShape | None = None, **model: Any) -> Case:
    return make_case(
        f"conv, {name}",
        {"model": {"architecture": "conv", **SMALL["conv"], **model}},
        images=shape or image_shape(),
    )


_UNIT: dict[str, Any] = {"scaling": "unit", "output": "sigmoid", "loss": {"bce": 1.0}}
_SYMMETRIC: dict[str, Any] = {"scaling": "symmetric", "output": "tanh"}

VARIANTS = [
    _table("linear in one step", hidden=(), latent_dim=3),
    _table("narrow", hidden=(16,), latent_dim=2),
    _table("deep, gelu", hidden=(32, 16, 8), activation="gelu"),
    _table("tied, silu", hidden=(32, 16), latent_dim=6, tied=True, activation="silu"),
    _table("tanh", latent_dim=5, activation="tanh"),
    _table("tied, variational, elu", hidden=(32,), latent_dim=6, tied=True, variational=True, activation="elu"),
    _table("masked, leaky relu", activation="leaky_relu", training={"corruption": "masking"}),
    _table(
        "unit scale, sigmoid, bce",
        **_UNIT,
        hidden=(32,),
        latent_dim=5,
        training={"epochs": 30, "corruption": "salt_and_pepper", "corruption_level": 0.02},
    ),
    _table("symmetric scale, tanh, mae", **_SYMMETRIC, loss={"mae": 1.0}),
    _table("standard scale, huber", scaling="standard", loss={"huber": 1.0}, huber_delta=0.5),
    _table("robust scale, mse + mae", scaling="robust", loss={"mse": 0.7, "mae": 0.3}),
    _conv("pooled and upsampled, leaky relu", down="pool", up="upsample", activation="leaky_relu"),
    _conv("hidden layers, elu, 9x13", image_shape(9, 13), hidden=(24,), activation="elu"),
    _conv("pooled, 13x9, three channels", image_shape(13, 9, 3), down="pool"),
    _conv("upsampled, ssim + mse, gelu", up="upsample", loss={"ssim": 0.2, "mse": 0.8}, activation="gelu"),
    _conv("unit scale, sigmoid, bce, silu", **_UNIT, activation="silu"),
    _conv("symmetric scale, tanh, mae", **_SYMMETRIC, loss={"mae": 1.0}, activation="tanh"),
    _conv("standard scale, huber", scaling="standard", loss={"huber": 1.0}),
]

CLOSE: dict[str, Any] = {"rel": 1e-6, "abs": 1e-9}
"""Tolerance of scores. Batches round outputs in the seventh digit; fine scales and steep tails amplify this."""


@dataclass(frozen=True)
class Fit:
    """A fitted case."""

    case: Case
    config: PipelineConfig
    bundle: ModelBundle
    result: TrainingResult
    device: str

    def sample(self, n: int, seed: int = 0) -> pl.DataFrame:
        return self.case.sample(n, seed)

    def encoded(self, n: int, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(self.bundle.encoder.encode(self.sample(n, seed))).to(self.device)

    def zeros(self, n: int) -> torch.Tensor:
        return torch.zeros(n, *self.bundle.encoder.shape, device=self.device)


def fit_case(case: Case, fit_frame: FitFrame, device: str) -> Fit:
    bundle, result = fit_frame(case.sample(900 if case.images is None else 500), case.columns, **case.on(device))
    return Fit(case, bundle.config, bundle, result, device)


@pytest.fixture(scope="module", params=[*_every_form(), *VARIANTS], ids=lambda case: case.name)
def fit(request: pytest.FixtureRequest, fit_frame: FitFrame, device: str) -> Fit:
    return fit_case(request.param, fit_frame, device)


def assert_equal_bytes(one: ScoredRows, other: ScoredRows) -> None:
    for name in ("latents", "score", "p_value", "is_anomaly"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


def weights(model: AutoEncoder) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.parameters()]


class TestShapes:
    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_each_row_has_latents_and_output(self, fit: Fit, n: int) -> None:
        model, shape = fit.bundle.model, fit.bundle.encoder.shape
        z, output, kl = model(fit.zeros(n))
        assert (z.shape, output.shape, kl.shape) == ((n, fit.config.model.latent_dim), (n, *shape), (n,))
        torch.testing.assert_close(model.decode(model.encode(fit.zeros(n))), output, rtol=0, atol=0)

    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_each_row_has_scores_and_explanation(self, fit: Fit, n: int) -> None:
        rows, is_table = fit.sample(n), fit.case.images is None
        scored = fit.bundle.score(rows)
        assert (scored.latents.shape, scored.latents.dtype.name) == ((n, fit.config.model.latent_dim), "float32")
        assert (scored.score.shape, scored.score.dtype.name) == ((n,), "float64")
        assert (scored.p_value.shape, scored.is_anomaly.shape) == ((n,), (n,))
        assert fit.bundle.encode(rows).tobytes() == scored.latents.tobytes()
        assert fit.bundle.detector.latents_and_losses(rows)[1].shape == (
            n,
            len(fit.bundle.detector.tails.quantiles),
        )
        assert fit.bundle.reconstruct(rows).shape == (n, *fit.bundle.encoder.shape)
        columns = set(fit.bundle.loss.columns if is_table else ("spot", "flat", "image"))
        for parts in fit.bundle.explain(rows, 99):
            named = [part for part in parts if part.column not in NOT_COLUMNS]
            assert parts
            assert all(part.actual != part.expected for part in parts)
            assert {part.column for part in named} <= columns
            assert len({part.column for part in named}) == len(named)
            assert is_table or len(named) == 3
        assert fit.bundle.denoise(rows).schema == rows.schema
        assert fit.bundle.denoise(rows).height == n

    def test_latent_space_as_wide_as_the_input_needs_noise(self, fit: Fit) -> None:
        shape = fit.bundle.encoder.shape
        width = math.prod(shape)
        model = {**fit.case.sections["model"], "latent_dim": width}
        clean, noisy = (
            make_case("", fit.case.sections, {"model": model, "training": {"corruption": kind}}).config
            for kind in ("none", "gaussian")
        )
        with pytest.raises(ConfigError, match=f"latent_dim={width} .* {width} encoded inputs; choose 1–{width - 1}"):
            build_model(clean, shape)
        assert build_model(noisy, shape).encode(torch.zeros(2, *shape)).shape == (2, width)


class TestDeterminism:
    def test_same_rows_give_the_same_bytes(self, fit: Fit) -> None:
        rows = fit.sample(300, 1)
        assert_equal_bytes(fit.bundle.score(rows), fit.bundle.score(rows))

    def test_evaluation_is_deterministic(self, fit: Fit) -> None:
        assert not any(module.training for module in fit.bundle.model.modules())
        x = fit.encoded(20, 1)
        first, second = fit.bundle.model(x), fit.bundle.model(x)
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))

    def test_score_of_a_row_does_not_depend_on_the_batch(self, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
        for limits in ("_MAX_BATCH", "_MAX_CUDA_BATCH"):
            monkeypatch.setattr(base, limits, (1024, 2**21))
        many = fit.sample(2049, 2)  # the last batch holds one row
        together = fit.bundle.score(many)
        for index in (0, 1023, 1234, 2048):
            alone = fit.bundle.score(many[index : index + 1])
            np.testing.assert_allclose(alone.latents[0], together.latents[index], rtol=1e-5, atol=1e-5)
            assert alone.score[0] == pytest.approx(together.score[index], **CLOSE)

    def test_scores_do_not_depend_on_the_order_of_rows(self, fit: Fit) -> None:
        rows = fit.sample(500, 3)
        forward, backward = fit.bundle.score(rows), fit.bundle.score(rows.reverse())
        np.testing.assert_allclose(backward.latents[::-1], forward.latents, rtol=1e-5, atol=1e-5)
        assert backward.score[::-1] == pytest.approx(forward.score, **CLOSE)

    def test_scores_do_not_depend_on_other_columns_or_their_order(self, fit: Fit) -> None:
        rows = fit.sample(50, 5)
        other = rows.select(reversed(rows.columns)).with_columns(noise=pl.lit("x"))
        assert_equal_bytes(fit.bundle.score(other), fit.bundle.score(rows))


@pytest.mark.parametrize("case", _every_form(), ids=lambda case: case.name)
def test_fit_is_reproducible_whatever_the_global_seeds(case: Case, fit_frame: FitFrame, device: str) -> None:
    short = make_case(case.name, case.sections, {"training": {"epochs": 2}}, images=case.images)
    fits = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        fits.append(fit_case(short, fit_frame, device))
    first, second = fits
    assert second.bundle.fingerprint == first.bundle.fingerprint
    assert second.result == first.result
    assert_equal_bytes(second.bundle.score(case.sample(50, 5)), first.bundle.score(case.sample(50, 5)))


class TestNumberTypes:
    def test_float32_and_float64_columns_score_the_same(self, fit: Fit) -> None:
        wide = fit.sample(200, 4)
        numbers = [name for name, dtype in wide.schema.items() if dtype.is_float()]
        if fit.case.images is not None:
            assert numbers == []  # see `test_uint16_images_score_like_uint8_images`
            return
        assert len(numbers) == 6
        narrow = wide.with_columns(pl.col(numbers).cast(pl.Float32))
        assert_equal_bytes(fit.bundle.score(narrow), fit.bundle.score(wide))

    @pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-4), (torch.float16, 3e-2)])
    def test_network_runs_in_double_and_in_half_precision(self, fit: Fit, dtype: Any, close: float) -> None:
        x = fit.encoded(20, 4)
        expected = fit.bundle.model(x)
        for training in (False, True):
            model = copy.deepcopy(fit.bundle.model).to(dtype).train(training)
            result = model(x.to(dtype), torch.Generator().manual_seed(0))
            assert {value.dtype for value in result} == {dtype}
            assert all(torch.isfinite(value).all() for value in result)
            if not training:
                for value, reference in zip(result, expected, strict=True):
                    torch.testing.assert_close(value.float(), reference, rtol=close, atol=close)


class TestTransformedLatents:
    def test_map_changes_latents_but_neither_outputs_nor_scores(self, fit: Fit, tmp_path: Path) -> None:
        rng, width = np.random.default_rng(0), fit.bundle.model.latent_dim
        first, second = (
            AffineMap(np.eye(width) + 0.3 * rng.normal(size=(width, width)), rng.normal(size=width)) for _ in range(2)
        )
        transformed = transform_latents(transform_latents(fit.bundle, first), second)
        rows, x = fit.sample(300, 8), fit.encoded(50, 8)
        previous, after = fit.bundle.score(rows), transformed.score(rows)
        assert transformed.reconstruct(rows).tobytes() == fit.bundle.reconstruct(rows).tobytes()
        assert not np.allclose(after.latents, previous.latents, atol=0.1)
        expected = second(first(previous.latents.astype(np.float64)))
        np.testing.assert_allclose(after.latents, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        np.testing.assert_allclose(after.score, previous.score, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(after.is_anomaly, previous.is_anomaly)
        with torch.inference_mode():
            z, output, kl = transformed.model(x)
        scale = float(output.abs().max())
        torch.testing.assert_close(transformed.model.encode(x), z, rtol=0, atol=0)
        torch.testing.assert_close(transformed.model.decode(z), output, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(kl, fit.bundle.model(x)[2], rtol=0, atol=0)
        transformed.save(tmp_path)
        assert_equal_bytes(ModelBundle.load(tmp_path, fit.device).score(rows), after)
        assert transformed.fingerprint != fit.bundle.fingerprint


class TestSaveAndLoad:
    def test_loaded_bundle_is_equal_bit_for_bit(self, fit: Fit, tmp_path: Path) -> None:
        fit.bundle.save(tmp_path)
        loaded, on_cpu = ModelBundle.load(tmp_path, fit.device), ModelBundle.load(tmp_path, "cpu")
        rows = fit.sample(300, 6)
        assert loaded.fingerprint == fit.bundle.fingerprint
        assert_equal_bytes(loaded.score(rows), fit.bundle.score(rows))
        assert loaded.explain(rows[:5]) == fit.bundle.explain(rows[:5])
        assert loaded.reconstruct(rows).tobytes() == fit.bundle.reconstruct(rows).tobytes()
        assert loaded.denoise(rows).equals(fit.bundle.denoise(rows))
        expected, scored = fit.bundle.score(rows), on_cpu.score(rows)
        np.testing.assert_allclose(scored.score, expected.score, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(scored.latents, expected.latents, rtol=1e-6, atol=1e-6)  # float32
        is_tie = np.isclose(expected.score, fit.bundle.calibration.threshold, rtol=1e-9)
        np.testing.assert_array_equal(scored.is_anomaly[~is_tie], expected.is_anomaly[~is_tie])


class TestLearning:
    def test_training_reduces_the_loss(self, fit: Fit) -> None:
        if LossTerm.LIKELIHOOD in fit.config.loss:
            assert fit.result.best_loss < fit.result.first_loss - 1
            return
        x = fit.encoded(600, 1)
        nearest = x.clamp(0, 1) if LossTerm.BCE in fit.config.loss else x
        perfect = float(fit.bundle.loss(nearest, x).sum(1).mean())  # bce: the entropy of values between 0 and 1
        assert fit.result.best_loss - perfect < 0.5 * (fit.result.first_loss - perfect)

    def test_only_variational_forms_have_a_divergence(self, fit: Fit) -> None:
        kl = fit.bundle.model(fit.encoded(200, 1)).kl
        assert (kl > 0).all() if fit.config.model.variational else (kl == 0).all()

    @pytest.mark.parametrize(("n", "size"), [(1, 64), (65, 64), (5, 1)])
    def test_batch_of_one_row_can_be_trained_on(self, fit: Fit, n: int, size: tuple[int, int]) -> None:
        model, loss = copy.deepcopy(fit.bundle.model), copy.deepcopy(fit.bundle.loss)
        previous, x = weights(model), fit.encoded(n, 1)
        settings = fit.config.training.model_copy(update={"epochs": 1, "batch_size": size})
        corrupt = build_corruption(settings, ends=fit.bundle.encoder.ends)
        result = train(model, loss, x, x, settings, torch.Generator().manual_seed(0), corrupt=corrupt)
        assert math.isfinite(result.epochs[0].train_loss)
        assert math.isfinite(result.best_loss)
        # If the epoch is no improvement, training restores the initial weights.
        assert (result.best_epoch == 1) != all(map(torch.equal, previous, weights(model)))

    def test_normal_rows_are_flagged_at_about_the_budget(self, fit: Fit) -> None:
        share = fit.bundle.score(fit.sample(2000, 8)).is_anomaly.mean()
        assert share < 0.07  # the budget is 0.02, with sampling noise of 120 to 180 calibration rows

    def test_planted_anomalies_rank_first(self, fit: Fit) -> None:
        planted, rows = (plant_in_table if fit.case.images is None else plant_in_images)(fit.case)
        scored = fit.bundle.score(rows)
        order = np.argsort(-scored.score)
        assert set(order[: len(planted)].tolist()) == set(planted)
        assert scored.is_anomaly[list(planted)].all()
        for row, index in planted.items():
            named = [part for part in fit.bundle.explain(rows[row : row + 1])[0] if part.column not in NOT_COLUMNS]
            if isinstance(index, str):
                # Under other losses, an odd input can increase the loss of another column more than its own.
                assert named[0].column == index or LossTerm.LIKELIHOOD not in fit.config.loss
            elif index is not None:
                (spot,) = (part.actual for part in named if part.column == "spot")
                match = re.search(r"at row (\d+), column (\d+)", str(spot))
                assert match
                position = tuple(map(int, match.groups()))
                assert np.abs(np.subtract(position, index)).max() <= 3, (position, index)


def plant_in_table(case: Case) -> tuple[dict[int, str | None], pl.DataFrame]:
    """Return anomalies as row → column that must be blamed (None if several can be), and the rows."""
    rows = case.sample(500, 7)
    broken = {
        3: {"x1": pl.lit(40.0)},  # an extreme value
        50: {"x3": -pl.col("x3") + 6},  # contradicts the other columns
        111: {"kind": pl.lit("never seen")},
        222: {"x0": pl.lit(None, pl.Float64)},  # never missing in training
        333: {"at": pl.lit(60.0)},
        444: {"x2": pl.lit(-25.0), "x4": pl.lit(25.0)},
    }
    index = pl.int_range(pl.len())
    for row, changes in broken.items():
        rows = rows.with_columns(
            pl.when(index == row).then(value).otherwise(pl.col(name)).alias(name) for name, value in changes.items()
        )
    return {**dict.fromkeys(broken), 111: "kind", 222: "x0"}, rows


def plant_in_images(case: Case) -> tuple[dict[int, tuple[int, int]], pl.DataFrame]:
    """Return anomalies as row → center of a brighter or noisy square of 3 × 3 pixels, and the images."""
    assert case.images is not None
    images, rng = waves(300, 7, case.images), np.random.default_rng(0)
    corner = case.images.height - 3, case.images.width - 3
    planted = {3: (0, 0), 50: corner, 111: (4, 2), 222: (5, 6), 260: (0, 5)}
    for number, (row, (top, left)) in enumerate(planted.items()):
        square = (row, slice(top, top + 3), slice(left, left + 3))
        change = rng.choice([-50, 50], (3, 3, 1)) if number % 2 else 60
        images[square] = np.clip(images[square].astype(int) + change, 0, 255)
    return {row: (top + 1, left + 1) for row, (top, left) in planted.items()}, image_frame(images)


CORES = [
    pytest.param(name, settings, id=f"{name}, {form}")
    for name, (form, settings) in itertools.product(ARCHITECTURES, FORMS.items())
]
TABLE_CORES = [core for core in CORES if ARCHITECTURES[str(core.values[0])].takes_tables]


@pytest.mark.parametrize(("name", "settings"), CORES)
class TestSizes:
    def test_weights_depend_only_on_the_generator(self, name: str, settings: dict[str, dict[str, Any]]) -> None:
        config = make_case("", {"model": {"architecture": name}}, settings, images=image_shape()).config
        models = []
        for draws, global_seed in ((0, 0), (0, 1), (1, 0)):
            torch.manual_seed(global_seed)
            models.append(build_model(config, (1, 12, 12), torch.Generator().manual_seed(draws)).state_dict())
        first, second, other = models
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith("weight"))

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(8, 8), (33, 47), (128, 128)], ids=lambda size: "x".join(map(str, size)))
    def test_images_of_any_size_can_be_trained_on(
        self, name: str, settings: dict[str, dict[str, Any]], size: tuple[int, int], channels: int, device: str
    ) -> None:
        shape = (channels, *size)
        case = make_case("", {"model": {"architecture": name}}, settings, images=image_shape(*size, channels))
        model = build_model(case.config, shape, torch.Generator().manual_seed(0)).to(device)
        loss = ImageLoss(shape, 1.0, {LossTerm.MSE: 0.5, LossTerm.SSIM: 0.5}, 1.0).to(device)
        images = waves(3, 0, image_shape(*size, channels)).transpose(0, 3, 1, 2) / np.float32(255)
        x = torch.from_numpy(images).to(device)
        assert_learns_in_one_step(model, loss, x, case.config.training)
        assert loss.patch_scores(model(x).output, x, to_the_edge=True).shape == (3, *size)


def assert_learns_in_one_step(
    model: AutoEncoder, loss: ReconstructionLoss, x: torch.Tensor, settings: TrainingConfig
) -> None:
    """Assert that every weight has a gradient, a small step reduces the loss, and an epoch changes the weights."""

    def objective() -> torch.Tensor:
        model.train()
        return loss.objective(model(x, torch.Generator().manual_seed(0)), x, settings.beta).mean()

    initial = objective()
    initial.backward()
    # A graph that is kept would bind the gradients to the CUDA stream of this thread. The training has its own.
    previous = initial.detach()
    del initial
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().sum() > 0, name
    length = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.sub_(gradients[name], alpha=1e-3 / float(length))
        assert objective() < previous
    stepped = weights(model)
    one = settings.model_copy(update={"epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "schedule": "constant"})
    result = train(model, loss, x[:3], x[:3], one, torch.Generator().manual_seed(0), corrupt=build_corruption(one))
    assert math.isfinite(result.epochs[0].train_loss)
    assert (result.best_epoch == 1) != all(map(torch.equal, stepped, weights(model)))


@pytest.mark.parametrize(("name", "settings"), TABLE_CORES)
class TestTables:
    @pytest.mark.parametrize("column", [TABLE[0], TABLE[5], TABLE[6]], ids=lambda column: column.type.value)
    def test_one_column_is_enough(
        self, fit_frame: FitFrame, name: str, settings: dict[str, dict[str, Any]], column: FeatureColumn, device: str
    ) -> None:
        case = make_case("", {"model": {"architecture": name, "latent_dim": 1}, "training": {"epochs": 8}}, settings)
        bundle, result = fit_frame(table_rows(400), [column], **case.on(device))
        scored = bundle.score(table_rows(100, 9))
        assert bundle.columns == [column.name]
        assert math.isfinite(result.best_loss)
        assert np.isfinite(scored.score).all()
        assert scored.latents.shape == (100, 1)
        missing = pl.DataFrame({column.name: [None]}, schema={column.name: table_rows(1).schema[column.name]})
        # The column is never missing in training, so the row is more anomalous than almost all normal rows.
        assert (scored.score < bundle.score(missing).score[0]).mean() >= 0.95

    def test_two_thousand_inputs_can_be_trained_on(
        self, name: str, settings: dict[str, dict[str, Any]], device: str
    ) -> None:
        config = make_case("", {"model": {"architecture": name}}, settings).config
        model = build_model(config, (2000,), torch.Generator().manual_seed(0)).to(device)
        x = torch.randn(32, 2000, generator=torch.Generator().manual_seed(1)).to(device)
        assert_learns_in_one_step(model, _mean_squares(2000).to(device), x, config.training)


def _mean_squares(width: int) -> TermsLoss:
    """Return the loss of a table of numbers without missing values."""
    blocks = [
        Block(column=f"x{index}", part="value", kind=BlockKind.NUMERIC, start=index, width=1) for index in range(width)
    ]
    return TermsLoss(blocks, [block.column for block in blocks], {LossTerm.MSE: 1.0}, 1.0)


def test_two_thousand_columns_are_trained_and_scored(fit_frame: FitFrame, device: str) -> None:
    values = np.random.default_rng(0).normal(size=(350, 2000))
    frame = pl.DataFrame(values, schema=[f"x{index}" for index in range(2000)])
    columns = [FeatureColumn(name, ColumnType.NUMBER) for name in frame.columns]
    bundle, result = fit_frame(
        frame,
        columns,
        model={"hidden": (16,), "latent_dim": 4},
        training={"epochs": 2, "batch_size": 64, "device": device},
    )
    assert bundle.encoder.shape == (4000,)
    assert result.best_loss < result.first_loss
    strange = frame.head(5).with_columns(x1234=pl.Series([0.0, 0.0, 30.0, 0.0, 0.0]))
    surprisal = bundle.detector.surprisal_of(bundle.detector.latents_and_losses(strange)[1])[
        :, :2000
    ]  # other evidence stands behind the columns
    assert tuple(map(int, np.unravel_index(surprisal.argmax(), surprisal.shape))) == (2, 1234)


class TestImageTypes:
    """The same images in different number types."""

    @pytest.fixture(scope="class")
    def fits(self, fit_frame: FitFrame, device: str) -> ImageFits:
        stored: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
            "uint8": lambda images: images,
            "uint16": lambda images: images.astype("<u2") * 257,  # 255 becomes 65535, the maximum of the type
            "float32": lambda images: (images / 255 * 7 - 3).astype("<f4"),
        }
        fits: ImageFits = {}
        for dtype, store in stored.items():
            case = _conv(dtype, image_shape(dtype=dtype))
            frame = image_frame(store(marked(600, 0)))
            fits[dtype] = fit_frame(frame, case.columns, **case.on(device))[0], store
        return fits

    def test_uint16_images_score_like_uint8_images(self, fits: ImageFits) -> None:
        (eight, store8), (sixteen, store16) = fits["uint8"], fits["uint16"]
        images = marked(100, 1)
        result, expected = sixteen.score(image_frame(store16(images))), eight.score(image_frame(store8(images)))
        assert result.latents.tobytes() == expected.latents.tobytes()
        # 16 bits tell lower contrasts apart than 8 bits do. All but the flat score is equal.
        flat = eight.network.loss.columns.index("flat")
        other8, other16 = (
            np.delete(bundle.detector.latents_and_losses(image_frame(store(images)))[1], flat, axis=1)
            for bundle, store in (fits["uint8"], fits["uint16"])
        )
        assert other16.tobytes() == other8.tobytes()
        np.testing.assert_allclose(result.score, expected.score, rtol=1e-2)
        assert np.array_equal(result.is_anomaly, expected.is_anomaly)

    def test_float_images_are_scaled_by_the_range_of_the_window(self, fits: ImageFits, device: str) -> None:
        (eight, store8), (floats, store) = fits["uint8"], fits["float32"]
        images = marked(100, 1)
        expected = eight.encoder.encode(image_frame(store8(images)))
        np.testing.assert_allclose(floats.encoder.encode(image_frame(store(images))), expected, atol=1e-6)
        outputs = [bundle.reconstruct(image_frame(to(images))) for bundle, to in fits.values()]
        # Inputs differ by rounding, and a training on a CUDA device enlarges that in a few pixels.
        share, atol = (1.0, 1e-5) if device == "cpu" else (0.99, 0.02)
        assert (np.abs(outputs[2] - outputs[0]) < atol).mean() >= share

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_denoised_images_have_the_type_of_the_input(self, fits: ImageFits, dtype: Any) -> None:
        bundle, store = fits[dtype]
        images = marked(50, 2)
        denoised = bundle.denoise(image_frame(store(images)))["image"]
        values = np.stack([np.frombuffer(image, np.dtype(dtype)) for image in denoised])
        originals = store(images).reshape(50, -1)
        assert values.shape == originals.shape
        errors = np.abs(values.astype(float) - originals) / (float(originals.max()) - float(originals.min()))
        assert 0 < np.median(errors) < 0.05


def marked(n: int, seed: int) -> npt.NDArray[Any]:
    """Return waves with a black and a white corner, so that every sample has the same range."""
    images = waves(n, seed, image_shape())
    images[:, 0, 0], images[:, -1, -1] = 0, 255
    return images


@pytest.mark.parametrize("case", [*_every_form(), *VARIANTS], ids=lambda case: case.name)
def test_a_step_reads_no_value_from_its_device_and_no_tensor_of_the_cpu(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph cannot contain either. Tensors on the device "meta" have no values, so that reading one fails."""
    encoder = fit_encoder(case.config, case.sample(200), case.columns)
    model, loss = build_model(case.config, encoder.shape).to("meta"), build_loss(case.config, encoder).to("meta")
    x, beta = torch.rand((32, *encoder.shape), device="meta"), torch.rand((), dtype=torch.float64, device="meta")
    previous = torch.rand((32, model.latent_dim), device="meta")
    regularizer = LatentRegularizer(previous, 0.1)
    regularizer.__dict__["_std"] = torch.rand(model.latent_dim, device="meta")  # read before the first capture
    corrupted = case.config.training.model_copy(update={"corruption": "salt_and_pepper"})
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__int__", lambda _: len(case.columns) - 1)  # as is the number of groups
        groups = torch.zeros(encoder.shape, dtype=torch.long, device="meta") if case.images is None else None
        corrupt = build_corruption(corrupted, groups, encoder.ends)
    assert corrupt is not None
    value = loss.objective(model.train()(corrupt(x, None), None), x, beta).mean()
    (value + regularizer.penalty(model.encode(x), previous)).backward()
    parameters = [*model.parameters(), *loss.parameters()]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert {value.grad.device.type for value in parameters if value.grad is not None} == {"meta"}
    assert sum(value.grad is None for value in parameters) == 0
