"""Mean flow: the average velocity over a whole step, instead of the velocity at its beginning (Geng et al. 2025).

A flow's path is walked exactly, in as many steps as one likes, by

    x_r = x_t - (t - r) u(x_t, r, t)        u = 1 / (t - r) integral from r to t of v(x_tau, tau) dtau        eq. 3, 12

and u can be learned without that integral: deriving (t - r) u by t gives the identity

    u(x_t, r, t) = v(x_t, t) - (t - r) d/dt u(x_t, r, t)        d/dt u = v grad_x u + partial_t u             eq. 6, 8

whose right side, with gradients stopped, is what the network is asked for: one derivative along the path, by forward-mode
differentiation, which costs about two more forward passes of the pictures that have r < t. At r = t it is flow matching, so a
trained flow is where it begins.

Guidance is part of the velocity that is learned, so that sampling costs one evaluation a step:

    v = omega (eps - x_0) + kappa u(x_t, t, t | c) + (1 - omega - kappa) u(x_t, t, t | none)                    eq. 19 to 21

which a sampler with scale omega / (1 - kappa) would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..interfaces import Draw, Terms
from ..processes.flow import RectifiedFlow
from ..processes.process import noised
from ..processes.times import TimesConfig, quantile

Network = Callable[..., Tensor]
Conditions = Mapping[str, Tensor]


@torch.no_grad()
def along(
    network: Network, x: Tensor, t: Float[Tensor, " n"], r: Float[Tensor, " n"], v: Tensor, conditions: Conditions
) -> Tensor:
    """The derivative of u(x, r, t) along the path: tangents v for x, 1 for t, 0 for r.

    Attention is written out, as fused kernels have no such derivative, and all is computed in the network's own type: in half
    precision the derivative would be mostly rounding.
    """
    whole = torch.autocast(x.device.type, enabled=False)
    with whole, forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        one = torch.ones_like(t)
        x, t = forward_ad.make_dual(x, v), forward_ad.make_dual(t, one)  # type: ignore[no-untyped-call]
        u, moved = forward_ad.unpack_dual(network(x, t, span=t - r, **conditions))  # type: ignore[no-untyped-call]
    return torch.zeros_like(u) if moved is None else moved


def two_times(process: RectifiedFlow, draw: Draw, n: int, times: TimesConfig, apart: float) -> tuple[Tensor, Tensor]:
    """t and r <= t, (n,) float64: two draws of `times`, of which only a share `apart` keeps its two (eq. 14; section 4.3)."""
    a, b = (quantile(times, draw.uniform(name, (n,)).double().cpu(), process) for name in ("time", "time_to"))
    t, r = torch.maximum(a, b), torch.minimum(a, b)
    return t, torch.where(draw.uniform("apart", (n,)).cpu() < apart, r, t)


def mean_flow(
    network: Network, process: RectifiedFlow, x0: Float[Tensor, "n ..."], conditions: Conditions,
    null: Conditions | None, draw: Draw, *, hidden: Tensor | None = None, times: TimesConfig = TimesConfig(),
    apart: float = 0.25, omega: float = 1.0, kappa: float = 0.0, within: tuple[float, float] = (0.0, 1.0),
    power: float = 1.0, least: float = 1e-3,
) -> Terms:  # fmt: skip
    """`mean_flow`, one value a picture (n,): the squared error of u, weighted by 1 / (error + least)^power (eq. 22); `_error`
    is it without that weight, by number.

    network(x, t, span=t - r, **conditions) predicts u. null: conditions of the unconditional branch (None: no guidance);
    hidden (n,): pictures whose conditions are hidden already, which learn the plain velocity. omega, kappa: see above, at
    times `within` two.
    """
    n, shape = x0.shape[0], (-1, *[1] * (x0.dim() - 1))
    t, r = two_times(process, draw, n, times, apart)
    eps = draw.normal("noise", tuple(x0.shape))
    x = noised(x0, eps, process.levels(t, x0))
    fed, fed_to = (process.fed(value).float().to(x.device) for value in (t, r))
    v = eps - x0
    if null is not None and (omega != 1 or kappa != 0):
        v = torch.where(
            _guided(t, hidden, within).to(x.device).view(shape),
            _velocity(network, x, fed, v, conditions, null, omega, kappa),
            v,
        )
    u = network(x, fed, span=fed - fed_to, **conditions)
    wanted, rows = v.clone(), _apart(t, r, x)  # only where there is a step is a derivative asked for
    if len(rows):
        told = {name: value[rows] for name, value in conditions.items()}
        moved = along(network, x[rows], fed[rows], fed_to[rows], v[rows], told)
        wanted[rows] -= (t - r).to(x)[rows].view(shape) * moved.float()
    error = (u.float() - wanted).square().flatten(1)
    whole = error.sum(1)
    return {"mean_flow": whole / (whole.detach() + least) ** power, "_error": error.mean(1).detach()}


def _apart(t: Tensor, r: Tensor, like: Tensor) -> Tensor:
    """Places of the pictures that have two different times; all of them in a plan of memory, which has no values."""
    planned = hasattr(t, "fake_mode") or hasattr(like, "fake_mode")
    rows = torch.arange(len(t)) if planned else (r < t).nonzero().flatten()
    return rows.to(like.device)


def _guided(t: Tensor, hidden: Tensor | None, within: tuple[float, float]) -> Tensor:
    inside = (t >= within[0]) & (t <= within[1])
    return inside if hidden is None else inside & ~hidden.cpu()


@torch.no_grad()
def _velocity(
    network: Network,
    x: Tensor,
    fed: Tensor,
    v: Tensor,
    conditions: Conditions,
    null: Conditions,
    omega: float,
    kappa: float,
) -> Tensor:
    """The guided velocity (eq. 21); the network says at r = t what it takes for the velocity."""
    here = torch.zeros_like(fed)
    free = network(x, fed, span=here, **null).float()
    if kappa == 0:
        return omega * v + (1 - omega) * free
    told = network(x, fed, span=here, **conditions).float()
    return omega * v + kappa * told + (1 - omega - kappa) * free
