"""Grids: the points at which a sampler stands, from noise to data, as the public schedulers space them."""

from __future__ import annotations

import numpy as np

from ..errors import InputError, unknown
from ..interfaces import Point
from ..processes.gaussian import GaussianDiffusion

SPACINGS = ("leading", "trailing", "linspace")


def indices(timesteps: int, steps: int, spacing: str = "leading", offset: int = 0) -> list[int]:
    """Table indices, highest first, of a grid of `steps`. Source: Lin et al. 2024, table 2.

    InputError if steps is not in 1 ... timesteps. `offset` is added on the leading grid (Stable Diffusion has 1).
    """
    if not 1 <= steps <= timesteps:
        raise InputError(f"steps={steps}: this model was trained with {timesteps} steps; use 1 to {timesteps}")
    if spacing == "leading":
        found = np.arange(steps) * (timesteps // steps) + offset
        found = found[::-1]
    elif spacing == "trailing":
        found = np.round(np.arange(timesteps, 0, -timesteps / steps)) - 1
    elif spacing == "linspace":
        found = np.linspace(0, timesteps - 1, steps).round()[::-1]
    else:
        raise unknown("spacing", spacing, SPACINGS)
    return [int(k) for k in found[:steps].clip(0, timesteps - 1)]


def table_grid(
    process: GaussianDiffusion, steps: int, spacing: str = "leading", offset: int = 0, ends_at_data: bool = True
) -> list[Point]:
    """`steps` + 1 points of a discrete process. The last one is the data (alpha = 1, sigma = 0), or, as a scheduler's
    `set_alpha_to_one: false` asks, the lowest level of the table."""
    walk = [process.point(k) for k in indices(process.config.timesteps, steps, spacing, offset)]
    end = Point(0.0, 1.0, 0.0, 0.0) if ends_at_data else process.point(0)
    return [*walk, end]
