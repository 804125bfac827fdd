"""Control maps of a call: ready ones at the call's size, or made from a picture by a kind of `conditioning/control`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..conditioning import control as maps
from ..conditioning.control.ready import HOLE, exact
from .pictures import read_picture
from .sources import fitted


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
    own = (int(given.shape[-2]), int(given.shape[-1])) if given.ndim > 1 else (0, 0)
    whole = exact(name, given, own)
    if whole is None or not bool((whole == HOLE).any()):
        return fitted(name, given, size)  # a plain picture, or none
    picture, hole = fitted(name, whole.clamp(min=0), size), (whole == HOLE).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the picture was fitted
        return torch.where(fitted(name, hole, size) >= 0.5, HOLE, picture)
