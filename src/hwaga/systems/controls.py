"""Control maps of a call: ready ones at the call's size, or made from a picture by a kind of `conditioning/control`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..conditioning import control as maps
from ..errors import InputError
from .pictures import read_picture
from .sources import fitted

HOLE = -1.0  # what an inpainting map has where the picture is painted anew


def map_from(
    picture: Any, kind: str, options: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None,
    name: str = "picture",
) -> Float[Tensor, "1 3 h w"]:  # fmt: skip
    """The control map of a picture (path, PIL image, array or tensor in [0, 1]) at (height, width); None: as it is.

    What lies beside the picture pixel by pixel (keypoints, a mask, labels) is taken to be of the picture's own size.
    """
    found, options = maps.find(kind), dict(options or {})
    maps.checked(kind, found.options, options)
    given = read_picture(name, picture)
    if size is None or found.placed(options):
        made = maps.make(kind, given[0], **options)[None]
        return made if size is None else ready(name, made, size)
    return maps.make(kind, fitted(name, given, size)[0], **options)[None]


def ready(name: str, given: Any, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """A control map as it was given, brought to (height, width). Values are in [0, 1], or -1 in all channels of a pixel."""
    if not isinstance(given, np.ndarray | Tensor):
        return fitted(name, given, size)
    given = torch.as_tensor(given).float()
    given = given[None] if given.dim() == 3 else given
    hole = given == HOLE
    if given.dim() != 4 or given.shape[0] != 1 or given.shape[1] != 3 or not bool(hole.any()):
        return fitted(name, given, size)  # a plain picture; or one that is refused
    if not bool((hole.all(1) == hole.any(1)).all()):
        raise InputError(
            f"{name}= has -1 in one channel of a pixel and another value in the others; a hole has -1 in all"
        )
    picture = fitted(name, given.clamp(min=0), size)
    if tuple(given.shape[2:]) == size:
        return torch.where(hole, HOLE, picture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the picture was fitted
        covered = fitted(name, hole.float(), size)
    return torch.where(covered >= 0.5, HOLE, picture)


def resized(control: Float[Tensor, "n 3 h w"], size: tuple[int, int]) -> Float[Tensor, "n 3 y x"]:
    """Maps of training pictures at another size, by areas."""
    return control if tuple(control.shape[2:]) == size else interpolate(control, size, mode="area")
