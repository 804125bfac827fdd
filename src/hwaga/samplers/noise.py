"""Noise sources: functions (name, shape) -> tensor of which samplers ask all their randomness.

Picture i of seed s has its own stream for every name, drawn in float32 on the CPU: it is the same picture whatever the
number of pictures, the size of the batches or the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..interfaces import Noise


def stream(seed: int, *names: object) -> torch.Generator:
    """A generator that depends on nothing but its arguments."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def from_seed(seed: int, pictures: Sequence[int], device: str | torch.device = "cpu") -> Noise:
    """The noise of the given pictures of a seed. `pictures` are their places in the whole call."""
    streams: dict[str, list[torch.Generator]] = {}

    def noise(name: str, shape: tuple[int, ...]) -> Tensor:
        if shape[0] != len(pictures):
            raise ValueError(f"{name}: asked for {shape[0]} pictures of a source of {len(pictures)}")
        if name not in streams:
            streams[name] = [stream(seed, i, name) for i in pictures]
        return torch.stack([torch.randn(shape[1:], generator=g) for g in streams[name]]).to(device)

    return noise


def replayed(
    recorded: Mapping[str, Tensor],
    fallback: Noise,
    pictures: Sequence[int],
    total: int,
    device: str | torch.device = "cpu",
) -> Noise:
    """Recorded draws instead of fresh ones; names that are not recorded fall back.

    `step_noise` (and every name that ends so) is (draws, total, ...), one a step that draws, in order; any other is
    (total, ...), or (1, ...) to serve all. InputError where a shape does not fit or draws run out.
    """
    drawn: dict[str, int] = {}

    def noise(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in recorded:
            return fallback(name, shape)
        value = recorded[name].float()
        if name.endswith("step_noise"):
            k = drawn[name] = drawn.get(name, -1) + 1
            if k >= value.shape[0]:
                raise InputError(f"noise[{name!r}] holds {value.shape[0]} draws, but this call draws more often")
            value = value[k]
        if value.shape[0] == total:
            value = value[list(pictures)]
        elif value.shape[0] == 1:
            value = value.expand(len(pictures), *value.shape[1:])
        if tuple(value.shape) != tuple(shape):
            have = tuple(recorded[name].shape)
            raise InputError(
                f"noise[{name!r}] has shape {have}; this call of {total} pictures draws {tuple(shape[1:])} a picture"
            )
        return value.to(device)

    return noise
