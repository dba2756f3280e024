"""Context: inputs that encoder and decoder read, and that nothing reconstructs."""

from typing import Any

import numpy as np
import pytest
import torch

from ae_pipeline.config.model import TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.models.base import AutoEncoder
from ae_pipeline.models.corruption import build_corruption
from ae_pipeline.models.factory import build_model
from ae_pipeline.models.losses import LikelihoodLoss, ReconstructionLoss, TermsLoss

WIDTH, CONTEXT = 6, 4
BLOCKS = [
    Block(column="load", part="value", kind=BlockKind.NUMERIC, start=0, width=1, present=4),
    Block(column="at", part="time_of_day", kind=BlockKind.CYCLIC, start=1, width=2),
    Block(column="load", part="missing", kind=BlockKind.BINARY, start=3, width=1),
    Block(column="kind", part="value", kind=BlockKind.CATEGORICAL, start=4, width=2),
]
COLUMNS = ("load", "at", "kind")


def build(**model: Any) -> AutoEncoder:
    config = PipelineConfig.model_validate(
        {"dataset": "d", "identity": ["id"], "model": {"latent_dim": 2, "hidden": [8], **model}}
    )
    generator = torch.Generator().manual_seed(0)
    return build_model(config, (WIDTH + CONTEXT,), generator, CONTEXT).eval()


def inputs(seed: int = 0) -> torch.Tensor:
    return torch.rand(5, WIDTH + CONTEXT, generator=torch.Generator().manual_seed(seed))


def with_other_context(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, :WIDTH], x[:, WIDTH:] + 1], 1)


FORMS: list[dict[str, Any]] = [{}, {"variational": True}, {"tied": True}]


class TestNetwork:
    @pytest.mark.parametrize("form", FORMS)
    @torch.no_grad()
    def test_the_output_repeats_the_context(self, form: dict[str, Any]) -> None:
        output = build(**form)(inputs()).output
        assert output.shape == (5, WIDTH + CONTEXT)
        torch.testing.assert_close(output[:, WIDTH:], inputs()[:, WIDTH:], rtol=0, atol=0)

    @pytest.mark.parametrize("form", FORMS)
    @torch.no_grad()
    def test_decode_gives_the_output_for_the_same_context(self, form: dict[str, Any]) -> None:
        model, x = build(**form), inputs()
        torch.testing.assert_close(model.decode(model.encode(x), x), model(x).output, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("form", "is_conditional"), [({}, True), ({"variational": True}, True), ({"tied": True}, False)]
    )
    @torch.no_grad()
    def test_the_decoder_reads_it_unless_weights_are_tied(self, form: dict[str, Any], is_conditional: bool) -> None:
        model, x = build(**form), inputs()
        z = model.encode(x)
        here, there = (model.decode(z, each)[:, :WIDTH] for each in (x, with_other_context(x)))
        assert torch.equal(here, there) != is_conditional
        assert not torch.equal(z, model.encode(with_other_context(x)))

    @torch.no_grad()
    def test_without_inputs_the_context_is_zero(self) -> None:
        model, x = build(), inputs()
        neutral = torch.cat([x[:, :WIDTH], torch.zeros(5, CONTEXT)], 1)
        z = model.encode(x)
        torch.testing.assert_close(model.decode(z), model.decode(z, neutral), rtol=0, atol=0)

    def test_the_latents_must_be_fewer_than_the_reconstructed_inputs(self) -> None:
        with pytest.raises(Exception, match=f"latent_dim={WIDTH} is not smaller than the {WIDTH} encoded inputs"):
            build(latent_dim=WIDTH)
        assert build(latent_dim=None).latent_dim == WIDTH // 2


class TestLoss:
    @pytest.mark.parametrize(
        "loss",
        [LikelihoodLoss(BLOCKS, COLUMNS), TermsLoss(BLOCKS, COLUMNS, {"mse": 1.0}, 1.0)],  # type: ignore[dict-item]
    )
    @torch.no_grad()
    def test_the_context_costs_nothing(self, loss: ReconstructionLoss) -> None:
        x, output = inputs(), inputs(1)
        narrow = loss(output[:, :WIDTH], x[:, :WIDTH])
        torch.testing.assert_close(loss(output, x), narrow, rtol=0, atol=0)
        torch.testing.assert_close(
            loss.by_column(output, x), loss.by_column(output[:, :WIDTH], x[:, :WIDTH]), rtol=0, atol=0
        )
        torch.testing.assert_close(loss(with_other_context(output), x), narrow, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gaussian", "masking"])
def test_corruption_leaves_it_clean(kind: str) -> None:
    groups = torch.tensor([0, 1, 1, 0, 2, 2, -1, -1, -1, -1])
    config = TrainingConfig.model_validate({"corruption": kind, "corruption_level": 0.9})
    corrupt = build_corruption(config, groups, context=CONTEXT)
    assert corrupt is not None
    x = inputs() + 1
    noisy = corrupt(x, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(noisy[:, WIDTH:], x[:, WIDTH:])
    assert (noisy[:, :WIDTH] != x[:, :WIDTH]).any(1).all()
