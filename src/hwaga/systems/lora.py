"""LoRAs of a model: loaded, scaled, taken away again, written. What every system can do, and how it spells its weights.

    load_lora(file, scale)    which tensors are of which weights    formats/lora.py
                              W' = W + scale dW                     weights/lora.py
    set_lora(name, scale)     any scale; 0 is the base, bit for bit
    unload_lora(name)         the base again, bit for bit
    save_lora(file, names)    in the names of peft or of kohya

Any number at once. A LoRA of which nothing fits, or which changes nothing, is refused and said what it was made for; one of
which a part fits is loaded with a warning that counts. A model that was trained as a LoRA on a frozen base
(`model.lora` of a recipe, networks/adapter.py) has it under the name `trained`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..errors import InputError, unknown
from ..formats import lora as files
from ..networks.adapter import Adapter, AdapterConfig, LoraConfig
from ..weights.lora import Change, Loras, LowRank, Place, forget
from ..weights.quantised import is_quantised

STYLES = ("peft", "kohya")
TRAINED = "trained"  # the name of the LoRA that a model was trained as


class Told(NamedTuple):
    """What became of a file."""

    name: str
    scale: float
    changed: int  # weights that it changes
    held: int  # changes that the file holds
    relative: float  # |dW| / |W| over them at scale 1
    left: tuple[str, ...]  # what of the file did not fit

    def __str__(self) -> str:
        of = f"{self.changed} of its {self.held} changes fit" if self.left else f"{self.changed} weights changed"
        return f"LoRA {self.name}: {of}, by {self.relative:.2%} at scale 1; scale {self.scale:g}"


class TakesLora:
    """The part of `System` that is about LoRAs."""

    networks: dict[str, nn.Module]
    about: Any
    label_count: Any
    title: ClassVar[str]
    lora_lead: ClassVar[str] = "unet."  # what peft's names of the network begin with in public files

    def spellings(self) -> Mapping[str, Sequence[files.Spelled]]:
        """How public files name this model's weights, part by part: "peft" and "kohya" as they are written, and whatever else
        is read."""
        own = [files.own_names(part, network) for part, network in self.networks.items() if part != "lora"]
        return {"peft": own, "kohya": own}

    @property
    def loras(self) -> dict[str, float]:
        """The scales of the LoRAs in use, by name."""
        trained = {TRAINED: self._adapter.scale} if self._adapter is not None else {}
        return trained | {name: one.scale for name, one in self._loras.loaded.items()}

    def load_lora(self, file: str | Path, scale: float = 1.0, name: str | None = None) -> Told:
        """Adds a LoRA to the weights: W' = W + scale (alpha / rank) up down.

        file: peft, diffusers, kohya or LyCORIS names (safetensors, or a pickle of tensors), or a folder with such a file.
        scale: 1 as it was trained, 0 without effect, below 0 away from it. name: for `set_lora` and `unload_lora`; the file's
        if left out. Gives what it changed; a warning where only a part of it fits.

        InputError for a file that is no LoRA, of which nothing fits (with what it was made for), or whose change is zero.
        """
        _checked_scale(scale)
        for part, network in self.networks.items():
            if is_quantised(network):
                raise InputError(
                    f"load_lora on weights of 8 bits ({part}), which cannot take it; load with dtype='float32'"
                )
        read = files.read(file)
        name = self._lora_name(read.path, name)
        names = files.looked_up(one for style in self.spellings().values() for one in style)
        found = files.matched(read, names, self.networks)
        held = len(read.modules)
        if not found.changes:
            why = (
                found.misshapen[0]
                if found.misshapen
                else f"it has no {found.lost[0]!r}"
                if found.lost
                else "it is empty"
            )
            raise InputError(
                f"{read.path}: none of its {held} changes fits this {self.title}: {why}; the LoRA is of {files.made_for(read)}"
            )
        relative = self._loras.measure(found.changes)
        if relative == 0:
            raise InputError(
                f"{read.path} changes nothing: all of its {len(found.changes)} changes are zero, as before any training"
            )
        if not math.isfinite(relative):
            raise InputError(f"{read.path} holds numbers that are not finite")
        left = (*found.misshapen, *found.lost)
        if left:
            shown = "; ".join(left[:3]) + ("; ..." if len(left) > 3 else "")
            warnings.warn(
                f"{read.path.name}: {len(found.changes)} of its {held} changes fit this {self.title}, {len(left)} parts of the "
                f"file do not and are left out ({shown}); the LoRA is of {files.made_for(read)}",
                stacklevel=2,
            )
        self._loras.add(name, found.changes, scale)
        return Told(name, scale, len(found.changes), held, relative, left)

    def set_lora(self, name: str, scale: float) -> None:
        """Another scale for a LoRA that is loaded; at 0 the weights are the base's, bit for bit."""
        _checked_scale(scale)
        self._known_lora(name)
        if name == TRAINED and self._adapter is not None:
            self._adapter.scale = float(scale)
            for module in self._adapter.pairs():
                forget(self.networks["network"], module)
        else:
            self._loras.scale(name, scale)

    def unload_lora(self, name: str | None = None) -> None:
        """Takes a LoRA away, or all of them: the weights are what they were before, bit for bit."""
        if name is None:
            for one in list(self._loras.loaded):
                self._loras.remove(one)
            return
        self._known_lora(name)
        if name == TRAINED and self._adapter is not None:
            raise InputError(f"name={name!r} is what this model was trained as; set_lora({name!r}, 0) turns it off")
        self._loras.remove(name)

    def save_lora(self, file: str | Path, name: str | None = None, names: str = "peft") -> Path:
        """Writes one LoRA of this model to a safetensors file: its matrices as they are, not multiplied by its scale.

        name: which, where there are several. names: "peft" (what diffusers writes) or "kohya" (what most other programs do).
        """
        if names not in STYLES:
            raise unknown("names", names, STYLES)
        if name is None:
            if len(self.loras) != 1:
                raise InputError(
                    f"save_lora without name=: this model has {len(self.loras)} LoRAs ({', '.join(self.loras)})"
                )
            name = next(iter(self.loras))
        self._known_lora(name)
        if Path(file).exists():
            raise InputError(f"{file} exists already; name a new file")
        files.write(Path(file), self._lora_changes(name), self.spellings()[names], names, self.lora_lead)
        return Path(file)

    @contextmanager
    def merged_lora(self) -> Iterator[None]:
        """Inside, the LoRA that this model was trained as is in its weights, so that they can be written as a whole."""
        adapter = self._adapter
        changes = {} if adapter is None else self._lora_changes(TRAINED)
        if adapter is None or adapter.scale == 0 or self._loras.measure(changes) == 0:
            yield
            return
        adapter.detach_from()
        self._loras.add(TRAINED, changes, adapter.scale)
        try:
            yield
        finally:
            self._loras.remove(TRAINED)
            self.attach_lora()

    def attach_lora(self) -> None:
        """Hangs the matrices of a model that is trained as a LoRA on its network, which is frozen from then on."""
        if self._adapter is None:
            return
        mine, theirs = self.label_count(), len(self.about.classes)
        if mine and theirs and mine != theirs:
            raise InputError(
                f"model.lora: components.network knows {mine} classes and the data have {theirs}; a LoRA learns no new ones, so "
                f"data with those of the network are needed"
            )
        self._adapter.attach(self.networks["network"])

    def write_lora(self, folder: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Writes the LoRA that this model is trained as into a folder, as other programs read it: lora.safetensors (peft's
        names) and lora-kohya.safetensors. tensors: of the adapter, in place of its own (averaged ones)."""
        if self._adapter is None:
            return
        changes = self._lora_changes(TRAINED, tensors)
        for names, file in (("peft", "lora.safetensors"), ("kohya", "lora-kohya.safetensors")):
            files.write(folder / file, changes, self.spellings()[names], names, self.lora_lead)

    # ------------------------------------------------------------------------------------------------------------ inside

    @property
    def _adapter(self) -> Adapter | None:
        found = self.networks.get("lora")
        return found if isinstance(found, Adapter) else None

    @property
    def _loras(self) -> Loras:
        if "_held_loras" not in self.__dict__:
            self.__dict__["_held_loras"] = Loras(self.networks)
        held: Loras = self.__dict__["_held_loras"]
        return held

    def _lora_changes(self, name: str, tensors: Mapping[str, Tensor] | None = None) -> Mapping[Place, Change]:
        if name == TRAINED and (adapter := self._adapter) is not None:
            return {
                Place("network", f"{module}.weight"): Change(LowRank(down.detach(), up.detach(), alpha=adapter.alpha))
                for module, (down, up) in adapter.pairs(tensors).items()
            }
        return self._loras.loaded[name].changes

    def _known_lora(self, name: str) -> None:
        if name not in self.loras:
            raise unknown("name", name, self.loras) if self.loras else InputError(f"name={name!r}: no LoRA is loaded")

    def _lora_name(self, path: Path, name: str | None) -> str:
        if name is not None:
            if name in self.loras:
                raise InputError(
                    f"name={name!r} is the name of a LoRA that is loaded; choose another, or unload that one"
                )
            return name
        stem, count = path.stem, 2
        while (found := stem if count == 2 and stem not in self.loras else f"{stem}-{count}") in self.loras:
            count += 1
        return found


def _checked_scale(scale: float) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError(f"scale={scale!r}: a number is needed; 1 is as trained, 0 without effect")


def beside_base(config: Mapping[str, Any], components: Mapping[str, nn.Module]) -> dict[str, Any]:
    """A recipe's `model:` section, whose network's sizes, where it trains a LoRA, are those of its base."""
    if not config.get("lora"):
        return dict(config)
    if "network" not in components:
        raise InputError(
            "model.lora trains small matrices beside a trained network; name it: components.network=MODEL (and components.NAME of "
            "its other parts)"
        )
    return {name: value for name, value in config.items() if name != "network"}


def adapter_of(network: Any, lora: LoraConfig) -> AdapterConfig:
    """The config of a LoRA on a network of this config. InputError for targets that it has not."""
    config = AdapterConfig(network=network, **lora.model_dump())
    try:
        config.layers()
    except ValueError as error:
        raise InputError(f"model.lora.{error}") from None
    return config
