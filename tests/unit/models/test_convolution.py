"""Convolutions in blocks have the values of torch, for any size of blocks, images and kernels."""

import itertools

import pytest
import torch
from torch import nn

from ae_pipeline.models import convolution
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.convolution import Conv2d, UpsampledConv2d
from ae_pipeline.models.image_loss import ImageLoss


@pytest.mark.parametrize("elements", [1, 900, 2**17])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_have_the_values_of_torch(elements: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_BLOCK_ELEMENTS", elements)
    for (height, width), channels, padding in itertools.product([(1, 1), (7, 4), (12, 13)], [1, 3], [1, 2]):
        ours = Conv2d(channels, 5, 3, stride=stride, padding=padding).double()
        theirs = nn.Conv2d(channels, 5, 3, stride=stride, padding=padding).double()
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(4, channels, height, width, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("elements", [1, 900, 2**17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolution_of_upsampled_images(elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, blocks of one row of windows start and end between the outputs of a small pixel."""
    monkeypatch.setattr(convolution, "_BLOCK_ELEMENTS", elements)
    for size, channels, odd in itertools.product([(1, 1), (7, 4), (12, 13)], [1, 3], [0, 1]):
        larger = (2 * size[0] - odd, 2 * size[1])
        ours = UpsampledConv2d(channels, 5, larger).to(dtype)
        theirs = nn.Sequential(nn.Upsample(larger), nn.Conv2d(channels, 5, 3, padding=1)).to(dtype)
        theirs[1].load_state_dict(ours.state_dict())
        x = torch.randn(4, channels, *size, dtype=dtype)
        close = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(ours(x), theirs(x), rtol=close, atol=close)


def test_float32_has_values_and_gradients_of_torch() -> None:
    ours, theirs = Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 5, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 9, 6)
    gradients = []
    for layer in (ours, theirs):
        output = layer(x)
        output.square().sum().backward()
        assert layer.weight.grad is not None
        gradients.append((output.detach(), layer.weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_scores_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = []
    for elements in (2**30, 300):
        monkeypatch.setattr(convolution, "_BLOCK_ELEMENTS", elements)
        monkeypatch.setattr("ae_pipeline.models.image_loss._FIT_BATCH_ELEMENTS", elements)
        generator = torch.Generator().manual_seed(0)
        x, output = (torch.randn(6, 1, 20, 30, generator=generator, dtype=torch.float64) for _ in range(2))
        loss = ImageLoss((1, 20, 30), 1.0, {}, 1.0).double()
        loss.fit_scores(AutoEncoderOutput(torch.zeros(6, 1), output, torch.zeros(6)), x)
        maps.append(loss.heat(output, x))
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-9, atol=1e-9)
