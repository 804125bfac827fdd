"""Other views of a drawing that mean what it means: what a network that reads pictures learns from beside the drawing itself.

Shifted, a little larger or smaller, a little turned; other light and colours; some grain and blur, as paintings have them. Never
mirrored: an arrow to the left is not an arrow to the right, and a flag is another one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from ..interfaces import Draw
from ..layers.warp import affine, colour_matrix


class ViewsConfig(BaseModel, frozen=True, extra="forbid"):
    """How far a training picture may be changed; each amount is drawn uniformly between minus and plus the bound."""

    share: float = Field(0.75, ge=0, le=1, description="of the pictures that are changed; the others are as they are")
    shift: float = Field(0.1, ge=0, le=0.5, description="of the side")
    scale: float = Field(0.15, ge=0, lt=1)
    rotation: float = Field(8.0, ge=0, le=45, description="degrees; few, as arrows and clocks must still read the same")
    brightness: float = Field(0.05, ge=0, lt=1)
    contrast: float = Field(0.1, ge=0, lt=1)
    saturation: float = Field(0.15, ge=0, le=1)
    hue: float = Field(0.02, ge=0, le=0.1, description="of the circle; little, as colours have names")
    grain: float = Field(0.1, ge=0, le=0.5, description="standard deviation of noise, of pixels in [-1, 1], at most")
    blur: float = Field(0.5, ge=0, le=1, description="share of a 3 x 3 mean, at most")
    hidden: float = Field(
        0.0, ge=0, le=0.5, description="side of a square that is made white, of the picture's, at most"
    )


def view(image: Float[Tensor, "n c h w"], draw: Draw, how: ViewsConfig) -> Float[Tensor, "n c h w"]:
    """One other view of each picture in [-1, 1], in [-1, 1]; all draws from `draw`, named `view ...`."""
    n = len(image)

    def within(name: str, bound: float, *shape: int) -> Tensor:
        return (draw.uniform(f"view {name}", (n, *shape)) * 2 - 1) * bound

    zoom, move = 1 + within("scale", how.scale), 2 * within("shift", how.shift, 2).T
    seen = affine(image, within("rotation", math.radians(how.rotation)), zoom, move, torch.ones_like(zoom))
    softness = _wide(draw.uniform("view blur", (n,)) * how.blur)
    seen = seen + softness * (F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, 1) - seen)
    colours = colour_matrix(1 + within("saturation", how.saturation), within("hue", how.hue))
    seen = torch.einsum("nij,njhw->nihw", colours * (1 + within("contrast", how.contrast)[:, None, None]), seen)
    grain = _wide(draw.uniform("view grain", (n,)) * how.grain) * draw.normal("view noise", tuple(image.shape))
    seen = (seen + _wide(2 * within("brightness", how.brightness)) + grain).clamp(-1, 1)
    if how.hidden:
        seen = torch.where(_squares(draw, n, image.shape[-2:], how.hidden), 1.0, seen)
    return torch.where(_wide(draw.uniform("view", (n,)) < how.share), seen, image)


def _wide(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _squares(draw: Draw, n: int, size: torch.Size, most: float) -> Tensor:
    """(n, 1, h, w): true in a rectangle of each picture, its sides up to `most` of the picture's."""
    centre, side = draw.uniform("view hidden at", (n, 2)), draw.uniform("view hidden", (n,)) * most
    inside = []
    for i, length in enumerate(size):
        at = (torch.arange(length, device=side.device) + 0.5) / length
        inside.append((at - centre[:, i, None]).abs() < side[:, None] / 2)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
