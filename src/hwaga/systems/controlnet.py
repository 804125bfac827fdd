"""ControlNet: Stable Diffusion that keeps to a picture's edges, pose, depth, ... (Zhang, Rao and Agrawala 2023).

The model that paints stays locked. Beside it learns a copy of its first half, which sees a control map as well as the noised
latents, and whose outputs enter the locked half through convolutions that begin at zero: at first nothing changes, and the locked
weights never do.

    y = F(x; theta) + Z( F(x + Z(c)); theta_c )           eq. 2          conditioning/controlnet.py
    c, a picture in [0, 1]                                section 3.2    conditioning/control/, systems/controls.py
    E || eps - eps_theta(z_t, t, words, c) ||^2           eq. 5          objectives/denoising.py
    half of the words hidden in training                  section 3.3    `text_dropout`
    several at once; guess mode; start and end            section 3.4    conditioning/controlled.py

What is new in a step of training and in a call is in conditioning/controlled.py; here is what a ControlNet is made of, where it
comes from, and what is watched while it learns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field, field_validator
from torch import Tensor, nn

from ..conditioning import control as kinds
from ..conditioning.controlled import CONTROL, LINES, OWN, Controlled
from ..conditioning.controlnet import ControlNetConfig as NetworkConfig
from ..errors import InputError
from ..formats import controlnet as public
from ..formats.folders import PublicFolder
from ..interfaces import Batch, Draw, Objective, Precomputed, Stage
from ..networks.text_unet import TextUNetConfig
from ..objectives.denoising import denoising, held_out_bins
from . import controls, students
from .base import About, Request, System
from .stable_diffusion import BETAS, StableDiffusion, StableDiffusionConfig

KEPT_BELOW = 128 * 128  # pixels of a training picture up to which its map is computed once and kept on the disk
OTHER = "loss other control"  # the held-out loss with each picture's map exchanged for another's


class ControlConfig(BaseModel, frozen=True, extra="forbid"):
    """What control maps a model learns from."""

    kind: str = Field(LINES, description="lines: the data's own line art; or a kind of `hwaga control`")
    options: dict[str, Any] = Field({}, description="of that kind")

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        needed = [name for name, kind in kinds.KINDS.items() if any(option.needed for option in kind.options.values())]
        able = [LINES, *(name for name in kinds.KINDS if name not in needed)]
        if value not in able:
            raise ValueError(f"kind={value!r} cannot be made of training pictures alone; {', '.join(able)} can")
        return value


class ControlNetConfig(StableDiffusionConfig, frozen=True, extra="forbid"):
    controlnet: NetworkConfig = NetworkConfig()
    more_controlnets: tuple[NetworkConfig, ...] = Field((), description="further ones beside it")
    control: ControlConfig = ControlConfig()
    text_dropout: float = Field(0.5, ge=0, le=1, description="share of training pictures whose words are hidden")

    @property
    def nets(self) -> dict[str, NetworkConfig]:
        """The ControlNets by name: controlnet, controlnet_1, ..."""
        return {name_of(i): config for i, config in enumerate((self.controlnet, *self.more_controlnets))}


def name_of(i: int) -> str:
    return "controlnet" if i == 0 else f"controlnet_{i}"


def ignored(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A control that makes no difference: with another picture's map the model does as well as with the right one."""
    heard = [
        (r["held_out.loss"], r[f"held_out.{OTHER}"]) for r in rows if f"held_out.{OTHER}" in r and "held_out.loss" in r
    ]
    if len(heard) > 2 and all(other <= given for given, other in heard[-2:]):
        return (
            f"the control is not looked at: held-out loss {heard[-1][0]:.5g} with the right map, {heard[-1][1]:.5g} with another "
            "picture's; early in training that is usual, later a higher training.learning_rate helps"
        )
    scores = [r for r in rows if "score.control_given" in r]
    if scores and scores[-1]["score.control_given"] <= scores[-1]["score.control_floor"]:
        given, floor = scores[-1]["score.control_given"], scores[-1]["score.control_floor"]
        return f"the control is not followed: {given:.3f} of it is found in what was painted, {floor:.3f} of a shuffled one"
    return None


def check_fits(base: TextUNetConfig, name: str, net: nn.Module, source: str) -> None:
    """InputError where a network is no ControlNet, or one for another model: says by which of its sizes."""
    config: Any = net.config
    if not isinstance(config, NetworkConfig):
        raise InputError(f"components[{name!r}]={source}: {type(net).__name__} is no ControlNet")
    for key, what in (("text_width", "takes texts of width"), ("added_width", "is told sizes and pooled texts of width"),
                      ("channels", "has the widths"), ("blocks", "has residual blocks a level:")):  # fmt: skip
        theirs, ours = getattr(config, key), getattr(base, key)
        if theirs != ours:
            raise InputError(
                f"components[{name!r}]={source}: a ControlNet for another model: it {what} {theirs}, this model {ours}"
            )


class ControlNet(Controlled, StableDiffusion):
    """Networks: those of a StableDiffusion, locked, and `controlnet`, `controlnet_1`, ...; alone it waits for a base."""

    name, title, year = "controlnet", "ControlNet", 2023
    paper = "Adding Conditional Control to Text-to-Image Diffusion Models (arXiv:2302.05543)"
    formats: ClassVar[tuple[str, ...]] = ("diffusers", "single")
    may_lack: ClassVar[tuple[str, ...]] = (*StableDiffusion.may_lack, "network")
    takes: ClassVar[tuple[str, ...]] = (*StableDiffusion.takes, "control", "control_scale")
    own: ClassVar[Mapping[str, str]] = {
        **StableDiffusion.own,
        **OWN,
    }
    Config = ControlNetConfig

    # ------------------------------------------------------------------------------------------------- what it is made of

    @classmethod
    def network_configs(cls, config: Any) -> dict[str, Any]:
        return {**super().network_configs(config), **config.nets}

    @classmethod
    def complete(cls, config: dict[str, Any], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
        config = super().complete(config, size, classes)
        base, net = TextUNetConfig(**config["network"]), dict(config.get("controlnet") or {})
        codec = config.get("autoencoder")
        if "hint_channels" not in net:  # as many halvings as the autoencoder has
            levels = 1 if codec is None else len(codec.get("channels", ())) or 4
            net["hint_channels"] = NetworkConfig().hint_channels[:levels]
        return {**config, "controlnet": NetworkConfig.of(base, **net).model_dump(mode="json")}

    @classmethod
    def check_component(cls, config: Mapping[str, Any], name: str, other: System) -> None:
        """The locked network is asked as it was trained: the process is its own."""
        super().check_component(config, name, other)
        if name == "network":
            students.check_path(config.get("process") or BETAS.model_dump(), other, name)

    @classmethod
    def create(cls, config: Mapping[str, Any], **rest: Any) -> ControlNet:  # type: ignore[override]
        """A ControlNet begins as a copy of the U-Net that it is to control."""
        system = super().create(config, **rest)
        for name in system.nets:
            if name not in (rest.get("components") or {}):
                system.networks[name].copy(system.networks["network"])
        return system

    @classmethod
    def over(cls, base: Any, nets: Mapping[str, nn.Module], layouts: Mapping[str, Any], source: str = "") -> ControlNet:
        """A Stable Diffusion with ControlNets beside it. InputError where one is for another model."""
        for name, net in nets.items():
            check_fits(base.config.network, name, net, source)
        before = [base.networks[name] for name in base.config.nets] if isinstance(base, ControlNet) else []
        every = [*before, *nets.values()]
        told = base.config.model_dump(exclude={"controlnet", "more_controlnets"})
        first, *more = (net.config for net in every)
        config = cls.checked({**told, "controlnet": first, "more_controlnets": tuple(more)})
        about = base.about.model_copy(update={"layout": {**base.about.layout, **layouts}})
        held = {name: network for name, network in base.networks.items() if not name.startswith("controlnet")}
        return cls(config, {**held, **{name_of(i): net for i, net in enumerate(every)}}, about)

    @classmethod
    def alone(cls, found: public.Found, dtype: torch.dtype, device: torch.device) -> ControlNet:
        """A ControlNet without the model that it is for: it can be written in another layout, or put beside that model."""
        fields = {name: getattr(found.config, name) for name in TextUNetConfig.model_fields}
        base = TextUNetConfig(**{**fields, "out_channels": found.config.in_channels})
        codec = {"latent_channels": found.config.in_channels}
        config = cls.checked({"network": base, "controlnet": found.config, "autoencoder": codec})
        about = About(size=(512, 512), layout={"controlnet": found.layout})
        return cls(config, {"controlnet": found.network(dtype, device)}, about)

    def take(self, part: str, network: Any, source: str) -> None:
        """Another ControlNet may have another hint network."""
        if part not in self.config.nets:
            return super().take(part, network, source)
        check_fits(self.config.network, part, network, source)
        first, *more = ({**self.config.nets, part: network.config}).values()
        self.config = self.config.model_copy(update={"controlnet": first, "more_controlnets": tuple(more)})
        self.networks[part] = network

    # --------------------------------------------------------------------------------------------------- folders and files

    @classmethod
    def from_diffusers(cls, path: Path, dtype: torch.dtype, device: torch.device) -> ControlNet:
        """A pipeline's folder with one or more ControlNets (`controlnet`, `controlnet_1`, ...), or one ControlNet's folder."""
        if not (path / "unet").is_dir():
            return cls.alone(public.read_component(PublicFolder(path, "controlnet")), dtype, device)
        base, folder = StableDiffusion.from_diffusers(path, dtype, device), PublicFolder(path, "unet")
        left_out = {n: at for n, at in base.about.layout.get("left_out", {}).items() if not n.startswith("controlnet")}
        found: dict[str, public.Found] = {}
        while (path / name_of(len(found))).is_dir():
            found[name_of(len(found))] = public.read_component(folder, name_of(len(found)))
        if not found:
            raise InputError(f"{path} has no folder 'controlnet', which its model_index.json names")
        layouts = {**{name: one.layout for name, one in found.items()}, "left_out": left_out}
        return cls.over(base, {name: one.network(dtype, device) for name, one in found.items()}, layouts, str(path))

    def to_diffusers(self, folder: Path) -> None:
        """Writes the public layout: of the whole pipeline, or of the ControlNet alone where that is all there is."""
        layout = self.about.layout
        if "network" not in self.networks:
            public.write_folder(folder, self.networks["controlnet"], layout.get("controlnet") or {})
            return
        super().to_diffusers(folder)
        for name, net in self.nets.items():
            public.write_folder(folder / name, net, layout.get(name) or {})
        public.write_index(folder, len(self.nets))

    @classmethod
    def from_file(
        cls, path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device,
        components: Mapping[str, Any],
    ) -> ControlNet:  # fmt: skip
        """An original file: the ControlNet alone, or (the first release) with all of Stable Diffusion."""
        found = public.read_file(path, tensors)
        if public.is_alone(tensors):
            return cls.alone(found, dtype, device)
        base = StableDiffusion.from_file(path, public.base_of(tensors), dtype, device, components)
        layouts = {"controlnet": found.layout, "whole": True}
        return cls.over(base, {"controlnet": found.network(dtype, device)}, layouts, str(path))

    def to_file(self, path: Path) -> None:
        """The ControlNet alone, with the original authors' names, as its base has a file of its own; both, where one file held
        both when they were loaded."""
        layout = self.about.layout
        if len(self.nets) > 1:
            raise InputError(
                f"a single file holds one ControlNet, this model has {len(self.nets)}; format diffusers has room"
            )
        if not layout.get("whole"):
            return public.write_file(path, self.networks["controlnet"], layout.get("controlnet") or {})
        super().to_file(path)
        public.add_to_file(path, self.networks["controlnet"], layout["controlnet"])

    # ---------------------------------------------------------------------------------------------------------- how it learns

    def stages(self) -> list[Stage]:
        nets = self.nets
        for name, network in self.networks.items():
            network.requires_grad_(name in nets)
        objective = Objective("denoising", tuple(nets), self.loss)
        return [Stage("denoising", nets, [objective], tuple(nets), self.held_out, alarms=[ignored], shows=self.shown)]

    def held_out(self, batch: Batch, draw: Draw) -> Mapping[str, Tensor]:
        """The loss by time, and what it is when every picture has another's control: that shows whether maps are looked at."""
        given, x0 = self.conditions(batch), self.seen(batch, draw)
        other = {name: value.roll(1, 0) if name.startswith("hint") else value for name, value in given.items()}
        found = held_out_bins(lambda part: denoising(self.compute, self.process, x0, given, draw, part))
        swapped = held_out_bins(lambda part: denoising(self.compute, self.process, x0, other, draw, part))
        return {**found, OTHER: swapped["loss"]}

    def map_of(
        self, name: str, given: Any, kind: str | None, options: Mapping[str, Any] | None, size: tuple[int, int]
    ) -> Tensor:  # fmt: skip
        """A control map that has to be read, resized or made first."""
        if kind is None:
            return controls.ready(name, given, size)
        return controls.map_from(given, kind, options, size, name)

    def of_region(
        self, request: Request, whole: tuple[int, int], box: tuple[int, int, int, int], size: tuple[int, int]
    ) -> dict[str, Any]:  # fmt: skip
        """The control maps of the whole picture, cut to the region."""
        every, (top, left, bottom, right) = replace(request, size=whole, pictures=tuple(range(request.total))), box
        cut = [self.map(every, i)[:, :, top:bottom, left:right] for i in range(len(self.nets))]
        maps = [torch.cat([controls.ready("control", one, size) for one in several]) for several in cut]
        return {"control": maps, "control_kind": None, "control_options": None}

    def data_extras(self) -> tuple[str, ...]:
        return ("line_art",) if self.config.control.kind == LINES else ()

    def precomputed(self) -> Mapping[str, Precomputed]:
        """Control maps of small pictures are made once."""
        how, (height, width) = self.config.control, self.about.size
        if how.kind == LINES or height * width > KEPT_BELOW:
            return super().precomputed()
        key = hashlib.sha256(json.dumps([1, how.kind, how.options], sort_keys=True).encode()).hexdigest()
        channels = 1 if kinds.KINDS[how.kind].grey else 3
        made = Precomputed(lambda: key, (channels, height, width), lambda image: self.made(image)[:, :channels])
        return {**super().precomputed(), CONTROL: made}

    @torch.no_grad()
    def shown(self, batch: Batch) -> Tensor:
        """Control maps of held-out pictures, each beside what is painted by it."""
        maps, words = self.maps(batch).cpu(), list(batch.caption or [""] * len(batch))
        painted = self.sample(prompt=words, control=maps, seed=0, output="tensor", progress=False)
        return torch.stack([maps, painted], dim=1).flatten(0, 1) * 2 - 1

    def blank(self) -> dict[str, Any]:
        """A black map, which says nothing."""
        return {"control": [torch.zeros(3, *self.about.size)] * len(self.nets)}

    def preview(self, n: int, seed: int = 0) -> Tensor:
        """Pictures of a fixed seed without any control."""
        pictures: Tensor = self.sample(n=n, seed=seed, output="tensor", progress=False, **self.blank())
        return pictures
