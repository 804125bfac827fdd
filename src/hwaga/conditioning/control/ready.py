"""Control maps that are given as numbers: values in [0, 1], or -1 in all channels of a pixel (a hole, to be painted)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError

HOLE = -1.0


def exact(name: str, given: Any, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"] | None:
    """An array or tensor (3, h, w) or (1, 3, h, w) that is a map of just this size; None for anything that has to be read or
    resized first. InputError for values that no map has."""
    if not isinstance(given, np.ndarray | Tensor):
        return None
    control = torch.as_tensor(given).float()
    control = control[None] if control.dim() == 3 else control
    if tuple(control.shape) != (1, 3, *size):
        return None
    hole = control == HOLE
    if bool(((control < 0) & ~hole).any()) or bool((control > 1).any()) or not bool(torch.isfinite(control).all()):
        raise InputError(f"{name}= has values outside [0, 1]")
    if not bool((hole.all(1) == hole.any(1)).all()):
        raise InputError(
            f"{name}= has -1 in one channel of a pixel and another value in the others; a hole has -1 in all"
        )
    return control
