"""Processes in continuous time and flows: what their papers say of alpha, sigma, f and g."""

import math

import pytest
import torch
from pydantic import TypeAdapter

from hwaga.errors import InputError
from hwaga.processes import ProcessConfig
from hwaga.processes.continuous import SubVPConfig, VEConfig, VPConfig
from hwaga.processes.flow import FlowConfig
from hwaga.processes.gaussian import GaussianConfig
from hwaga.processes.process import level_of, noised
from hwaga.processes.spacing import Spaced, given
from hwaga.processes.times import TimesConfig, quantile, shifted

ALL = {
    "gaussian": GaussianConfig(), "cosine": GaussianConfig(schedule="cosine"), "flow": FlowConfig(), "vp": VPConfig(),
    "vp-cosine": VPConfig(schedule="cosine"), "sub-vp": SubVPConfig(), "ve": VEConfig(), "score": VEConfig(predicts="score"),
    "vp-score": VPConfig(predicts="score"), "vp-v": VPConfig(predicts="v"), "flow-x0": FlowConfig(predicts="x0"),
    "flow-eps": FlowConfig(predicts="eps"), "sub-vp-score": SubVPConfig(predicts="score"),
}  # fmt: skip
T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_time_is_the_inverse_of_level(name):
    process = ALL[name].build()
    level = process.level(T)
    assert torch.allclose(process.time(level.sigma / level.alpha), T, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_noise_rises_with_time_and_a_point_is_its_level(name):
    process = ALL[name].build()
    level = process.level(T)
    assert ((level.sigma / level.alpha).diff() > 0).all()
    point = process.point(0.5)
    again = process.at_ratio(point.sigma / point.alpha)
    assert point.t == 0.5 and abs(again.t - 0.5) < 1e-7
    assert abs(again.alpha - point.alpha) < 1e-6 and abs(again.sigma - point.sigma) < 1e-6 * max(1, point.sigma)


@pytest.mark.parametrize("name", ALL)
def test_what_the_network_should_say_gives_the_clean_picture_back(name):
    process = ALL[name].build()
    x0, eps = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    for t in (0.05, 0.4, 0.9):
        level = process.levels(torch.tensor([t] * 3), x0)
        x = noised(x0, eps, level)
        assert torch.allclose(process.clean(process.target(x0, eps, level), x, level), x0, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_sensitivity_is_by_how_much_an_error_shows(name):
    process = ALL[name].build()
    x0, eps, wrong = normal(1, 6), normal(1, 6, seed=1), normal(1, 6, seed=2)
    level = level_of(process.point(0.3))
    x = noised(x0, eps, level)
    said = lambda clean: process.target(clean, (x - level.alpha * clean) / level.sigma, level)  # noqa: E731
    assert torch.allclose((said(wrong) - said(x0)).abs(), process.sensitivity(level) * (wrong - x0).abs(), rtol=1e-4)


def test_rates_are_those_of_the_papers():
    beta = 0.1 + T * 19.9
    f, g2 = VPConfig().build().rates(T)
    assert torch.allclose(f, -beta / 2) and torch.allclose(g2, beta)
    f, g2 = SubVPConfig().build().rates(T)
    integral = 0.1 * T + 0.5 * T**2 * 19.9
    assert torch.allclose(f, -beta / 2) and torch.allclose(g2, beta * (1 - torch.exp(-2 * integral)))
    process = VEConfig().build()
    f, g2 = process.rates(T)
    assert (f == 0).all() and torch.allclose(g2, process.level(T).sigma ** 2 * 2 * math.log(80 / 0.002))
    f, g2 = FlowConfig().build().rates(T)
    assert torch.allclose(f, -1 / (1 - T)) and torch.allclose(g2, 2 * T + 2 * T**2 / (1 - T))


def test_noising_in_small_steps_is_noising_at_once():
    """Euler-Maruyama forward, from the rates, reaches the alpha and sigma of the level."""
    for config in (VPConfig(), SubVPConfig(), VEConfig(sigma_max=5.0, sigma_min=0.1), VPConfig(schedule="cosine")):
        process, g = config.build(), torch.Generator().manual_seed(0)
        t = torch.linspace(0, 0.7, 1001, dtype=torch.float64)
        x = torch.full((20_000,), 0.8, dtype=torch.float64)
        x = x + float(process.level(t[:1]).sigma) * torch.randn(x.shape, generator=g, dtype=torch.float64)
        f, g2 = process.rates((t[1:] + t[:-1]) / 2)
        for a, b in zip(f, g2, strict=True):
            x = x + a * x * 0.7e-3 + (b * 0.7e-3).sqrt() * torch.randn(x.shape, generator=g, dtype=torch.float64)
        end = process.point(0.7)
        assert (
            abs(x.mean() / end.alpha - 0.8) < 0.03 * max(1, end.sigma / end.alpha)
            and abs(x.std() / end.sigma - 1) < 0.03
        )


def test_edm_preconditioning_keeps_unit_variance():
    """Input and target have unit variance at every sigma, for data of the stated deviation. Karras et al. 2022, appendix B.6."""
    process = VEConfig(data_deviation=0.5).build()
    x0, eps = 0.5 * normal(200_000, 1), normal(200_000, 1, seed=1)
    for t in (0.1, 0.5, 0.9):
        level = process.levels(torch.tensor([t]), x0)
        assert abs(process.entering(noised(x0, eps, level), level).std() - 1) < 0.01
        assert abs(process.target(x0, eps, level).std() - 1) < 0.01
    sigma = process.point(0.5).sigma
    assert abs(process.point(0.5).fed - math.log(sigma) / 4) < 1e-12
    weight = VEConfig(weighting="edm").build().weight(level_of(process.point(0.5)))
    assert abs(weight - 1) < 1e-6  # the paper's lambda is 1 / c_out^2: an even weight on what the network says


def test_karras_grid_is_the_papers():
    grid = VEConfig().build().grid(18)
    assert (
        len(grid) == 19
        and abs(grid[0].sigma - 80) < 1e-9
        and abs(grid[17].sigma - 0.002) < 1e-9
        and grid[18].sigma == 0
    )
    seventh = [p.sigma ** (1 / 7) for p in grid[:18]]
    assert max(abs((a - b) - (seventh[0] - seventh[1])) for a, b in zip(seventh, seventh[1:], strict=False)) < 1e-9


def test_flow_grids():
    flow = FlowConfig(shift=3.0).build()
    assert [round(p.t, 6) for p in flow.grid(4)] == [1.0, 0.9, 0.75, 0.5, 0.0]
    assert [round(p.t, 6) for p in flow.grid(4, Spaced(shift=1.0))] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert abs(flow.grid(50, Spaced(terminal=0.02))[-2].t - 0.02) < 1e-12
    public = flow.grid(28, Spaced(spacing="linspace"))  # as Stable Diffusion 3's folder has it
    assert abs(public[1].t - 0.98738) < 1e-5 and abs(public[-2].t - 0.0089286) < 1e-6


def test_a_grid_that_is_given_must_fall():
    flow = FlowConfig().build()
    assert [p.t for p in given(flow, Spaced(times=[1.0, 0.5]))] == [1.0, 0.5, 0.0]
    assert [round(p.t, 6) for p in given(flow, Spaced(sigmas=[3.0, 1.0]))] == [0.75, 0.5, 0.0]
    for how, words in (
        (Spaced(times=[0.5, 0.7]), "must fall"), (Spaced(times=[]), "above 0"), (Spaced(times=[1.5, 0.1]), "from 1"),
        (Spaced(times=[0.5], sigmas=[1.0]), "one or the other"), (Spaced(sigmas=["a"]), "above 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            given(flow, how)


class Draw:
    """Uniform numbers as the draw of training gives them."""

    def uniform(self, name, shape):
        return (torch.arange(shape[0]) + 0.5) / shape[0]


@pytest.mark.parametrize("name", ALL)
def test_times_are_drawn_within_a_part_and_over_all(name):
    process = ALL[name].build()
    part = process.draw_times(Draw(), 1000, (0.2, 0.4))
    assert part.min() >= 0.199 and part.max() <= 0.4011 and part.dtype == torch.float64
    whole = process.draw_times(Draw(), 1000)
    assert whole.min() >= 0 and whole.max() <= 1 and whole.std() > 0.05


def test_distributions_of_times():
    flow, u = FlowConfig().build(), (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = quantile(TimesConfig(kind="logit-normal", mean=0.3, spread=0.8), u, flow).logit()
    assert abs(t.mean() - 0.3) < 1e-3 and abs(t.std() - 0.8) < 1e-3
    t = quantile(TimesConfig(kind="log-normal", mean=-1.2, spread=1.2), u, flow)
    ratio = (t / (1 - t)).log()
    assert abs(ratio.mean() + 1.2) < 1e-3 and abs(ratio.std() - 1.2) < 1e-3
    t = quantile(TimesConfig(kind="mode"), u, flow).sort().values
    middle = ((t > 0.45) & (t < 0.55)).double().mean()
    assert t[0] >= -1e-9 and t[-1] <= 1 + 1e-9 and middle > 0.12  # more than an even share in the middle
    assert torch.allclose(quantile(TimesConfig(shift=3.0), u, flow), shifted(u, 3.0))
    assert abs(float(shifted(torch.tensor(0.5), 3.0)) - 0.75) < 1e-7


def test_a_process_is_told_by_its_kind():
    read = TypeAdapter(ProcessConfig).validate_python
    assert isinstance(read({}), GaussianConfig) and isinstance(read({"schedule": "cosine"}), GaussianConfig)
    for kind, cls in (("flow", FlowConfig), ("vp", VPConfig), ("sub-vp", SubVPConfig), ("ve", VEConfig)):
        assert isinstance(read({"kind": kind}), cls)


def test_zero_terminal_signal():
    process = GaussianConfig(
        schedule="scaled-linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True
    ).build()
    plain = GaussianConfig(schedule="scaled-linear", beta_start=0.00085, beta_end=0.012).build()
    assert process.indexed(999).alpha < 1e-6 and abs(process.indexed(0).alpha - plain.indexed(0).alpha) < 1e-6
