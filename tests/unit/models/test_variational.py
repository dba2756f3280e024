"""The variational form: samples, divergence and bounds against torch.distributions, and β in training."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from ae_pipeline.config.model import LossTerm, TrainingConfig
from ae_pipeline.config.pipeline import PipelineConfig
from ae_pipeline.models.base import AutoEncoder, AutoEncoderOutput, EncoderDecoder
from ae_pipeline.models.factory import build_model
from ae_pipeline.models.image_loss import ImageLoss
from ae_pipeline.models.variational import MAX_LOG_VARIANCE, VariationalAutoEncoder
from ae_pipeline.training.loop import TrainingResult, evaluate, train

Samples = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

SHAPE = (1, 8, 8)
PIXELS = 64


def config(training: dict[str, Any] | None = None, **model: Any) -> PipelineConfig:
    settings = {"latent_dim": 8, "hidden": (128,), "variational": True, "loss": {"bce": 1.0}, **model}
    return PipelineConfig.model_validate(
        {"dataset": "digits", "identity": ["id"], "images": {}, "model": settings, "training": training or {}}
    )


def network(seed: int = 0, **model: Any) -> VariationalAutoEncoder:
    variational = build_model(config(**model), SHAPE, generator(seed))
    assert isinstance(variational, VariationalAutoEncoder)
    return variational


def last_layer(model: AutoEncoder) -> nn.Linear:
    """Return the last layer of the encoder, which gives means and log variances."""
    return [layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear)][-1]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross_entropy() -> ImageLoss:
    return ImageLoss(SHAPE, 1.0, {LossTerm.BCE: 1.0}, 1.0)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Return handwritten black-and-white digits in random order, shape (1797, 1, 8, 8)."""
    images = torch.from_numpy((load_digits().images > 7.5).astype(np.float32)).unsqueeze(1)
    return images[torch.randperm(len(images), generator=generator(0))]


class TestSampling:
    ROWS = 40_000

    @pytest.fixture(scope="class")
    def posterior_samples(self) -> Samples:
        """Return means and standard deviations of the posterior of one image, and many samples of it."""
        model = network(latent_dim=4)
        last_layer(model).bias.data[4:] = torch.tensor([-3.0, -1.0, 0.0, 1.5])
        x = torch.rand(1, *SHAPE, generator=generator(1))
        with torch.no_grad():
            mean, log_variance = model.posterior(x)
            z = model.train()(x.expand(self.ROWS, *SHAPE), generator(2)).latents
        assert mean.abs().min() > 0.05
        return mean[0], (log_variance[0] / 2).exp(), z

    def test_samples_have_the_mean_of_the_posterior(self, posterior_samples: Samples) -> None:
        mean, deviation, z = posterior_samples
        # The standard error of the mean of n samples is σ / √n. One mean in a million is off by more than five.
        assert ((z.mean(0) - mean).abs() < 5 * deviation / self.ROWS**0.5).all()

    def test_samples_have_the_variance_of_the_posterior(self, posterior_samples: Samples) -> None:
        _, deviation, z = posterior_samples
        # The standard error of the variance of n normal samples is σ² √(2 / (n − 1)).
        assert ((z.var(0) / deviation.square() - 1).abs() < 5 * (2 / (self.ROWS - 1)) ** 0.5).all()

    def test_samples_of_latents_and_rows_are_uncorrelated(self, posterior_samples: Samples) -> None:
        _, _, z = posterior_samples
        correlations = torch.corrcoef(torch.cat([z[:-1], z[1:]], 1).T) - torch.eye(8)
        assert correlations.abs().max() < 5 / self.ROWS**0.5

    def test_evaluation_uses_the_mean_instead_of_a_sample(self, digits: torch.Tensor) -> None:
        model, x = network().eval(), digits[:50]
        result = model(x, generator(3))
        mean, _ = model.posterior(x)
        torch.testing.assert_close(result.latents, mean, rtol=0, atol=0)
        torch.testing.assert_close(model.encode(x), mean, rtol=0, atol=0)
        torch.testing.assert_close(result.output, model.decode(mean), rtol=0, atol=0)
        assert not torch.equal(model.train()(x, generator(3)).latents, mean)

    def test_samples_depend_only_on_the_generator(self, digits: torch.Tensor) -> None:
        model, x = network().train(), digits[:50]
        samples = []
        for global_seed, seed in ((0, 3), (1, 3), (0, 4)):
            torch.manual_seed(global_seed)
            samples.append(model(x, generator(seed)).latents)
        assert torch.equal(samples[0], samples[1])
        assert not torch.isclose(samples[0], samples[2]).any()

    def test_sample_passes_gradients_to_mean_and_variance(self, digits: torch.Tensor) -> None:
        model, x = network().train(), digits[:50]
        result = model(x, generator(3))
        result.latents.sum().backward()
        bias = last_layer(model).bias.grad
        assert bias is not None
        torch.testing.assert_close(bias[:8], torch.full((8,), 50.0))
        # z = µ + exp(½ log σ²) ε, so that dz / d log σ² = ½ (z − µ).
        torch.testing.assert_close(bias[8:], (result.latents - model.posterior(x)[0]).sum(0) / 2, rtol=1e-4, atol=1e-5)

    def test_divergence_and_reconstruction_reach_both_heads(self, digits: torch.Tensor) -> None:
        parts: list[Callable[[AutoEncoderOutput], torch.Tensor]] = [
            lambda result: result.kl.sum(),
            lambda result: cross_entropy()(result.output, digits[:50]).sum(),
        ]
        for part in parts:
            model = network().train()
            part(model(digits[:50], generator(3))).backward()
            heads = last_layer(model).weight.grad
            assert heads is not None
            assert (heads.abs().sum(1) > 0).sum() == 16

    def test_log_variance_is_clipped_at_the_bounds(self, digits: torch.Tensor) -> None:
        model = network(latent_dim=2)
        last_layer(model).bias.data[2:] = torch.tensor([-1e4, 1e4])
        _, log_variance = model.posterior(digits[:5])
        assert log_variance.tolist() == [[-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE]] * 5
        result = model.train()(digits[:5], generator(0))
        assert all(torch.isfinite(value).all() for value in result)


@dataclass(frozen=True)
class Trained:
    """A small network trained on digits, and its bounds on held-out digits.

    Attributes:
        model: Network with Bernoulli pixels.
        result: Result of the training.
        held_out: Digits outside the training and validation sets.
    """

    model: VariationalAutoEncoder
    result: TrainingResult
    held_out: torch.Tensor

    @torch.no_grad()
    def posterior(self) -> Normal:
        mean, log_variance = self.model.posterior(self.held_out)
        return Normal(mean, (log_variance / 2).exp())

    @torch.no_grad()
    def log_likelihood(self, z: torch.Tensor) -> torch.Tensor:
        """Return log p(x | z) of each digit, shape (digits,)."""
        log_probabilities: torch.Tensor = Bernoulli(probs=self.model.decode(z)).log_prob(self.held_out)
        return log_probabilities.sum((1, 2, 3))

    def bounds(self, k: int, draws: int, seed: int) -> torch.Tensor:
        """Return bounds of k samples each (Burda et al. 2016, eq. 8), mean over the digits, shape (draws / k,)."""
        q, prior = self.posterior(), Normal(0.0, 1.0)
        torch.manual_seed(seed)
        weights = []
        for _ in range(draws):
            z = q.sample()
            weights.append(self.log_likelihood(z) + (prior.log_prob(z) - q.log_prob(z)).sum(1))
        return (torch.stack(weights).view(-1, k, len(self.held_out)).logsumexp(1) - math.log(k)).mean(1)

    def elbos(self, draws: int, seed: int) -> torch.Tensor:
        """Return the ELBO of each draw with the divergence in closed form, mean over the digits, shape (draws,)."""
        q = self.posterior()
        kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        torch.manual_seed(seed)
        return torch.stack([(self.log_likelihood(q.sample()) - kl).mean() for _ in range(draws)])


def standard_error(values: torch.Tensor) -> float:
    """Return the standard error of the mean."""
    return float(values.std() / len(values) ** 0.5)


class TestBounds:
    @pytest.fixture(scope="class")
    def trained(self, digits: torch.Tensor) -> Trained:
        settings = TrainingConfig(epochs=30, batch_size=64, learning_rate=4e-3, patience=10, device="cpu")
        model = network()
        result = train(model, cross_entropy(), digits[:1200], digits[1200:1400], settings, generator(0))
        return Trained(model, result, digits[1400:])

    def test_elbo_exceeds_likelihood_of_independent_pixels(self, trained: Trained, digits: torch.Tensor) -> None:
        share = (digits[:1400].sum(0) + 1) / (1400 + 2)
        independent = Bernoulli(probs=share).log_prob(trained.held_out).sum((1, 2, 3)).mean()
        assert trained.elbos(20, 0).mean() > independent + 4  # nats; measured: −19.7 and −25.3

    def test_elbo_is_slightly_below_importance_weighted_bound(self, trained: Trained) -> None:
        elbo, tighter = trained.elbos(64, 0), trained.bounds(64, 256, 1)
        gap, uncertainty = (
            float(tighter.mean() - elbo.mean()),
            math.hypot(standard_error(elbo), standard_error(tighter)),
        )
        assert gap > 5 * uncertainty
        assert 0.01 < gap / abs(float(elbo.mean())) < 0.06  # measured: 0.69 nats of 19.7, 3.5 %

    def test_importance_weighted_bound_grows_with_samples(self, trained: Trained) -> None:
        # Each bound needs independent samples: with shared samples the order holds for every network.
        one, eight, many = (
            trained.bounds(k, draws, seed) for seed, (k, draws) in enumerate([(1, 64), (8, 128), (64, 256)])
        )
        assert eight.mean() - one.mean() > 3 * math.hypot(standard_error(one), standard_error(eight))
        assert many.mean() - eight.mean() > 3 * math.hypot(standard_error(eight), standard_error(many))

    def test_bound_of_one_sample_equals_the_elbo_on_average(self, trained: Trained) -> None:
        elbo, single = trained.elbos(64, 0), trained.bounds(1, 64, 1)
        assert abs(float(elbo.mean() - single.mean())) < 4 * math.hypot(standard_error(elbo), standard_error(single))

    def test_objective_is_negative_elbo_per_pixel(self, trained: Trained) -> None:
        model, x = copy.deepcopy(trained.model).train(), trained.held_out
        with torch.no_grad():
            result = model(x, generator(5))
            objective = cross_entropy().objective(result, x, 1.0)
        kl = kl_divergence(trained.posterior(), Normal(0.0, 1.0)).sum(1)
        bound = trained.log_likelihood(result.latents) - kl
        torch.testing.assert_close(objective, -bound / PIXELS, rtol=1e-5, atol=1e-6)

    def test_most_latents_are_active(self, trained: Trained) -> None:
        # A latent with a constant mean carries no information (Burda et al. 2016, §5.2).
        assert (trained.posterior().mean.var(0) > 0.01).sum() >= 6


class _FirstColumns(nn.Module):
    """Select the first columns of a matrix."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.count]


FORMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "tied": {"tied": True},
    "linear": {"hidden": ()},
    "conv": {"architecture": "conv", "channels": (8, 16), "hidden": ()},
}


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS.keys())
class TestWithoutDivergence:
    def pair(self, settings: dict[str, Any]) -> tuple[AutoEncoder, AutoEncoder]:
        """Return a variational network, and the plain network with its weights for the means."""
        variational = network(**settings)
        plain = build_model(config(**{**settings, "variational": False}), SHAPE)
        plain_weights = plain.state_dict()
        weights = variational.state_dict()
        assert weights.keys() == plain_weights.keys()
        plain.load_state_dict({name: value[: len(plain_weights[name])] for name, value in weights.items()})
        assert (
            sum(len(weights[name]) != len(value) for name, value in plain_weights.items()) == 2
        )  # weight and bias of one layer
        return variational, plain

    def test_loss_at_beta_zero_equals_plain_form_bit_for_bit(
        self, settings: dict[str, Any], digits: torch.Tensor
    ) -> None:
        variational, _ = self.pair(settings)
        # Compute the variances too and drop them: a smaller matrix product rounds differently.
        means = nn.Sequential(variational.encoder, _FirstColumns(8))
        plain = AutoEncoder(EncoderDecoder(means, variational.decoder), 8, variational.output)
        assert evaluate(variational, cross_entropy(), digits, 0.0) == evaluate(plain, cross_entropy(), digits)

    def test_means_equal_latents_of_the_plain_form(self, settings: dict[str, Any], digits: torch.Tensor) -> None:
        variational, plain = self.pair(settings)
        torch.testing.assert_close(variational.encode(digits), plain.encode(digits), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variational.eval()(digits).output, plain.eval()(digits).output, rtol=1e-5, atol=1e-5)

    def test_beta_adds_the_divergence_to_the_loss(self, settings: dict[str, Any], digits: torch.Tensor) -> None:
        variational, plain = self.pair(settings)
        kl = variational.eval()(digits).kl.double().mean().item() / PIXELS
        expected = evaluate(plain, cross_entropy(), digits) + 0.7 * kl
        assert evaluate(variational, cross_entropy(), digits, 0.7) == pytest.approx(expected, rel=1e-6)


class TestBeta:
    def betas(self, digits: torch.Tensor, **changes: Any) -> tuple[list[set[float]], set[float]]:
        """Return the values of β in the batches of each epoch, and in validation."""
        model, loss = network(hidden=()), cross_entropy()
        calls: list[tuple[bool, float]] = []
        original = loss.objective

        def spy(result: AutoEncoderOutput, x: torch.Tensor, beta: float | torch.Tensor) -> torch.Tensor:
            calls.append((model.training, float(beta)))
            return original(result, x, beta)

        loss.objective = spy  # type: ignore[method-assign]
        settings = TrainingConfig(epochs=6, batch_size=50, patience=6, device="cpu", **changes)
        train(model, loss, digits[:200], digits[200:300], settings, generator(0))
        training = [beta for in_training, beta in calls if in_training]
        assert len(training) == 6 * 4
        return [set(training[start : start + 4]) for start in range(0, 24, 4)], {
            beta for in_training, beta in calls if not in_training
        }

    @pytest.mark.parametrize(
        ("warmup", "expected"),
        [
            (0, [2, 2, 2, 2, 2, 2]),
            (1, [2, 2, 2, 2, 2, 2]),
            (4, [0.5, 1, 1.5, 2, 2, 2]),
            (6, [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]),
            (20, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ],
    )
    def test_beta_rises_in_warmup_and_is_full_in_validation(
        self, digits: torch.Tensor, warmup: int, expected: list[float]
    ) -> None:
        training, validation = self.betas(digits, beta=2.0, beta_warmup=warmup)
        assert all(len(epoch) == 1 for epoch in training)
        assert [min(epoch) for epoch in training] == pytest.approx(expected, rel=1e-12)
        assert validation == {2.0}

    def test_larger_beta_reduces_the_divergence(self, digits: torch.Tensor) -> None:
        kls = []
        for beta in (0.01, 1.0, 20.0):
            model = network(hidden=())
            settings = TrainingConfig(epochs=4, batch_size=50, beta=beta, device="cpu")
            train(model, cross_entropy(), digits[:600], digits[600:700], settings, generator(0))
            kls.append(model(digits[700:]).kl.mean().item())
        assert kls[0] > 2 * kls[1] > 4 * kls[2]

    def test_best_epoch_and_patience_start_after_warmup(self, digits: torch.Tensor) -> None:
        model = network(hidden=())
        settings = TrainingConfig(epochs=30, batch_size=50, patience=2, beta=4.0, beta_warmup=20, device="cpu")
        result = train(model, cross_entropy(), digits[:600], digits[600:700], settings, generator(0))
        assert len(result.epochs) > 20
        assert result.best_epoch >= 20
        assert result.best_loss == min(epoch.validation_loss for epoch in result.epochs[19:])
