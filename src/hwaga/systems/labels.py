"""Labels of a call: numbers or names, one a picture, or drawn by training frequency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..samplers.noise import stream


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
    """0 ... count - 1 from a number or a name; of a class with several names ("tench, Tinca tinca") any will do."""
    if isinstance(value, str) and value in names:
        return list(names).index(value)
    if isinstance(value, str) and len(found := [i for i, name in enumerate(names) if value in name.split(", ")]) == 1:
        return found[0]
    if isinstance(value, str) and not value.lstrip("-").isdigit() and names:
        raise unknown("label", value, [one for name in names for one in name.split(", ")])
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit() or int(value) >= count:
        last = f" ({names[0]} to {names[count - 1]})" if len(names) >= count else ""
        raise InputError(f"label={value!r}: class numbers run from 0 to {count - 1}{last}")
    return int(value)


def drawn_labels(seed: int, n: int, counts: Sequence[int]) -> Tensor:
    """Labels (n,) by training frequency, each picture's from its own stream."""
    edges = torch.tensor(counts, dtype=torch.float64).cumsum(0)
    draws = torch.stack([torch.rand((), generator=stream(seed, i, "label"), dtype=torch.float64) for i in range(n)])
    return torch.searchsorted(edges, draws * edges[-1], right=True).clamp(max=len(counts) - 1)
