"""Ways of painting that are made of several: a second pass at a larger size, and a masked region painted at full size.

    second_size      paint, enlarge, noise a share `second_strength` of the way, and walk back at the larger size: composition is
                     what the size of training gives, detail what the larger one has room for
    masked_margin    the region around a mask, with so many pixels beside it, is brought to the trained size, repainted there, and
                     laid back into the picture: small things get all the places that the network has

Neither is in a paper; both are customs of the programs that people paint with. The second pass draws `second_noise`, and
`second_step_noise` where its sampler draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputError
from ..processes.process import level_of, noised
from .base import Request, checked_size, number
from .pictures import read_picture, to_inside
from .sources import read_mask

if TYPE_CHECKING:
    from .diffusion import Diffusion

OWN = {
    "second_size": "(height, width) of a second pass: what was painted is enlarged to it, noised and painted on",
    "second_strength": "how much of it the second pass paints anew: 0.6 if left out",
    "masked_margin": "pixels around the mask that are looked at: the region is repainted at the trained size and laid back",
}
SECOND = 0.6


def second_pass(system: Diffusion, request: Request) -> Tensor:
    """Pictures (n, 3, h, w) of `second_size`, in about [-1, 1]."""
    inputs = dict(request.inputs)
    size = checked_size(inputs.pop("second_size"), system.factor())
    strength = inputs.pop("second_strength", SECOND)
    pictures = system.paint(replace(request, inputs=inputs))
    for name in ("image", "mask", "strength"):
        inputs.pop(name, None)
    larger, drawn = replace(request, size=size, inputs=inputs), request.source()
    x0 = system.inward(resized(pictures.clamp(-1, 1), size))
    run = int(request.steps * strength + 1e-9)
    if run == 0:
        return system.outward(x0)
    grid = system.grid(larger)[-run - 1 :]
    noise = lambda name, shape: drawn(f"second_{name}", shape)  # noqa: E731
    x = noised(x0, noise("noise", tuple(x0.shape)), level_of(grid[0]))
    return system.outward(system.walk(system.asked(larger), x, grid, larger, noise))


def masked_region(system: Diffusion, request: Request) -> Tensor:
    """The whole picture of `image`, (n, 3, h, w) in [-1, 1] at its own size, with the region around its mask repainted."""
    inputs = dict(request.inputs)
    margin = inputs.pop("masked_margin")
    image = read_picture("image", inputs["image"])
    whole = (image.shape[2], image.shape[3])
    mask = read_mask(inputs["mask"], whole)
    top, left, bottom, right = box = region(mask[0, 0], margin)
    here = (slice(None), slice(None), slice(top, bottom), slice(left, right))
    size = size_for(box, system.about.size, system.factor())
    inputs |= {
        "image": resized(image[here], size).clamp(0, 1),
        "mask": (resized(mask[here].float(), size) >= 0.5)[0].float(),
    }
    inputs |= system.of_region(request, whole, box, size)
    painted = system.paint(replace(request, size=size, inputs=inputs)).float()
    out = to_inside(image).to(painted).expand(len(painted), -1, -1, -1).clone()
    there = resized(painted, (bottom - top, right - left))
    out[here] = torch.where(mask[here].to(there.device), there, out[here])
    return out


def region(mask: Tensor, margin: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of what is True in a mask (h, w), with a margin, inside the picture."""
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return top, left, min(mask.shape[0], rows[-1] + 1 + margin), min(mask.shape[1], columns[-1] + 1 + margin)


def size_for(box: tuple[int, int, int, int], trained: tuple[int, int], factor: int) -> tuple[int, int]:
    """The size of a region's shape with about as many pixels as the trained size."""
    height, width = box[2] - box[0], box[3] - box[1]
    scale = math.sqrt(trained[0] * trained[1] / (height * width))
    near = lambda side: max(factor, round(side * scale / factor) * factor)  # noqa: E731
    return near(height), near(width)


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[2:]) == size:
        return pictures
    return interpolate(pictures, size, mode="bicubic", align_corners=False, antialias=True)


WAYS: Mapping[str, Callable[[Any, Request], Tensor]] = {"second_size": second_pass, "masked_margin": masked_region}
"""What a call does instead of painting once, by the keyword that asks for it; the first that is given."""


def _second_size(system: Any, request: Request, value: Any) -> None:
    checked_size(value, system.factor())


def _second_strength(system: Any, request: Request, value: Any) -> None:
    number("second_strength", value, 0, 1)
    if "second_size" not in request.inputs:
        raise InputError("second_strength= given without second_size=; it is of the second pass")


def _margin(system: Any, request: Request, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"masked_margin={value!r}: a number of pixels is needed")
    for name in ("image", "mask"):
        if name not in request.inputs:
            raise InputError(f"masked_margin= given without {name}=; it is around the mask of a picture")
    if "second_size" in request.inputs:
        raise InputError("masked_margin= given with second_size=; one of them at a time")
    image = read_picture("image", request.inputs["image"])
    if not bool(read_mask(request.inputs["mask"], (image.shape[2], image.shape[3])).any()):
        raise InputError("mask= has nothing to repaint: no place of it is 0.5 or more")


CHECKS: Mapping[str, Callable[[Any, Request, Any], None]] = {
    "second_size": _second_size, "second_strength": _second_strength, "masked_margin": _margin,
}  # fmt: skip
