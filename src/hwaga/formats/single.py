"""Single files of strangers: which model is it? Told by what is in it, never by its name.

A rule is a system, what it looks for among the tensors' names, and a word for people. The first rule that fits wins, so
narrow ones stand before wide ones. A system that reads files has `from_file(path, tensors, dtype, device, components)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..weights.mapped import Mapped, read_pickled
from . import autoencoder, controlnet, dit, ldm, lora, sd3_file, stylegan_pickle, vqgan

Tensors = Mapping[str, Any]
"""Tensors by name, as `weights.mapped` gives them."""


class Rule(NamedTuple):
    """A kind of single file."""

    system: str  # of `hwaga.systems`
    kind: str  # for people: "VQGAN checkpoint (taming)"
    fits: Callable[[Tensors], bool]


RULES: list[Rule] = [
    Rule("stylegan", "StyleGAN2-ADA or StyleGAN3 pickle", lambda tensors: isinstance(tensors, stylegan_pickle.Pickled)),
    Rule("vqgan", "VQGAN checkpoint (tokenizer and transformer)", vqgan.is_whole),
    Rule("vqgan", "VQGAN checkpoint (tokenizer)", vqgan.is_tokenizer),
    Rule("dit", "DiT or SiT", dit.is_dit),
    Rule("controlnet", "ControlNet", controlnet.is_alone),
    Rule("controlnet", "ControlNet with the Stable Diffusion that it controls", controlnet.is_whole),
    Rule("stable-diffusion", "Stable Diffusion 1, 2 or XL", ldm.is_stable_diffusion),
    Rule("stable-diffusion-3", "Stable Diffusion 3 or 3.5", sd3_file.is_sd3),
    Rule("vae", "autoencoder of Stable Diffusion or Flux", lambda tensors: autoencoder.prefix_of(tensors) is not None),
]


def read(path: Path, weights: str | None = None) -> Tensors:
    """The tensors of a file, by the kind that its first bytes show: safetensors (a length and a JSON header), a plain pickle
    (StyleGAN's), else a pickle of torch's; both are read without running anything in them. weights: "ema" or "raw" of a
    training's checkpoint that holds both."""
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise InputError(f"{path} is empty")
    if len(head) >= 9 and head[8:9] == b"{":
        return ldm.chosen(path, Mapped(path), weights)
    if stylegan_pickle.is_plain_pickle(head):
        return stylegan_pickle.read(path)
    return ldm.chosen(path, read_pickled(path, weights), weights)


def in_release(folder: Path) -> Path | None:
    """The file of a folder as the original authors of VQGAN release one: `checkpoints/` with one checkpoint, `configs/`."""
    if not (folder / "configs").is_dir():
        return None
    found = [file for name in ("last.ckpt", "model.ckpt") if (file := folder / "checkpoints" / name).is_file()]
    return found[0] if found else None


def recognise(path: Path, tensors: Tensors) -> Rule:
    """The rule that a file's tensors fit. InputError names some of the keys where none does."""
    for rule in RULES:
        if rule.fits(tensors):
            return rule
    if lora.is_lora(tensors):
        raise InputError(
            f"{path} is a LoRA, a change of a model and not one itself: load its base and give it the file, "
            f"model.load_lora({path.name!r}) or hwaga sample BASE --lora {path.name}"
        )
    looks = ldm.looks_like(tensors)
    if looks is not None:
        raise InputError(f"{path} looks like {looks}, which this version cannot load as a model")
    names = sorted(tensors)[:3]
    known = ", ".join(rule.kind for rule in RULES) or "none yet"
    raise InputError(
        f"{path}: its {len(tensors)} tensors ({', '.join(names)}, ...) are of no model that is known as a single file ({known})"
    )
