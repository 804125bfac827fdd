"""Learned words (textual inversion, Gal et al. 2022): a file with the vectors that stand for a word, by text encoder.

{"<cat-toy>": (d) or (k, d)}                        diffusers; the name is the word
{"emb_params": (k, d)}                              other programs; the file's name is the word
{"string_to_param": {"*": (k, d)}, "name": ...}     the original code and others, a pickle: read as tensors and plain data
{"clip_l": (k, d), "clip_g": (k, e)}                SD XL: of both encoders; the file's name is the word
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..weights.mapped import Mapped

ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def read(path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The word, and its vectors (k, d) by the text encoder that they are of. InputError for a file that holds none."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} is no file; a textual inversion is one (.safetensors, .pt, .bin)")
    content = _content(file)
    if isinstance(content.get("string_to_param"), Mapping):
        vectors = next(iter(content["string_to_param"].values()), None)
        return str(content.get("name") or file.stem), {"text_encoder": _matrix(vectors, file)}
    if content.keys() & ENCODERS.keys():
        return file.stem, {ENCODERS[name]: _matrix(content[name], file) for name in ENCODERS if name in content}
    if len(content) != 1:
        names = ", ".join(sorted(content)[:3])
        raise InputError(
            f"{file} is no textual inversion: it holds {len(content)} entries ({names}, ...), not one word"
        )
    name, value = next(iter(content.items()))
    return (file.stem if name == "emb_params" else name), {"text_encoder": _matrix(value, file)}


def _content(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        if opened.read(9)[8:9] == b"{":
            return dict(Mapped(file))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{file} holds more than tensors, or is damaged, and is refused (nothing in it was run): {first}"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is no textual inversion: it holds no table of words")
    return {str(name): value for name, value in content.items()}


def _matrix(value: Any, file: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or not value.is_floating_point():
        raise InputError(f"{file} is no textual inversion: a word is a vector (d) or several (k, d)")
    return value.detach().float().reshape(-1, value.shape[-1])
