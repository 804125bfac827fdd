"""Tables, levels, conversions and posteriors of Gaussian diffusion."""

import math

import pytest
import torch

from hwaga.processes import process
from hwaga.processes.gaussian import GaussianConfig, GaussianDiffusion
from hwaga.processes.process import Level

SCHEDULES = ["linear", "scaled-linear", "cosine"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_at_table_times_are_the_tables(schedule):
    diffusion = GaussianDiffusion(GaussianConfig(schedule=schedule))
    k = torch.arange(1000)
    level = diffusion.level((k + 1) / 1000)
    assert torch.allclose(level.alpha**2, diffusion.alpha_bar.double(), atol=1e-6)
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(1000, dtype=torch.float64))
    assert diffusion.level(torch.zeros(1)).sigma.item() == 0


def test_published_values_of_the_tables():
    assert abs(GaussianDiffusion(GaussianConfig()).alpha_bar[-1].item() - 4.0358e-5) < 1e-8
    latent = GaussianConfig(schedule="scaled-linear", beta_start=0.00085, beta_end=0.012)
    bars = GaussianDiffusion(latent).alpha_bar
    assert abs(bars[0].item() - 0.99915) < 1e-6 and abs(bars[500].item() - 0.276333) < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_level_is_continuous_and_noise_rises(schedule):
    diffusion = GaussianDiffusion(GaussianConfig(schedule=schedule))
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    sigma = diffusion.level(t).sigma
    assert (sigma.diff() > 0).all() and sigma.diff().max() < 0.05


@pytest.mark.parametrize("kind", process.PREDICTIONS)
def test_every_prediction_gives_the_clean_picture_back(kind):
    x0, eps = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    for level in (Level(0.9, math.sqrt(0.19)), Level(0.1, math.sqrt(0.99))):
        x = process.noised(x0, eps, level)
        back = process.clean(kind, process.target(kind, x0, eps, level), x, level)
        assert torch.allclose(back, x0, atol=1e-10)
        assert torch.allclose(process.noise_in(x, back, level), eps, atol=1e-9)


def test_score_is_the_gradient_of_the_log_density():
    level, x0 = Level(0.8, 0.6), normal(1, 5)
    x = normal(1, 5, seed=1).requires_grad_()
    log_density = torch.distributions.Normal(level.alpha * x0, level.sigma).log_prob(x).sum()
    assert torch.allclose(torch.autograd.grad(log_density, x)[0], process.score(x.detach(), x0, level))


def test_posterior_is_bayes_rule():
    """Density of (x_to | x_at, x0) against the joint of the two Gaussian steps, at many points."""
    diffusion = GaussianDiffusion(GaussianConfig())
    at, to = diffusion.indexed(600), diffusion.indexed(350)
    step = process.posterior(Level(at.alpha, at.sigma), Level(to.alpha, to.sigma))
    x0, x_at = 0.3, -0.7
    x_to = torch.linspace(-10, 10, 8001, dtype=torch.float64)
    a = at.alpha / to.alpha
    forward = torch.distributions.Normal(a * x_to, math.sqrt(step.large)).log_prob(torch.tensor(x_at))
    joint = forward + torch.distributions.Normal(to.alpha * x0, to.sigma).log_prob(x_to)
    density = joint.exp() / torch.trapezoid(joint.exp(), x_to)
    mean = torch.trapezoid(density * x_to, x_to)
    variance = torch.trapezoid(density * (x_to - mean) ** 2, x_to)
    assert abs(mean - (step.from_x * x_at + step.from_x0 * x0)) < 1e-6
    assert abs(variance - step.small) < 1e-6


def test_noising_step_by_step_is_noising_at_once():
    diffusion = GaussianDiffusion(GaussianConfig(timesteps=50))
    x = torch.full((200_000,), 0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for beta in diffusion.betas.double():
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    end = diffusion.indexed(49)
    assert abs(x.mean() - end.alpha * 0.5) < 5e-3 and abs(x.std() - end.sigma) < 5e-3


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
def test_snr_weight_makes_every_prediction_an_error_of_the_noise(predicts):
    config = GaussianConfig(predicts=predicts, weighting="snr")
    diffusion = GaussianDiffusion(config)
    x0, eps, wrong = normal(1, 10), normal(1, 10, seed=1), normal(1, 10, seed=2)
    for k in (10, 500, 900):
        level = diffusion._level_at(k)
        x = process.noised(x0, eps, level)
        raw_error = process.target(predicts, wrong, process.noise_in(x, wrong, level), level) - process.target(
            predicts, x0, eps, level
        )
        noise_error = process.noise_in(x, wrong, level) - eps
        assert torch.allclose(diffusion.weight(level) * raw_error**2, noise_error**2, rtol=1e-6)


def test_min_snr_never_weighs_more_than_gamma():
    for predicts in ("eps", "v", "x0"):
        diffusion = GaussianDiffusion(GaussianConfig(predicts=predicts, weighting="min-snr"))
        for k in range(0, 1000, 37):
            assert diffusion.weight(diffusion._level_at(k)) <= 5.0


def test_learned_range_lies_between_the_two_fixed_variances():
    diffusion = GaussianDiffusion(GaussianConfig(variance="learned-range"))
    at, to = diffusion.indexed(500), diffusion.indexed(499)
    step = process.posterior(Level(at.alpha, at.sigma), Level(to.alpha, to.sigma))
    x = torch.zeros(1, 3, 2, 2)
    for spread, variance in ((-1.0, step.small), (1.0, step.large)):
        raw = torch.cat([x, torch.full_like(x, spread)], dim=1)
        said = diffusion.prediction(raw, x, at, to)
        assert torch.allclose(said.log_variance.exp(), torch.tensor(variance), rtol=1e-5)
