"""Learning rates by layer."""

from typing import Literal

import pytest
import torch
from torch import nn

from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.models.base import AutoEncoder, EncoderDecoder
from ae_pipeline.models.losses import ReconstructionLoss
from ae_pipeline.training.learning_rates import WIDE_INPUTS, parameter_groups
from ae_pipeline.training.loop import train
from ae_pipeline.training.step import build_optimizer, set_rate


class MeanSquares(ReconstructionLoss):
    """Mean squared error of a row."""

    columns = ("row",)

    def forward(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (output - x).square().mean(1, keepdim=True)

    by_column = forward


def network(inputs: int) -> AutoEncoder:
    torch.manual_seed(0)
    pair = EncoderDecoder(nn.Linear(inputs, 2), nn.Linear(2, inputs))
    return AutoEncoder(pair, 2, nn.Sigmoid())


def test_usual_layers_have_the_configured_rate() -> None:
    groups = parameter_groups(network(WIDE_INPUTS), nn.Identity())
    assert [len(group["params"]) for group in groups] == [4, 0]


def test_the_rate_of_a_wide_layer_falls_with_its_inputs() -> None:
    model, config = network(4 * WIDE_INPUTS), TrainingConfig(learning_rate=0.01)
    *_, wide = parameter_groups(model, nn.Identity())
    assert wide["params"][0] is model.encoder.weight
    assert wide["rate_factor"] == pytest.approx(1 / 16)
    optimizer = build_optimizer(model, MeanSquares(), config, torch.tensor(0.01))
    set_rate(optimizer, 0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.5, 0.5, 0.5 / 16])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_the_first_epochs_on_large_images_lower_the_loss(schedule: Literal["constant", "cosine", "one_cycle"]) -> None:
    pixels = 64 * WIDE_INPUTS
    model = network(pixels)
    contrast = torch.rand(16, 1, generator=torch.Generator().manual_seed(0))
    rows = 0.5 + 0.4 * contrast * torch.sin(torch.linspace(0, 60, pixels))
    config = TrainingConfig(epochs=6, batch_size=4, schedule=schedule, device="cpu")
    result = train(model, MeanSquares(), rows, rows[:4], config, torch.Generator().manual_seed(0))
    assert result.best_epoch > 0
    assert result.best_loss < 0.95 * result.first_loss


def test_a_long_epoch_logs_how_far_it_is(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ae_pipeline.training.loop._PROGRESS_SECONDS", 0.0)
    rows, config = torch.rand(8, 4), TrainingConfig(epochs=1, batch_size=3, device="cpu")
    with caplog.at_level("INFO", "ae_pipeline.training.loop"):
        train(network(4), MeanSquares(), rows, rows, config, torch.Generator().manual_seed(0))
    assert caplog.messages == [f"{done} of 3 batches of epoch 1 learned" for done in (1, 2)]
