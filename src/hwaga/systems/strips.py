"""A strip: how a picture drowns in noise, and what the walk back from each noise level makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..processes.process import level_of, noised
from .base import Request

if TYPE_CHECKING:
    from .diffusion import Diffusion


def strip(system: Diffusion, request: Request) -> Tensor:
    """Two rows (n, 3, 2 h, (count + 1) w): one picture at growing noise, and below each what the walk back from there gives."""
    noise, count, grid = request.source(), request.inputs["strip"], system.grid(request)
    x0 = system.source(request) if "image" in request.inputs else system.walked(request, noise)
    denoise = system.asked(request)
    eps = noise("strip_noise", tuple(x0.shape))
    upper, lower = [x0], [x0]
    for k in range(count):
        start = round((len(grid) - 2) * (1 - (k + 1) / count))
        x = noised(x0, eps, level_of(grid[start]))
        upper.append(x)
        lower.append(system.walk(denoise, x, grid[start:], request, noise))
    rows = [torch.cat([system.outward(x).clamp(-1, 1) for x in row], dim=3) for row in (upper, lower)]
    return torch.cat(rows, dim=2)
