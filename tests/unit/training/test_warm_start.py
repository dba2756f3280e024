"""Retraining starts from the model that serves: its weights, column by column, and the penalty on latents."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.bundle import ModelBundle
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.latent_space.compatibility import explained_variance
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.losses import LikelihoodLoss
from ae_pipeline.training.loop import TrainingResult
from ae_pipeline.training.regularizer import LatentRegularizer
from ae_pipeline.training.warm_start import build_latent_regularizer, load_matching_weights
from tests.support.sensors import FitFrame

pytestmark = pytest.mark.slow

ROWS = 600
NUMBER, CATEGORY = ColumnType.NUMBER, ColumnType.CATEGORY
COLUMNS = [FeatureColumn("x", NUMBER), FeatureColumn("y", NUMBER), FeatureColumn("c", CATEGORY)]
CONFIG: dict[str, Any] = {"dataset": "frame", "identity": ["id"], "model": {"latent_dim": 2, "hidden": [8]}}


def rows(*categories: str, seed: int = 0) -> pl.DataFrame:
    """Return two numbers and a category, whose first value is the most common."""
    rng = np.random.default_rng(seed)
    x, y = np.random.default_rng(1).normal(size=(2, ROWS))
    shares = np.arange(len(categories), 0, -1) / np.arange(1, len(categories) + 1).sum()
    return pl.DataFrame({"x": x, "y": x * 2 + y, "c": rng.choice(categories, size=ROWS, p=shares)})


def network(frame: pl.DataFrame, columns: list[FeatureColumn] = COLUMNS, seed: int = 0, **model: Any) -> FittedNetwork:
    """Return a network with random weights for a frame."""
    config = PipelineConfig.model_validate({**CONFIG, "model": {**CONFIG["model"], **model}})
    encoder = fit_encoder(config, frame, columns)
    untrained = build_model(config, encoder.shape, torch.Generator().manual_seed(seed)).eval()
    return FittedNetwork(encoder, untrained, build_loss(config, encoder))


def load(new: FittedNetwork, old: FittedNetwork) -> bool:
    """Copy the matching weights of one network into another."""
    return load_matching_weights(new.model, new.loss, new.encoder, old)


def first_weight(one: FittedNetwork) -> torch.Tensor:
    """Return the weight of the first layer, (hidden, width)."""
    layer = next(layer for layer in one.model.encoder.modules() if isinstance(layer, torch.nn.Linear))
    return layer.weight


def table(one: FittedNetwork) -> TableEncoder:
    """Return the encoder of a network for a table."""
    assert isinstance(one.encoder, TableEncoder)
    return one.encoder


class TestWeights:
    @pytest.mark.parametrize("form", [{}, {"tied": True}, {"variational": True}, {"hidden": []}, {"hidden": [8, 4]}])
    def test_with_the_same_columns_all_weights_are_copied(self, form: dict[str, Any]) -> None:
        frame = rows("a", "b", "c")
        old, new = network(frame, **form), network(frame, seed=1, **form)
        old.model.latent_transform.compose(torch.eye(2) * 3, torch.ones(2))
        assert not np.allclose(new.encode(frame), old.encode(frame))
        assert load(new, old)
        copied, expected = new.model.state_dict(), old.model.state_dict()
        assert list(copied) == list(expected)
        assert len(copied) > 2
        for name, value in copied.items():
            assert torch.equal(value, expected[name]), name

    @pytest.mark.parametrize("form", [{}, {"tied": True}, {"variational": True}])
    def test_categories_keep_their_weights_in_any_order(self, form: dict[str, Any]) -> None:
        previous, after = rows("a", "b", "c"), rows("new", "c", "a", "b")
        old, new = network(previous, **form), network(after, seed=1, **form)
        assert load(new, old)
        known = after.filter(pl.col("c") != "new")
        np.testing.assert_allclose(new.encode(known), old.encode(known), rtol=1e-5, atol=1e-6)
        for column, kind in (("c", "categorical"), ("x", "numeric")):
            block, old_block = (
                next(block for block in table(one).blocks if (block.column, block.kind) == (column, kind))
                for one in (new, old)
            )
            output, old_output = (one.reconstruct(known) for one in (new, old))
            if kind == "numeric":
                np.testing.assert_allclose(output[:, block.start], old_output[:, old_block.start], rtol=1e-5, atol=1e-6)
            else:  # the new category takes a share of the probability; the others keep their ratios
                order = [1, 2, 3]  # c, a, b
                odds = np.log(output[:, block.start : block.stop])[:, order]
                old_order = [table(old).columns[2].vocabulary.index(name) for name in ("c", "a", "b")]
                old_odds = np.log(old_output[:, old_block.start : old_block.stop])[:, old_order]
                np.testing.assert_allclose(np.diff(odds), np.diff(old_odds), rtol=1e-4, atol=1e-5)

    def test_a_new_category_keeps_its_random_weights(self) -> None:
        previous, after = rows("a", "b", "c"), rows("new", "c", "a", "b")
        old, new = network(previous), network(after, seed=1)
        random = first_weight(new).clone()
        index = table(new).blocks[-1].start + table(new).columns[2].vocabulary.index("new")
        assert load(new, old)
        assert torch.equal(first_weight(new)[:, index], random[:, index])
        changed = (first_weight(new) != random).all(0)
        assert int(changed.sum()) == table(new).width - 1

    def test_new_and_removed_columns_are_skipped(self) -> None:
        frame = rows("a", "b", "c").with_columns(z=pl.col("x") * pl.col("y"))
        old = network(frame, COLUMNS)
        new = network(frame, [COLUMNS[0], COLUMNS[2], FeatureColumn("z", NUMBER)], seed=1)
        random = first_weight(new).clone()
        assert load(new, old)
        starts = {block.column: block.start for block in table(new).blocks if block.kind == "numeric"}
        old_starts = {block.column: block.start for block in table(old).blocks if block.kind == "numeric"}
        weight = first_weight(new)
        assert torch.equal(weight[:, starts["x"]], first_weight(old)[:, old_starts["x"]])
        assert torch.equal(weight[:, starts["z"]], random[:, starts["z"]])

    def test_trained_scales_are_copied(self) -> None:
        frame = rows("a", "b")
        old, new = network(frame), network(frame, [COLUMNS[1], COLUMNS[2]], seed=1)
        assert isinstance(old.loss, LikelihoodLoss)
        assert isinstance(new.loss, LikelihoodLoss)
        with torch.no_grad():
            old.loss.log_scale.copy_(torch.tensor([0.25, 0.75]))  # of x and y
        assert load(new, old)
        assert new.loss.log_scale.tolist() == [0.75]

    @pytest.mark.parametrize("other", [{"latent_dim": 3}, {"hidden": [9]}])
    def test_layers_of_another_width_change_nothing(self, other: dict[str, Any]) -> None:
        frame = rows("a", "b")
        old, new = network(frame, **other), network(frame, seed=1)
        previous = {name: value.clone() for name, value in new.model.state_dict().items()}
        assert not load(new, old)
        assert previous
        assert all(torch.equal(value, previous[name]) for name, value in new.model.state_dict().items())


def fit_without_y(fit_frame: FitFrame, previous: ModelBundle | None = None) -> TrainingResult:
    """Fit a model without the column y for one epoch that changes no weight."""
    training = {"epochs": 1, "batch_size": 32, "device": "cpu", "learning_rate": 1e-12}
    columns = [column for column in COLUMNS if column.name != "y"]
    model = {"latent_dim": 2, "hidden": [16]}
    return fit_frame(rows("a", "b", "c"), columns, previous=previous, model=model, training=training)[1]


def fit(
    fit_frame: FitFrame,
    previous: ModelBundle | None = None,
    seed: int = 1,
    model: dict[str, Any] | None = None,
    **training: Any,
) -> tuple[ModelBundle, TrainingResult]:
    """Fit a model on all three columns."""
    settings = {"epochs": 8, "batch_size": 32, "device": "cpu", "learning_rate": 0.02, "seed": seed, **training}
    model = {"latent_dim": 2, "hidden": [16], **(model or {})}
    return fit_frame(rows("a", "b", "c"), COLUMNS, previous=previous, model=model, training=settings)


@pytest.fixture(scope="module")
def previous(fit_frame: FitFrame) -> ModelBundle:
    """The model that serves."""
    return fit(fit_frame, seed=0)[0]


class TestTraining:
    def test_it_starts_with_the_previous_weights(self, fit_frame: FitFrame, previous: ModelBundle) -> None:
        # A learning rate this low leaves the weights unchanged.
        still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12}
        (warm, result), (_, cold) = fit(fit_frame, previous, **still), fit(fit_frame, **still)
        served = previous.facts.validation_loss
        assert result.epochs[0].validation_loss == pytest.approx(served, rel=1e-4)
        assert cold.epochs[0].validation_loss > served + 1
        assert result.first_loss == cold.first_loss
        assert [(one.is_warm, one.is_anchored) for one in (result, cold)] == [(True, True), (False, False)]
        np.testing.assert_allclose(warm.encode(rows("a")), previous.encode(rows("a")), rtol=1e-4, atol=1e-4)

    def test_a_removed_column_keeps_the_weights_of_the_others(self, fit_frame: FitFrame, previous: ModelBundle) -> None:
        warm, cold = (fit_without_y(fit_frame, one) for one in (previous, None))
        assert (warm.is_warm, warm.is_anchored) == (True, False)
        assert warm.epochs[0].validation_loss < cold.epochs[0].validation_loss

    def test_with_all_settings_off_nothing_is_copied(self, fit_frame: FitFrame, previous: ModelBundle) -> None:
        off: dict[str, Any] = {"warm_start": False, "anchor": 0.0, "max_screened_share": 0.0}
        alone, after = fit(fit_frame, **off)[0], fit(fit_frame, previous, **off)[0]
        assert alone.fingerprint == after.fingerprint

    @pytest.mark.parametrize("changed", [{"activation": "tanh"}, {"hidden": [12]}, {"scaling": "standard"}])
    def test_another_network_starts_with_random_weights(
        self, fit_frame: FitFrame, previous: ModelBundle, changed: dict[str, Any]
    ) -> None:
        still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12, "model": changed}
        (_, after), (_, alone) = (fit(fit_frame, one, **still) for one in (previous, None))
        assert after.epochs[0].validation_loss == alone.epochs[0].validation_loss

    def test_the_regularizer_keeps_latents_near_the_previous_ones(
        self, fit_frame: FitFrame, previous: ModelBundle
    ) -> None:
        frame = rows("a", "b", "c")
        target = previous.encode(frame).astype(np.float64)
        shares = []
        for anchor in (0.0, 0.1, 5.0):  # a training has about a hundred steps
            after = fit(fit_frame, previous, warm_start=False, anchor=anchor)[0]
            shares.append(explained_variance(target, after.encode(frame).astype(np.float64)))
        assert shares == sorted(shares)
        assert shares[0] < 0.3
        assert shares[2] > 0.9

    def test_variational_models_are_compared_by_their_means(self, fit_frame: FitFrame) -> None:
        model = {"variational": True}
        first = fit(fit_frame, seed=0, model=model)[0]
        frame = rows("a", "b", "c")
        after = fit(fit_frame, first, model=model, warm_start=False, anchor=1.0)[0]
        target, latents = (one.encode(frame).astype(np.float64) for one in (first, after))
        assert explained_variance(target, latents) > 0.9


class TestLatentRegularizer:
    def test_it_penalizes_squared_distances_in_standard_deviations(self) -> None:
        latents = torch.tensor([[0.0, 0.0], [2.0, 20.0], [4.0, 40.0]])
        regularizer = LatentRegularizer(latents, 0.5)
        moved = latents[[2, 0]] + latents.std(0)
        assert float(regularizer.penalty(moved, latents[[2, 0]])) == pytest.approx(0.5 * 2)

    def test_a_constant_latent_adds_nothing(self) -> None:
        regularizer = LatentRegularizer(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), 1.0)
        assert float(regularizer.penalty(torch.tensor([[0.0, 1.0]]), regularizer.latents[:1])) == 0.0

    def test_its_weight_is_a_share_of_the_saved_loss(self, previous: ModelBundle) -> None:
        frame = rows("a", "b", "c")
        training = previous.config.training.model_copy(update={"anchor": 0.25})
        config = previous.config.model_copy(update={"training": training})
        regularizer = build_latent_regularizer(previous, frame, config, 2)
        assert regularizer is not None
        saved = previous.facts.untrained_loss - previous.facts.validation_loss
        assert saved > 1
        assert regularizer.weight == pytest.approx(0.25 * saved)
        np.testing.assert_array_equal(regularizer.latents.numpy(), previous.encode(frame))

    def test_there_is_none_if_loss_latents_or_columns_differ(self, previous: ModelBundle) -> None:
        frame = rows("a", "b", "c")
        model = previous.config.model.model_copy(update={"loss": {"mse": 1.0}})
        other = previous.config.model_copy(update={"model": model})
        facts = previous.facts.model_copy(update={"untrained_loss": previous.facts.validation_loss})
        idle = dataclasses.replace(previous, facts=facts)
        assert build_latent_regularizer(previous, frame, previous.config, 2) is not None
        assert build_latent_regularizer(previous, frame, other, 2) is None
        assert build_latent_regularizer(previous, frame, previous.config, 3) is None
        assert build_latent_regularizer(previous, frame.drop("y"), previous.config, 2) is None
        assert build_latent_regularizer(idle, frame, previous.config, 2) is None
