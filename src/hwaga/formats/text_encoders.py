"""Public folders of text encoders: CLIPTextModel and CLIPTextModelWithProjection, the text half of a CLIPModel, and T5 (t5.py).

Parameters are named here as in public folders (`text_model.encoder.layers.0...`). Newer programs leave `text_model.` out of the
names of a CLIPTextModel, older ones store the numbers 0 ... 76 as `position_ids`: both are read, and written again as they were.
The tokenizer is a folder beside the encoder's (`tokenizer`, `tokenizer_2`), or its files lie in the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..conditioning.text_encoders import TextEncoderConfig
from ..conditioning.tokenizers import NAMES, Tokenizer
from ..errors import InputError, first_mistake
from ..files import read_json, write_json, write_tensors
from ..networks.clip_text import LARGEST_ID, ClipTextConfig
from ..networks.t5 import T5Config
from ..weights.mapped import Renamed, read_folder
from . import t5
from .stored import Stored, as_stored, dtypes_of

CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
PREFIX = "text_model."
POSITIONS = "embeddings.position_ids"
DEFAULTS: dict[str, Any] = {  # of transformers' CLIPTextConfig
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "projection_dim": 512, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
_NOT_TEXT = ("vision_model.", "visual_projection.", "logit_scale")


@dataclass(frozen=True)
class Found(Stored[TextEncoderConfig]):
    """What a public folder or file holds."""

    tokenizer: Tokenizer | None = None

    def network(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        encoder = super().network(dtype, device)
        if self.tokenizer is not None:
            encoder.tokenizer = self.tokenizer  # type: ignore[assignment]
        return encoder


def read_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer in a folder. InputError where there is none."""
    files = {name: file.read_bytes() for name in NAMES if (file := place / name).is_file()}
    return Tokenizer(files, str(place))


def read_component(place: Path, tokenizer: Path | None = None, **use: Any) -> Found:
    """The text encoder in a folder. tokenizer: where its tokenizer lies; None: in the same folder. use: fields of
    TextEncoderConfig that say how it is used.

    InputError for a class that is none, for a tokenizer that is missing or has more words than the encoder.
    """
    public = read_json(place / "config.json")
    if not isinstance(public, dict):
        raise InputError(f"{place / 'config.json'} is not a table of settings")
    named = str((public.get("architectures") or [CLASSES[0]])[0])
    if named not in (*CLASSES, *t5.CLASSES):
        known = ", ".join((*CLASSES, t5.CLASSES[0]))
        raise InputError(f"{place}: text encoder {named!r} cannot be loaded; {known} can")
    tensors = read_folder(place, STEMS)
    if named == "CLIPModel":
        public = {**public.get("text_config", {}), "projection_dim": public.get("projection_dim", 512)}
    beside = place if tokenizer is None else tokenizer
    words = (
        read_tokenizer(beside) if beside.is_dir() else None
    )  # without one it reads nothing: said when it is asked to
    where, length = str(place / "config.json"), None if words is None else words.length
    if named in t5.CLASSES:
        table, (names, layout) = t5.TABLE, t5.names(tensors)
        config = t5.encoder_config(public, where, length, use)
    else:
        table, (names, layout) = f"{PREFIX}embeddings.token_embedding.weight", _names(tensors, named)
        config = encoder_config(public, where, named != CLASSES[0], length, use)
    if words is not None and words.size > config.model.vocabulary:
        raise InputError(
            f"{words.where}: its tokenizer knows {words.size} tokens, but {place}: {table} has {config.model.vocabulary} rows; "
            f"it is another model's"
        )
    layout |= {"config": read_json(place / "config.json"), "dtypes": dtypes_of(tensors)}
    return Found(config, Renamed(tensors, names), str(place), layout, words)


def _names(tensors: Mapping[str, Tensor], named: str) -> tuple[dict[str, str], dict[str, Any]]:
    """{our name: the file's}, and what is to be known to write them again."""
    bare = not any(name.startswith(PREFIX) for name in tensors)
    mark = "" if bare else PREFIX
    positions = [name for name in tensors if name.endswith(POSITIONS)]
    skipped = {*positions, *(name for name in tensors if named == "CLIPModel" and name.startswith(_NOT_TEXT))}
    names = {}
    for name in tensors:
        if name not in skipped:
            inner = name.startswith((PREFIX, "text_projection."))
            names[name if inner else PREFIX + name] = name
    return names, {"prefix": mark, "positions": positions[0] if positions else None}


def encoder_config(
    public: Mapping[str, Any], where: str, projected: bool, length: int | None, use: Mapping[str, Any]
) -> TextEncoderConfig:  # fmt: skip
    """Our config of a public one; InputError for what cannot be loaded."""
    full = {**DEFAULTS, **public}
    end = full["eos_token_id"]
    try:
        model = ClipTextConfig(
            width=full["hidden_size"], layers=full["num_hidden_layers"], heads=full["num_attention_heads"],
            hidden=full["intermediate_size"], vocabulary=full["vocab_size"], positions=full["max_position_embeddings"],
            activation=full["hidden_act"], eps=full["layer_norm_eps"], end=LARGEST_ID if end is None else end,
            projection=full["projection_dim"] if projected else 0,
        )  # fmt: skip
        return TextEncoderConfig(**{"model": model, "length": min(length or model.positions, model.positions), **use})
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


# --------------------------------------------------------------------------------------------------------------- writing


def public_config(config: TextEncoderConfig) -> dict[str, Any]:
    """The public config of ours."""
    if isinstance(config.model, T5Config):
        return t5.public_config(config)
    model = config.model
    return {
        "architectures": [CLASSES[1] if model.projection else CLASSES[0]], "model_type": "clip_text_model",
        "hidden_size": model.width, "intermediate_size": model.hidden, "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads, "max_position_embeddings": model.positions, "vocab_size": model.vocabulary,
        "hidden_act": model.activation, "layer_norm_eps": model.eps, "projection_dim": model.projection or model.width,
        "eos_token_id": model.end, "bos_token_id": 0, "pad_token_id": 1, "attention_dropout": 0.0, "dropout": 0.0,
        "initializer_factor": 1.0, "initializer_range": 0.02,
    }  # fmt: skip


def public_tensors(encoder: Any, layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's tensors under the names and in the dtypes that they had."""
    if isinstance(encoder.config.model, T5Config):
        return as_stored(t5.public_tensors(encoder.state_dict(), layout), layout.get("dtypes"))
    mark = layout.get("prefix", PREFIX)
    tensors = {
        mark + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name: value
        for name, value in encoder.state_dict().items()
    }
    if layout.get("positions"):
        tensors[layout["positions"]] = torch.arange(encoder.config.model.positions)[None]
    return as_stored(tensors, layout.get("dtypes"))


def write_folder(place: Path, encoder: Any, layout: Mapping[str, Any], projected: bool = False) -> None:
    """Writes the encoder's folder: as it was loaded, if it was. projected: of the class with a projection of the pooled text;
    by the identity, where there is none."""
    place.mkdir(parents=True, exist_ok=True)
    config, tensors = encoder.config, public_tensors(encoder, layout)
    if projected and not config.model.projection:
        model = config.model.model_copy(update={"projection": config.width})
        config = config.model_copy(update={"model": model})
        like = next(value for value in tensors.values() if value.is_floating_point())
        tensors["text_projection.weight"] = torch.eye(config.width, dtype=like.dtype)
    write_json(place / "config.json", layout.get("config") or public_config(config))
    write_tensors(place / "model.safetensors", tensors, {"format": "pt"})


def write_tokenizer(place: Path, encoder: Any) -> None:
    """Writes the tokenizer's files as they are."""
    place.mkdir(parents=True, exist_ok=True)
    for name, content in encoder.files.items():
        (place / name).write_bytes(content)
