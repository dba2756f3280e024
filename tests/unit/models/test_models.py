"""Valid and rejected settings, and the layers and weights of the networks that they build."""

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ae_pipeline.common.errors import ConfigError
from ae_pipeline.config.columns import ColumnType, FeatureColumn, ImageShape
from ae_pipeline.config.model import LossTerm, Output, Scaling
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.models.convolution import UpsampledConv2d
from ae_pipeline.models.dense import Linear
from ae_pipeline.models.factory import ARCHITECTURES, build_loss, build_model, check_architecture
from ae_pipeline.models.losses import LikelihoodLoss
from ae_pipeline.training.loop import train
from tests.support.datasets import assert_says


def config(
    kind: str = "table", training: dict[str, Any] | None = None, alerts: dict[str, Any] | None = None, **model: Any
) -> PipelineConfig:
    images: dict[str, Any] = {"images": {}} if kind == "image" else {}
    return PipelineConfig.model_validate(
        {
            "dataset": "shop",
            "identity": ["id"],
            **images,
            "model": model,
            "training": training or {},
            "alerts": alerts or {},
        }
    )


REJECTED: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "ssim of tables": (
        {"loss": {"mse": 0.8, "ssim": 0.2}},
        ("ssim compares images, and 'shop' has none", r"loss=\{mse: 0.8, ssim: 0.2\}", "; choose mse, mae or huber"),
    ),
    "likelihood of images": (
        {"kind": "image", "loss": {"likelihood": 1}},
        ("for the columns of tables", r"loss=\{likelihood: 1\}", "; choose mse, mae, huber, bce or ssim"),
    ),
    "likelihood and another term": (
        {"loss": {"likelihood": 1, "mse": 0.5}},
        ("cannot be combined with other terms", r"loss=\{likelihood: 1, mse: 0.5\}", "; use it alone, or remove it"),
    ),
    "an ensemble alone for images": (
        {"kind": "image", "alerts": {"evidence": ["ensemble"]}},
        ("is for tables", r"evidence=\['ensemble'\]", "; for images choose columns, latent or row"),
    ),
    "evidence named twice": (
        {"alerts": {"evidence": ["row", "columns", "row"]}},
        ("contains a duplicate", r"evidence=\['row', 'columns', 'row'\]", "; name each kind once"),
    ),
    "robust scaling of images": (
        {"kind": "image", "scaling": "robust"},
        ("for the numbers of tables", "scaling='robust'", "; choose unit, symmetric or standard"),
    ),
    "sigmoid under the likelihood": (
        {"scaling": "unit", "output": "sigmoid"},
        ("cannot give the logits that likelihood needs", "output='sigmoid'", "; choose linear"),
    ),
    "tanh on the unit scale": (
        {"loss": {"mse": 1}, "scaling": "unit", "output": "tanh"},
        ("cannot reach inputs of scaling='unit'", "output='tanh'", "; choose linear or sigmoid"),
    ),
    "sigmoid on the symmetric scale": (
        {"kind": "image", "scaling": "symmetric", "output": "sigmoid"},
        ("cannot reach inputs of scaling='symmetric'", "output='sigmoid'", "; choose linear or tanh"),
    ),
    "tanh on a scale without ends": (
        {"loss": {"mse": 1}, "scaling": "standard", "output": "tanh"},
        ("scaling='standard', which are unbounded", "output='tanh'", "; choose linear, or scaling unit or symmetric"),
    ),
    "sigmoid on the scale by default": (
        {"loss": {"mae": 1}, "output": "sigmoid"},
        ("scaling='robust', which are unbounded", "output='sigmoid'", "; choose linear, or scaling unit or symmetric"),
    ),
    "bce of another scale": (
        {"loss": {"bce": 1}},
        (r"loss=\{bce: 1\}", "got 'robust' and 'linear'", "bce needs scaling='unit' and output='sigmoid'"),
    ),
    "bce of a linear output": (
        {"kind": "image", "loss": {"bce": 1, "mse": 1}, "output": "linear"},
        (r"loss=\{bce: 1, mse: 1\}", "got 'unit' and 'linear'", "bce needs scaling='unit' and output='sigmoid'"),
    ),
    "salt and pepper without ends": (
        {"training": {"corruption": "salt_and_pepper"}},
        ("needs a bounded scale", "got scaling='robust'", "; choose unit or symmetric"),
    ),
    "a share above one": (
        {"scaling": "unit", "training": {"corruption": "masking", "corruption_level": 1.5}},
        (
            "must be a share of the entries, because corruption is masking",
            "corruption_level=1.5",
            "; choose a value below 1",
        ),
    ),
}

NOT_BUILT: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[str, str, str]]] = {
    "tied weights of conv": (
        {"kind": "image", "architecture": "conv", "tied": True},
        (1, 8, 8),
        ("tied=true needs architecture dense", "got 'conv'", "; remove tied"),
    ),
    "an unknown architecture": (
        {"architecture": "transformer"},
        (12,),
        ("is not one of dense, conv", "architecture='transformer'", "; choose one of them"),
    ),
    "conv on a table": (
        {"architecture": "conv"},
        (12,),
        ("reads images, but 'shop' has no section images", "architecture='conv'", "; add it, or choose dense"),
    ),
    "too many levels for the image": (
        {"kind": "image", "architecture": "conv", "channels": (4, 4, 4, 4, 4)},
        (1, 9, 12),
        ("images of 9×12 are a single pixel after 4", "channels names 5 levels", "; name at most 4"),
    ),
    "as many latents as inputs": (
        {"latent_dim": 12},
        (12,),
        ("not smaller than the 12 encoded inputs", "latent_dim=12", "; choose 1–11, or set corruption"),
    ),
    "as many latents as pixels": (
        {"kind": "image", "latent_dim": 40},
        (3, 3, 4),
        ("not smaller than the 36 encoded inputs", "latent_dim=40", "; choose 1–35, or set corruption"),
    ),
}


class TestRejectedSettings:
    @pytest.mark.parametrize(("settings", "message"), REJECTED.values(), ids=REJECTED.keys())
    def test_configuration_rejects_conflicting_settings(self, settings: Any, message: tuple[str, str, str]) -> None:
        with pytest.raises(ValidationError) as caught:
            config(**settings)
        (error,) = caught.value.errors()
        assert_says(error["msg"], *message)

    @pytest.mark.parametrize(("settings", "shape", "message"), NOT_BUILT.values(), ids=NOT_BUILT.keys())
    def test_factory_rejects_settings_that_do_not_fit_the_data(
        self, settings: Any, shape: tuple[int, ...], message: tuple[str, str, str]
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            build_model(config(**settings), shape)
        assert_says(str(caught.value), *message)

    @pytest.mark.parametrize("name", ["dense", "conv"])
    def test_architecture_is_checked_without_data(self, name: str) -> None:
        assert check_architecture(config("image", architecture=name)) is ARCHITECTURES[name]
        for settings in (config(architecture="transformer"), config(architecture="conv")):
            with pytest.raises(ConfigError, match="architecture="):
                check_architecture(settings)

    def test_conv_halves_an_image_down_to_one_pixel(self) -> None:
        settings = config("image", architecture="conv", channels=(4, 4, 4, 4), latent_dim=2)
        assert build_model(settings, (1, 9, 12))(torch.zeros(2, 1, 9, 12)).output.shape == (2, 1, 9, 12)

    def test_gaussian_corruption_level_may_exceed_one(self) -> None:
        assert config(training={"corruption": "gaussian", "corruption_level": 1.5}).training.corruption_level == 1.5


OUTPUTS = {"robust": {"linear"}, "standard": {"linear"}, "unit": {"linear", "sigmoid"}, "symmetric": {"linear", "tanh"}}
"""Outputs whose range contains the inputs, by scaling."""


def goes_together(kind: str, scaling: str, output: str, term: str) -> bool:
    """Return whether the documented rules allow a combination; an independent second implementation."""
    fits_kind = {"likelihood": kind == "table", "ssim": kind == "image"}.get(term, True)
    fits_kind &= kind == "table" or scaling != "robust"
    fits_term = {"likelihood": output == "linear", "bce": (scaling, output) == ("unit", "sigmoid")}.get(term, True)
    return fits_kind and fits_term and output in OUTPUTS[scaling]


class TestCombinations:
    def rows(self, kind: str) -> tuple[pl.DataFrame, tuple[FeatureColumn, ...]]:
        rng = np.random.default_rng(0)
        if kind == "image":
            images = rng.integers(0, 256, (24, 7, 9, 3)).astype(np.uint8)
            shape = ImageShape(height=7, width=9, channels=3, dtype="uint8")
            column = pl.Series([image.tobytes() for image in images], dtype=pl.Binary)
            return pl.DataFrame({"image": column}), (FeatureColumn("image", ColumnType.IMAGE, shape),)
        with_gaps = pl.Series(rng.normal(size=24)).set(pl.Series(rng.random(24) < 0.2), None)
        frame = pl.DataFrame({"x": with_gaps, "at": rng.integers(0, 1440, 24).astype(float), "c": ["a", "b"] * 12})
        types = {"x": ColumnType.NUMBER, "at": ColumnType.CLOCK_HHMM, "c": ColumnType.CATEGORY}
        return frame, tuple(FeatureColumn(name, kind) for name, kind in types.items())

    @pytest.mark.parametrize("kind", ["table", "image"])
    @pytest.mark.parametrize("term", LossTerm)
    def test_valid_combinations_train_and_others_are_rejected(self, kind: str, term: LossTerm) -> None:
        accepted, (frame, columns) = set(), self.rows(kind)
        for scaling, output in itertools.product(Scaling, Output):
            try:
                settings = config(
                    kind,
                    {"epochs": 1, "batch_size": 5, "device": "cpu"},
                    loss={term: 1.0},
                    scaling=scaling,
                    output=output,
                    latent_dim=2,
                    hidden=(6,),
                )
            except ValidationError:
                continue
            accepted.add((scaling.value, output.value))
            encoder = fit_encoder(settings, frame, columns)
            model, loss = build_model(settings, encoder.shape, torch.Generator()), build_loss(settings, encoder)
            x = torch.from_numpy(encoder.encode(frame))
            result = train(model, loss, x, x, settings.training, torch.Generator().manual_seed(0))
            assert math.isfinite(result.epochs[0].validation_loss)
            assert isinstance(loss, LikelihoodLoss) == (term == LossTerm.LIKELIHOOD)
        pairs = itertools.product(map(str, Scaling), map(str, Output))
        assert accepted == {pair for pair in pairs if goes_together(kind, *pair, term.value)}

    @pytest.mark.parametrize(
        ("settings", "loss", "scaling", "output"),
        [
            ({}, {"likelihood": 1.0}, "robust", "linear"),
            ({"scaling": "unit"}, {"likelihood": 1.0}, "unit", "linear"),
            ({"loss": {"mse": 2.0}}, {"mse": 2.0}, "robust", "linear"),
            ({"loss": {"bce": 1.0}, "scaling": "unit"}, {"bce": 1.0}, "unit", "sigmoid"),
            ({"kind": "image"}, {"mse": 1.0}, "unit", "sigmoid"),
            ({"kind": "image", "scaling": "symmetric"}, {"mse": 1.0}, "symmetric", "tanh"),
            ({"kind": "image", "scaling": "standard"}, {"mse": 1.0}, "standard", "linear"),
            ({"kind": "image", "output": "linear"}, {"mse": 1.0}, "unit", "linear"),
        ],
    )
    def test_defaults_of_loss_scaling_and_output_fit_together(
        self, settings: Any, loss: dict[str, float], scaling: str, output: str
    ) -> None:
        chosen = config(**settings)
        assert (chosen.loss, chosen.scaling, chosen.output) == (loss, scaling, output)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class TestNetworks:
    @pytest.mark.parametrize(
        ("width", "latents"), [(1, 1), (2, 1), (3, 1), (5, 2), (15, 7), (16, 8), (17, 8), (400, 8)]
    )
    def test_default_latent_dim_is_eight_or_half_of_the_inputs(self, width: int, latents: int) -> None:
        for settings in (config(hidden=(4,)), config(hidden=(4,), variational=True), config(hidden=(4,), tied=True)):
            model = build_model(settings, (width,))
            assert model.latent_dim == latents
            assert model.encode(torch.zeros(2, width)).shape == (2, latents)
            assert model(torch.zeros(2, width)).output.shape == (2, width)

    def test_default_latent_dim_of_images_is_eight(self) -> None:
        for architecture in ARCHITECTURES:
            model = build_model(config("image", architecture=architecture, channels=(4,)), (1, 8, 8))
            assert model.latent_dim == model.encode(torch.zeros(2, 1, 8, 8)).shape[1] == 8

    @pytest.mark.parametrize("variational", [False, True])
    @pytest.mark.parametrize("tied", [False, True])
    def test_dense_weight_count_follows_its_widths(self, tied: bool, variational: bool) -> None:
        model = build_model(config(hidden=(10, 6), latent_dim=3, tied=tied, variational=variational), (20,))
        codes = 6 if variational else 3
        encoder = 20 * 10 + 10 + 10 * 6 + 6 + 6 * codes + codes
        decoder = (0 if tied else 3 * 6 + 6 * 10 + 10 * 20) + 6 + 10 + 20
        assert count(model) == encoder + decoder
        transform = 3 * 3 + 3  # buffers without gradient
        assert sum(value.numel() for value in model.state_dict().values()) == encoder + decoder + transform

    def test_tied_decoder_uses_transposed_encoder_weights(self) -> None:
        model = build_model(config(hidden=(), latent_dim=3, tied=True), (20,), torch.Generator().manual_seed(0))
        weight = linear_layers(model.encoder)[0].weight.detach()
        x = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(x).output, x @ weight.T @ weight)

    def test_tied_variational_decoder_uses_weights_of_the_means(self) -> None:
        settings = config(hidden=(), latent_dim=3, tied=True, variational=True)
        model = build_model(settings, (20,), torch.Generator().manual_seed(0))
        weight, z = linear_layers(model.encoder)[0].weight.detach(), torch.eye(3)
        assert weight.shape == (6, 20)
        torch.testing.assert_close(model.decode(z), weight[:3])

    @pytest.mark.parametrize(("down", "up"), [("stride", "transpose"), ("pool", "upsample")])
    def test_conv_uses_the_configured_down_and_upsampling(self, down: str, up: str) -> None:
        settings = config("image", architecture="conv", channels=(4, 6), hidden=(9,), latent_dim=2, down=down, up=up)
        model = build_model(settings, (3, 9, 14))
        maps = 6 * 3 * 4  # 9×14 → 5×7 → 3×4
        dense = maps * 9 + 9 + 9 * 2 + 2 + 2 * 9 + 9 + 9 * maps + maps
        assert count(model) == 3 * 4 * 9 + 4 + 4 * 6 * 9 + 6 + dense + 6 * 4 * 9 + 4 + 4 * 3 * 9 + 3
        kinds = [type(layer) for layer in model.modules()]
        assert kinds.count(nn.MaxPool2d) == kinds.count(UpsampledConv2d) == (2 if down == "pool" else 0)
        assert kinds.count(nn.ConvTranspose2d) == (2 if up == "transpose" else 0)

    @pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"])
    def test_activation_is_between_layers_and_not_after_the_last(self, name: str) -> None:
        names = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu", nn.GELU: "gelu", nn.SiLU: "silu"}
        names |= {nn.Tanh: "tanh"}
        for kind, between in (("dense", 4), ("conv", 6)):
            settings = config("image", architecture=kind, hidden=(9, 7), channels=(4,), latent_dim=2, activation=name)
            model = build_model(settings, (1, 8, 8))
            activations = [names.get(type(layer)) for layer in model.modules()]
            assert activations.count(name) == between
            z = model.encode(torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
            assert list(model.encoder.modules())[-1] is linear_layers(model.encoder)[-1]
            assert z.shape == (500, 2)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
    def test_initial_weights_preserve_the_scale_of_activations(self, architecture: str, activation: str) -> None:
        # Kaiming's bound √(6 / inputs) preserves variances under ReLU (He et al. 2015, eq. 10). 0.7 of it halves them
        # in each layer: six layers leave an eighth of the standard deviation. Wrong bounds would leave 1e-3 or 1e3.
        settings = config("image", architecture=architecture, hidden=(64, 64), activation=activation, latent_dim=16)
        model = build_model(settings, (3, 16, 16), torch.Generator().manual_seed(0))
        x = torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            codes, output = model.encode(x), model.decoder(torch.randn(200, 16, generator=torch.Generator()))
        assert 0.02 < codes.std() < 2
        assert 0.02 < output.std() < 2


@pytest.mark.parametrize("shape", [(5, 7), (0, 7), (2, 3, 7), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_linear_layers_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, x = Linear(7, 3).to(dtype), torch.randn(shape, dtype=dtype)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer.state_dict().keys() == nn.Linear(7, 3).state_dict().keys()
