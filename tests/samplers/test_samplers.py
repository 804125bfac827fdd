"""Samplers against closed forms: with data N(0, s^2) the exact denoiser, and so the true end of the path, is known."""

import math

import pytest
import torch

from hwaga.errors import InputError
from hwaga.interfaces import Point, Prediction
from hwaga.processes.gaussian import GaussianConfig, GaussianDiffusion, indices
from hwaga.samplers import SAMPLERS
from hwaga.samplers.ddim import ddim
from hwaga.samplers.ddpm import ddpm
from hwaga.samplers.denoiser import denoiser, unguided
from hwaga.samplers.guidance import classifier_free
from hwaga.samplers.noise import from_seed, replayed

S = 0.5


def exact(x, at, to):
    return Prediction(at.alpha * S**2 / (at.alpha**2 * S**2 + at.sigma**2) * x)


def no_noise(name, shape):
    raise AssertionError(f"{name} drawn by a deterministic sampler")


def path(schedule, n):
    """n steps between t = 0.98 and 0.05, evenly in t."""
    diffusion = GaussianDiffusion(GaussianConfig(schedule=schedule))
    t = torch.linspace(0.98, 0.05, n + 1, dtype=torch.float64)
    level = diffusion.level(t)
    return [Point(*map(float, row), float("nan")) for row in zip(t, level.alpha, level.sigma, strict=True)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddim_has_first_order(schedule):
    errors = []
    for n in (32, 64, 128, 256):
        grid = path(schedule, n)
        spread = lambda p: math.sqrt(p.alpha**2 * S**2 + p.sigma**2)  # noqa: E731
        start = torch.full((1, 1), 2.0, dtype=torch.float64)
        truth = start * spread(grid[-1]) / spread(grid[0])  # the flow keeps x over its standard deviation
        errors.append((ddim(exact, start, grid, noise=no_noise) - truth).abs().item())
    slope = math.log2(errors[0] / errors[-1]) / 3
    assert abs(slope - SAMPLERS["ddim"].order) < 0.15


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ddpm, {"variance": "fixed-small"}),
        (ddpm, {"variance": "fixed-large"}),
        (ddim, {"eta": 1.0}),
        (ddim, {"eta": 0.0}),
    ],
)
def test_all_steps_together_give_the_data_distribution(sampler, options):
    diffusion = GaussianDiffusion(GaussianConfig(schedule="cosine"))
    grid = diffusion.grid(1000)
    generator = torch.Generator().manual_seed(0)
    draw = lambda name, shape: torch.randn(shape, generator=generator)  # noqa: E731
    x = sampler(exact, draw("noise", (20_000, 1)), grid, noise=draw, **options)
    assert abs(x.std().item() - S) < 0.01 and abs(x.mean().item()) < 0.015


def test_ddim_with_eta_one_is_ddpm_with_the_small_variance():
    diffusion = GaussianDiffusion(GaussianConfig())
    grid = diffusion.grid(20)
    start = from_seed(0, [0, 1])("noise", (2, 3, 4, 4))
    one = ddpm(exact, start, grid[:-1], noise=from_seed(1, [0, 1]), variance="fixed-small")
    other = ddim(exact, start, grid[:-1], noise=from_seed(1, [0, 1]), eta=1.0)
    last = grid[-2]
    fresh = from_seed(1, [0, 1])
    draws = [fresh("step_noise", (2, 3, 4, 4)) for _ in range(19)]
    from hwaga.processes.process import Level, posterior

    at = grid[-3]
    step = posterior(Level(at.alpha, at.sigma), Level(last.alpha, last.sigma))
    assert torch.allclose(one + math.sqrt(step.small) * draws[18], other, atol=1e-4)  # DDIM also draws at the end


def test_clipping_holds_x0_after_the_noise_is_taken():
    wild = lambda x, at, to: Prediction(torch.full_like(x, 3.0))  # noqa: E731
    seen = []
    grid = GaussianDiffusion(GaussianConfig()).grid(4)
    end = ddim(wild, torch.zeros(1, 3, 2, 2), grid, noise=no_noise, clip=1.0, callback=lambda s: seen.append(s.x0))
    assert all(x0.max() <= 1.0 for x0 in seen) and torch.equal(end, torch.ones_like(end))


def test_last_draws_are_as_published():
    """DDPM draws nothing in its last step, DDIM with eta > 0 does."""
    counts = {}

    def counting(kind):
        def noise(name, shape):
            counts[kind] = counts.get(kind, 0) + 1
            return torch.zeros(shape)

        return noise

    grid = GaussianDiffusion(GaussianConfig()).grid(5)
    ddpm(exact, torch.zeros(1, 1), grid, noise=counting("ddpm"))
    ddim(exact, torch.zeros(1, 1), grid, noise=counting("ddim"), eta=0.5)
    assert counts == {"ddpm": 4, "ddim": 5}


def test_grids_are_the_public_ones():
    assert indices(1000, 4) == [750, 500, 250, 0]
    assert indices(1000, 4, "trailing") == [999, 749, 499, 249]
    assert indices(1000, 4, "linspace") == [999, 666, 333, 0]
    assert indices(1000, 2, offset=1) == [501, 1]
    with pytest.raises(InputError, match="use 1 to 1000"):
        indices(1000, 1001)
    with pytest.raises(InputError, match="did you mean 'leading'"):
        indices(1000, 4, "leadin")


def test_noise_of_a_picture_is_the_same_in_every_batch():
    alone = from_seed(7, [3])
    together = from_seed(7, [0, 1, 2, 3, 4])
    for _ in range(3):
        assert torch.equal(alone("step_noise", (1, 2, 2))[0], together("step_noise", (5, 2, 2))[3])
    assert not torch.equal(from_seed(8, [3])("noise", (1, 2, 2)), from_seed(7, [3])("noise", (1, 2, 2)))


def test_no_global_generator_is_touched():
    before = torch.random.get_rng_state()
    from_seed(0, [0])("noise", (1, 8))
    assert torch.equal(before, torch.random.get_rng_state())


def test_recorded_noise_is_replayed_in_order_and_runs_out_with_words():
    recorded = {"step_noise": torch.arange(8.0).view(2, 4, 1), "noise": torch.arange(4.0).view(4, 1)}
    noise = replayed(recorded, from_seed(0, [1, 2]), [1, 2], 4)
    assert noise("noise", (2, 1)).flatten().tolist() == [1, 2]
    assert noise("step_noise", (2, 1)).flatten().tolist() == [1, 2]
    assert noise("step_noise", (2, 1)).flatten().tolist() == [5, 6]
    with pytest.raises(InputError, match="holds 2 draws"):
        noise("step_noise", (2, 1))
    with pytest.raises(InputError, match="draws \\(3,\\) a picture"):
        replayed(recorded, from_seed(0, [1]), [1], 4)("noise", (1, 3))


def test_guidance_off_costs_one_evaluation_and_on_costs_one_batch():
    calls = []

    def network(x, time, label):
        calls.append(len(x))
        return x * label.view(-1, 1)

    x, time = torch.ones(2, 1), torch.zeros(2)
    conditions, null = {"label": torch.tensor([2.0, 3.0])}, {"label": torch.tensor([1.0, 1.0])}
    diffusion = GaussianDiffusion(GaussianConfig(predicts="x0"))
    at, to = diffusion.indexed(500), diffusion.indexed(400)
    assert classifier_free(null, 1.0) is unguided
    for scale, expected, batch in ((1.0, [2, 3], 2), (0.0, [1, 1], 2), (3.0, [4, 7], 4), (0.5, [1.5, 2], 4)):
        calls.clear()
        said = denoiser(network, diffusion, conditions, classifier_free(null, scale))(x, at, to)
        assert said.x0.flatten().tolist() == expected and calls == [batch]
    assert time.sum() == 0
