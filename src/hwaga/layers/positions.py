"""Where a token stands on a picture: fixed sines and cosines that are added, or rotations of queries and keys.

Places are counted in rows and columns of tokens. A network that was trained on one grid of places sees another one
stretched over it: place r of h rows is r * grid / h.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int]


def _places(count: int, trained: int | None) -> Tensor:
    """The places 0 ... count - 1 of one side, in float64, brought to a trained grid where there is one."""
    return torch.arange(count, dtype=torch.float64) * ((trained or count) / count)


def positions_2d(
    kind: str, width: int, heads: int, place: Grid, grid: Grid | None, extra: int, like: Tensor
) -> tuple[Tensor | float, Tensor | None]:  # fmt: skip
    """What is added to tokens that stand on `place` (rows, columns), and by what their queries and keys are turned: of the
    kinds `sine-cosine` the first, `rope` the second, `none` neither. `extra` tokens stand beside the picture."""
    if kind == "rope":
        return 0.0, rotations_2d(width // heads, *place, grid, extra, like.device)
    return sine_cosine_2d(width, *place, grid, like.device).to(like.dtype) if kind == "sine-cosine" else 0.0, None


@lru_cache(maxsize=32)
def sine_cosine_2d(
    width: int, height: int, columns: int, grid: Grid | None, device: torch.device
) -> Float[Tensor, "l width"]:
    """Fixed position vectors of height x columns tokens, row by row, float32; `width` is a multiple of 4.

    The first half of a vector tells the column, the second the row; within a half sines come before cosines, at the
    frequencies 10000^(-i / (width / 4)). Source: Dosovitskiy et al. 2021, appendix D.4; Peebles and Xie 2022, section 3.2.
    """
    quarter = width // 4
    omega = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, across = (_places(n, None if grid is None else grid[k]) for k, n in enumerate((height, columns)))
    halves = []
    for place in (across.repeat(height), rows.repeat_interleave(columns)):
        angle = place[:, None] * omega
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float().to(device)


@lru_cache(maxsize=32)
def rotations_2d(
    head_width: int, height: int, columns: int, grid: Grid | None, extra: int, device: torch.device
) -> Float[Tensor, "two l half"]:
    """Cosines and sines of the angles by which `rotated` turns a head's pairs, float32; head_width is a multiple of 4.

    The first half of the pairs turns with the row, the second with the column, at the frequencies
    10000^(-i / (head_width / 4)). `extra` tokens at the end stand nowhere and are not turned.
    Source: Su et al. 2021, eq. 15; two axes: Heo et al. 2024, section 3.2 (axial).
    """
    quarter = head_width // 4
    omega = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, across = (_places(n, None if grid is None else grid[k]) for k, n in enumerate((height, columns)))
    angle = torch.cat([rows.repeat_interleave(columns)[:, None] * omega, across.repeat(height)[:, None] * omega], dim=1)
    angle = torch.cat([angle, torch.zeros(extra, 2 * quarter, dtype=torch.float64)])
    return torch.stack([angle.cos(), angle.sin()]).float().to(device)


def rotated(x: Float[Tensor, "n heads l d"], rotation: Float[Tensor, "two l half"]) -> Float[Tensor, "n heads l d"]:
    """Each pair (x_i, x_{i + d/2}) turned by its token's angle."""
    cos, sin = rotation.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
