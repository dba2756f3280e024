"""The training loop, the window it trains on, and the rules that a training must meet."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ae_pipeline.common.device import choose_device, device_to_serve
from ae_pipeline.common.errors import ConfigError, TrainingError
from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.detector.facts import Epoch
from ae_pipeline.encoding.table_fitting import fit_table_encoder
from ae_pipeline.features.split import GATE, PARTS, cut_window
from ae_pipeline.gate.rules import finite_weights, is_promoted, latents_not_collapsed, loss_fell
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.factory import build_loss, build_model
from ae_pipeline.models.losses import LikelihoodLoss
from ae_pipeline.storage.parquet import write_parquet
from ae_pipeline.storage.paths import ALL_ROWS, DatasetPaths
from ae_pipeline.training.loop import TrainingResult, evaluate, train
from tests.support.sensors import Fitted, with_model


def correlated(n: int, seed: int = 0) -> pl.DataFrame:
    """Return six columns that depend on two hidden numbers."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(2, 6))
    values = rng.normal(size=(n, 2)) @ mixing + rng.normal(size=(n, 6)) * 0.05
    return pl.DataFrame(values, schema=[f"x{index}" for index in range(6)])


COLUMNS = tuple(FeatureColumn(f"x{index}", ColumnType.NUMBER) for index in range(6))


CONFIG = PipelineConfig.model_validate(
    {"dataset": "rows", "identity": ["id"], "model": {"latent_dim": 2, "hidden": [16]}}
)


def fresh(seed: int = 0) -> tuple[AutoEncoder, LikelihoodLoss, torch.Tensor, torch.Tensor]:
    """Return an untrained network, its loss, training rows and validation rows."""
    encoder = fit_table_encoder(correlated(400), COLUMNS)
    model = build_model(CONFIG, encoder.shape, torch.Generator().manual_seed(seed))
    loss = build_loss(CONFIG, encoder)
    assert isinstance(loss, LikelihoodLoss)
    rows, validation = (torch.from_numpy(encoder.encode(rows)) for rows in (correlated(400), correlated(100, 1)))
    return model, loss, rows, validation


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"epochs": 6, "batch_size": 64, "learning_rate": 0.01, "device": "cpu", **changes})


def trained(
    seed: int = 0, order: int = 0, **changes: Any
) -> tuple[AutoEncoder, LikelihoodLoss, torch.Tensor, TrainingResult]:
    """Return a trained network, its loss, the validation rows and the result."""
    model, loss, rows, validation = fresh(seed)
    result = train(model, loss, rows, validation, settings(**changes), torch.Generator().manual_seed(order))
    return model, loss, validation, result


def weights(model: AutoEncoder, loss: LikelihoodLoss) -> bytes:
    return b"".join(value.detach().numpy().tobytes() for value in [*model.parameters(), *loss.parameters()])


class TestTrain:
    def test_the_loss_falls_and_the_result_is_consistent(self) -> None:
        model, _, _, result = trained()
        untrained, loss_before, _, validation = fresh()
        losses = [epoch.validation_loss for epoch in result.epochs]
        assert result.first_loss == evaluate(untrained, loss_before, validation)
        assert result.best_loss == min(losses) < result.first_loss - 3
        assert result.best_epoch == losses.index(min(losses)) + 1
        assert [epoch.number for epoch in result.epochs] == list(range(1, len(losses) + 1))
        assert result.epochs[-1].train_loss < result.epochs[0].train_loss
        assert not model.training

    def test_the_epoch_with_the_lowest_validation_loss_is_restored(self) -> None:
        model, loss, rows, _ = fresh()
        noise = torch.randn(40, rows.shape[1], generator=torch.Generator().manual_seed(0))
        noise[:, 6:] = 0  # the indicators: nothing is missing
        changes = settings(epochs=300, patience=3, batch_size=16, learning_rate=0.01)
        result = train(model, loss, rows[:24], noise, changes, torch.Generator().manual_seed(0))
        losses = [epoch.validation_loss for epoch in result.epochs]
        assert 0 < result.best_epoch < len(losses) < 300
        assert len(losses) == result.best_epoch + 3
        assert result.best_loss == losses[result.best_epoch - 1] == min(losses) < losses[-1]
        assert evaluate(model, loss, noise) == result.best_loss

    def test_without_a_better_epoch_the_first_weights_are_restored(self) -> None:
        model, loss, rows, validation = fresh()
        trained_model, trained_loss, _, previous = trained(epochs=20)
        model.load_state_dict(trained_model.state_dict())
        loss.load_state_dict(trained_loss.state_dict())
        kept = weights(model, loss)
        result = train(
            model, loss, rows[:8] * 50, validation, settings(learning_rate=0.5, patience=2), torch.Generator()
        )
        assert (result.best_epoch, len(result.epochs)) == (0, 2)
        assert result.best_loss == result.first_loss == previous.best_loss
        assert weights(model, loss) == kept

    def test_every_epoch_is_reported_once_in_order(self) -> None:
        model, loss, rows, validation = fresh()
        seen: list[Epoch] = []
        result = train(model, loss, rows, validation, settings(), torch.Generator().manual_seed(0), seen.append)
        assert tuple(seen) == result.epochs

    def test_the_learning_rate_follows_a_cosine_to_zero(self) -> None:
        _, _, _, result = trained(epochs=8, patience=8)
        steps, each = 8 * 7, 7  # 400 rows make 7 batches
        expected = [0.01 * 0.5 * (1 + math.cos(math.pi * each * number / steps)) for number in range(1, 9)]
        assert [epoch.learning_rate for epoch in result.epochs] == pytest.approx(expected, abs=1e-12)

    def test_the_same_seeds_give_the_same_weights_bit_for_bit(self) -> None:
        assert weights(*trained()[:2]) == weights(*trained()[:2])

    @pytest.mark.parametrize("seeds", [(1, 0), (0, 1)])
    def test_another_seed_gives_other_weights(self, seeds: tuple[int, int]) -> None:
        assert weights(*trained(*seeds)[:2]) != weights(*trained()[:2])

    def test_global_seeds_change_nothing(self) -> None:
        torch.manual_seed(1)
        first = weights(*trained()[:2])
        torch.manual_seed(2)
        assert weights(*trained()[:2]) == first

    @pytest.mark.parametrize(("part", "name"), [(2, "training"), (3, "validation")])
    def test_without_rows_the_error_names_the_part(self, part: int, name: str) -> None:
        parts: list[Any] = list(fresh())
        parts[part] = parts[part][:0]
        model, loss, rows, validation = parts
        with pytest.raises(TrainingError, match=f"the window has no {name} rows; land more days"):
            train(model, loss, rows, validation, settings(), torch.Generator())

    @pytest.mark.parametrize("rate", [1e3, 1e12, 1e38])
    def test_a_huge_learning_rate_gives_finite_weights_or_an_error(self, rate: float) -> None:
        model, loss, rows, validation = fresh()
        try:
            train(model, loss, rows, validation, settings(learning_rate=rate), torch.Generator())
        except TrainingError as error:
            message = str(error)
        else:
            message = f"lower learning_rate={rate:g}"
            assert all(torch.isfinite(value).all() for value in [*model.parameters(), *loss.parameters()])
        assert f"lower learning_rate={rate:g}" in message

    @pytest.mark.parametrize(("n", "size"), [(1, 64), (65, 64), (5, 1)])
    def test_a_batch_of_one_row_is_trained_on(self, n: int, size: int) -> None:
        model, loss, rows, validation = fresh()
        result = train(model, loss, rows[:n], validation, settings(batch_size=size, epochs=1), torch.Generator())
        assert math.isfinite(result.best_loss)

    def test_the_mean_loss_does_not_depend_on_the_batch_size(self) -> None:
        model, loss, rows, _ = fresh()
        with torch.no_grad():
            one_by_one = [float(loss(model(row[None]).output, row[None]).sum()) for row in rows[:50]]
        for size in (7, 50):
            assert evaluate(model, loss, rows[:50], batch_size=size) == pytest.approx(np.mean(one_by_one), rel=1e-6)


class TestDevice:
    def test_missing_cuda_is_an_error_that_names_the_choices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(
            ConfigError, match="device=cuda, but torch finds no CUDA device on this machine; choose auto or cpu"
        ):
            choose_device("cuda")

    @pytest.mark.parametrize(
        ("name", "is_available", "chosen"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
    )
    def test_auto_chooses_cuda_if_it_is_available(
        self, monkeypatch: pytest.MonkeyPatch, name: str, is_available: bool, chosen: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
        assert choose_device(name).type == chosen

    @pytest.mark.parametrize(("name", "chosen"), [("cpu", "cpu"), ("auto", "cpu"), ("cuda", "cpu")])
    def test_a_model_of_another_device_serves_on_the_cpu(
        self, monkeypatch: pytest.MonkeyPatch, name: str, chosen: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert device_to_serve(name).type == chosen


def days(count: int) -> dict[str, str]:
    return {f"2024-01-{number:02d}": f"content {number}" for number in range(1, count + 1)}


def config(window: int = 10, validation: int = 2, calibration: int = 3) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "dataset": "d",
            "identity": ["id"],
            "event_time": "t",
            "start": "2024-01-01",
            "training": {"window_days": window, "validation_days": validation, "calibration_days": calibration},
        }
    )


class TestWindow:
    @pytest.mark.parametrize("count", [6, 9, 10, 25])
    def test_the_parts_are_disjoint_and_in_order_of_time(self, count: int) -> None:
        window = cut_window(dict(reversed(days(count).items())), config())
        newest = sorted(days(count))[-10:]
        assert [*window.train, *window.validation, *window.calibration] == newest == list(window.days)
        assert (len(window.validation), len(window.calibration)) == (2, 3)

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_too_few_days_are_an_error_with_the_counts(self, count: int) -> None:
        with pytest.raises(
            TrainingError, match=f"'d' has {count} days .* validation_days=2 plus calibration_days=3 leave none"
        ):
            cut_window(days(count), config())

    def test_the_fingerprint_depends_on_the_days_of_the_window_only(self) -> None:
        content = days(20)
        previous = cut_window(content, config()).fingerprint
        assert cut_window({**content, "2024-01-05": "changed"}, config()).fingerprint == previous
        assert cut_window({**content, "2024-01-15": "changed"}, config()).fingerprint != previous

    def test_a_day_without_rows_is_not_in_the_window(self) -> None:
        content = days(12)
        del content["2024-01-12"], content["2024-01-09"]
        assert cut_window(content, config()).calibration == ("2024-01-08", "2024-01-10", "2024-01-11")

    def test_rows_are_read_in_order_of_time(self, fitted: Fitted) -> None:
        rows = pl.concat([fitted.window.rows(part, fitted.paths) for part in PARTS])
        assert rows["event_time"].is_sorted()
        assert rows.height == 40 * 60

    def test_rows_without_event_time_are_split_14_2_3_1(self, tmp_path: Path) -> None:
        undated = PipelineConfig(dataset="d", identity=("id",))
        window, paths = cut_window({ALL_ROWS: "content"}, undated), DatasetPaths(tmp_path, "d")
        names = pl.DataFrame({"row_id": [f"row {index}" for index in range(4000)]})
        write_parquet(paths.features(ALL_ROWS), names.to_arrow())
        parts = {part: window.rows(part, paths)["row_id"].to_list() for part in (*PARTS, GATE)}
        assert sorted(itertools.chain(*parts.values())) == sorted(names["row_id"])
        assert [len(part) / 4000 for part in parts.values()] == pytest.approx([0.7, 0.1, 0.15, 0.05], abs=0.03)
        write_parquet(paths.features(ALL_ROWS), names.reverse().head(3000).to_arrow())
        for part, ids in parts.items():  # a row stays in its part, whatever other rows exist
            assert set(window.rows(part, paths)["row_id"]) <= set(ids)

    def test_missing_features_of_an_undated_dataset_are_an_error(self) -> None:
        with pytest.raises(TrainingError, match="features of 'd' hold no rows; materialize raw_data and features"):
            cut_window({}, PipelineConfig(dataset="d", identity=("id",)))


class TestRules:
    def test_a_good_training_meets_every_rule(self, fitted: Fitted) -> None:
        latents = fitted.bundle.encode(fitted.window.rows("validation", fitted.paths))
        results = [finite_weights(fitted.bundle), loss_fell(fitted.result), latents_not_collapsed(latents)]
        assert [result.passed for result in results] == [True] * 3
        assert is_promoted(results)

    def test_one_weight_that_is_not_finite_is_rejected(self, fitted: Fitted) -> None:
        model = build_model(fitted.config, fitted.bundle.encoder.shape, torch.Generator())
        next(model.parameters()).data[0, 0] = math.nan
        result = finite_weights(with_model(fitted.bundle, model))
        assert (result.passed, result.figure) == (False, 1)
        assert not is_promoted([result])

    def test_a_loss_that_did_not_fall_is_rejected(self) -> None:
        assert not loss_fell(TrainingResult(epochs=(), best_epoch=0, first_loss=12.5, best_loss=12.5)).passed

    @pytest.mark.parametrize(("active", "passes"), [(0, False), (1, False), (2, True), (4, True)])
    def test_half_of_the_latent_columns_must_vary(self, active: int, passes: bool) -> None:
        latents = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        latents[:, active:] = 0.5
        result = latents_not_collapsed(latents)
        assert (result.passed, result.figure) == (passes, active / 4)


def test_a_cross_entropy_that_diverges_is_an_error() -> None:
    settings = {
        "dataset": "rows",
        "identity": ["id"],
        "model": {"loss": {"bce": 1.0}, "scaling": "unit", "latent_dim": 2},
    }
    config = PipelineConfig.model_validate(settings)
    encoder = fit_table_encoder(correlated(400), COLUMNS, config.scaling)
    model, loss = build_model(config, encoder.shape, torch.Generator().manual_seed(0)), build_loss(config, encoder)
    rows = torch.from_numpy(encoder.encode(correlated(400)))
    diverging = TrainingConfig(optimizer="sgd", learning_rate=1e30, epochs=3, device="cpu")
    with pytest.raises(TrainingError, match=r"is not finite .*; lower learning_rate=1e"):
        train(model, loss, rows, rows[:50], diverging, torch.Generator().manual_seed(0))
