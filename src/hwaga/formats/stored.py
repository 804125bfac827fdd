"""A network as a public folder or file holds it, and what its tensors looked like there, so that they are written again the
same: shapes and dtypes, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..weights.fill import fill

Config = TypeVar("Config")


@dataclass(frozen=True)
class Stored(Generic[Config]):
    """What a public folder or file holds of one network. `layout` is how it was written there, for writing it so again."""

    config: Config
    tensors: Mapping[str, Tensor]  # under our names
    where: str
    layout: dict[str, Any] = field(default_factory=dict)

    def network(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The network with these tensors in it. InputError names what does not fit."""
        return fill(self.config, self.tensors, self.where, dtype, device)


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
