"""From the keywords of `sample` to a checked request, and from a request to the batches that are painted.

Everything that a user can get wrong is found here, before anything is painted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, WorkError, unknown
from ..interfaces import Callback, Noise, Step
from ..samplers import SAMPLERS
from ..samplers.noise import from_seed, replayed, stream

PIXELS_A_BATCH = 2**18  # pictures are painted in batches of about as many pixels: 256 of 32 x 32, 1 of 512 x 512


@dataclass(frozen=True)
class Defaults:
    """What `None` means for a model."""

    sampler: str
    steps: Mapping[str, int]  # by sampler
    guidance_scale: float = 1.0
    sampler_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A checked call of `sample`, or the part of it that is painted in one batch."""

    pictures: tuple[int, ...]  # places in the whole call
    total: int
    size: tuple[int, int]  # (height, width)
    steps: int
    sampler: str
    sampler_options: Mapping[str, Any]
    guidance_scale: float
    seed: int
    label: Tensor | None  # (n,) int64
    inputs: Mapping[str, Any]  # prompt, image, mask, ... and the system's own keywords: what was given of them
    recorded: Mapping[str, Tensor]  # draws to replay
    device: torch.device
    callback: Callback | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def source(self) -> Noise:
        """The noise of these pictures, from the start of their streams."""
        fresh = from_seed(self.seed, self.pictures, self.device)
        if not self.recorded:
            return fresh
        return replayed(self.recorded, fresh, self.pictures, self.total, self.device)

    def parts(self) -> Iterator[Request]:
        """The batches of a call, in order."""
        count = max(1, PIXELS_A_BATCH // (self.size[0] * self.size[1]))
        for start in range(0, self.total, count):
            chosen = self.pictures[start : start + count]
            label = None if self.label is None else self.label[start : start + count]
            yield replace(self, pictures=chosen, label=label)


def watched(request: Request, user: Callable[[Step], Any] | None, advance: Callable[[int], None], dtype: Any) -> Request:
    """The request with a callback that moves the bar, calls the user's, and stops at the first non-finite number."""

    def callback(step: Step) -> None:
        if not torch.isfinite(step.x).all():
            raise WorkError(
                f"non-finite numbers after step {step.index + 1} of {step.total} ({request.sampler}, {dtype}): nothing was "
                f"painted; try dtype='float32', a lower guidance_scale, or check the weights"
            )
        advance(step.total)
        if user is not None:
            user(step)

    return replace(request, callback=callback)


def whole_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: a whole number of at least {least} is needed")
    return value


def number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InputError(f"{name}={value!r}: a number from {least:g} to {most:g} is needed")
    return float(value)


def checked_size(size: Any, default: tuple[int, int], factor: int) -> tuple[int, int]:
    """(height, width), each a positive multiple of `factor`; InputError names the nearest that are."""
    if size is None:
        return default
    pair = (size, size) if isinstance(size, int) and not isinstance(size, bool) else tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair):
        raise InputError(f"size={size!r}: one whole number, or (height, width) in pixels, is needed")
    for side, value in zip(("height", "width"), pair, strict=True):
        if not 0 < value <= 65_536 or value % factor:
            low = max(factor, value // factor * factor)
            near = f"{low} and {low + factor}" if value > factor else str(factor)
            raise InputError(f"size={pair}: {side} {value} is not a multiple of {factor}; nearest that work: {near}")
    return pair


def checked_sampler(sampler: str, options: Any, allowed: Sequence[str], default: Defaults) -> dict[str, Any]:
    """The options of a sampler: the model's own where they fit, and the user's above them."""
    if sampler not in allowed:
        raise unknown("sampler", sampler, allowed)
    if not isinstance(options, Mapping):
        raise InputError(f"sampler_options={options!r}: a dict such as {{'eta': 0.5}} is needed")
    known = SAMPLERS[sampler].options
    for key, value in options.items():
        if key not in known:
            raise unknown(f"option of sampler {sampler}", key, known)
        known[key](key, value)
    return {**{k: v for k, v in default.sampler_options.items() if k in known}, **options}


def listed_labels(label: Any, n: int) -> tuple[list[Any] | None, int]:
    """One label a picture and the number of pictures; a list of labels settles it."""
    if isinstance(label, Tensor):
        label = label.tolist()
    if isinstance(label, (list, tuple)):
        if not label or n not in (1, len(label)):
            raise InputError(f"n={n} with {len(label)} labels: a list of labels has one a picture; leave n out")
        return list(label), len(label)
    return (None if label is None else [label] * n), n


def class_number(value: Any, count: int, names: Sequence[str]) -> int:
    """0 ... count - 1 from a number or a name."""
    if isinstance(value, str) and value in names:
        return list(names).index(value)
    if isinstance(value, str) and not value.lstrip("-").isdigit() and names:
        raise unknown("label", value, names)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit() or int(value) >= count:
        raise InputError(f"label={value!r}: class numbers run from 0 to {count - 1}")
    return int(value)


def drawn_labels(seed: int, n: int, counts: Sequence[int]) -> Tensor:
    """Labels (n,) by training frequency, each picture's from its own stream."""
    edges = torch.tensor(counts, dtype=torch.float64).cumsum(0)
    draws = torch.stack([torch.rand((), generator=stream(seed, i, "label"), dtype=torch.float64) for i in range(n)])
    return torch.searchsorted(edges, draws * edges[-1], right=True).clamp(max=len(counts) - 1)


def fresh_seed() -> int:
    """A seed for a call that names none; it is in the picture's provenance, so that the call can be repeated."""
    return secrets.randbelow(2**31)
