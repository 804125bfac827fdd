"""A CLIP that judges: does a picture show what its words say? Any folder that transformers loads as one, or a trained one of ours.

It never conditions or trains what it judges: a painter told by a network learns to please it. Pictures enter as uint8, or
floating point in [0, 1], (n, 3, h, w); vectors leave as float32 (n, d), of length 1, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .encoders import check_images, folder_sha256
from .vision import open_model, pooling, read_preparation, weight_files

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, str], None]
"""progress(done, total, what)"""
_AT_ONCE = 64


@dataclass(frozen=True)
class ClipJudge:
    """Likeness of pictures and words; `name` and `sha256` are on the card."""

    name: str
    sha256: str | None
    see: Callable[[Tensor], Tensor] = field(repr=False)  # pictures in [0, 1] (n, 3, h, w) -> (n, d)
    read: Callable[[Sequence[str]], Tensor] = field(repr=False)  # texts -> (n, d)
    device: Any = "cpu"

    def pictures(self, images: Any, progress: Progress | None = None) -> np.ndarray:
        """(n, d) of pictures (n, 3, h, w). InputError for anything else."""
        images = check_images(images)

        def some(start: int) -> Tensor:
            part = images[start : start + _AT_ONCE].to(self.device)
            return self.see(part.float() / 255 if not part.is_floating_point() else part.float())

        return self._all(some, len(images), progress, "pictures")

    def texts(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """(n, d) of texts."""
        return self._all(lambda start: self.read(texts[start : start + _AT_ONCE]), len(texts), progress, "captions")

    @staticmethod
    def _all(of: Callable[[int], Tensor], count: int, progress: Progress | None, what: str) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        found = []
        with torch.inference_mode():
            for start in range(0, count, _AT_ONCE):
                found.append(F.normalize(of(start).float(), dim=1).cpu())
                if progress:
                    progress(min(start + _AT_ONCE, count), count, f"reading {what}")
        return torch.cat(found).numpy()


def of_system(system: Any) -> ClipJudge:
    """The judge that a trained CLIP of ours is."""

    def see(images: Tensor) -> Tensor:
        vectors: Tensor = system.clip.image_features(images * 2 - 1)
        return vectors

    def read(texts: Sequence[str]) -> Tensor:
        vectors: Tensor = system.clip.text_features(system.tokens(texts))
        return vectors

    return ClipJudge(system.about.name or "in memory", system.about.sha256, see, read, system.device)


@lru_cache(maxsize=2)
def load_clip(folder: Path, device: str = "cpu") -> ClipJudge:
    """The CLIP in a folder that transformers loads (both halves, tokenizer, preprocessor_config.json), in float32.

    InputError where one of these is missing. No connection is opened, no code of the folder is run.
    """
    import torch

    preparation = folder / "preprocessor_config.json"
    if not preparation.is_file():
        raise InputError(f"{preparation} is missing: it says how the network takes pictures")
    prepare, weights = read_preparation(preparation), weight_files(folder)
    model, missing = open_model(folder)
    if missing or not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        what = f"{type(model).__name__} lacks {missing[0]}" if missing else f"it holds {type(model).__name__}"
        raise InputError(f"clip={str(folder)!r}: want a network that reads pictures and words (CLIP, SigLIP); {what}")
    model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = _tokenizer(folder)
    whole = "siglip" in type(model).__name__.lower()  # those were trained on texts filled to their whole length
    seen, told = pooling(model.get_image_features), pooling(model.get_text_features)

    def read(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(texts), padding="max_length" if whole else True, truncation=True, return_tensors="pt"
        ).to(device)  # fmt: skip
        given = {"input_ids": tokens["input_ids"]} if whole else dict(tokens)
        vectors: Tensor = told(**given)
        return vectors

    return ClipJudge(
        folder.resolve().name, folder_sha256(folder, ["config.json", *weights]),
        lambda images: seen(pixel_values=prepare(images)), read, device,
    )  # fmt: skip


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises of every kind here; all mean that the folder is not usable
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"clip={str(folder)!r}: transformers cannot load a tokenizer from it: {reason}") from None
