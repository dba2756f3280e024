"""The losses against closed forms in numpy and the densities of scipy and torch.distributions."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from ae_pipeline.config.columns import ColumnType, FeatureColumn
from ae_pipeline.config.model import LossTerm, Scaling
from ae_pipeline.encoding.blocks import Block, BlockKind
from ae_pipeline.encoding.table_encoder import TableEncoder
from ae_pipeline.encoding.table_fitting import fit_table_encoder
from ae_pipeline.models.base import AutoEncoderOutput
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.losses import MIN_LOG_SCALE, LikelihoodLoss, ReconstructionLoss, TermsLoss, _Present
from ae_pipeline.models.variational import MAX_LOG_VARIANCE, kl_divergence
from tests.support.arrays import Array
from tests.support.losses import CLOSED_FORMS, DELTA, WEIGHTED, by_term, closed_form, generator, named, uniform

Case = tuple[LikelihoodLoss, torch.Tensor, torch.Tensor, torch.Tensor]
Table = tuple[TermsLoss, TableEncoder, torch.Tensor, torch.Tensor]

COLUMNS = (
    FeatureColumn("x", ColumnType.NUMBER),
    FeatureColumn("c", ColumnType.CATEGORY),
    FeatureColumn("at", ColumnType.CLOCK_HHMM),
    FeatureColumn("y", ColumnType.NUMBER),
    FeatureColumn("f", ColumnType.BOOLEAN),
)


SCALES = (0.3, 1.7, 0.6)
"""Scales of x, y and the clock, in the order of the blocks."""


def constant(dimensions: int) -> float:
    """Return the constant that the loss leaves out: −ln of the standard density at its center."""
    return -float(scipy.stats.multivariate_t.logpdf(np.zeros(dimensions), shape=np.eye(dimensions), df=3))


@pytest.fixture(scope="module")
def encoder() -> TableEncoder:
    return fit_table_encoder(rows(300), COLUMNS)


def likelihood(encoder: TableEncoder, blocks: int | None = None) -> LikelihoodLoss:
    """Return the loss of the first blocks, or of all."""
    return LikelihoodLoss(encoder.blocks[:blocks], [column.name for column in encoder.columns])


def rows(n: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)

    def with_gaps(values: Array) -> pl.Series:
        return pl.Series(values).set(pl.Series(rng.random(n) < 0.2), None)

    return pl.DataFrame(
        {
            "x": with_gaps(rng.normal(5, 2, n)),
            "y": with_gaps(rng.lognormal(0, 1, n)),
            "at": with_gaps(rng.integers(0, 1440, n).astype(float)),
            "c": with_gaps(rng.choice(["a", "b", "c"], n)),
            "f": with_gaps(rng.random(n) < 0.4),
        }
    )


@pytest.fixture(scope="module")
def case(encoder: TableEncoder) -> Case:
    """Return a loss with fixed scales, inputs, arbitrary outputs, and the loss of each row and block."""
    loss = likelihood(encoder)
    loss.log_scale.data = torch.log(torch.tensor(SCALES))
    x = torch.from_numpy(encoder.encode(rows(64, 1)))
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * 2
    return loss, x, output, loss(output, x).detach()


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Return the gradient that a backward pass computed."""
    assert tensor.grad is not None
    return tensor.grad


def blocks_of(loss: LikelihoodLoss, kind: BlockKind) -> list[tuple[int, Block]]:
    return [(index, block) for index, block in enumerate(loss.blocks) if block.kind == kind]


def test_numeric_loss_is_students_t_density(case: Case) -> None:
    loss, x, output, values = case
    for (index, block), scale in zip(blocks_of(loss, BlockKind.NUMERIC), SCALES[:2], strict=True):
        present = x[:, block.present] == 0
        log_density = scipy.stats.t.logpdf(x[present, block.start], df=3, loc=output[present, block.start], scale=scale)
        np.testing.assert_allclose(values[present, index], -log_density - constant(1), rtol=1e-5, atol=1e-5)


def test_cyclic_loss_is_bivariate_t_density(case: Case) -> None:
    loss, x, output, values = case
    ((index, block),) = blocks_of(loss, BlockKind.CYCLIC)
    present = x[:, block.present] == 0
    residual = (x - output)[present, block.start : block.stop].numpy()
    log_density = scipy.stats.multivariate_t.logpdf(residual, shape=np.eye(2) * SCALES[2] ** 2, df=3)
    np.testing.assert_allclose(values[present, index], -log_density - constant(2), rtol=1e-5, atol=1e-5)


def test_binary_loss_is_bernoulli_density(case: Case) -> None:
    loss, x, output, values = case
    for index, block in blocks_of(loss, BlockKind.BINARY):
        expected = -Bernoulli(logits=output[:, block.start]).log_prob(x[:, block.start])
        torch.testing.assert_close(values[:, index], expected)


def test_categorical_loss_is_softmax_cross_entropy(case: Case) -> None:
    loss, x, output, values = case
    blocks = blocks_of(loss, BlockKind.CATEGORICAL)
    assert [block.column for _, block in blocks] == ["c", "f"]
    for index, block in blocks:
        part = slice(block.start, block.stop)
        expected = -Categorical(logits=output[:, part]).log_prob(x[:, part].argmax(1))
        torch.testing.assert_close(values[:, index], expected)


def test_missing_value_has_zero_loss_and_gradient(case: Case) -> None:
    loss, x, output, values = case
    moved = output.clone().requires_grad_()
    loss(moved, x).sum().backward()
    for index, block in blocks_of(loss, BlockKind.NUMERIC) + blocks_of(loss, BlockKind.CYCLIC):
        missing = x[:, block.present] == 1
        assert 3 <= int(missing.sum()) <= 30
        assert (values[missing, index] == 0).all()
        assert (gradient(moved)[missing, block.start : block.stop] == 0).all()
        assert (gradient(moved)[~missing, block.start : block.stop] != 0).all()


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("log_scale", [-50.0, -1.0, 20.0])
def test_loss_and_gradients_are_finite_for_extreme_outputs(encoder: TableEncoder, size: Any, log_scale: float) -> None:
    loss = likelihood(encoder)
    loss.log_scale.data.fill_(log_scale)
    x = torch.from_numpy(encoder.encode(rows(16, 2)))
    output = (x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = loss(output, x).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(gradient(output)).all()
    assert torch.isfinite(gradient(loss.log_scale)).all()


def test_gradients_match_finite_differences(encoder: TableEncoder) -> None:
    loss = likelihood(encoder).double()
    x = torch.from_numpy(encoder.encode(rows(4, 3))).double()
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)

    def value(of_output: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(loss, {"log_scale": log_scale}, (of_output, x))
        return result

    log_scale = loss.log_scale.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (output, log_scale))


def test_scale_has_minimum_of_a_hundredth(encoder: TableEncoder) -> None:
    loss, x = likelihood(encoder), torch.from_numpy(encoder.encode(rows(8, 2)))
    loss.log_scale.data.fill_(-9.0)
    fine = loss(x + 0.01, x)
    loss.log_scale.data.fill_(MIN_LOG_SCALE)
    torch.testing.assert_close(fine, loss(x + 0.01, x), rtol=0, atol=0)
    assert pytest.approx(0.01, rel=0.01) == np.exp(MIN_LOG_SCALE)


def test_optimal_scale_is_maximum_likelihood_scale(encoder: TableEncoder) -> None:
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
    _, _, fitted_scale = scipy.stats.t.fit(residuals, fdf=3, floc=0)
    assert loss.log_scale.exp().item() == pytest.approx(fitted_scale, rel=1e-3)


def loss_of_first(loss: LikelihoodLoss, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the first block only, with no value missing."""
    del loss._order[1:]
    loss._numeric[0] = loss._numeric[0].model_copy(update={"present": None})
    loss._numeric_present = _Present(loss._numeric)
    mean: torch.Tensor = loss(output, x[:, :1]).mean()
    return mean


def test_to_scale_turns_logits_into_probabilities(case: Case) -> None:
    loss, _, output, _ = case
    previous = output.clone()
    expected = loss.to_scale(output)
    torch.testing.assert_close(output, previous, rtol=0, atol=0)
    for block in loss.blocks:
        part = slice(block.start, block.stop)
        match block.kind:
            case BlockKind.BINARY:
                torch.testing.assert_close(expected[:, part], Bernoulli(logits=output[:, part]).probs)
            case BlockKind.CATEGORICAL:
                torch.testing.assert_close(expected[:, part], Categorical(logits=output[:, part]).probs)
            case _:
                torch.testing.assert_close(expected[:, part], output[:, part], rtol=0, atol=0)


@pytest.mark.parametrize("terms", WEIGHTED, ids=named)
class TestTermsLoss:
    @pytest.fixture
    def table(self, terms: dict[str, float]) -> Table:
        """Return loss, encoder, inputs with gaps in every column, and outputs between 0 and 1."""
        encoder = fit_table_encoder(rows(300), COLUMNS, Scaling.UNIT)
        loss = TermsLoss(encoder.blocks, [column.name for column in encoder.columns], by_term(terms), DELTA)
        x = torch.from_numpy(encoder.encode(rows(64, 1)))
        return loss, encoder, x, uniform(*x.shape).clamp(0.01, 0.99)

    def present(self, encoder: TableEncoder, x: torch.Tensor) -> Array:
        """Return 1 for each element that counts, shape (n, width)."""
        present = np.ones(x.shape)
        for block in encoder.blocks:
            if block.present is not None:
                present[x[:, block.present] == 1, block.start : block.stop] = 0
        assert 0.02 < 1 - present.mean() < 0.2
        return present

    def test_row_loss_is_mean_over_present_elements(self, table: Table, terms: dict[str, float]) -> None:
        loss, encoder, x, output = table
        elements = closed_form(terms, output, x) * self.present(encoder, x)
        np.testing.assert_allclose(loss(output, x).sum(1), elements.sum(1) / encoder.width, rtol=2e-6)

    def test_block_loss_is_sum_of_its_elements(self, table: Table, terms: dict[str, float]) -> None:
        loss, encoder, x, output = table
        elements = closed_form(terms, output, x) * self.present(encoder, x)
        blocks = [elements[:, block.start : block.stop].sum(1) / encoder.width for block in encoder.blocks]
        np.testing.assert_allclose(loss(output, x), np.stack(blocks, 1), rtol=2e-6, atol=1e-9)

    def test_column_score_is_excess_over_perfect_reconstruction(self, table: Table, terms: dict[str, float]) -> None:
        loss, encoder, x, output = table
        minimum = terms.get("bce", 0.0) * scipy.stats.entropy([p := x.double().clamp(0, 1).numpy(), 1 - p])
        above = (closed_form(terms, output, x) - minimum) * self.present(encoder, x) / encoder.width
        groups = encoder.groups
        columns = [above[:, groups == number].sum(1) for number in range(len(COLUMNS))]
        np.testing.assert_allclose(loss.by_column(output, x), np.stack(columns, 1), rtol=1e-5, atol=1e-7)

    def test_missing_value_has_zero_gradient(self, table: Table, terms: dict[str, float]) -> None:
        loss, encoder, x, output = table
        output.requires_grad_()
        loss(output, x).sum().backward()
        present = self.present(encoder, x)
        assert (gradient(output).numpy()[present == 0] == 0).all()
        assert (gradient(output).numpy()[present == 1] != 0).all()

    def test_gradients_match_finite_differences(self, table: Table, terms: dict[str, float]) -> None:
        loss, _, x, output = table
        double = output[:4].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda o: loss.double()(o, x[:4].double()), double)


def every_loss() -> tuple[TermsLoss, ImageLoss]:
    encoder = fit_table_encoder(rows(300), COLUMNS, Scaling.UNIT)
    names = [column.name for column in encoder.columns]
    terms = dict.fromkeys(by_term(CLOSED_FORMS), 1.0)
    return (
        TermsLoss(encoder.blocks, names, terms, DELTA),
        ImageLoss((3, 9, 12), 1.0, {**terms, LossTerm.SSIM: 1.0}, DELTA),
    )


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
def test_gradients_are_finite_on_flat_and_extreme_inputs(loss: ReconstructionLoss, size: Any) -> None:
    shape = (6, loss._width) if isinstance(loss, TermsLoss) else (6, 3, 9, 12)
    x = size * torch.stack([torch.zeros(shape[1:]), torch.ones(shape[1:]), *uniform(4, *shape[1:])])
    for output in (torch.zeros(shape), torch.ones(shape), uniform(*shape, seed=1)):
        output.requires_grad_()
        value = loss(output, x).sum()
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(gradient(output)).all()


class TestKlDivergence:
    @pytest.mark.parametrize("std", [0.01, 1.0, 4.0])
    def test_divergence_equals_torch_distributions(self, std: float) -> None:
        mean, log_variance = (
            std * torch.randn(50, 7, generator=generator(seed), dtype=torch.float64) for seed in (0, 1)
        )
        normal = Normal(mean, (log_variance / 2).exp())
        expected = torch.distributions.kl_divergence(normal, Normal(torch.zeros(7), torch.ones(7))).sum(1)
        torch.testing.assert_close(kl_divergence(mean, log_variance), expected, rtol=1e-6, atol=1e-6)

    def test_divergence_is_zero_only_for_the_prior(self) -> None:
        assert kl_divergence(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]
        for log_variance, mean in ((0.0, 0.1), (0.1, 0.0), (-0.1, 0.0)):
            assert (kl_divergence(torch.full((1, 4), mean), torch.full((1, 4), log_variance)) > 0).all()

    def test_divergence_at_variance_bounds_follows_formula(self) -> None:
        bounds = torch.tensor([[-MAX_LOG_VARIANCE], [MAX_LOG_VARIANCE]])
        expected = [(np.exp(-10) - 1 + 10) / 2, (np.exp(10) - 1 - 10) / 2]
        assert kl_divergence(torch.zeros(2, 1), bounds).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_objective_adds_beta_times_divergence_per_element(loss: ReconstructionLoss, beta: float) -> None:
    shape = (6, loss._width) if isinstance(loss, TermsLoss) else (6, 3, 9, 12)
    x, output, kl = uniform(*shape), uniform(*shape, seed=1), 10 * uniform(6, seed=2)
    expected = loss(output, x).double().sum(1) + beta * kl.double() / np.prod(shape[1:])
    objective = loss.objective(AutoEncoderOutput(torch.zeros(6, 2), output, kl), x, beta)
    np.testing.assert_allclose(objective, expected, rtol=1e-6)


def test_likelihood_objective_adds_full_divergence(case: Case) -> None:
    loss, x, output, values = case
    kl = 10 * uniform(len(x))
    objective = loss.objective(AutoEncoderOutput(x, output, kl), x, 0.5).detach()
    torch.testing.assert_close(objective, values.sum(1) + 0.5 * kl)


def test_row_scores_are_columns_and_sum_with_divergence() -> None:
    loss = every_loss()[0]
    x, output, kl = uniform(6, loss._width), uniform(6, loss._width, seed=1), uniform(6, seed=2)
    parts = loss.parts(AutoEncoderOutput(torch.zeros(6, 2), output, kl), x)
    assert parts.shape == (6, len(COLUMNS) + 1)
    torch.testing.assert_close(parts[:, :-1], loss.by_column(output, x), rtol=0, atol=0)
    torch.testing.assert_close(parts[:, -1], parts[:, :-1].sum(1) + kl / loss._width)
