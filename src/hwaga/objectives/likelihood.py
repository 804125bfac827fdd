"""The likelihood of pictures by the probability-flow ODE, in nats or in bits a dimension (Song et al. 2021, section 4.3, D.2).

Along dz / ds = v(z, s) the density changes by the divergence of v (instantaneous change of variables, Chen et al. 2018):

    log p(z_0) = log p(z_1) + integral from 0 to 1 of div v(z_s, s) ds

and Hutchinson's estimator has E[e^T (dv/dz) e] = div v for e of random signs: one product with the transposed Jacobian each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..interfaces import Denoise, Noise
from ..processes.process import Process
from ..samplers.ode import integrate, velocity
from ..samplers.path import place, scale

LEAST = 1e-5  # time at which the path begins: at 0 itself no score is known


class Likelihood(NamedTuple):
    nats: Tensor  # (n,) log p(x0)
    latent: Tensor  # (n, ...) the noise that x0 leads to, of about unit variance
    evaluations: int

    @property
    def counted(self) -> str:
        """What a card calls the number that says how it was measured."""
        return "evaluations"

    def named(self) -> dict[str, Tensor]:
        """By the name that the score has."""
        return {"bits": self.bits()}

    def bits(self, levels: int = 256) -> Tensor:
        """Bits a dimension (n,) of pictures in [-1, 1] of so many grey values, on which uniform noise of one value was laid."""
        dimensions = self.latent[0].numel()
        return -self.nats / dimensions / math.log(2) + math.log2(levels / 2)


def likelihood(
    denoise: Denoise, process: Process, x0: Tensor, noise: Noise, *, probes: int = 1, rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Likelihood:  # fmt: skip
    """log p of x0 (n, ...), floating numbers of a density. probes: how many random directions the divergence is averaged
    over; the estimate has no bias with any number. Draws `probe_noise`."""
    directions = [noise("probe_noise", tuple(x0.shape)).sign().to(x0) for _ in range(probes)]
    v, n = velocity(denoise, process), x0.shape[0]
    first, last = process.point(LEAST), process.point(1.0)

    def derivative(state: Tensor, s: float) -> Tensor:
        z = state[:, :-1].view_as(x0).detach()
        with torch.enable_grad():
            z = z.requires_grad_()
            slope = v(z, s)
            divergence = torch.zeros(n, dtype=x0.dtype, device=x0.device)
            for k, e in enumerate(directions):
                product = torch.autograd.grad((slope * e).sum(), z, retain_graph=k < probes - 1)[0]
                divergence = divergence + (product * e).flatten(1).sum(1) / probes
        return torch.cat([slope.detach().flatten(1), divergence[:, None]], dim=1)

    start = torch.cat([(x0 / scale(first, "straight")).flatten(1), torch.zeros_like(x0.flatten(1)[:, :1])], dim=1)
    end, asked = integrate(derivative, start, place(first, "straight"), place(last, "straight"), rtol, atol)
    x1, size = end[:, :-1] * scale(last, "straight"), x0[0].numel()
    deviation = math.hypot(last.alpha, last.sigma) if last.alpha < 0.5 else last.sigma
    prior = -0.5 * (x1 / deviation).square().sum(1) - size * (math.log(deviation) + 0.5 * math.log(2 * math.pi))
    frames = size * (math.log(scale(last, "straight")) - math.log(scale(first, "straight")))
    return Likelihood(prior + frames + end[:, -1], (x1 / deviation).view_as(x0), asked)


def dequantised(pictures: Tensor, noise: Noise, levels: int = 256) -> Tensor:
    """Pictures in [-1, 1] of so many grey values with uniform noise of one value laid on: what a density is asked of.

    Draws `dequantisation_noise`, whose normal numbers are turned into uniform ones.
    """
    uniform = torch.special.ndtr(noise("dequantisation_noise", tuple(pictures.shape)).to(pictures))
    whole = ((pictures / 2 + 0.5) * (levels - 1)).round()
    return (whole + uniform) / levels * 2 - 1
