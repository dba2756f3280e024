"""The losses against the densities of scipy and torch.distributions."""

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from torch.distributions import Bernoulli, Categorical

from ae_pipeline.config import ColumnType
from ae_pipeline.models.losses import MIN_LOG_SCALE, LikelihoodLoss
from ae_pipeline.preprocessing.features import FeatureColumn
from ae_pipeline.preprocessing.table_encoder import Block, BlockKind, TableEncoder, fit_table_encoder

COLUMNS = (
    FeatureColumn("x", ColumnType.NUMBER),
    FeatureColumn("c", ColumnType.CATEGORY),
    FeatureColumn("at", ColumnType.CLOCK_HHMM),
    FeatureColumn("y", ColumnType.NUMBER),
    FeatureColumn("f", ColumnType.BOOLEAN),
)
SCALES = (0.3, 1.7, 0.6)
"""Of x, y and the clock, in the order of the blocks."""


def constant(dimensions: int) -> float:
    """What the documented constant leaves out: the standard density's height at its centre."""
    return -scipy.stats.multivariate_t.logpdf(np.zeros(dimensions), shape=np.eye(dimensions), df=3)


@pytest.fixture(scope="module")
def encoder() -> TableEncoder:
    return fit_table_encoder(rows(300), COLUMNS)


def likelihood(encoder: TableEncoder, blocks: int | None = None) -> LikelihoodLoss:
    """The loss of the first blocks, or of all."""
    return LikelihoodLoss(encoder.blocks[:blocks], [column.name for column in encoder.columns])


def rows(n: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)

    def gappy(values: np.ndarray) -> pl.Series:
        return pl.Series(values).set(pl.Series(rng.random(n) < 0.2), None)

    return pl.DataFrame(
        {
            "x": gappy(rng.normal(5, 2, n)),
            "y": gappy(rng.lognormal(0, 1, n)),
            "at": gappy(rng.integers(0, 1440, n).astype(float)),
            "c": gappy(rng.choice(["a", "b", "c"], n)),
            "f": gappy(rng.random(n) < 0.4),
        }
    )


@pytest.fixture(scope="module")
def case(encoder) -> tuple[LikelihoodLoss, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss with set scales, input, arbitrary output, and the loss of each row and block."""
    loss = likelihood(encoder)
    loss.log_scale.data = torch.log(torch.tensor(SCALES))
    x = torch.from_numpy(encoder.encode(rows(64, 1)))
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * 2
    return loss, x, output, loss(output, x).detach()


def places(loss: LikelihoodLoss, kind: BlockKind) -> list[tuple[int, Block]]:
    return [(place, block) for place, block in enumerate(loss.blocks) if block.kind == kind]


def test_a_number_costs_what_students_t_with_three_degrees_of_freedom_says(case):
    loss, x, output, values = case
    for (place, block), scale in zip(places(loss, BlockKind.NUMERIC), SCALES[:2], strict=True):
        here = x[:, block.present] == 0
        density = scipy.stats.t.logpdf(x[here, block.start], df=3, loc=output[here, block.start], scale=scale)
        np.testing.assert_allclose(values[here, place], -density - constant(1), rtol=1e-5, atol=1e-5)


def test_a_cycle_costs_what_the_bivariate_t_says(case):
    loss, x, output, values = case
    ((place, block),) = places(loss, BlockKind.CYCLIC)
    here = x[:, block.present] == 0
    apart = (x - output)[here, block.start : block.stop].numpy()
    density = scipy.stats.multivariate_t.logpdf(apart, shape=np.eye(2) * SCALES[2] ** 2, df=3)
    np.testing.assert_allclose(values[here, place], -density - constant(2), rtol=1e-5, atol=1e-5)


def test_an_indicator_costs_what_bernoulli_says(case):
    loss, x, output, values = case
    for place, block in places(loss, BlockKind.BINARY):
        expected = -Bernoulli(logits=output[:, block.start]).log_prob(x[:, block.start])
        torch.testing.assert_close(values[:, place], expected)


def test_a_category_costs_the_cross_entropy_of_its_softmax(case):
    loss, x, output, values = case
    found = places(loss, BlockKind.CATEGORICAL)
    assert [block.column for _, block in found] == ["c", "f"]
    for place, block in found:
        part = slice(block.start, block.stop)
        expected = -Categorical(logits=output[:, part]).log_prob(x[:, part].argmax(1))
        torch.testing.assert_close(values[:, place], expected)


def test_a_missing_value_costs_nothing_and_pulls_the_output_nowhere(case):
    loss, x, output, values = case
    moved = output.clone().requires_grad_()
    loss(moved, x).sum().backward()
    for place, block in places(loss, BlockKind.NUMERIC) + places(loss, BlockKind.CYCLIC):
        gone = x[:, block.present] == 1
        assert 3 <= int(gone.sum()) <= 30
        assert (values[gone, place] == 0).all()
        assert (moved.grad[gone, block.start : block.stop] == 0).all()
        assert (moved.grad[~gone, block.start : block.stop] != 0).all()


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("log_scale", [-50.0, -1.0, 20.0])
def test_loss_and_gradients_are_finite_however_far_off_the_output_is(encoder, size, log_scale):
    loss = likelihood(encoder)
    loss.log_scale.data.fill_(log_scale)
    x = torch.from_numpy(encoder.encode(rows(16, 2)))
    output = (x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = loss(output, x).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()
    assert torch.isfinite(loss.log_scale.grad).all()


def test_the_gradients_are_those_of_finite_differences(encoder):
    loss = likelihood(encoder).double()
    x = torch.from_numpy(encoder.encode(rows(4, 3))).double()
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)

    def value(of_output: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"log_scale": log_scale}, (of_output, x))

    log_scale = loss.log_scale.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (output, log_scale))


def test_no_scale_is_finer_than_a_hundredth(encoder):
    loss, x = likelihood(encoder), torch.from_numpy(encoder.encode(rows(8, 2)))
    loss.log_scale.data.fill_(-9.0)
    fine = loss(x + 0.01, x)
    loss.log_scale.data.fill_(MIN_LOG_SCALE)
    torch.testing.assert_close(fine, loss(x + 0.01, x), rtol=0, atol=0)
    assert pytest.approx(0.01, rel=0.01) == np.exp(MIN_LOG_SCALE)


def test_the_learnt_scale_has_its_least_loss_at_the_likeliest_scale_of_the_residuals(encoder):
    loss = likelihood(encoder, 1)
    residuals = scipy.stats.t.rvs(3, scale=0.4, size=4000, random_state=0).astype(np.float32)
    x = torch.zeros(4000, encoder.width)
    output = torch.from_numpy(residuals)[:, None]
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss_of_first(loss, output, x)
        value.backward()
        return value

    optimizer.step(closure)
    _, _, likeliest = scipy.stats.t.fit(residuals, fdf=3, floc=0)
    assert loss.log_scale.exp().item() == pytest.approx(likeliest, rel=1e-3)


def loss_of_first(loss: LikelihoodLoss, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean loss of the first block alone; its indicator says that nothing is missing."""
    del loss._order[1:]
    loss._numeric[0] = loss._numeric[0].model_copy(update={"present": None})
    return loss(output, x[:, :1]).mean()


def test_outputs_on_scale_are_probabilities_where_they_were_logits(case):
    loss, _, output, _ = case
    before = output.clone()
    expected = loss.to_scale(output)
    torch.testing.assert_close(output, before, rtol=0, atol=0)
    for block in loss.blocks:
        part = slice(block.start, block.stop)
        match block.kind:
            case BlockKind.BINARY:
                torch.testing.assert_close(expected[:, part], Bernoulli(logits=output[:, part]).probs)
            case BlockKind.CATEGORICAL:
                torch.testing.assert_close(expected[:, part], Categorical(logits=output[:, part]).probs)
            case _:
                torch.testing.assert_close(expected[:, part], output[:, part], rtol=0, atol=0)
