"""What every process of noising has: x_t = alpha x_0 + sigma eps, and the conversions between what networks predict.

    eps        the noise
    x0         the clean picture
    v          alpha eps - sigma x_0 (Salimans and Ho 2022, section 4 and appendix D)
    velocity   eps - x_0, the derivative of a straight path
    score      grad log p(x_t) = -eps / sigma (Song et al. 2021)

alpha and sigma are numbers, or tensors that broadcast against x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Amount = float | Tensor
PREDICTIONS = ("eps", "v", "x0", "velocity")


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
    raise ValueError(f"kind={kind!r}: one of {', '.join(PREDICTIONS)}")


def clean(kind: str, raw: Tensor, x: Tensor, level: Level) -> Tensor:
    """x_0 from what the network said (`raw`, of `kind`) of x at `level`; sigma > 0, for eps also alpha > 0."""
    alpha, sigma = level
    if kind == "eps":
        return (x - sigma * raw) / alpha
    if kind == "x0":
        return raw
    if kind == "v":
        return (alpha * x - sigma * raw) / (alpha**2 + sigma**2)
    if kind == "velocity":
        return (x - sigma * raw) / (alpha + sigma)
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
