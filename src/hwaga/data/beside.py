"""What a frozen network makes of each picture, computed once into the packed cache and mapped by every later training.

An entry holds the values of all pictures of a store, in all splits, in the store's order; its key is made of the store's
hash and of the hash of the network, so that every system with the same autoencoder shares it. Where training mirrors
pictures at random, a second entry holds the values of all of them mirrored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .augment import centre
from .cache import Writer, cached
from .dataset import Beside, Dataset, Progress

if TYPE_CHECKING:
    from ..interfaces import Precomputed

VERSION = 1
_AT_ONCE = 2**20  # pixels that are worked off at once


def with_beside(
    data: Dataset, wanted: Mapping[str, Precomputed], progress: Progress | None = None
) -> tuple[Dataset, tuple[str, ...]]:  # fmt: skip
    """The data with `extra[name]` in each batch, and the names that could not be had: where windows are cut at random
    there is another picture in each epoch, and everything is computed when it is needed."""
    if data.config.random_crop:
        return data, tuple(wanted)
    held = {}
    for name, one in wanted.items():
        key = one.key()
        plain = _values(data, name, one, key, False, progress)
        turned = _values(data, name, one, key, True, progress) if data.config.flip else None
        held[name] = Beside(key, plain, turned)
    return replace(data, beside={**data.beside, **held}), ()


def _values(
    data: Dataset, name: str, one: Precomputed, network: str, mirrored: bool, progress: Progress | None
) -> np.ndarray:  # fmt: skip
    """(m, *shape) float32 of the store's m pictures."""
    key = {
        "version": VERSION, "store": data.stored, "shape": list(data.config.shape), "network": network,
        "values": list(one.shape), "mirrored": mirrored,
    }  # fmt: skip

    def build(folder: Path) -> dict[str, Any]:
        import torch

        count, (height, width) = len(data.store), data.config.shape
        size = max(1, _AT_ONCE // (height * width))
        with Writer(folder / "pixels.npy", one.shape, np.float32) as writer, torch.no_grad():
            for start in range(0, count, size):
                pixels = centre(np.asarray(data.store[start : start + size]), data.config.shape)
                pixels = pixels[..., ::-1] if mirrored else pixels
                pictures = torch.from_numpy(np.array(pixels)).float() / 127.5 - 1.0
                writer.append(one.compute(pictures).float().cpu().numpy())
                if progress is not None:
                    progress(min(start + size, count), count, f"computing {name}")
        return {"of": name, "pictures": count}

    return cached("beside", key, build).pixels
