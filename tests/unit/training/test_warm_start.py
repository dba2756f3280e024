"""Retraining goes on from the model that serves: its weights, column by column, and the pull to its latents."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.network import FittedNetwork
from ae_pipeline.encoding.encoder import fit_encoder
from ae_pipeline.latent_space.compatibility import explained_variance
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.training.loop import LatentRegularizer
from ae_pipeline.training.warm_start import build_latent_regularizer, load_matching_weights

ROWS = 600
NUMBER, CATEGORY = ColumnType.NUMBER, ColumnType.CATEGORY
COLUMNS = [FeatureColumn("x", NUMBER), FeatureColumn("y", NUMBER), FeatureColumn("c", CATEGORY)]
CONFIG: dict[str, Any] = {"dataset": "frame", "identity": ["id"], "model": {"latent_dim": 2, "hidden": [8]}}


def rows(*categories: str, seed: int = 0) -> pl.DataFrame:
    """Two numbers and a category, the first category the commonest."""
    rng = np.random.default_rng(seed)
    x, y = np.random.default_rng(1).normal(size=(2, ROWS))
    shares = np.arange(len(categories), 0, -1) / np.arange(1, len(categories) + 1).sum()
    return pl.DataFrame({"x": x, "y": x * 2 + y, "c": rng.choice(categories, size=ROWS, p=shares)})


def network(frame: pl.DataFrame, columns: list[FeatureColumn] = COLUMNS, seed: int = 0, **model: Any) -> FittedNetwork:
    """A network with drawn weights for a frame."""
    config = PipelineConfig.model_validate({**CONFIG, "model": {**CONFIG["model"], **model}})
    encoder = fit_encoder(config, frame, columns)
    sample_by_hash = build_model(config, encoder.shape, torch.Generator().manual_seed(seed)).eval()
    return FittedNetwork(encoder, sample_by_hash, build_loss(config, encoder))


def continued(new: FittedNetwork, old: FittedNetwork) -> bool:
    return load_matching_weights(new.model, new.loss, new.encoder, old)


class TestWeights:
    @pytest.mark.parametrize("form", [{}, {"tied": True}, {"variational": True}, {"hidden": []}, {"hidden": [8, 4]}])
    def test_of_the_same_columns_all_weights_are_taken_over(self, form):
        frame = rows("a", "b", "c")
        old, new = network(frame, **form), network(frame, seed=1, **form)
        old.model.latent_transform.compose(torch.eye(2) * 3, torch.ones(2))
        assert not np.allclose(new.encode(frame), old.encode(frame))
        assert continued(new, old)
        for one, other in zip(new.model.state_dict().items(), old.model.state_dict().items(), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1]), one[0]

    @pytest.mark.parametrize("form", [{}, {"tied": True}, {"variational": True}])
    def test_categories_keep_their_weights_wherever_they_stand(self, form):
        previous, after = rows("a", "b", "c"), rows("new", "c", "a", "b")
        old, new = network(previous, **form), network(after, seed=1, **form)
        assert continued(new, old)
        known = after.filter(pl.col("c") != "new")
        np.testing.assert_allclose(new.encode(known), old.encode(known), rtol=1e-5, atol=1e-6)
        for column, kind in (("c", "categorical"), ("x", "numeric")):
            mine, theirs = (
                next(b for b in n.encoder.blocks if (b.column, b.kind) == (column, kind)) for n in (new, old)
            )
            made, wanted = (n.reconstruct(known) for n in (new, old))
            if kind == "numeric":
                np.testing.assert_allclose(made[:, mine.start], wanted[:, theirs.start], rtol=1e-5, atol=1e-6)
            else:  # of the likelihoods the new category takes its part; those of the others keep their ratios
                places = [1, 2, 3]  # c, a, b
                odds = np.log(made[:, mine.start : mine.stop])[:, places]
                order = [old.encoder.columns[2].vocabulary.index(name) for name in ("c", "a", "b")]
                expected = np.log(wanted[:, theirs.start : theirs.stop])[:, order]
                np.testing.assert_allclose(np.diff(odds), np.diff(expected), rtol=1e-4, atol=1e-5)

    def test_a_new_category_keeps_the_weights_that_were_drawn(self):
        previous, after = rows("a", "b", "c"), rows("new", "c", "a", "b")
        old, new = network(previous), network(after, seed=1)
        sample_by_hash = new.model.encoder[0].weight.clone()
        index = new.encoder.blocks[-1].start + new.encoder.columns[2].vocabulary.index("new")
        assert continued(new, old)
        assert torch.equal(new.model.encoder[0].weight[:, index], sample_by_hash[:, index])
        changed = (new.model.encoder[0].weight != sample_by_hash).all(0)
        assert int(changed.sum()) == new.encoder.width - 1

    def test_columns_that_came_or_went_are_passed_over(self):
        frame = rows("a", "b", "c").with_columns(z=pl.col("x") * pl.col("y"))
        old = network(frame, COLUMNS)
        new = network(frame, [COLUMNS[0], COLUMNS[2], FeatureColumn("z", NUMBER)], seed=1)
        sample_by_hash = new.model.encoder[0].weight.clone()
        assert continued(new, old)
        kept = {block.column: block.start for block in new.encoder.blocks if block.kind == "numeric"}
        there = {block.column: block.start for block in old.encoder.blocks if block.kind == "numeric"}
        weight = new.model.encoder[0].weight
        assert torch.equal(weight[:, kept["x"]], old.model.encoder[0].weight[:, there["x"]])
        assert torch.equal(weight[:, kept["z"]], sample_by_hash[:, kept["z"]])

    def test_learnt_scales_come_along(self):
        frame = rows("a", "b")
        old, new = network(frame), network(frame, [COLUMNS[1], COLUMNS[2]], seed=1)
        with torch.no_grad():
            old.loss.log_scale.copy_(torch.tensor([0.25, 0.75]))  # of x and y
        assert continued(new, old)
        assert new.loss.log_scale.tolist() == [0.75]

    @pytest.mark.parametrize("other", [{"latent_dim": 3}, {"hidden": [9]}])
    def test_layers_of_another_width_change_nothing(self, other):
        frame = rows("a", "b")
        old, new = network(frame, **other), network(frame, seed=1)
        previous = {name: value.clone() for name, value in new.model.state_dict().items()}
        assert not continued(new, old)
        assert all(torch.equal(value, previous[name]) for name, value in new.model.state_dict().items())


def learn_without_y(fit_frame, previous=None):
    training = {"epochs": 1, "batch_size": 32, "device": "cpu", "learning_rate": 1e-12}
    columns = [column for column in COLUMNS if column.name != "y"]
    model = {"latent_dim": 2, "hidden": [16]}
    return fit_frame(rows("a", "b", "c"), columns, previous=previous, model=model, training=training)[1]


def learn(fit_frame, previous=None, seed: int = 1, model: dict[str, Any] | None = None, **training: Any):
    given = {"epochs": 8, "batch_size": 32, "device": "cpu", "learning_rate": 0.02, "seed": seed, **training}
    model = {"latent_dim": 2, "hidden": [16], **(model or {})}
    return fit_frame(rows("a", "b", "c"), COLUMNS, previous=previous, model=model, training=given)


@pytest.fixture(scope="module")
def previous(fit_frame):
    """The model that serves."""
    return learn(fit_frame, seed=0)[0]


class TestTraining:
    def test_it_starts_where_the_model_before_ended(self, fit_frame, previous):
        # A rate this low leaves the weights where they began.
        still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12}
        (warm, result), (_, cold) = learn(fit_frame, previous, **still), learn(fit_frame, **still)
        served = previous.facts["validation_loss"]
        assert result.epochs[0].validation_loss == pytest.approx(served, rel=1e-4)
        assert cold.epochs[0].validation_loss > served + 1
        assert result.first_loss == cold.first_loss
        assert [(one.is_warm, one.is_anchored) for one in (result, cold)] == [(True, True), (False, False)]
        np.testing.assert_allclose(warm.encode(rows("a")), previous.encode(rows("a")), rtol=1e-4, atol=1e-4)

    def test_a_column_that_is_gone_leaves_the_weights_of_the_others(self, fit_frame, previous):
        warm, cold = (learn_without_y(fit_frame, one) for one in (previous, None))
        assert (warm.is_warm, warm.is_anchored) == (True, False)
        assert warm.epochs[0].validation_loss < cold.epochs[0].validation_loss

    def test_both_settings_off_trains_as_if_nothing_served(self, fit_frame, previous):
        off: dict[str, Any] = {"warm_start": False, "anchor": 0.0}
        alone, after = learn(fit_frame, **off)[0], learn(fit_frame, previous, **off)[0]
        assert alone.fingerprint == after.fingerprint

    @pytest.mark.parametrize("changed", [{"activation": "tanh"}, {"hidden": [12]}, {"scaling": "standard"}])
    def test_another_network_starts_from_drawn_weights(self, fit_frame, previous, changed):
        still: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12, "model": changed}
        (_, after), (_, alone) = (learn(fit_frame, one, **still) for one in (previous, None))
        assert after.epochs[0].validation_loss == alone.epochs[0].validation_loss

    def test_the_anchor_keeps_latents_near_those_that_serve(self, fit_frame, previous):
        frame = rows("a", "b", "c")
        wanted = previous.encode(frame).astype(np.float64)
        shares = []
        for anchor in (0.0, 0.1, 5.0):  # there are a hundred steps in all
            after = learn(fit_frame, previous, warm_start=False, anchor=anchor)[0]
            shares.append(explained_variance(wanted, after.encode(frame).astype(np.float64)))
        assert shares == sorted(shares)
        assert shares[0] < 0.3
        assert shares[2] > 0.9

    def test_variational_forms_are_held_by_their_means(self, fit_frame):
        model = {"variational": True}
        first = learn(fit_frame, seed=0, model=model)[0]
        frame = rows("a", "b", "c")
        after = learn(fit_frame, first, model=model, warm_start=False, anchor=1.0)[0]
        wanted, found = (one.encode(frame).astype(np.float64) for one in (first, after))
        assert explained_variance(wanted, found) > 0.9


class TestAnchor:
    def test_it_weighs_squared_distances_in_spreads(self):
        latents = torch.tensor([[0.0, 0.0], [2.0, 20.0], [4.0, 40.0]])
        anchor = LatentRegularizer(latents, 0.5)
        moved = latents[[2, 0]] + latents.std(0)
        assert float(anchor.penalty(moved, latents[[2, 0]])) == pytest.approx(0.5 * 2)

    def test_a_column_that_never_varied_does_not_break_it(self):
        anchor = LatentRegularizer(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), 1.0)
        assert float(anchor.penalty(torch.tensor([[0.0, 1.0]]), anchor.latents[:1])) == 0.0

    def test_it_is_a_share_of_what_training_saved(self, previous):
        frame = rows("a", "b", "c")
        training = previous.config.training.model_copy(update={"anchor": 0.25})
        anchor = build_latent_regularizer(previous, frame, previous.config.model_copy(update={"training": training}), 2)
        assert anchor is not None
        saved = previous.facts["untrained_loss"] - previous.facts["validation_loss"]
        assert saved > 1
        assert anchor.weight == pytest.approx(0.25 * saved)
        np.testing.assert_array_equal(anchor.latents.numpy(), previous.encode(frame))

    def test_there_is_none_where_losses_latents_or_columns_differ_or_nothing_was_saved(self, previous):
        frame = rows("a", "b", "c")
        model = previous.config.model.model_copy(update={"loss": {"mse": 1.0}})
        other = previous.config.model_copy(update={"model": model})
        idle = dataclasses.replace(
            previous, facts={**previous.facts, "untrained_loss": previous.facts["validation_loss"]}
        )
        assert build_latent_regularizer(previous, frame, previous.config, 2) is not None
        assert build_latent_regularizer(previous, frame, other, 2) is None
        assert build_latent_regularizer(previous, frame, previous.config, 3) is None
        assert build_latent_regularizer(previous, frame.drop("y"), previous.config, 2) is None
        assert build_latent_regularizer(idle, frame, previous.config, 2) is None
