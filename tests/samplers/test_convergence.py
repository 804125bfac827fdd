"""Every sampler states an order; with data N(0, s^2) the exact denoiser and the true end of the path are known.

Measured between t = 0.8 and 0.1 in float64. The first steps of multistep methods are of lower order: here they begin so short
(the square of a step) that they do not show, and steps of lower order at the end of a grid are left out.
"""

import math

import pytest
import torch

from hwaga.interfaces import Prediction
from hwaga.processes.continuous import SubVPConfig, VEConfig, VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.samplers import SAMPLERS

S = 0.5
PROCESSES = {
    "cosine": VPConfig(schedule="cosine").build(), "flow": FlowConfig().build(), "sub-vp": SubVPConfig().build(),
    "ve": VEConfig(sigma_max=10.0, sigma_min=0.05).build(),
}  # fmt: skip


def exact(x, at, to):
    return Prediction(at.alpha * S**2 / (at.alpha**2 * S**2 + at.sigma**2) * x)


def spread(p):
    return math.sqrt(p.alpha**2 * S**2 + p.sigma**2)


def no_noise(name, shape):
    raise AssertionError(f"{name} drawn by a deterministic sampler")


def path(process, n):
    """Steps that grow from the square of a step to a whole one, each twice the one before, and then n evenly in time."""
    whole = 0.7 / n
    count = math.ceil(math.log2(1 / whole))
    first = [0.8 - whole * 2.0**-count * (2**k - 1) for k in range(count + 1)]
    t = [*first[:-1], *torch.linspace(first[-1], 0.1, n + 1, dtype=torch.float64).tolist()]
    return [process.point(v) for v in t]


def error(run, noising, n, left_out=0, **options):
    grid, seen = path(noising, n), {}
    start = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    run(exact, start, grid, noise=no_noise, callback=lambda step: seen.update({step.index: step}), **options)
    last = seen[len(grid) - 2 - left_out]
    truth = start * spread(last.to) / spread(grid[0])  # the flow keeps x over its standard deviation
    return (last.x - truth).abs().item()


def order_of(run, noising, sizes, **options):
    few, many = (
        n + next(k for k in range(6) if (len(path(noising, n + k)) - 1) % 6 == 1) for n in (sizes[0], sizes[-1])
    )
    return math.log(error(run, noising, few, **options) / error(run, noising, many, **options)) / math.log(many / few)


WHOLE = {"lower_order_final": False}
METHODS = [  # sampler, options, order
    ("ddim", {}, 1), ("euler", {}, 1), ("flow-euler", {}, 1), ("heun", {}, 2), ("flow-heun", {}, 2),
    ("dpm-solver++", {"order": 1}, 1), ("dpm-solver++", {}, 2), ("dpm-solver++", {"solver_type": "heun"}, 2),
    ("dpm-solver++", {"order": 3}, 2),  # as published: half the second difference (samplers/exponential.py)
    ("dpm-solver++", {"order": 3, "solver_type": "polynomial"}, 3), ("dpm-solver++", {"predicts": "eps", "solver_type": "heun"}, 2),
    ("dpm-solver++", {"predicts": "eps", "order": 3, "solver_type": "polynomial"}, 3),
    ("dpm-solver++-single", {"left_out": 1}, 2), ("dpm-solver++-single", {"solver_type": "heun", "left_out": 1}, 2),
    ("dpm-solver++-single", {"order": 3, "left_out": 1}, 3),
    ("unipc", {"order": 1, "corrector": False}, 1), ("unipc", {"corrector": False, **WHOLE}, 2),
    ("unipc", {"corrector": False, "order": 3, **WHOLE}, 3), ("unipc", {"order": 1, **WHOLE}, 2), ("unipc", WHOLE, 3),
    ("unipc", {"solver_type": "bh1", **WHOLE}, 3), ("unipc", {"order": 3, **WHOLE}, 4),
    ("lms", {"order": 1}, 1), ("lms", {"order": 2}, 2), ("lms", {"order": 3}, 3), ("lms", {}, 4),
    ("lms", {"frame": "straight"}, 4), ("rk4", {}, 4),
]  # fmt: skip


@pytest.mark.parametrize("process", ["cosine", "flow"])
@pytest.mark.parametrize(("name", "options", "order"), METHODS)
def test_order_of_convergence(name, options, order, process):
    sizes = (30, 60) if name == "rk4" else (80, 240) if order < 3 else (200, 400)
    own = {"process": PROCESSES[process]} if name == "rk4" else {}
    got = order_of(SAMPLERS[name].run, PROCESSES[process], sizes, **options, **own)
    assert abs(got - order) < 0.15, f"{name} {options} has order {got:.2f} on {process}"


@pytest.mark.parametrize(
    "name", sorted(name for name, s in SAMPLERS.items() if s.stochastic != "yes" and name != "pndm")
)
def test_the_order_that_is_stated_is_that_of_the_default_options(name):
    assert any(order == SAMPLERS[name].order for other, options, order in METHODS if other == name and not
               options.keys() - {"left_out", "lower_order_final"}), name  # fmt: skip


@pytest.mark.parametrize("runge_kutta", [False, True])
def test_pndm_on_its_even_grid_has_second_order(runge_kutta, monkeypatch):
    """As Liu et al. 2022 say in section 3.3: weights of fourth order, but the transfer is DDIM's."""
    even = lambda process, n: [process.point(v) for v in torch.linspace(0.8, 0.1, n + 1, dtype=torch.float64).tolist()]  # noqa: E731
    monkeypatch.setitem(globals(), "path", even)
    process = PROCESSES["cosine"]
    own = {"process": process, "runge_kutta": runge_kutta}
    few, many = (error(SAMPLERS["pndm"].run, process, n, **own) for n in (60, 120))
    assert abs(math.log2(few / many) - SAMPLERS["pndm"].order) < 0.15
