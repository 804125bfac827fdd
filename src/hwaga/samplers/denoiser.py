"""From a network to a denoiser: conditions, guidance and process are bound once, and samplers see one signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..interfaces import Denoise, Point, Prediction
from ..processes.gaussian import GaussianDiffusion

Conditions = Mapping[str, Tensor]
Guide = Callable[[Callable[..., Tensor], Tensor, Tensor, Conditions], Tensor]
"""guide(network, x, time, conditions) -> the raw prediction, guided."""


def unguided(network: Callable[..., Tensor], x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    """Exactly one evaluation."""
    return network(x, time, **conditions)


def classifier_free(null: Conditions, scale: float) -> Guide:
    """raw = uncond + scale (cond - uncond), both branches in one batch; a scale of 1 is `unguided`, of 0 has only the null branch.

    null: the conditions of the unconditional branch, shaped as the others. Where the network also predicts a variance
    (twice the channels), only the first half is guided. Source: Ho and Salimans 2022, eq. 6, with s = 1 + w.
    """
    if scale == 1:
        return unguided
    if scale == 0:
        return lambda network, x, time, conditions: network(x, time, **null)

    def guide(network: Callable[..., Tensor], x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        both = {name: torch.cat([value, null[name]]) for name, value in conditions.items()}
        cond, uncond = network(torch.cat([x, x]), torch.cat([time, time]), **both).chunk(2)
        guided = uncond + scale * (cond - uncond)
        c = x.shape[1]
        return torch.cat([guided[:, :c], cond[:, c:]], dim=1) if cond.shape[1] > c else guided

    return guide


def denoiser(
    network: Callable[..., Tensor], process: GaussianDiffusion, conditions: Conditions, guide: Guide = unguided
) -> Denoise:
    """denoise(x, at, to) of a network. The network works in its own dtype; everything here is float32."""

    def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
        time = torch.full((x.shape[0],), at.fed, dtype=torch.float32, device=x.device)
        raw = guide(network, x, time, conditions).float()
        return process.prediction(raw, x, at, to)

    return denoise
