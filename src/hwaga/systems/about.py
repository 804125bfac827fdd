"""What a model remembers beside its config."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class About(BaseModel):
    """What a model remembers beside its config: where it comes from and what its numbers mean. Stored in `model.json`."""

    model_config = ConfigDict(extra="allow")
    size: tuple[int, int] = (32, 32)  # (height, width) in pixels that it was trained at
    classes: tuple[str, ...] = ()  # names of the labels 0 ... C-1
    label_counts: tuple[int, ...] = ()  # how often each was trained on
    data: str | None = None  # source of the training data
    data_licence: str | None = None
    attribution: str | None = None
    trained: dict[str, Any] | None = None  # steps, pictures a step and the recipe's fingerprint
    components: dict[str, str] = {}  # trained parts taken from shipped models: {"autoencoder": "openmoji/vae-kl"}
    name: str | None = None  # "openmoji/ddpm", or the path it was loaded from
    sha256: str | None = None  # over the weights
    layout: dict[str, Any] = {}  # how the public files that it was loaded from were laid out
