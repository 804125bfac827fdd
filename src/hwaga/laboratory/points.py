"""Point sets whose every noised form is known exactly: mixtures of Gaussians.

Noised to x_t = alpha x_0 + sigma eps, a mixture is one again, with means alpha mu and variances alpha^2 s^2 + sigma^2. So its
density, its score grad log p_t and the mean of x_0 given x_t are plain formulas, for every process and every time:

    log p_t(x) = log sum w_i N(x; alpha mu_i, v_i)          v_i = alpha^2 s_i^2 + sigma^2
    score      = sum r_i (alpha mu_i - x) / v_i             r_i: how likely x came from part i
    E[x_0 | x] = (x + sigma^2 score) / alpha                Tweedie's formula (Efron 2011, eq. 1.4)

Moons and spiral are mixtures too, of many narrow parts along curves. All sets have a standard deviation of about 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import unknown
from ..interfaces import Denoise, Point, Prediction
from ..processes.process import Level, level_of


@dataclass(frozen=True)
class Mixture:
    """weights (k,), means (k, d), deviations (k,): of Gaussians that are round."""

    weights: Tensor
    means: Tensor
    deviations: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Points, float32, by a generator."""
        part = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn((n, self.means.shape[1]), generator=generator)
        return (self.means[part] + self.deviations[part, None] * noise).float()

    def log_density(self, x: Float[Tensor, "n d"], level: Level = Level(1.0, 0.0)) -> Float[Tensor, " n"]:
        """log p_t(x) in nats."""
        return self._parts(x, level)[0].logsumexp(1)

    def score(self, x: Float[Tensor, "n d"], level: Level) -> Float[Tensor, "n d"]:
        """grad log p_t(x), exactly."""
        logs, offset, variance = self._parts(x, level)
        share = logs.softmax(1) / variance
        return (share[:, :, None] * offset).sum(1)

    def clean(self, x: Float[Tensor, "n d"], level: Level) -> Float[Tensor, "n d"]:
        """E[x_0 | x_t = x]. Written part by part, so that alpha may be 0."""
        logs, offset, variance = self._parts(x, level)
        gain = level.alpha * self.deviations.to(x) ** 2 / variance
        told = self.means.to(x) - gain[:, None] * offset  # of each part: mu + gain (x - alpha mu)
        return (logs.softmax(1)[:, :, None] * told).sum(1)

    def denoiser(self) -> Denoise:
        """What a perfect network would say."""

        def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
            return Prediction(self.clean(x, level_of(at)))

        return denoise

    def _parts(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """log (w_i p_i(x)) (n, k), alpha mu_i - x (n, k, d), variances (k,)."""
        means, deviations = self.means.to(x), self.deviations.to(x)
        variance = level.alpha**2 * deviations**2 + level.sigma**2
        offset = level.alpha * means[None] - x[:, None]
        size = offset.square().sum(2) / variance
        constant = self.weights.to(x).log() - 0.5 * means.shape[1] * (2 * math.pi * variance).log()
        return constant - 0.5 * size, offset, variance


def _along(curve: Callable[[Tensor], Tensor], parts: int, deviation: float) -> Mixture:
    means = curve(torch.linspace(0, 1, parts, dtype=torch.float64))
    count = len(means)
    return Mixture(
        torch.full((count,), 1 / count, dtype=torch.float64), means, torch.full((count,), deviation).double()
    )


def mixture() -> Mixture:
    """Six unequal parts: two of them near each other, one far out with a tenth of the weight."""
    means = [[0.7, 0.5], [-0.5, 0.7], [-0.75, -0.1], [-0.35, -0.65], [0.35, -0.6], [0.15, -0.05]]
    weights = [0.25, 0.2, 0.1, 0.15, 0.2, 0.1]
    deviations = [0.12, 0.15, 0.08, 0.1, 0.13, 0.08]
    return Mixture(*(torch.tensor(values, dtype=torch.float64) for values in (weights, means, deviations)))


def moons() -> Mixture:
    """Two half circles that reach into each other."""

    def curve(u: Tensor) -> Tensor:
        upper = torch.stack([torch.cos(math.pi * u), torch.sin(math.pi * u)], 1)
        lower = torch.stack([1 - torch.cos(math.pi * u), 0.5 - torch.sin(math.pi * u)], 1)
        return (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25])) * 0.62

    return _along(curve, 32, 0.04)


def spiral() -> Mixture:
    """Two turns outwards."""

    def curve(u: Tensor) -> Tensor:
        turn, radius = 4 * math.pi * u.sqrt(), 1.05 * u.sqrt()  # evenly along the curve
        return torch.stack([radius * torch.cos(turn), radius * torch.sin(turn)], 1)

    return _along(curve, 64, 0.03)


SETS: dict[str, Callable[[], Mixture]] = {"mixture": mixture, "moons": moons, "spiral": spiral}


def points(name: str) -> Mixture:
    """A point set by its name; InputError names those that there are."""
    if name not in SETS:
        raise unknown("points", name, SETS)
    return SETS[name]()
