"""From a network to a denoiser: conditions, guidance and process are bound once, and samplers see one signature.

Guidance combines the network's raw predictions, before the process converts them: samplers/guidance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..interfaces import Denoise, Point, Prediction
from ..processes.process import Process, level_of

Conditions = Mapping[str, Tensor]
Network = Callable[..., Tensor]
Guide = Callable[[Network, Tensor, Tensor, Conditions, Point], Tensor]
"""guide(network, x, time, conditions, at) -> the raw prediction, guided."""


def unguided(network: Network, x: Tensor, time: Tensor, conditions: Conditions, at: Point) -> Tensor:
    """Exactly one evaluation."""
    return network(x, time, **conditions)


def denoiser(network: Network, process: Process, conditions: Conditions, guide: Guide = unguided) -> Denoise:
    """denoise(x, at, to) of a network. The network works in its own dtype; everything here is float32."""

    def denoise(x: Tensor, at: Point, to: Point) -> Prediction:
        time = torch.full((x.shape[0],), at.fed, dtype=torch.float32, device=x.device)
        raw = guide(network, process.entering(x, level_of(at)), time, conditions, at).float()
        return process.prediction(raw, x, at, to)

    return denoise


def known_outside(denoise: Denoise, source: Tensor, mask: Tensor) -> Denoise:
    """A denoiser that knows the picture outside the mask (True: painted anew): x_0 there is the source's.

    A sampler that keeps eps then stays, outside, on the source noised by the very noise that x began with; it works with
    every sampler, as x_0 is all that they look at.
    """

    def masked(x: Tensor, at: Point, to: Point) -> Prediction:
        said = denoise(x, at, to)
        return said._replace(x0=torch.where(mask, said.x0, source))

    return masked
