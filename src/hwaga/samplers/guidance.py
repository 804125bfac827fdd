"""Guidance: what a network says of x is pushed away from what a worse informed one says.

A guide is a function (network, x, time, conditions, at) -> the raw prediction; `unguided` asks once and adds nothing. What a
guide combines are raw predictions (eps, v, velocity), before the process turns them into x_0.

    classifier_free   uncond + s (cond - uncond), one batch             Ho and Salimans 2022, eq. 6 (s = 1 + w)
    within            another guide, only in an interval of times       Kynkaanniemi et al. 2024
    rescaled          the result brought to the deviation of cond       Lin et al. 2024, eq. 15, 16
    autoguided        weak + s (strong - weak), a worse network         Karras et al. 2024, eq. 3
    perturbed         cond + s (cond - without attention)               Ahn et al. 2024, eq. 15
    by_classifier     x_0 moved along a classifier's gradient           Dhariwal and Nichol 2021, algorithm 2
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..interfaces import Denoise, Point, Prediction
from .denoiser import Conditions, Guide, Network, unguided


def pushed(base: Tensor, towards: Tensor, scale: float, channels: int) -> Tensor:
    """base + scale (towards - base) in the first `channels`; the others (a learned variance) are those of `towards`."""
    a, b = base[:, :channels], towards[:, :channels]
    guided = a + scale * (b - a)
    return torch.cat([guided, towards[:, channels:]], dim=1) if towards.shape[1] > channels else guided


def doubled(null: Conditions) -> Callable[[Conditions], Conditions]:
    """Conditions -> those of both branches, one below the other; made once for the conditions of a call, so that what a network
    keeps of them (keys and values of a text) serves every step."""
    made: list[Conditions] = []

    def both(conditions: Conditions) -> Conditions:
        if not made or made[0] is not conditions:
            made[:] = [conditions, {name: torch.cat([value, null[name]]) for name, value in conditions.items()}]
        return made[1]

    return both


def classifier_free(null: Conditions, scale: float, channels: int | None = None) -> Guide:
    """raw = uncond + scale (cond - uncond), both branches in one batch; a scale of 1 is `unguided`, of 0 has only the null branch.

    null: the conditions of the unconditional branch, shaped as the others. Where the network also predicts a variance
    (twice the channels), only the first half is guided; channels: only so many (DiT's published code guides 3 of 4).
    """
    if scale == 1:
        return unguided
    if scale == 0:
        return lambda network, x, time, conditions, at: network(x, time, **null)
    both = doubled(null)

    def guide(network: Network, x: Tensor, time: Tensor, conditions: Conditions, at: Point) -> Tensor:
        cond, uncond = network(torch.cat([x, x]), torch.cat([time, time]), **both(conditions)).chunk(2)
        return pushed(uncond, cond, scale, channels or x.shape[1])

    return guide


def within(guide: Guide, low: float, high: float, otherwise: Guide = unguided) -> Guide:
    """`guide` at times from low to high, `otherwise` (one evaluation) elsewhere."""

    def chosen(network: Network, x: Tensor, time: Tensor, conditions: Conditions, at: Point) -> Tensor:
        return (guide if low <= at.t <= high else otherwise)(network, x, time, conditions, at)

    return chosen


def rescaled(null: Conditions, scale: float, amount: float, channels: int | None = None) -> Guide:
    """Classifier-free guidance whose result is brought to the standard deviation of the conditional branch, in a share
    `amount` (the paper has 0.7): high scales no longer overexpose."""
    if scale in (0, 1) or amount == 0:
        return classifier_free(null, scale, channels)
    both = doubled(null)

    def guide(network: Network, x: Tensor, time: Tensor, conditions: Conditions, at: Point) -> Tensor:
        cond, uncond = network(torch.cat([x, x]), torch.cat([time, time]), **both(conditions)).chunk(2)
        count = channels or x.shape[1]
        guided, rest = pushed(uncond, cond, scale, count).split([count, cond.shape[1] - count], dim=1)
        axes = tuple(range(1, guided.dim()))
        same = guided * (cond[:, :count].std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return torch.cat([amount * same + (1 - amount) * guided, rest], dim=1)

    return guide


def autoguided(weak: Network, scale: float, inner: Guide = unguided) -> Guide:
    """raw = weak + scale (strong - weak). weak: a smaller, or less trained, network of the same conditions (an earlier
    checkpoint of the run); scale 1 asks the strong network alone. inner: how each of the two is asked."""
    if scale == 1:
        return inner

    def guide(network: Network, x: Tensor, time: Tensor, conditions: Conditions, at: Point) -> Tensor:
        strong = inner(network, x, time, conditions, at)
        return pushed(inner(weak, x, time, conditions, at), strong, scale, x.shape[1])

    return guide


def perturbed(
    without_attention: Callable[[], AbstractContextManager[None]], scale: float, inner: Guide = unguided
) -> Guide:
    """raw = inner + scale (cond - perturbed): inside the context the network's chosen attention layers pass each place's own
    value on. scale 0 is `inner` alone."""
    if scale == 0:
        return inner

    def guide(network: Network, x: Tensor, time: Tensor, conditions: Conditions, at: Point) -> Tensor:
        guided, cond = inner(network, x, time, conditions, at), None
        cond = guided if inner is unguided else network(x, time, **conditions)
        with without_attention():
            worse = network(x, time, **conditions)
        c = x.shape[1]
        moved = guided[:, :c] + scale * (cond[:, :c] - worse[:, :c])
        return torch.cat([moved, guided[:, c:]], dim=1) if guided.shape[1] > c else moved

    return guide


def by_classifier(denoise: Denoise, log_probability: Callable[[Tensor, Point], Tensor], scale: float) -> Denoise:
    """A denoiser moved towards a class: eps' = eps - sigma scale grad log p(class | x_t).

    log_probability(x, at): (n,), differentiable in x, of a classifier trained on noised pictures.
    """
    if scale == 0:
        return denoise

    def guided(x: Tensor, at: Point, to: Point) -> Prediction:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gradient = torch.autograd.grad(log_probability(leaf, at).sum(), leaf)[0]
        said = denoise(x, at, to)
        return said._replace(x0=said.x0 + scale * at.sigma**2 / at.alpha * gradient)

    return guided
