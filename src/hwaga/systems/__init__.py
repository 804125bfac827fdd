"""The systems. `hwaga.systems()` tells of each; `find` gives the class of a name.

The room itself can be called, so that `hwaga.systems()` and `hwaga.systems.ddpm` are both what they look like.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from ..errors import unknown

if TYPE_CHECKING:
    from .base import System

ROOMS = {
    "vae": ("vae", "VAE"),
    "ddpm": ("ddpm", "DDPM"),
    "gan": ("gan", "GAN"),
    "vqgan": ("vqgan", "VQGAN"),
    "stylegan": ("stylegan", "StyleGAN"),
    "dit": ("dit", "DiT"),
    "stable-diffusion": ("stable_diffusion", "StableDiffusion"),
    "controlnet": ("controlnet", "ControlNet"),
}  # name: (module, class)
PARTS = {"clip": ("clip", "CLIP")}
"""What is trained by a recipe as the systems are and is a part of them: it paints nothing, and `systems()` leaves it out."""

VARIANTS = {
    "stable-diffusion-3": ("stable_diffusion_3", "StableDiffusion3"),
    "vqgan-text": ("vqgan", "TextVQGAN"),
}
"""Later forms of a system with another network: named in recipes and in models, and listed under the system whose form they are."""


def find(name: str) -> type[System]:
    """The class of a system by its name; InputError names those that there are."""
    known = {**ROOMS, **VARIANTS, **PARTS}
    if name not in known:
        raise unknown("system", name, list(known))
    module, cls = known[name]
    return getattr(importlib.import_module(f".{module}", __name__), cls)


def systems() -> list[dict[str, Any]]:
    """Of each system: name, title, year, stages, what `sample` takes, the system's own keywords, public formats."""
    return [find(name).describe() for name in ROOMS]


class _Room(types.ModuleType):
    def __call__(self) -> list[dict[str, Any]]:
        return systems()


sys.modules[__name__].__class__ = _Room
