"""Every sampler, on every process that it can, gives the data's distribution: a mixture on the line, whose score is known."""

import math

import pytest
import torch

from hwaga.interfaces import Prediction
from hwaga.processes.continuous import SubVPConfig, VEConfig, VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.processes.gaussian import GaussianConfig
from hwaga.processes.spacing import Spaced
from hwaga.samplers import SAMPLERS

WEIGHT = torch.tensor([0.4, 0.6], dtype=torch.float64)
MEAN = torch.tensor([-1.0, 0.6], dtype=torch.float64)
DEVIATION = torch.tensor([0.2, 0.35], dtype=torch.float64)
N = 4000
PROCESSES = {
    "table": GaussianConfig().build(), "vp": VPConfig().build(), "sub-vp": SubVPConfig().build(),
    "ve": VEConfig(sigma_max=20.0, sigma_min=0.01).build(), "flow": FlowConfig().build(),
}  # fmt: skip


def drawn(seed):
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(WEIGHT, N, replacement=True, generator=g)
    return (MEAN[which] + DEVIATION[which] * torch.randn(N, generator=g, dtype=torch.float64))[:, None]


def exact(x, at, to):
    """E[x_0 | x] by Bayes' rule over the two parts."""
    variance = at.alpha**2 * DEVIATION**2 + at.sigma**2
    log = WEIGHT.log() - 0.5 * variance.log() - 0.5 * (x - at.alpha * MEAN) ** 2 / variance
    means = MEAN + at.alpha * DEVIATION**2 / variance * (x - at.alpha * MEAN)
    return Prediction((torch.softmax(log, dim=1) * means).sum(1, keepdim=True))


def mass_below(x, alpha, sigma):
    variance = alpha**2 * DEVIATION**2 + sigma**2
    return (WEIGHT * torch.special.ndtr((x - alpha * MEAN) / variance.sqrt())).sum(-1)


PLACES = torch.linspace(-3, 3, 6001, dtype=torch.float64)


def consistent(x, at, to):
    """The end of the probability-flow path through x: on the line it keeps the mass below."""
    table = mass_below(PLACES[:, None], 1.0, 0.0)
    mass = mass_below(x, at.alpha, at.sigma)
    index = torch.searchsorted(table, mass).clamp(1, len(PLACES) - 1)
    share = (mass - table[index - 1]) / (table[index] - table[index - 1]).clamp(min=1e-12)
    return Prediction((PLACES[index - 1] + share.clamp(0, 1) * (PLACES[1] - PLACES[0]))[:, None])


def distance(a, b):
    """Kolmogorov's: the largest difference of the two shares below a place."""
    a, b = a.flatten().sort().values, b.flatten().sort().values
    both = torch.cat([a, b])
    return (torch.searchsorted(a, both, right=True) - torch.searchsorted(b, both, right=True)).abs().max().item() / N


def sampled(name, process, steps, options, denoise=exact):
    sampler, g = SAMPLERS[name], torch.Generator().manual_seed(1)
    noise = lambda name, shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    how = Spaced(rule=sampler.rule)
    grid = process.grid(steps, how)
    own = {"process": process} if sampler.asks_process else {}
    start = noise("noise", (N, 1)) * process.start_scale(grid[0], how)
    return sampler.run(denoise, start, grid, noise=noise, **own, **options)


CASES = [  # sampler, options, steps, processes
    ("ddpm", {}, 500, ("table", "vp", "ve", "flow")), ("ddpm", {"variance": "fixed-small"}, 300, ("table", "flow")),
    ("ddim", {}, 100, ("table", "vp", "sub-vp", "ve", "flow")), ("ddim", {"eta": 1.0}, 300, ("table", "flow")),
    ("euler", {}, 100, ("table", "ve", "flow")), ("euler", {"churn": 20.0}, 200, ("table", "ve")),
    ("euler", {"stochastic": True}, 300, ()), ("euler-ancestral", {}, 300, ("table", "ve", "flow")),
    ("heun", {}, 40, ("table", "vp", "ve")), ("heun", {"churn": 10.0}, 60, ("table", "ve")),
    ("lms", {}, 60, ("table", "ve")), ("pndm", {}, 100, ("table",)), ("pndm", {"runge_kutta": True}, 50, ("table",)),
    ("dpm-solver++", {}, 50, ("table", "vp", "ve", "flow")), ("dpm-solver++", {"order": 3}, 30, ("table", "flow")),
    ("dpm-solver++", {"stochastic": True}, 100, ("table", "ve")), ("dpm-solver++-single", {}, 40, ("table", "flow")),
    ("dpm-solver++-single", {"order": 3, "stochastic": True}, 150, ("table",)), ("unipc", {}, 30, ("table", "ve", "flow")),
    ("unipc", {"order": 3}, 30, ("table", "flow")), ("flow-euler", {}, 100, ("flow", "table")),
    ("flow-heun", {}, 30, ("flow", "table", "sub-vp")), ("rk4", {}, 20, ("flow", "table", "vp", "sub-vp")),
    ("reverse-sde", {}, 400, ("table", "vp", "sub-vp", "ve")), ("predictor-corrector", {}, 200, ("table", "ve", "flow")),
    ("langevin", {"corrections": 20, "rate": 0.1}, 60, ("table", "ve")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "steps", "process"),
    [(name, options, steps, process) for name, options, steps, processes in CASES for process in processes],
)
def test_it_gives_the_distribution_of_the_data(name, options, steps, process):
    got, truth = sampled(name, PROCESSES[process], steps, options), drawn(0)
    assert abs(got.mean() - truth.mean()) < 0.05 and abs(got.std() / truth.std() - 1) < 0.04
    assert distance(got, truth) < 1.95 * math.sqrt(2 / N)  # exceeded by chance once in a thousand


def test_consistency_sampling_gives_it_from_a_consistent_model():
    for steps in (1, 2, 4):
        got = sampled("lcm", PROCESSES["table"], steps, {"timestep_scaling": None}, consistent)
        assert distance(got, drawn(0)) < 1.95 * math.sqrt(2 / N)


def test_every_sampler_is_in_the_table():
    assert {name for name, *_ in CASES} | {"lcm"} == set(SAMPLERS)


def test_two_steps_of_dpm_solver_do_more_than_two_of_ddim():
    error = lambda name: distance(sampled(name, PROCESSES["table"], 8, {}), drawn(0))  # noqa: E731
    assert error("dpm-solver++") < error("ddim")
