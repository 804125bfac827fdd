"""The two-dimensional laboratory: exact scores are exact, learned ones come near, samplers paint the data."""

import math

import pytest
import torch

from hwaga.errors import InputError
from hwaga.laboratory import figures, learning, measuring
from hwaga.laboratory.points import SETS, points
from hwaga.processes.process import Level
from hwaga.samplers.noise import from_seed, stream


@pytest.fixture(scope="module")
def learned():
    """A variance preserving diffusion of the mixture."""
    return learning.learn(points("mixture"), figures.process_config("vp"), steps=1000)


@pytest.mark.parametrize("name", SETS)
def test_exact_score_is_the_gradient_of_the_density_and_agrees_with_the_mean_of_the_clean_points(name):
    data, level = points(name), Level(0.8, 0.3)
    x = data.draw(50, stream(0, "x")).double().requires_grad_()
    gradient = torch.autograd.grad(data.log_density(x, level).sum(), x)[0]
    assert torch.allclose(data.score(x, level), gradient, atol=1e-8)
    tweedie = (x + level.sigma**2 * gradient) / level.alpha
    assert torch.allclose(data.clean(x, level), tweedie, atol=1e-8)
    assert torch.isfinite(data.clean(x, Level(0.0, 1.0))).all()


def test_the_density_of_a_set_integrates_to_one_and_has_the_samples_moments():
    side = torch.linspace(-3, 3, 301, dtype=torch.float64)
    mesh = torch.cartesian_prod(side, side)
    density = points("mixture").log_density(mesh, Level(0.8, 0.3)).exp()
    assert abs(float(density.sum()) * 0.02**2 - 1) < 1e-6
    for name in SETS:
        assert 0.25 < float(points(name).draw(4000, stream(0, name)).std()) < 0.6


@pytest.mark.parametrize("kind", figures.PROCESSES)
def test_the_exact_denoiser_paints_the_data_by_every_process(kind):
    """Two-sample test at 100 Euler steps of the probability-flow ODE."""
    process, data = figures.process_config(kind).build(), points("mixture")
    got = learning.sample(data.denoiser(), process, 500, "ddim", 100)
    assert measuring.two_sample(got, data.draw(500, stream(1, "truth")), stream(2, "p"))[1] > 0.05


@pytest.mark.parametrize("t", [0.12, 0.3, 0.6])
def test_noise_prediction_is_the_score(learned, t):
    """Claim 25: the cosine of the learned to the exact score is over 0.99 where points are."""
    assert measuring.score_cosine(learned, points("mixture"), t, stream(3, t)) > 0.99


def test_langevin_chains_along_the_learned_score_end_in_the_exact_density(learned):
    """Claim 25, the other half: a two-sample test does not tell them apart."""
    t, n = figures.LANGEVIN_AT, 500
    at, noise = learned.process.point(t), from_seed(0, range(n))
    start = 1.2 * noise("start", (n, 2)) + 0.8
    end = learning.langevin(learned.denoiser(), learned.process, t, start, 400, noise)
    truth = figures.noised_points(points("mixture"), Level(at.alpha, at.sigma), n, stream(4, "truth"))
    assert measuring.two_sample(end, truth, stream(5, "p"))[1] > 0.05
    assert measuring.two_sample(start, truth, stream(5, "p"))[1] < 0.01


def test_the_learned_diffusion_paints_the_data(learned):
    got = learning.sample(learned.denoiser(), learned.process, 400, "ddim", 50)
    truth = points("mixture").draw(400, stream(6, "truth"))
    assert measuring.energy(got, truth) < 0.02
    assert measuring.energy(from_seed(0, range(400))("noise", (400, 2)), truth) > 0.1


def test_two_samples_of_one_distribution_are_told_apart_as_seldom_as_stated():
    g = stream(7, "both")
    values = [
        measuring.two_sample(torch.randn(60, 2, generator=g), torch.randn(60, 2, generator=g), g, 99)[1]
        for _ in range(60)
    ]
    assert sum(p <= 0.1 for p in values) <= 14  # 6 are expected; more than 14 would be chance once in 2,000
    assert measuring.two_sample(torch.randn(60, 2, generator=g), torch.randn(60, 2, generator=g) + 1, g, 99)[1] <= 0.02


def test_curvature_is_zero_for_straight_even_paths_and_that_of_an_arc_is_known():
    t = torch.linspace(1, 0, 401, dtype=torch.float64)
    ends = torch.randn(2, 5, 2, generator=stream(8, "ends"), dtype=torch.float64)
    straight = ends[0] + t[:, None, None] * (ends[1] - ends[0])
    assert measuring.curvature(straight, t) < 1e-20
    quarter = torch.stack([torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)], 1)[:, None]
    # |speed|^2 = (pi/2)^2, |chord|^2 = 2: the mean of |speed - chord|^2 is (pi/2)^2 - 2
    assert abs(measuring.curvature(quarter, t) - ((math.pi / 2) ** 2 - 2) / 2) < 1e-4


def test_flow_paths_of_the_exact_field_bend_less_than_those_of_diffusion():
    bends = {}
    for kind in ("vp", "flow"):
        process, kept = figures.process_config(kind).build(), measuring.Paths()
        learning.sample(points("mixture").denoiser(), process, 200, "ddim", 100, callback=kept)
        far = kept.times >= figures.NEAR_DATA
        bends[kind] = measuring.curvature(kept.points[far], kept.times[far])
    assert bends["flow"] < 0.7 * bends["vp"]


def test_what_the_laboratory_does_not_know_is_refused_by_name():
    with pytest.raises(InputError, match="moons"):
        points("moon")
    with pytest.raises(InputError, match="sub-vp"):
        figures.process_config("vpp")
