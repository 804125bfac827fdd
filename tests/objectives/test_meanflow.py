"""Mean flow on a Gaussian, where the velocity, its path and its average are known."""

import pytest
import tiny
import torch

from hwaga.objectives.meanflow import along, mean_flow, two_times
from hwaga.processes.flow import FlowConfig
from hwaga.processes.times import TimesConfig

S = 0.5
FLOW = FlowConfig().build()


def spread(t):
    """Standard deviation of x_t where data are N(0, S^2)."""
    return ((1 - t) ** 2 * S**2 + t**2).sqrt()


def velocity(x, t):
    """E[eps - x_0 | x_t]."""
    return x * (t - (1 - t) * S**2)[:, None] / spread(t)[:, None] ** 2


def average(x, t, span):
    """The exact average velocity: a path keeps x / spread, so x_r = x_t spread(r) / spread(t)."""
    r = t - span
    exact = x * (1 - spread(r) / spread(t))[:, None] / span.clamp(min=1e-12)[:, None]
    return torch.where(span[:, None] > 1e-9, exact, velocity(x, t))


def test_the_identity_of_mean_flows_holds_for_the_exact_average_velocity():
    """u = v - (t - r) du/dt, with the derivative taken as training takes it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=g, dtype=torch.float64)
    t = torch.rand(64, generator=g, dtype=torch.float64) * 0.7 + 0.3
    r = t * torch.rand(64, generator=g, dtype=torch.float64) * 0.95
    v = velocity(x, t)
    u, moved = average(x, t, t - r), along(average, x, t, r, v, {})
    assert torch.allclose(u, v - (t - r)[:, None] * moved, atol=1e-10)


def test_derivative_along_the_path_is_that_of_finite_differences():
    g = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 8, 3, generator=g, dtype=torch.float64)
    t, r = torch.full((8,), 0.7, dtype=torch.float64), torch.full((8,), 0.2, dtype=torch.float64)
    h = 1e-6
    forward, backward = (average(x + d * v, t + d, t + d - r) for d in (h, -h))
    assert torch.allclose(along(average, x, t, r, v, {}), (forward - backward) / (2 * h), atol=1e-7)


@pytest.mark.parametrize("kind", ["dit", "ddpm"])
def test_the_networks_of_systems_have_the_derivative(kind):
    """Of fused attention and of filtered convolutions too, as beside them the plain ones are taken."""
    network = {"span": True} if kind == "ddpm" else {"span": True, "width": 16, "depth": 1, "heads": 2}
    if kind == "ddpm":
        network |= {"channels": (16, 32), "attention": (False, True), "groups": 8, "blocks": 1}
    model = getattr(tiny, kind)(labels=False, network=network, process={"kind": "flow"})
    tiny.fill_zeros(model.network)
    net = model.network.double()
    g = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 2, 3, 16, 16, generator=g, dtype=torch.float64)
    t, r = torch.tensor([0.7, 0.4]).double(), torch.tensor([0.3, 0.4]).double()
    moved = along(net, x, t, r, v, {})
    h = 1e-3 / net.config.time_scale
    forward, backward = (net(x + d * v, t + d, span=t + d - r) for d in (h, -h))
    assert (moved - (forward - backward) / (2 * h)).abs().max() < 2e-2 * moved.abs().max()
    net.float()
    with torch.autocast("cpu", torch.bfloat16):
        under = along(net, x.float(), t.float(), r.float(), v.float(), {})
    assert under.dtype == torch.float32
    assert torch.allclose(under, moved.float(), atol=1e-3 * float(moved.abs().max()))


def test_the_exact_average_velocity_is_where_training_comes_to_rest():
    """The gradient for a factor of u is 0 at 1, to sampling; for the velocity in its place it is not, nor at 1.1."""
    x0 = S * torch.randn(40_000, 2, generator=torch.Generator().manual_seed(4))

    def pull(field, at=1.0):
        factor = torch.tensor(at, requires_grad=True)
        terms = mean_flow(
            lambda x, t, span: factor * field(x, t, span), FLOW, x0, {}, None, tiny.Draw(3), apart=1.0, power=0.0,
            times=TimesConfig(kind="logit-normal"),
        )  # fmt: skip
        terms["mean_flow"].mean().backward()
        return abs(float(factor.grad))

    still = pull(average)
    assert still < 0.02 and pull(lambda x, t, span: velocity(x, t)) > 5 * still and pull(average, 1.1) > 5 * still


def test_times_are_ordered_and_equal_as_often_as_asked():
    t, r = two_times(FLOW, tiny.Draw(5), 4000, TimesConfig(kind="logit-normal", mean=-0.4), 0.25)
    assert (r <= t).all() and abs(float((r < t).double().mean()) - 0.25) < 0.03


def test_guidance_is_in_the_velocity_and_leaves_hidden_pictures_alone():
    """A network that ignores x: conditional 2, unconditional 1. omega 2, kappa 0.5: 2 v + 1 - 1.5."""

    def network(x, t, span, label):
        return torch.where(label[:, None] == 9, 1.0, 2.0).expand_as(x) + 0 * x

    x0, label = torch.zeros(6, 2), torch.zeros(6).long()
    hidden = torch.tensor([False] * 5 + [True])
    label = torch.where(hidden, 9, label)
    terms = mean_flow(
        network, FLOW, x0, {"label": label}, {"label": torch.full((6,), 9)}, tiny.Draw(6), hidden=hidden, omega=2.0,
        kappa=0.5, apart=0.0, power=0.0,
    )  # fmt: skip
    again = tiny.Draw(6)
    for name in ("time", "time_to", "apart"):
        again.uniform(name, (6,))
    v = again.normal("noise", (6, 2))
    wanted = torch.where(hidden[:, None], v, 2 * v + 1.0 - 1.5)
    said = torch.where(hidden[:, None], 1.0, 2.0)
    assert torch.allclose(terms["mean_flow"], (said - wanted).square().sum(1), atol=1e-5)
