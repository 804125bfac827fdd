"""What the laboratory measures: fields against fields, samples against samples, how straight paths are.

cosine       <a, b> / (|a| |b|) of two vector fields, as functions over the points that p_t draws
energy       2 E|x - y| - E|x - x'| - E|y - y'|: 0 exactly when two distributions are one (Szekely and Rizzo 2013)
curvature    E integral |dx/dt - (x_end - x_start)|^2 dt over E |x_end - x_start|^2: 0 for a straight path at even speed,
             which one step of Euler's method walks exactly (Liu et al. 2023, section 2.2, S, made free of scale)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Step
from .learning import Learned
from .points import Mixture


def cosine(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float:
    """Of two fields at the same points: 1 is one direction and proportion everywhere that points are."""
    return float((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()))


def score_cosine(learned: Learned, data: Mixture, t: float, generator: torch.Generator, n: int = 4000) -> float:
    """Of the learned score to the exact one over points that stand at time t."""
    level = learned.process.level(torch.tensor(t, dtype=torch.float64))
    eps = torch.randn((n, data.means.shape[1]), generator=generator)
    x = float(level.alpha) * data.draw(n, generator) + float(level.sigma) * eps
    exact = data.score(x.double(), type(level)(float(level.alpha), float(level.sigma)))
    return cosine(learned.score(x, t).double(), exact)


def energy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The squared energy distance of two samples (V-statistic: a little above 0 for two samples of one distribution)."""
    x, y = x.double(), y.double()
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def two_sample(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], generator: torch.Generator, permutations: int = 500
) -> tuple[float, float]:
    """The energy distance, and the share of random relabellings with one as large: a p-value of `x and y are alike`."""
    both = torch.cat([x, y]).double()
    distances = torch.cdist(both, both)
    n, m = len(x), len(y)

    def of(side: Tensor) -> Tensor:
        """side (k, n + m): 1 where a point counts as one of x."""
        other = 1 - side
        to_x = side @ distances
        xx, xy = (to_x * side).sum(1) / n**2, (to_x * other).sum(1) / (n * m)
        return 2 * xy - xx - ((other @ distances) * other).sum(1) / m**2

    given = torch.cat([torch.ones(n), torch.zeros(m)]).double()
    drawn = torch.stack([given[torch.randperm(n + m, generator=generator)] for _ in range(permutations)])
    found, by_chance = of(given[None])[0], of(drawn)
    return float(found), float((1 + (by_chance >= found).sum()) / (1 + permutations))


class Paths:
    """A callback of samplers that keeps where every point has been: `points` (steps, n, d) and their `times`."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.at: list[float] = []

    def __call__(self, step: Step) -> None:
        self.kept.append(step.x.clone())
        self.at.append(step.to.t)

    @property
    def points(self) -> Float[Tensor, "s n d"]:
        return torch.stack(self.kept)

    @property
    def times(self) -> Float[Tensor, " s"]:
        return torch.tensor(self.at, dtype=torch.float64)


def curvature(paths: Float[Tensor, "s n ..."], times: Float[Tensor, " s"]) -> float:
    """Of paths that stand at `times`, in the process's own time; 0 is straight and even."""
    flat, t = paths.flatten(2).double(), times.double()
    whole = (flat[-1] - flat[0]) / (t[-1] - t[0])
    length = (t[1:] - t[:-1]).abs()
    speed = (flat[1:] - flat[:-1]) / (t[1:] - t[:-1])[:, None, None]
    off = (speed - whole).square().sum(2)  # (s - 1, n)
    return float((off * length[:, None]).sum(0).mean() / (whole.square().sum(1).mean() * length.sum()))
