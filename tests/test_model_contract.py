"""What every architecture must keep, whatever its sizes; a new one is added to `ARCHITECTURES`."""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.bundle import ModelBundle, ScoredRows
from ae_pipeline.config import ColumnType, ModelConfig
from ae_pipeline.errors import ConfigError
from ae_pipeline.models.factory import build_model
from ae_pipeline.preprocessing.features import FeatureColumn
from ae_pipeline.training import TrainingResult

ARCHITECTURES = {
    "dense, linear in one step": {"architecture": "dense", "hidden": (), "latent_dim": 3},
    "dense, narrow": {"architecture": "dense", "hidden": (16,), "latent_dim": 2, "activation": "relu"},
    "dense, deep": {"architecture": "dense", "hidden": (32, 16, 8), "latent_dim": 4, "activation": "gelu"},
    "dense, silu": {"architecture": "dense", "hidden": (32, 16), "latent_dim": 6, "activation": "silu"},
    "dense, tanh": {"architecture": "dense", "hidden": (24,), "latent_dim": 5, "activation": "tanh"},
}

_NUMBERS = tuple(f"x{place}" for place in range(5))
COLUMNS = (
    *(FeatureColumn(name, ColumnType.NUMBER) for name in _NUMBERS),
    FeatureColumn("at", ColumnType.CLOCK_HHMM),
    FeatureColumn("kind", ColumnType.CATEGORY),
    FeatureColumn("is_on", ColumnType.BOOLEAN),
)


def sample(n: int, seed: int = 0) -> pl.DataFrame:
    """Normal rows: two numbers govern five, and the kind says whether it is on."""
    rng = np.random.default_rng(seed)
    mixing = np.array([[1.0, 0.8, -0.6, 0.3, 0.0], [0.0, 0.5, 0.7, -0.9, 1.0]])
    values = rng.normal(size=(n, 2)) @ mixing + rng.normal(size=(n, 5)) * 0.05
    kind = rng.choice(["a", "b", "c"], n)
    return pl.DataFrame(
        {
            **{name: values[:, place].astype(np.float32).astype(float) for place, name in enumerate(_NUMBERS)},
            "at": np.clip(rng.normal(720, 60, n), 0, 1439).round(),
            "kind": kind,
            "is_on": kind != "a",
        }
    )


CLOSE = {"rel": 1e-6, "abs": 1e-9}
"""Of scores: another batch rounds outputs in the seventh digit, which fine scales and steep tails enlarge."""


@dataclass(frozen=True)
class Case:
    """One architecture, fitted."""

    config: ModelConfig
    bundle: ModelBundle
    result: TrainingResult


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def case(request, fit_frame) -> Case:
    training = {"epochs": 15, "batch_size": 64, "learning_rate": 0.02, "device": "cpu"}
    bundle, result = fit_frame(sample(900), COLUMNS, model=request.param, training=training)
    return Case(bundle.config.model, bundle, result)


def assert_equal_bytes(one: ScoredRows, other: ScoredRows) -> None:
    for name in ("latents", "score", "p_value", "is_anomaly"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


class TestShapes:
    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_each_row_has_its_latents_and_its_output(self, case, n):
        model, width = case.bundle.model, case.bundle.encoder.width
        z, output = model(torch.zeros(n, width))
        assert (z.shape, output.shape) == ((n, case.config.latent_dim), (n, width))
        torch.testing.assert_close(model.decode(model.encode(torch.zeros(n, width))), output, rtol=0, atol=0)

    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_each_row_has_its_scores(self, case, n):
        scored = case.bundle.score(sample(n))
        assert (scored.latents.shape, scored.latents.dtype) == ((n, case.config.latent_dim), np.float32)
        assert (scored.score.shape, scored.score.dtype) == ((n,), np.float64)
        assert (scored.p_value.shape, scored.is_anomaly.shape) == ((n,), (n,))
        assert case.bundle.encode(sample(n)).tobytes() == scored.latents.tobytes()
        assert case.bundle.losses(sample(n)).shape == (n, len(COLUMNS))
        assert [len(parts) for parts in case.bundle.explain(sample(n))] == [3] * n

    def test_a_latent_space_as_wide_as_the_input_is_refused_with_the_widths_that_do(self, case):
        with pytest.raises(ConfigError, match="latent_dim=9 is not smaller than the 9 encoded inputs; choose 1–8"):
            build_model(case.config.model_copy(update={"latent_dim": 9}), 9)


class TestDeterminism:
    def test_the_same_rows_give_the_same_bytes(self, case):
        rows = sample(300, 1)
        assert_equal_bytes(case.bundle.score(rows), case.bundle.score(rows))

    def test_the_model_is_in_evaluation_mode(self, case):
        assert not any(module.training for module in case.bundle.model.modules())

    @pytest.mark.parametrize("rows", [3000, 8193])  # the second ends in a batch of one
    def test_a_row_scores_the_same_alone_and_among_thousands(self, case, rows):
        many = sample(rows, 2)
        together = case.bundle.score(many)
        for place in (0, 1234, rows - 1):
            alone = case.bundle.score(many[place : place + 1])
            np.testing.assert_allclose(alone.latents[0], together.latents[place], rtol=1e-5, atol=1e-5)
            assert alone.score[0] == pytest.approx(together.score[place], **CLOSE)

    def test_the_order_of_rows_makes_no_difference(self, case):
        rows = sample(500, 3)
        forth, back = case.bundle.score(rows), case.bundle.score(rows.reverse())
        np.testing.assert_allclose(back.latents[::-1], forth.latents, rtol=1e-5, atol=1e-5)
        assert back.score[::-1] == pytest.approx(forth.score, **CLOSE)

    def test_numbers_of_either_width_score_the_same(self, case):
        wide = sample(200, 4)
        narrow = wide.with_columns(pl.col(*_NUMBERS, "at").cast(pl.Float32))
        assert_equal_bytes(case.bundle.score(narrow), case.bundle.score(wide))

    def test_further_columns_and_their_order_make_no_difference(self, case):
        rows = sample(50, 5)
        other = rows.select(reversed(rows.columns)).with_columns(noise=pl.lit("x"))
        assert_equal_bytes(case.bundle.score(other), case.bundle.score(rows))


class TestSaveAndLoad:
    def test_a_loaded_bundle_is_the_same_bit_for_bit(self, case, tmp_path):
        case.bundle.save(tmp_path)
        loaded = ModelBundle.load(tmp_path)
        rows = sample(300, 6)
        assert loaded.fingerprint == case.bundle.fingerprint
        assert_equal_bytes(loaded.score(rows), case.bundle.score(rows))
        assert loaded.explain(rows[:5]) == case.bundle.explain(rows[:5])


class TestLearning:
    def test_the_loss_falls(self, case):
        assert case.result.best_loss < case.result.first_loss - 1

    def test_planted_anomalies_rank_first(self, case):
        rows = sample(500, 7)
        broken = {
            3: {"x1": pl.lit(40.0)},  # far out in one column
            50: {"x3": -pl.col("x3") + 6},  # what the others do not bear out
            111: {"kind": pl.lit("never seen")},
            222: {"x0": pl.lit(None, pl.Float64)},  # never missing in training
            333: {"at": pl.lit(60.0)},
            444: {"x2": pl.lit(-25.0), "x4": pl.lit(25.0)},
        }
        place = pl.int_range(pl.len())
        for row, changes in broken.items():
            rows = rows.with_columns(
                pl.when(place == row).then(value).otherwise(pl.col(name)).alias(name) for name, value in changes.items()
            )
        scored = case.bundle.score(rows)
        order = np.argsort(-scored.score)
        assert set(order[: len(broken)].tolist()) == set(broken)
        assert scored.is_anomaly[list(broken)].all()
        for row, column in ((111, "kind"), (222, "x0")):  # no other column can be blamed for these
            assert case.bundle.explain(rows[row : row + 1])[0][0].column == column

    def test_normal_rows_are_flagged_about_as_often_as_the_budget_says(self, case):
        share = case.bundle.score(sample(4000, 8)).is_anomaly.mean()
        assert share < 0.06  # a budget of 0.02 on some 180 calibration rows: three of them, and their spread


class TestSizes:
    def test_weights_are_drawn_from_the_generator_alone(self, case):
        first, second, other = (
            build_model(case.config, 20, torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)

    @pytest.mark.parametrize("column", [COLUMNS[0], COLUMNS[5], COLUMNS[6]], ids=lambda column: column.type.value)
    def test_one_column_is_enough(self, fit_frame, case, column):
        model = case.config.model_copy(update={"latent_dim": 1})
        bundle, result = fit_frame(sample(400), [column], model=model.model_dump())
        scored = bundle.score(sample(100, 9))
        assert np.isfinite(scored.score).all()
        assert math.isfinite(result.best_loss)
        assert bundle.columns == [column.name]


def test_two_thousand_columns_are_learnt_and_scored(fit_frame):
    values = np.random.default_rng(0).normal(size=(350, 2000))
    frame = pl.DataFrame(values, schema=[f"x{place}" for place in range(2000)])
    columns = [FeatureColumn(name, ColumnType.NUMBER) for name in frame.columns]
    bundle, result = fit_frame(frame, columns, model={"hidden": (16,), "latent_dim": 4})
    assert bundle.encoder.width == 4000
    assert result.best_loss < result.first_loss
    strange = frame.head(5).with_columns(x1234=pl.Series([0.0, 0.0, 30.0, 0.0, 0.0]))
    surprise = bundle.tails(bundle.losses(strange))
    assert np.unravel_index(surprise.argmax(), surprise.shape) == (2, 1234)
