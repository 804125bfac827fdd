"""What every process of noising has: x_t = alpha x_0 + sigma eps, and the conversions between what networks predict.

    eps        the noise
    x0         the clean picture
    v          alpha eps - sigma x_0 (Salimans and Ho 2022, section 4 and appendix D)
    velocity   eps - x_0, the derivative of a straight path (Liu et al. 2023, eq. 1; Lipman et al. 2023)
    score      grad log p(x_t) = -eps / sigma (Song et al. 2021)

alpha and sigma are numbers, or tensors that broadcast against x. A `Process` says what they are at a time t from 0 (data) to 1
(noise); sigma / alpha, the noise ratio, is the same path's other name for a place on it.

    x_t = alpha x_0 + sigma eps                       noised
    dx = f x dt + g dw, the same noise in small steps  Process.rates    (Song et al. 2021, eq. 5)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..interfaces import Draw, Point, Prediction
from .spacing import Spaced, at_least_one

Amount = float | Tensor
PREDICTIONS = ("eps", "v", "x0", "velocity", "score")
LEAST_TIME = (
    1e-3  # where sampling in continuous time ends before its last step to the data (Song et al. 2021, appendix C)
)
DATA = Point(0.0, 1.0, 0.0, 0.0)
"""The end of a grid where no noise is left."""


class Level(NamedTuple):
    """How much picture and how much noise there is: x_t = alpha x_0 + sigma eps."""

    alpha: Amount
    sigma: Amount


class Posterior(NamedTuple):
    """q(x_to | x_at, x_0) = N(from_x x_at + from_x0 x_0, small); `large` is the variance of q(x_at | x_to), to scale."""

    from_x: Amount
    from_x0: Amount
    small: Amount
    large: Amount


def noised(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x_t, a picture noised in one step. Source: Ho et al. 2020, eq. 4."""
    return level.alpha * x0 + level.sigma * eps


def target(kind: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """What a network that predicts `kind` should say of noised(x0, eps, level)."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return level.alpha * eps - level.sigma * x0
    if kind == "velocity":
        return eps - x0
    if kind == "score":
        return -eps / level.sigma
    raise ValueError(f"kind={kind!r}: one of {', '.join(PREDICTIONS)}")


def clean(kind: str, raw: Tensor, x: Tensor, level: Level) -> Tensor:
    """x_0 from what the network said (`raw`, of `kind`) of x at `level`; sigma > 0, for eps and score also alpha > 0."""
    alpha, sigma = level
    if kind == "eps":
        return (x - sigma * raw) / alpha
    if kind == "x0":
        return raw
    if kind == "v":
        return (alpha * x - sigma * raw) / (alpha**2 + sigma**2)
    if kind == "velocity":
        return (x - sigma * raw) / (alpha + sigma)
    if kind == "score":
        return (x + sigma**2 * raw) / alpha
    raise ValueError(f"kind={kind!r}: one of {', '.join(PREDICTIONS)}")


def sensitivity(kind: str, level: Level) -> Tensor:
    """By how much an error of x_0 shows in what a network predicts: raw error = sensitivity x (x_0 error), in size."""
    alpha, sigma = (v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for v in level)
    if kind == "eps":
        return alpha / sigma
    if kind == "x0":
        return torch.ones_like(sigma)
    if kind == "v":
        return (alpha**2 + sigma**2) / sigma
    if kind == "velocity":
        return (alpha + sigma) / sigma
    if kind == "score":
        return alpha / sigma**2
    raise ValueError(f"kind={kind!r}: one of {', '.join(PREDICTIONS)}")


def noise_in(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """eps from x and its clean picture."""
    return (x - level.alpha * x0) / level.sigma


def score(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """grad log p(x_t), as far as x0 is the mean of the clean pictures. Source: Song et al. 2021, eq. 7; Tweedie."""
    return -noise_in(x, x0, level) / level.sigma


def posterior(at: Level, to: Level) -> Posterior:
    """The step from `at` to `to` when x_0 is known; to.sigma < at.sigma relative to alpha.

    With a = alpha_at / alpha_to and b = sigma_at^2 - a^2 sigma_to^2 the step noises by x_at = a x_to + sqrt(b) eps.
    Source: Ho et al. 2020, eq. 6 and 7, for any two levels: Kingma et al. 2021, appendix A.2.
    """
    a = at.alpha / to.alpha
    b = at.sigma**2 - a**2 * to.sigma**2
    share = b / at.sigma**2
    return Posterior(a * to.sigma**2 / at.sigma**2, to.alpha * share, to.sigma**2 * share, b)


def snr(level: Level) -> Tensor:
    """Signal-to-noise ratio alpha^2 / sigma^2 (Kingma et al. 2021, eq. 2)."""
    return torch.as_tensor(level.alpha**2 / level.sigma**2)


def held(x0: Tensor, clip: float | None, threshold: float | None) -> Tensor:
    """x_0 within [-clip, clip], or by dynamic thresholding: each picture is divided by s, its `threshold` quantile of |x_0|
    where that is above 1 (at most `clip`, where one is given), and cut to [-1, 1]. Source: Saharia et al. 2022, section 2.3."""
    if threshold is None:
        return x0 if clip is None else x0.clamp(-clip, clip)
    flat = x0.flatten(1)
    s = torch.quantile(flat.abs(), threshold, dim=1, keepdim=True).clamp(min=1, max=max(clip or 1.0, 1.0))
    return (flat.clamp(-s, s) / s).view_as(x0)


def level_of(point: Point) -> Level:
    """The level of a point of a grid."""
    return Level(point.alpha, point.sigma)


class Process:
    """A way of noising: alpha and sigma at each time, what its networks predict and are fed, how it is trained.

    Holds no parameters. A kind of process says `level` and `time`; the rest follows from them.
    """

    config: Any

    # ------------------------------------------------------------------------------------------------- times and levels

    def level(self, t: Tensor) -> Level:
        """alpha and sigma, float64, of times t in [0, 1], any shape."""
        raise NotImplementedError

    def time(self, ratio: Tensor) -> Tensor:
        """The time, float64 in [0, 1], at which sigma / alpha is `ratio`: the inverse of `level`. Clipped to [0, 1]."""
        raise NotImplementedError

    def fed(self, t: Tensor) -> Tensor:
        """What a network is fed at times t; its scale (x 1000) is the network's own matter."""
        return t

    def point(self, t: float) -> Point:
        """Time t as a point of a grid."""
        at = torch.tensor(t, dtype=torch.float64)
        level = self.level(at)
        return Point(float(t), float(level.alpha), float(level.sigma), float(self.fed(at)))

    def at_ratio(self, ratio: float) -> Point:
        """The point at which sigma / alpha is `ratio`, with exactly that ratio."""
        point = self.point(float(self.time(torch.tensor(ratio, dtype=torch.float64))))
        scale = _size(point) / math.hypot(1.0, ratio)
        return point._replace(alpha=scale, sigma=scale * ratio)

    def middle(self, at: Point, to: Point) -> Point:
        """The point halfway in time between two."""
        return self.point((at.t + to.t) / 2)

    def levels(self, t: Tensor, like: Tensor) -> Level:
        """Levels of times t (n,), shaped to broadcast against `like` (n, ...), in its dtype and on its device."""
        level = self.level(t)
        shape = (-1, *[1] * (like.dim() - 1))
        return Level(*(torch.as_tensor(value).to(like).view(shape) for value in level))

    def grid(self, steps: int, how: Spaced = Spaced()) -> list[Point]:
        """`steps` + 1 points from noise to data (spacing.py); the last one is the data.

        In continuous time: evenly from 1 to a least time (linspace, the default), or to 1 / steps (trailing).
        """
        at_least_one(steps)
        last = 1 / steps if how.spacing == "trailing" else LEAST_TIME
        times = torch.linspace(1, last, steps, dtype=torch.float64).tolist() if steps > 1 else [1.0]
        if not how.respaced:
            return [*(self.point(t) for t in times), DATA]
        high, low = self.point(1.0), self.point(LEAST_TIME)
        if high.alpha <= 0:
            high = self.point(1 - LEAST_TIME)
        ratios = how.between(high.sigma / high.alpha, low.sigma / low.alpha, steps)
        return [*(self.at_ratio(float(r)) for r in ratios), DATA]

    def start_scale(self, first: Point, how: Spaced) -> float:
        """What the standard normal noise of the start is multiplied by: sigma there."""
        return first.sigma

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f and g^2 of the noising in small steps, dx = f x dt + g dw, at times t, float64.

        f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2. Source: Kingma et al. 2021, appendix B; for the processes
        of Song et al. 2021 these are their equations 30, 31 and 29.
        """
        with torch.enable_grad():
            at = t.detach().double().requires_grad_()
            alpha, sigma = (torch.as_tensor(value) for value in self.level(at))
            d_log_alpha = _slope(alpha.log(), at)
            d_variance = _slope(sigma**2, at)
        return d_log_alpha, d_variance - 2 * d_log_alpha * sigma.detach() ** 2

    # ------------------------------------------------------------------------------------------------ what a network says

    def entering(self, x: Tensor, level: Level) -> Tensor:
        """What the network is given of x: x itself, unless the process scales it."""
        return x

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What the network should say of noised(x0, eps, level)."""
        return target(self.config.predicts, x0, eps, level)

    def clean(self, raw: Tensor, x: Tensor, level: Level) -> Tensor:
        """x_0 from what the network said."""
        return clean(self.config.predicts, raw, x, level)

    def prediction(self, raw: Tensor, x: Tensor, at: Point, to: Point) -> Prediction:
        """What a denoiser says, from the raw prediction of the network."""
        return Prediction(self.clean(raw, x, level_of(at)))

    # ----------------------------------------------------------------------------------------------------------- training

    def draw_times(self, draw: Draw, n: int, within: tuple[float, float] | None = None) -> Tensor:
        """Times (n,) float64 to train at, as the config distributes them, or evenly `within` a part of [0, 1]."""
        u = draw.uniform("time", (n,)).double()
        if within is not None:
            return (within[0] + (within[1] - within[0]) * u).clamp(self.config.least, 1)
        from .times import quantile

        return quantile(self.config.times, u, self).clamp(self.config.least, 1)

    def weight(self, level: Level) -> Tensor:
        """Weight of the squared error of the raw prediction at a level, by the config's `weighting`."""
        if self.config.weighting == "simple":
            return torch.ones_like(torch.as_tensor(level.sigma))
        from .times import weight

        return weight(self.config.weighting, level, self.sensitivity(level), self.config)

    def sensitivity(self, level: Level) -> Tensor:
        """By how much an error of x_0 shows in the raw prediction."""
        return sensitivity(self.config.predicts, level)


def _size(point: Point) -> float:
    return math.hypot(point.alpha, point.sigma)


def _slope(value: Tensor, at: Tensor) -> Tensor:
    if not value.requires_grad:  # alpha of a variance exploding process
        return torch.zeros_like(at)
    return torch.autograd.grad(value.sum(), at, retain_graph=True)[0]


def falling(points: Sequence[Point]) -> list[Point]:
    """The points, where noise falls from each to the next. InputError names the first that does not."""
    for a, b in zip(points, points[1:], strict=False):
        if not b.sigma * a.alpha < a.sigma * b.alpha:
            raise InputError(f"a grid must fall from noise to data; here t={b.t:g} comes after t={a.t:g}")
    return list(points)
