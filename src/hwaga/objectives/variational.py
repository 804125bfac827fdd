"""The variational bound of a discrete diffusion, term by term, in bits a dimension (Ho et al. 2020, eq. 5).

    prior      KL between q(x_T | x_0) and the standard normal: what the last noise still tells
    steps      KL between the true step back q(x_{k-1} | x_k, x_0) and the model's, k = T-1 ... 1
    decoder    -log p(x_0 | x_1) of the 256 grey values (section 3.3)

Their sum is an upper bound of the negative log-likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interfaces import Denoise, Noise, Point
from ..processes.gaussian import GaussianDiffusion
from ..processes.process import Level, noised, posterior

BITS = 1 / math.log(2)


def gaussian_kl(mean_a: Tensor, log_var_a: Tensor, mean_b: Tensor, log_var_b: Tensor) -> Tensor:
    """KL(a || b) of diagonal Gaussians, elementwise, in nats."""
    return 0.5 * (
        log_var_b - log_var_a - 1 + (log_var_a - log_var_b).exp() + (mean_a - mean_b) ** 2 * (-log_var_b).exp()
    )


def discretised_log_likelihood(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """log of the mass that N(mean, deviation^2) gives to the grey value of x in [-1, 1] (bins of 2/255, the outer two open),
    elementwise, in nats. Source: Ho et al. 2020, eq. 13."""
    half = 1 / 255
    z = lambda edge: (edge - mean) / deviation  # noqa: E731
    upper = torch.where(x > 1 - half, torch.inf, z(x + half))
    lower = torch.where(x < -1 + half, -torch.inf, z(x - half))
    # in the upper tail 1 - cdf is taken instead, where the difference of two numbers near 1 would be lost
    flip = lower > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    normal = torch.special.ndtr
    return (normal(b) - normal(a)).clamp(min=1e-12).log()


def _pixels(value: Tensor) -> Tensor:
    """Mean over all but the first dimension, nats to bits."""
    return value.flatten(1).mean(1) * BITS


def step_term(
    process: GaussianDiffusion, x0: Tensor, x: Tensor, said: Tensor, spread: Tensor, index: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The bound's term (n,) in bits a dimension at a table index a picture, for a learned variance.

    x stands at `index`, said is the denoiser's x_0, spread the network's raw variance. Index 0 gives the decoder's term.
    """
    last = (index == 0).view(-1, *[1] * (x.dim() - 1))
    at = process.levels_at(index, x)
    below = process.levels_at((index - 1).clamp(min=0), x)
    to = Level(torch.where(last, 1.0, below.alpha), torch.where(last, 0.0, below.sigma))
    log_variance = process.learned_log_variance(spread, at, to)
    step = posterior(at, to)
    mean = step.from_x * x + step.from_x0 * said
    true_log = torch.as_tensor(step.small).log().clamp(min=-100.0)  # finite at index 0, which takes the other branch
    kl = gaussian_kl(step.from_x * x + step.from_x0 * x0, true_log, mean, log_variance)
    nll = -discretised_log_likelihood(x0, mean, (0.5 * log_variance).exp())
    return torch.where(last.flatten(), _pixels(nll), _pixels(torch.where(last, torch.zeros_like(kl), kl)))


@dataclass(frozen=True)
class Bound:
    """Terms in bits a dimension, one value a picture (n,)."""

    prior: Tensor
    steps: Tensor  # (n, number of indices): the term at each index, highest first, already weighted to stand for its stratum
    decoder: Tensor
    indices: tuple[int, ...]

    @property
    def total(self) -> Tensor:
        return self.prior + self.steps.sum(1) + self.decoder

    def named(self) -> dict[str, Tensor]:
        """The total and its three parts, by the names that scores have."""
        parts = {"bits_prior": self.prior, "bits_steps": self.steps.sum(1), "bits_decoder": self.decoder}
        return {"bits": self.total, **parts}


def bound(
    denoise: Denoise, process: GaussianDiffusion, x0: Tensor, noise: Noise, *, indices: Sequence[int] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Bound:  # fmt: skip
    """The bound of pictures x0 (n, ...) in [-1, 1]. `indices` of the table (1 ... T-1) to evaluate; None: all of them.

    With fewer, each stands for the indices that are nearest to it, so that the total stays comparable. The variance of the
    model's steps is the process's own (fixed-small where it is fixed-small, else fixed-large or learned).
    """
    total = process.config.timesteps
    chosen = sorted(set(indices) if indices is not None else range(1, total), reverse=True)
    if not chosen or chosen[-1] < 1 or chosen[0] >= total:
        raise ValueError(f"indices must lie in 1 ... {total - 1}")
    edges = [total - 1, *[(a + b) // 2 for a, b in zip(chosen, chosen[1:], strict=False)], 0]
    end = process.indexed(total - 1)
    prior = _pixels(gaussian_kl(end.alpha * x0, torch.tensor(math.log(end.sigma**2)), torch.zeros(()), torch.zeros(())))
    steps, data = [], Point(0.0, 1.0, 0.0, 0.0)
    for count, k in enumerate(chosen):
        at, to = process.indexed(k), process.indexed(k - 1)
        x = noised(x0, noise("step_noise", tuple(x0.shape)), Level(at.alpha, at.sigma))
        mean, log_variance, step = _model_step(denoise, process, x, at, to)
        kl = gaussian_kl(step.from_x * x + step.from_x0 * x0, torch.tensor(math.log(step.small)), mean, log_variance)
        steps.append(_pixels(kl) * (edges[count] - edges[count + 1]))
        if callback:
            callback(count + 1, len(chosen))
    first = process.indexed(0)
    x = noised(x0, noise("step_noise", tuple(x0.shape)), Level(first.alpha, first.sigma))
    mean, log_variance, _ = _model_step(denoise, process, x, first, data)
    decoder = -_pixels(discretised_log_likelihood(x0, mean, (0.5 * log_variance).exp()))
    return Bound(prior, torch.stack(steps, dim=1), decoder, tuple(chosen))


def _model_step(denoise: Denoise, process: GaussianDiffusion, x: Tensor, at: Point, to: Point):  # type: ignore[no-untyped-def]
    said = denoise(x, at, to)
    step = posterior(Level(at.alpha, at.sigma), Level(to.alpha, to.sigma))
    mean = step.from_x * x + step.from_x0 * said.x0.clamp(-1, 1)
    if said.log_variance is not None:
        return mean, said.log_variance, step
    fixed = step.small if process.config.variance == "fixed-small" and to.sigma > 0 else step.large
    return mean, torch.tensor(math.log(fixed)), step
