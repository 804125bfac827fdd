"""What a file's tensors looked like, so that they are written again the same: shapes and dtypes, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...]]:
    """The shape of each, without reading values where the mapping knows them."""
    known: Mapping[str, tuple[int, ...]] | None = getattr(tensors, "shapes", None)
    return {name: tuple(value.shape) for name, value in tensors.items()} if known is None else known


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The dtypes of a file: the most common one of floating tensors under "", and by name those that have another."""
    known: Mapping[str, torch.dtype] | None = getattr(tensors, "dtypes", None)
    if known is None:
        known = {name: value.dtype for name, value in tensors.items()}
    floating = {name: dtype for name, dtype in known.items() if dtype.is_floating_point}
    if not floating:
        return {}
    most = Counter(floating.values()).most_common(1)[0][0]
    return {"": _name(most), **{name: _name(dtype) for name, dtype in floating.items() if dtype != most}}


def as_stored(tensors: Mapping[str, Tensor], dtypes: Mapping[str, str] | None) -> dict[str, Tensor]:
    """Floating tensors in the dtypes that their file had; as they are where nothing is known of it."""
    if not dtypes:
        return dict(tensors)
    return {
        name: value.to(getattr(torch, dtypes.get(name, dtypes[""]))) if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
