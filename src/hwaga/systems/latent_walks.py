"""What an autoencoder paints beside draws from its prior: reconstructions, the way between two places, one dimension's effect.

A system that uses these has `latents(request, name)`, `latents_of`, `pictures_of`, `label_count`, and declares the keywords
`reconstruct`, `interpolate`, `walk`, `temperature`. A row of pictures is one picture, painted once for each of the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import Request, number
from .pictures import read_picture, to_inside
from .sources import fitted

COLUMNS = 9  # pictures in a row of `walk`
REACH = 3.0  # deviations to each side


def paint(system: Any, request: Request) -> Tensor:
    """Pictures (n, 3, h, w) in about [-1, 1], or rows of them side by side."""
    inputs = request.inputs
    if "reconstruct" in inputs:
        z, label = _encoded(system, request, [_listed(inputs["image"])[k] for k in request.pictures])
        return system.pictures_of(z, label)
    if "interpolate" in inputs:
        return _between(system, request)
    if "walk" in inputs:
        return _walk(system, request)
    z, label = system.latents(request)
    return system.pictures_of(z, label)


def _between(system: Any, request: Request) -> Tensor:
    """A row from one place to another: straight between pictures, along the sphere between draws, whose length it keeps."""
    count = request.inputs["interpolate"]
    if "image" in request.inputs:
        ends, one_label = _encoded(system, request, _listed(request.inputs["image"]))
        first, last = (end.expand(len(request), *end.shape[1:]) for end in ends.split(1))
        label = None if one_label is None else one_label[:1].expand(len(request))
    else:
        (first, label), (last, _) = system.latents(request), system.latents(request, "other_noise")
    shares = torch.linspace(0, 1, count).tolist()
    way = straight if "image" in request.inputs else spherical
    return _row(system, [way(first, last, share) for share in shares], label)


def _walk(system: Any, request: Request) -> Tensor:
    """Rows, one a dimension: the dimension takes each value of a vector, or shifts the whole of a map's channel."""
    if "image" in request.inputs:
        z, label = _encoded(system, request, _listed(request.inputs["image"]))
        z, label = z.expand(len(request), *z.shape[1:]), None if label is None else label.expand(len(request))
    else:
        z, label = system.latents(request)
    rows = []
    for dimension in _dimensions(request.inputs["walk"]):
        places = []
        for value in torch.linspace(-REACH, REACH, COLUMNS).tolist():
            place = z.clone()
            place[:, dimension] = value if z.dim() == 2 else place[:, dimension] + value
            places.append(place)
        rows.append(_row(system, places, label))
    return torch.cat(rows, dim=2)


def _row(system: Any, places: list[Tensor], label: Tensor | None) -> Tensor:
    return torch.cat([system.pictures_of(z, label) for z in places], dim=3)


def straight(a: Tensor, b: Tensor, share: float) -> Tensor:
    return a + (b - a) * share


def spherical(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a (n, ...) to b along the great circle, which draws of a normal in many dimensions lie near (White 2016)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.cosine_similarity(flat_a, flat_b, dim=1, eps=1e-12).clamp(-1, 1)
    angle = torch.acos(cosine).view(-1, *[1] * (a.dim() - 1))
    arc = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle).clamp(min=1e-6)
    return torch.where(torch.sin(angle) < 1e-4, straight(a, b, share), arc)


def _encoded(system: Any, request: Request, images: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Latents of pictures, each brought to the size of the call, and the labels that were given for them."""
    read = [fitted("image", image, request.size) for image in images]
    label = request.label if "label" in request.inputs and request.label is not None else None
    if label is not None and len(label) != len(read):
        label = label[:1].expand(len(read))
    return system.latents_of(to_inside(torch.cat(read)).to(request.device), label), label


def _listed(image: Any) -> list[Any]:
    if isinstance(image, Tensor) and image.dim() == 4:
        return list(image)
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _dimensions(walk: Any) -> list[int]:
    return list(walk) if isinstance(walk, (list, tuple)) else [walk]


# ------------------------------------------------------------------------------------------------------------- what is refused


def how_many(n: int, given: Mapping[str, Any]) -> int:
    """One reconstruction a picture."""
    if given.get("reconstruct") is None or given.get("image") is None:
        return n
    pictures = len(_listed(given["image"]))
    if n not in (1, pictures):
        raise InputError(f"n={n} with {pictures} pictures to reconstruct: there is one of each; leave n out")
    return pictures


def check(system: Any, request: Request) -> None:
    """InputError for what does not go together."""
    inputs = request.inputs
    asked = [name for name in ("reconstruct", "interpolate", "walk") if name in inputs]
    pictures = len(_listed(inputs["image"])) if "image" in inputs else 0
    if len(asked) > 1:
        raise InputError(f"{asked[0]}= and {asked[1]}= given together; ask for one at a time")
    if "temperature" in inputs:
        number("temperature", inputs["temperature"], 0, 1000)
    if not asked:
        if pictures:
            raise InputError(
                f"image= given to {system.title} without reconstruct=, interpolate= or walk=, which use it"
            )
        return
    value = inputs[asked[0]]
    if asked == ["reconstruct"]:
        if value is not True:
            raise InputError(f"reconstruct={value!r}: true is all that it can be; leave it out otherwise")
        if not pictures:
            raise InputError("reconstruct= needs image=: the pictures to reconstruct")
    elif asked == ["interpolate"]:
        if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 100:
            raise InputError(f"interpolate={value!r}: a number of pictures from 2 to 100 is needed")
        if pictures not in (0, 2):
            raise InputError(
                f"interpolate= with {pictures} pictures: image= is two of them, or is left out (two draws)"
            )
    else:
        count = system.config.network.latent_shape(request.size)[0]
        dimensions = _dimensions(value)
        if not 1 <= len(dimensions) <= 100:
            raise InputError(f"walk={value!r}: a latent dimension, or a list of up to 100, is needed")
        for one in dimensions:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < count:
                raise InputError(f"walk={one!r}: latent dimensions run from 0 to {count - 1}")
        if pictures > 1:
            raise InputError(f"walk= with {pictures} pictures: image= is the one to walk from, or is left out (a draw)")
    for image in _listed(inputs.get("image", [])):
        read_picture("image", image)
