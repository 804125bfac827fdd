"""What happens to the pictures that the judging network learns from: small changes that keep the subgroup, and damage.

A classifier alone hardly looks at what painters get wrong: grain, blur, faded colours, two things in one. So half of
the pictures are damaged in one way, and the network learns beside the subgroup which way it was; its features then move
when a set of pictures is damaged so, which a distance between sets must see.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from ..layers.warp import affine, colour_matrix, on_white

KINDS = ("none", "blur", "noise", "colour", "pieces", "blend", "warp")


class Augmentation(BaseModel, frozen=True, extra="forbid"):
    """How far a training picture may be changed; each amount is drawn uniformly between minus and plus the bound."""

    shift: float = Field(0.08, ge=0, le=0.5)  # of the side
    scale: float = Field(0.12, ge=0, lt=1)
    rotation: float = Field(10.0, ge=0, le=180)  # degrees
    resampled: float = Field(0.5, ge=0, le=1)  # share that is scaled and turned; the others move by whole pixels, sharp
    brightness: float = Field(0.03, ge=0, lt=1)
    contrast: float = Field(0.05, ge=0, lt=1)
    saturation: float = Field(0.1, ge=0, le=1)
    hue: float = Field(0.02, ge=0, le=0.5)  # of the circle
    grain: float = Field(0.03, ge=0, le=0.5)  # noise (standard deviation, pixels in [-1, 1]) that no eye sees
    flip: bool = True
    damaged: float = Field(0.5, ge=0, lt=1)  # share of the pictures


class Lesson(NamedTuple):
    """n pictures in [-1, 1] with what is to be said of them."""

    image: Tensor  # (n, 3, s, s)
    target: Tensor  # (n, classes): shares of the classes, adding to 1
    damage: Tensor  # (n,) int64: places in KINDS


def lesson(image: Tensor, target: Tensor, how: Augmentation, generator: torch.Generator) -> Lesson:
    """Pictures (n, 3, s, s) in [-1, 1] and class shares (n, classes), changed and partly damaged by the generator."""
    return damage(coloured(moved(image, how, generator), how, generator), target, how.damaged, generator)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _wide(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def moved(image: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Shifted and mirrored pictures, a share of them scaled and turned too; what enters from outside is white."""
    n, side = len(image), image.shape[-1]
    smooth = (torch.rand(n, generator=generator) < how.resampled).float()
    angle = smooth * _uniform(n, -1, 1, generator) * math.radians(how.rotation)
    zoom = 1 + smooth * _uniform(n, -1, 1, generator) * how.scale
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if how.flip else torch.ones(n)
    move = _uniform(2 * n, -1, 1, generator).view(2, n) * 2 * how.shift
    move = torch.where(smooth > 0, move, (move * side / 2).round() * 2 / side)
    return affine(image, angle, zoom, move, mirror)


def coloured(image: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Slightly other colours, light and grain, as drawings of one thing may have."""
    n = len(image)
    matrix = colour_matrix(
        1 + _uniform(n, -1, 1, generator) * how.saturation, _uniform(n, -1, 1, generator) * how.hue
    ) * (1 + _uniform(n, -1, 1, generator)[:, None, None] * how.contrast)
    light = _uniform(n, -1, 1, generator) * 2 * how.brightness
    grain = _wide(_uniform(n, 0, how.grain, generator)) * torch.randn(image.shape, generator=generator)
    return (torch.einsum("nij,njhw->nihw", matrix, image) + _wide(light) + grain).clamp(-1, 1)


# -------------------------------------------------------------------------------------------------------------- damage


def damage(image: Tensor, target: Tensor, share: float, generator: torch.Generator) -> Lesson:
    """Damages a share of the pictures, each in one way of `KINDS`, from barely visible to plain."""
    n = len(image)
    kind = torch.randint(1, len(KINDS), (n,), generator=generator)
    kind = torch.where(torch.rand(n, generator=generator) < share, kind, torch.zeros_like(kind))
    amount = torch.rand(n, generator=generator)  # 0 mild, 1 strong
    mate, mate_target = image.flip(0), target.flip(0)
    result, shares = image.clone(), target.clone()
    for number, name in enumerate(KINDS):
        at = torch.nonzero(kind == number)[:, 0]
        if not number or not len(at):
            continue
        x, a = image[at], amount[at]
        if name == "blur":
            result[at] = blurred(x, 0.4 + 1.1 * a)
        elif name == "noise":
            result[at] = x + _wide(0.08 + 0.3 * a) * torch.randn(x.shape, generator=generator)
        elif name == "colour":
            fade = torch.rand(len(at), generator=generator) < 0.5
            saturation = torch.where(fade, 0.7 * (1 - a), torch.ones_like(a))
            hue = torch.where(fade, torch.zeros_like(a), 0.08 + 0.84 * a)
            result[at] = torch.einsum("nij,njhw->nihw", colour_matrix(saturation, hue), x)
        elif name == "pieces":
            mask = _halves(len(at), image.shape[-1], generator)
            result[at] = mask * x + (1 - mask) * mate[at]
            shares[at] = 0.5 * (target[at] + mate_target[at])
        elif name == "blend":
            own = 0.9 - 0.4 * a
            result[at] = _wide(own) * x + _wide(1 - own) * mate[at]
            shares[at] = own[:, None] * target[at] + (1 - own[:, None]) * mate_target[at]
        else:
            result[at] = _warped(x, 0.06 + 0.14 * a, generator)
    return Lesson(result.clamp(-1, 1), shares, kind)


def blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma (in pixels) for each picture; borders are repeated."""
    n, channels, height, width = image.shape
    reach = 4
    x = torch.arange(-reach, reach + 1.0)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(image, (reach,) * 4, mode="replicate").reshape(1, n * channels, height + 2 * reach, width + 2 * reach)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=n * channels).view(n, channels, height, width)


def _halves(n: int, side: int, generator: torch.Generator) -> Tensor:
    """(n, 1, side, side): 1 on one of the four halves (left, right, upper, lower) of each."""
    left = (torch.arange(side) < side // 2).float().expand(side, side)
    four = torch.stack([left, 1 - left, left.T, 1 - left.T])
    return four[torch.randint(0, 4, (n,), generator=generator)][:, None]


def _warped(image: Tensor, amplitude: Tensor, generator: torch.Generator) -> Tensor:
    """Bent by a smooth random field; the amplitude is a share of half the side."""
    n, side = len(image), image.shape[-1]
    field = torch.randn(n, 2, 5, 5, generator=generator)
    field = F.interpolate(field, (side, side), mode="bicubic", align_corners=True)
    plain = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(image.shape), align_corners=False)
    return on_white(image, plain + (_wide(amplitude) * field).permute(0, 2, 3, 1))
