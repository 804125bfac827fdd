"""Consistency: every place on a path says the same picture (Song et al. 2023).

A diffusion's ODE leads each noised picture to one clean picture. A consistency function f(x_t, t) names it at once; it is the
one that says the same all along a path and, at the path's end, what is there:

    f(x_t, t) = f(x_s, s)    for x_s on the path of x_t         f(x_0, 0) = x_0

So it is learned by comparing neighbours. Where the neighbour comes from is what tells two methods apart:

    latent consistency   x_s by one step of DDIM with a teacher, guided by a scale that is drawn and told to the student; t, s
                         are neighbours of a grid of N places                             Luo et al. 2023, algorithm 1
    consistency tuning   x_s = alpha_s x_0 + sigma_s eps with the very noise of x_t, no teacher; s begins at 0, where the loss
                         is that of a diffusion, and comes nearer to t as training goes on   Geng et al. 2024 (ECT), eq. 7 to 10

f is c_skip x + c_out x_0, with x_0 from what the network predicts; of noise, v or velocity that keeps the boundary by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..interfaces import Draw, Terms
from ..processes.process import Level, Process, noise_in, noised
from ..samplers.guidance import pushed
from ..samplers.lcm import boundary
from ..samplers.path import held

Network = Callable[..., Tensor]
Conditions = Mapping[str, Tensor]


def consistency(
    network: Network, process: Process, x: Tensor, t: Tensor, conditions: Conditions, scaling: float | None = None
) -> Tensor:
    """f(x, t) of a network for x (n, ...) at times t (n,) in [0, 1]. Where t is 0 it is x.

    scaling: of the time in c_skip and c_out (10 in public models, of indices 0 ... 999); None: c_skip = 0, c_out = 1.
    """
    at_data = t <= 0
    inside = torch.where(at_data, 1.0, t)  # what is said there is not looked at
    level, fed = process.levels(inside, x), process.fed(inside).float().to(x.device)
    raw = network(process.entering(x, level), fed, **conditions).float()
    said = process.clean(raw[:, : x.shape[1]], x, level)
    shape = (-1, *[1] * (x.dim() - 1))
    if scaling is not None:
        skip, out = boundary(fed.view(shape), scaling)
        said = skip * x + out * said
    return torch.where(at_data.to(x.device).view(shape), x, said)


def levels(process: Process, t: Tensor, like: Tensor) -> Level:
    """Levels of times t (n,), of which 0 is the data itself (a table's lowest level is a little above)."""
    level = process.levels(torch.where(t <= 0, 1.0, t), like)
    at_data = (t <= 0).to(like.device).view(-1, *[1] * (like.dim() - 1))
    one, zero = torch.ones((), dtype=like.dtype), torch.zeros((), dtype=like.dtype)
    return Level(torch.where(at_data, one, level.alpha), torch.where(at_data, zero, level.sigma))


def teacher_step(
    teacher: Network, process: Process, x: Tensor, t: Tensor, s: Tensor, conditions: Conditions, null: Conditions,
    scale: Tensor | None, clip: float | None,
) -> Tensor:  # fmt: skip
    """x_s: one step of DDIM from x at times t to s, guided by scales (n,); unguided where there are none.

    clip: x_0 is held to [-clip, clip] after eps is taken, as in sampling. Source: Luo et al. 2023, eq. 14 and 15.
    """
    level, to, fed = process.levels(t, x), levels(process, s, x), process.fed(t).float().to(x.device)
    entering, channels = process.entering(x, level), x.shape[1]
    if scale is None:
        raw = teacher(entering, fed, **conditions).float()[:, :channels]
    else:
        both = {name: torch.cat([value, null[name]]) for name, value in conditions.items()}
        cond, uncond = teacher(torch.cat([entering, entering]), torch.cat([fed, fed]), **both).float().chunk(2)
        shape = (-1, *[1] * (x.dim() - 1))
        raw = pushed(uncond[:, :channels], cond[:, :channels], scale.view(shape), channels)  # type: ignore[arg-type]
    x0 = process.clean(raw, x, level)
    return to.alpha * held(x0, clip, None) + to.sigma * noise_in(x, x0, level)


def latent_consistency(
    student: Network, target: Network, teacher: Network, process: Process, x0: Float[Tensor, "n ..."],
    conditions: Conditions, null: Conditions | None, draw: Draw, *, told: bool = True, places: int = 50,
    scales: tuple[float, float] = (3.0, 15.0), huber: float = 1e-3, scaling: float | None = 10.0, clip: float | None = None,
) -> Terms:  # fmt: skip
    """`consistency`, one value a picture (n,): the pseudo-Huber distance of the student at t from the target at s.

    x0: latents or pixels. null: conditions of the teacher's unconditional branch; None: no guidance, and the student is told
    none. told: whether it is told the scale; one that is not learns the mean over them (Luo et al. 2023b). places: N, the
    neighbours of the grid are 1 / N apart (50: every 20th index of 1000). scales: guidance is drawn evenly between them (the
    paper's w in [2, 14] is a scale in [3, 15]). target: the student's own moving average.
    """
    n = x0.shape[0]
    place = draw.integers("place", places, (n,)).double().cpu()
    t, s = (place + 1) / places, place / places
    x = noised(x0, draw.normal("noise", tuple(x0.shape)), process.levels(t, x0))
    said, scale = dict(conditions), None
    if null is not None:
        scale = scales[0] + (scales[1] - scales[0]) * draw.uniform("guidance", (n,))
        said |= {"guidance": scale} if told else {}
    with torch.no_grad():
        neighbour = teacher_step(teacher, process, x, t, s, conditions, null or {}, scale, clip)
        wanted = consistency(target, process, neighbour, s, said, scaling)
    error = consistency(student, process, x, t, said, scaling) - wanted
    distance = (error.square() + huber**2).sqrt() - huber  # Song and Dhariwal 2024, section 3.3
    return {"consistency": distance.flatten(1).mean(1)}


class Target:
    """A moving average of a network that follows it by one step: at step k it has seen the weights of steps 0 ... k."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.student, self.decay, self.moved = network, decay, -1
        copies: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in network.parameters()
        }
        copies |= {id(b): b.clone() for b in network.buffers()}  # named here, as a plan's tensors have no data to copy
        self.network = copy.deepcopy(network, copies)

    @torch.no_grad()
    def at(self, step: int) -> nn.Module:
        """The average at a step of training; it moves once a step, whatever the number of parts of the batch."""
        if step != self.moved:
            for mine, theirs in zip(self.network.parameters(), self.student.parameters(), strict=True):
                mine.lerp_(theirs.to(mine.dtype), 1 - self.decay)
            self.moved = step
        return self.network


def nearer(ratio: Tensor, doublings: int, base: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """The noise ratio of the neighbour below `ratio` after so many stages: r = t (1 - n(t) / base^doublings), at least 0,
    with n(t) = 1 + k sigmoid(-b t). Source: Geng et al. 2024, eq. 10 and section 4 (q = 2, k = 8, b = 1)."""
    return (ratio * (1 - (1 + k * torch.sigmoid(-b * ratio)) / base**doublings)).clamp(min=0)


def consistency_tuning(
    network: Network, process: Process, x0: Float[Tensor, "n ..."], conditions: Conditions, draw: Draw, *, doublings: int,
    base: float = 2.0, huber: float = 0.06, scaling: float | None = None,
) -> Terms:  # fmt: skip
    """`consistency`, one value a picture (n,): the distance of f at t from f at its neighbour, which has the same noise.

    doublings: how often the neighbour has come nearer; at 0 it is the picture itself. Weighted by 1 / (t - r) in noise
    ratios. huber: c for a picture of one number; it grows with the root of their count.
    """
    t = process.draw_times(draw, x0.shape[0]).cpu()
    at = process.level(t)
    ratio = (torch.as_tensor(at.sigma) / torch.as_tensor(at.alpha).clamp(min=1e-3)).clamp(max=1e3)
    below = nearer(ratio, doublings, base)
    s = torch.where(below > 0, process.time(below), torch.zeros(()).double())
    eps = draw.normal("noise", tuple(x0.shape))
    with torch.no_grad():
        wanted = consistency(network, process, noised(x0, eps, levels(process, s, x0)), s, conditions, scaling)
    error = consistency(network, process, noised(x0, eps, process.levels(t, x0)), t, conditions, scaling) - wanted
    c = huber * error[0].numel() ** 0.5
    distance = (error.square().flatten(1).sum(1) + c**2).sqrt() - c
    return {"consistency": distance / (ratio - below).clamp(min=1e-3).to(distance)}
