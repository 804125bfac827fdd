"""Names that stand for several sizes of a config: DiT's S, B, L, XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def named_size(value: Any, sizes: Mapping[str, Mapping[str, Any]]) -> Any:
    """A config's fields with those that its `size` stands for, where it has one; fields that are given stay as they are.

    ValueError for a name that `sizes` lacks.
    """
    if isinstance(value, dict) and "size" in value:
        size = value["size"]
        if size not in sizes:
            raise ValueError(f"size={size!r}: one of {', '.join(sizes)} is needed")
        return {**sizes[size], **{k: v for k, v in value.items() if k != "size"}}
    return value
