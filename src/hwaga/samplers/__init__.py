"""Samplers: pure functions of a denoiser, a start, a grid of points and a noise source.

SAMPLERS names them. A sampler has no state between calls, draws only from the noise source it is handed, and gives each
step to a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import InputError
from .ddim import ddim
from .ddpm import ddpm

Check = Callable[[str, Any], None]


def within(least: float, most: float, none: bool = False) -> Check:
    """A check of an option: a number from least to most, or None where that is allowed."""

    def check(name: str, value: Any) -> None:
        if value is None and none:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise InputError(f"{name}={value!r}: a number from {least:g} to {most:g} is needed")

    return check


def one_of(*names: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in names:
            raise InputError(f"{name}={value!r}: one of {', '.join(names)} is needed")

    return check


@dataclass(frozen=True)
class Sampler:
    """A sampler with what is to be known of it."""

    run: Callable[..., Tensor]
    options: Mapping[str, Check]  # keyword arguments that a user may set by `sampler_options`
    order: int  # of convergence, where it is deterministic
    evaluations: int  # calls of the denoiser a step


_CLIP = within(1e-6, 1e6, none=True)
SAMPLERS = {
    "ddpm": Sampler(
        ddpm, {"variance": one_of("fixed-small", "fixed-large", "learned"), "clip": _CLIP}, order=1, evaluations=1
    ),
    "ddim": Sampler(ddim, {"eta": within(0, 1), "clip": _CLIP}, order=1, evaluations=1),
}
