"""DiffAugment: the discriminator sees real and generated pictures only through random changes (Zhao et al. 2020).

    D learns on T(x) and T(G(z)), G learns through T             section 3.2, eq. 3 to 5

With few pictures a discriminator learns them by heart; behind T it cannot. T is differentiable, so that the generator's
gradient passes it, and since what is generated goes through the same T as what is real, the generator does not learn T.

    color         brightness + U(-0.5, 0.5), saturation x U(0, 2), contrast x U(0.5, 1.5)
    translation   by up to an eighth of the size each way, zeros where nothing is left
    cutout        a square of half the size becomes zero

Source: Zhao et al. 2020, section 3.2 and table 4. All draws come from `draw`; none from a global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..interfaces import Draw

Change = Literal["color", "translation", "cutout"]
CHANGES: tuple[Change, ...] = get_args(Change)


def diff_augment(
    image: Float[Tensor, "n c h w"], draw: Draw, policy: Sequence[Change], name: str
) -> Float[Tensor, "n c h w"]:
    """T(x) of pictures in [-1, 1] (afterwards they may leave it). `name` begins the names of the draws, so that two calls
    of one step change pictures differently. ValueError for a change that is unknown."""
    for change in policy:
        if change == "color":
            image = color(image, *draw.uniform(f"{name}.color", (len(image), 3)).to(image.dtype).unbind(1))
        elif change == "translation":
            image = translated(image, draw.uniform(f"{name}.translation", (len(image), 2)))
        elif change == "cutout":
            image = cut(image, draw.uniform(f"{name}.cutout", (len(image), 2)))
        else:
            raise ValueError(f"policy names {change!r}; known are {', '.join(CHANGES)}")
    return image


def color(
    image: Float[Tensor, "n c h w"],
    brightness: Float[Tensor, " n"],
    saturation: Float[Tensor, " n"],
    contrast: Float[Tensor, " n"],
) -> Float[Tensor, "n c h w"]:
    """Brightness, saturation and contrast by numbers in [0, 1); 0.5 of each changes nothing."""
    b, s, c = (value.reshape(-1, 1, 1, 1) for value in (brightness, saturation, contrast))
    image = image + (b - 0.5)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * (2 * s)
    middle = image.mean((1, 2, 3), keepdim=True)
    return middle + (image - middle) * (c + 0.5)


def translated(
    image: Float[Tensor, "n c h w"], place: Float[Tensor, "n 2"], share: float = 0.125
) -> Float[Tensor, "n c h w"]:
    """Moved down and right by whole pixels, -share of the size at place 0 to +share at 1, zeros filled in."""
    for i, side in enumerate(image.shape[2:]):
        most = round(side * share)
        by = (place[:, i] * (2 * most + 1)).floor().long() - most
        source = torch.arange(side, device=image.device) - by[:, None]  # (n, side): where each line comes from
        shape = (len(image), 1, side, 1) if i == 0 else (len(image), 1, 1, side)
        there = ((source >= 0) & (source < side)).reshape(shape).to(image.dtype)
        image = image.gather(2 + i, source.clamp(0, side - 1).reshape(shape).expand_as(image)) * there
    return image


def cut(image: Float[Tensor, "n c h w"], place: Float[Tensor, "n 2"], share: float = 0.5) -> Float[Tensor, "n c h w"]:
    """With a rectangle of `share` of each side made zero; its centre is anywhere in the picture."""
    inside = []
    for i, side in enumerate(image.shape[2:]):
        length = round(side * share)
        start = (place[:, i] * (side + 1 - length % 2)).floor().long() - length // 2
        at = torch.arange(side, device=image.device)
        inside.append((at >= start[:, None]) & (at < start[:, None] + length))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return image * (~hole).to(image.dtype)
